"""Policies from disk or hub and back: base models, full checkpoints, adapters on their base.

A model is loaded in evaluation mode and stays in it: dropout (the model's and LoRA's) is off in rollouts, log-probs
and RL updates, so that the ratio of new to old policy starts at exactly 1. Only 03, whose trainer switches to training
mode, applies `lora.dropout`.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from utils.errors import UserError
from utils.files import new_folder, read_json, write_json
from utils.models.hub import cannot_load, offline
from utils.models.linear import use_wide_products
from utils.settings import LoraSettings, ModelSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Model: TypeAlias = "PreTrainedModel | PeftModel"
ROOT = Path(__file__).resolve().parents[2]
ADAPTER = "default"
"""Name of the adapter that is trained; `utils.models.reference` adds its frozen copy as `sft`."""


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. UserError when CUDA is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device; use --device cpu or auto")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def autocast(model: ModelSettings, device: torch.device) -> AbstractContextManager[Any]:
    """The forward pass's arithmetic: bf16 autocast for `precision: bf16`, nothing for fp32.

    Enter it anew for each forward pass that needs a gradient: autocast keeps the cast weights until it is left.
    """
    if model.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def load_model(
    model: ModelSettings, lora: LoraSettings, *, checkpoint: Path | None, trainable: bool, device: torch.device
) -> Model:
    """The model of `checkpoint` (a full one, or an adapter on its recorded base), or the base model itself.

    * Trainable with `lora.use_lora`: only an adapter trains, the checkpoint's own or a fresh one (which changes nothing
      until it is trained: its B matrices are zero). The fresh one draws from torch's global generator.
    * Trainable without: every weight trains, in fp32.
    * Weights are fp32; the base under an adapter is bf16 with `precision: bf16`, as it never changes. With
      `load_in_4bit` or `load_in_8bit` its linear layers are quantised when they are read, the adapter stays fp32.

    Raises UserError, one line, when the model is missing, gated or unreachable, lacks weights, or differs from what
    the config says about it.
    """
    is_adapter = checkpoint is not None and (checkpoint / "adapter_config.json").is_file()
    if is_adapter and not lora.use_lora:
        raise UserError(f"{checkpoint} holds an adapter, but lora.use_lora is false: give the --config of its training")
    if checkpoint is not None and not is_adapter and not (checkpoint / "config.json").is_file():
        raise UserError(f"{checkpoint}: neither config.json nor adapter_config.json; expected a checkpoint folder")
    source = model.name if checkpoint is None else _base_of(checkpoint) if is_adapter else str(checkpoint)
    if trainable and not lora.use_lora and (model.load_in_4bit or model.load_in_8bit):
        flag = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
        raise UserError(f"model.{flag}: quantised weights cannot train; set lora.use_lora: true, which trains adapters")
    base = _load_base(source, model, lora, device)
    policy: Model = base
    if lora.use_lora:
        policy = _with_adapter(base, lora, checkpoint if is_adapter else None, trainable)
        _keep_fp32(policy)
    if not trainable:
        policy.requires_grad_(False)
    return policy.to(device).eval()


def save_model(
    model: Model, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Hugging Face layout, whole or not at all: safetensors (or the adapter with its base's path) + tokenizer.

    `weights`: of a model whose own are in shares (`utils.models.sharding.whole_weights`).
    """
    with new_folder(folder) as target:
        write_model(model, tokenizer, target, weights)


def write_model(
    model: Model, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """The files of `save_model` into a folder that exists. Of a PeftModel only the adapter `default` is written."""
    _quiet_transformers()
    if hasattr(model, "peft_config"):
        # save_embedding_layers=False: peft would otherwise ask the hub for the base's vocabulary size
        model.save_pretrained(str(folder), selected_adapters=[ADAPTER], save_embedding_layers=False)
        in_order(folder / "adapter_config.json")
    else:
        model.save_pretrained(str(folder), state_dict=weights)
    tokenizer.save_pretrained(str(folder))


def in_order(adapter_config: Path) -> None:
    """Sort the names of the adapted layers: peft keeps them in a set, whose order differs from process to process."""
    config = read_json(adapter_config)
    if isinstance(config.get("target_modules"), list):
        write_json(adapter_config, config | {"target_modules": sorted(config["target_modules"])})


def load_weights(model: Model, checkpoint: Path) -> None:
    """Put the weights that `save_model` wrote into a model that is already built, exactly as they were.

    Of a PeftModel the adapter `default`; the base and other adapters stay. UserError when the shapes differ.
    """
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        found = set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"), adapter_name=ADAPTER)
        missing = [name for name in found.missing_keys if f".{ADAPTER}." in name]
        if missing or found.unexpected_keys:
            first = (missing + found.unexpected_keys)[0]
            raise UserError(f"{checkpoint}: its adapter does not fit the model, first at {first}")
        return
    from transformers import AutoModelForCausalLM

    from utils.models.sharding import take_weights

    take_weights(model, AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.float32).state_dict())


