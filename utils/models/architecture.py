"""What a model is made of, from its configuration alone: no weights are read and none are made.

Llama and its kin have a matrix each for queries, keys and values (`q_proj`, `k_proj`, `v_proj`, `o_proj`). GPT-2 has
one for all three (`c_attn`) and calls two others `c_proj`, one in the attention and one in the MLP, so that LoRA on
`c_proj` adapts both; its matrices are stored transposed (`Conv1D`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.files import read_json, read_yaml
from utils.models.hub import cannot_load, offline
from utils.models.load import find_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MODEL_FILES = Path(__file__).resolve().parents[2] / "configs" / "models"
PARTS = ("embeddings", "attention", "mlp", "norms", "head")


@dataclass(frozen=True)
class Layer:
    """One linear layer: its name in full, the name that `lora.target_modules` uses, and its shape."""

    path: str
    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Architecture:
    """A model's shape. `parts` counts parameters (a tied head shares the embeddings' and counts 0);
    `linear` are the layers that adapters and quantisation can take, so without the head."""

    config: PreTrainedConfig
    kind: str
    parts: dict[str, int]
    linear: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """All parameters, each once."""
        return sum(self.parts.values())

    @property
    def layer_names(self) -> list[str]:
        """Names for `lora.target_modules`, in order of appearance."""
        return list(dict.fromkeys(layer.name for layer in self.linear))

    @property
    def attention_names(self) -> list[str]:
        """Those of the attention: the usual targets."""
        return list(dict.fromkeys(layer.name for layer in self.linear if _in_attention(layer.path)))

    def targets(self, names: tuple[str, ...] | list[str]) -> list[tuple[int, int]]:
        """(inputs, outputs) of the layers with these names. UserError for a name that no layer has."""
        for name in names:
            if name not in self.layer_names:
                raise UserError(f"lora.target_modules {name}: the model has {', '.join(self.layer_names)}")
        return [(layer.inputs, layer.outputs) for layer in self.linear if layer.name in names]

    @property
    def cache_values_per_token(self) -> int:
        """Numbers that the key-value cache keeps for each token: 2 x layers x key-value heads x width of a head."""
        config: Any = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * width)


def find_config(name: str) -> tuple[str, PreTrainedConfig]:
    """(what it was read from, configuration) of a folder with config.json, a model file, or a hub id.

    A model file of a hub model holds the configuration itself, under `metadata.config`; where the hub does not hand out
    the configuration of a model that a shipped file names, that file's stands in.

    Raises:
        UserError: nothing there, not reachable, gated, or no language model's configuration.
    """
    from transformers import AutoConfig

    file = Path(name) if name.endswith((".yaml", ".yml")) else MODEL_FILES / f"{name}.yaml"
    if file.suffix == ".yaml" and (file.is_file() or name.endswith((".yaml", ".yml"))):
        return _config_of_file(file)
    source = find_model(name)
    try:
        return source, AutoConfig.from_pretrained(source, local_files_only=offline(source))
    except (OSError, ValueError) as error:
        shipped = file_of_model(source)
        if shipped is None:
            raise cannot_load("model", source, error) from error
        return _config_of_file(shipped)


def file_of_model(name: str) -> Path | None:
    """The shipped model file whose `model.name` is this, the one with the shortest name where there are several."""
    files = [path for path in MODEL_FILES.glob("*.yaml") if read_yaml(path).data.get("model", {}).get("name") == name]
    return min(files, key=lambda path: (len(path.name), path.name), default=None)


def _config_of_file(file: Path) -> tuple[str, PreTrainedConfig]:
    from transformers import AutoConfig

    data = read_yaml(file).data
    named = str(data.get("model", {}).get("name", ""))
    known = data.get("metadata", {}).get("config")
    if known is None:
        return named, find_config(named)[1]
    try:
        return f"{file.name}, metadata.config", AutoConfig.for_model(**known)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: metadata.config: {str(error).splitlines()[0][:200]}") from error


def architecture(config: PreTrainedConfig) -> Architecture:
    """Counts of the model that this configuration builds. UserError for what is no causal language model."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{config.model_type}: expected a causal language model ({reason})") from error
    head = model.get_output_embeddings()
    parts = dict.fromkeys(PARTS, 0)
    linear = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for p in own)
        parts[_part(path, module, module is head)] += sum(p.numel() for p in own)
        shape = _shape(module)
        if shape and module is not head:
            linear.append(Layer(path, path.rpartition(".")[2], *shape))
    return Architecture(config, type(model).__name__, parts, tuple(linear))


def _shape(module: Any) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, None for other modules."""
    kind = type(module).__name__
    if kind == "Linear":
        return module.in_features, module.out_features
    return tuple(module.weight.shape) if kind == "Conv1D" else None  # stored as [inputs, outputs]


def _part(path: str, module: Any, is_head: bool) -> str:
    if is_head:
        return "head"
    if type(module).__name__ == "Embedding":
        return "embeddings"
    if _shape(module) is None:
        return "norms"
    return "attention" if _in_attention(path) else "mlp"


def _in_attention(path: str) -> bool:
    return any("attn" in word or "attention" in word for word in path.split(".")[:-1])


def has_chat_template(source: str) -> bool:
    """Whether the model was made to chat: its folder has a template, or its hub id says so."""
    folder = Path(source)
    if not folder.is_dir():
        return any(word in source.lower() for word in ("instruct", "chat"))
    settings = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (
        settings.is_file() and bool(read_json(settings).get("chat_template"))
    )