def trainable_parameters(model: Model) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter of everything that trains. UserError when nothing does."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not named:
        raise UserError("the model has no trainable parameter: nothing would be learned")
    return named


def find_model(name: str) -> str:
    """A folder (as given, or seen from the repository's root) or a hub id. UserError for a path that is not there."""
    for folder in (Path(name), ROOT / name):
        if folder.is_dir():
            return str(folder)
    if name.startswith((".", "/", "~", "assets/", "outputs/")) or name.count("/") != 1:
        raise UserError(f"model.name {name!r}: no such folder; expected a model folder or a hub id like owner/name")
    return name


def _base_of(adapter: Path) -> str:
    recorded = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(recorded, str) or not recorded:
        raise UserError(f"{adapter}/adapter_config.json: base_model_name_or_path is missing; expected the base's path")
    return recorded


def _quiet_transformers() -> None:
    """No bars for shards, and no warning that peft causes inside transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def quantization(model: ModelSettings) -> BitsAndBytesConfig | None:
    """How the base's linear layers are stored: NF4 with quantised constants (Dettmers et al. 2023, arXiv:2305.14314)
    or LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339); None as they are.

    With 8 bits, whether an activation counts as an outlier depends on the whole batch: log-probs of a sample then vary
    a little with its neighbours.
    """
    from transformers import BitsAndBytesConfig

    if model.load_in_4bit:
        arithmetic = torch.bfloat16 if model.precision == "bf16" else torch.float32
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=arithmetic,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model.load_in_8bit else None


def _load_base(name: str, model: ModelSettings, lora: LoraSettings, device: torch.device) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    from utils.models.attention import attention_in_blocks

    _quiet_transformers()
    source = find_model(name)
    local = offline(source)
    stored = quantization(model)
    dtype = torch.bfloat16 if (lora.use_lora or stored) and model.precision == "bf16" else torch.float32
    # quantised layers are made on the device that they stay on
    placement = {} if stored is None else {"quantization_config": stored, "device_map": {"": str(device)}}
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        _check_config(config, model, source)
        attention = attention_in_blocks() if _takes_attention(config) else "eager"
        loaded, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            local_files_only=local,
            **placement,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_load("model", source, error) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"model {source!r}: {len(missing)} weights are missing from its files, first {missing[0]}")
    _one_arithmetic(loaded)
    use_wide_products(loaded)
    result: PreTrainedModel = loaded
    return result


def _takes_attention(config: PreTrainedConfig) -> bool:
    """Whether a family computes its attention by the function that a name is registered for.

    Soft-capped scores exist in the eager implementation only, and some old families have no other: they would meet a
    registered name with a KeyError, or its masks with their own arithmetic.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if getattr(config, "attn_logit_softcapping", None):
        return False
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # no language model, as will be said
        return True
    family = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__]
    return hasattr(family, "ALL_ATTENTION_FUNCTIONS")


def _one_arithmetic(base: PreTrainedModel) -> None:
    """The same kernels with and without gradient for 4-bit layers on CPUs.

    bitsandbytes packs their weights anew at the first pass without gradient and then takes a kernel that gives other
    values and, in evaluation mode, passes no gradient on: after the first sampling, RL would train the last layer only.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_config(config: PreTrainedConfig, model: ModelSettings, source: str) -> None:
    """What the model file says must be what the model is: a wrong file would train something else in silence."""
    found = {
        "type": config.model_type,
        "architecture": (config.architectures or [""])[0],
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
    }
    for key, value in found.items():
        expected = getattr(model, key)
        if expected and value != expected:
            raise UserError(
                f"model {source!r}: {key} is {value!r} but the model file says model.{key}: {expected!r}; "
                "correct the file or model.name"
            )


def _with_adapter(base: PreTrainedModel, lora: LoraSettings, checkpoint: Path | None, trainable: bool) -> PeftModel:
    from peft import LoraConfig, PeftModel, get_peft_model

    if checkpoint is not None:
        return PeftModel.from_pretrained(base, str(checkpoint), adapter_name=ADAPTER, is_trainable=trainable)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        # GPT-2 keeps its matrices transposed
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in base.modules()),
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(base, config, adapter_name=ADAPTER)
    except ValueError as error:
        raise UserError(
            f"lora.target_modules {', '.join(lora.target_modules)}: {str(error).splitlines()[0][:160]}; "
            "expected names of this model's linear layers"
        ) from error
    assert isinstance(adapted, PeftModel)
    return adapted


def _keep_fp32(policy: PeftModel) -> None:
    """TRL's trainers cast adapters to bf16, where small updates are lost, when the model says its base is quantised."""
    policy.is_loaded_in_4bit = policy.is_loaded_in_8bit = False
