"""Loading and saving: what trains, in which precision, and one line for everything that can be wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.invariants.tiny import letter_tokenizer, save_letter_model
from utils.errors import UserError
from utils.files import read_json, sha256
from utils.models import hub
from utils.models.load import autocast, load_model, load_weights, resolve_device, save_model, trainable_parameters
from utils.rl.logprobs import completion_logprobs
from utils.rl.packing import lay_out, unpackable
from utils.settings import LoraSettings, ModelSettings

CPU = torch.device("cpu")
LORA = LoraSettings(use_lora=True, r=2, alpha=4, target_modules=("q_proj", "v_proj"))
FULL = LoraSettings()
IDS = torch.tensor([[1, 4, 5, 6]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_letter_model(tmp_path / "base")
    return tmp_path / "base"


def load(base: Path, lora: LoraSettings, checkpoint: Path | None = None, trainable: bool = True, **model: object):
    settings = ModelSettings(name=str(base), **model)  # type: ignore[arg-type]
    return load_model(settings, lora, checkpoint=checkpoint, trainable=trainable, device=CPU)


def test_full_training_trains_every_weight_in_fp32(base: Path) -> None:
    model = load(base, FULL, precision="bf16")
    assert set(trainable_parameters(model)) == {name for name, _ in model.named_parameters()}
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training


def test_lora_trains_the_adapter_alone_on_a_base_in_the_precision_of_the_forward_pass(base: Path) -> None:
    model = load(base, LORA, precision="bf16")
    trainable = trainable_parameters(model)
    assert trainable and all("lora_" in name and p.dtype == torch.float32 for name, p in trainable.items())
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert not model.training


def test_nothing_trains_when_not_asked(base: Path, tmp_path: Path) -> None:
    save_model(load(base, LORA), letter_tokenizer(), tmp_path / "adapter")
    for model in (load(base, FULL, trainable=False), load(base, LORA, tmp_path / "adapter", trainable=False)):
        with pytest.raises(UserError, match="no trainable parameter"):
            trainable_parameters(model)


def test_an_adapter_goes_on_training_where_it_was_saved(base: Path, tmp_path: Path) -> None:
    """peft's default would freeze it: gradients flow and nothing is learned."""
    model = load(base, LORA)
    for parameter in trainable_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.5)
    save_model(model, letter_tokenizer(), tmp_path / "adapter")
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["base_model_name_or_path"] == str(base)
    again = load(base, LORA, tmp_path / "adapter")
    assert set(trainable_parameters(again)) == set(trainable_parameters(model))
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    fresh = load(base, LORA)
    assert not torch.equal(fresh(IDS).logits, model(IDS).logits)
    load_weights(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)


def test_equal_adapters_are_saved_as_equal_bytes(base: Path, tmp_path: Path) -> None:
    """peft's set of names has another order in every process."""
    names = ("v_proj", "up_proj", "q_proj", "o_proj", "k_proj", "gate_proj", "down_proj")
    lora = LoraSettings(use_lora=True, r=2, alpha=4, target_modules=names)
    save_model(load(base, lora), letter_tokenizer(), tmp_path / "adapter")
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["target_modules"] == sorted(names)


def test_load_save_load_is_stable(base: Path, tmp_path: Path) -> None:
    model = load(base, FULL)
    torch.nn.init.normal_(model.model.layers[0].mlp.up_proj.weight)
    save_model(model, letter_tokenizer(), tmp_path / "one")
    again = load(base, FULL, tmp_path / "one")
    save_model(again, letter_tokenizer(), tmp_path / "two")
    assert sha256(tmp_path / "one" / "model.safetensors") == sha256(tmp_path / "two" / "model.safetensors")
    other = load(base, FULL)
    load_weights(other, tmp_path / "one")
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    # a fresh adapter on a full checkpoint changes nothing yet, and names that checkpoint as its base
    adapted = load(base, LORA, tmp_path / "one")
    assert torch.equal(adapted(IDS).logits, model(IDS).logits)
    save_model(adapted, letter_tokenizer(), tmp_path / "adapter")
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["base_model_name_or_path"] == str(tmp_path / "one")


@pytest.mark.parametrize("bits", [{}, {"load_in_4bit": True}, {"load_in_8bit": True}])
def test_load_save_load_of_an_adapter_is_stable(base: Path, tmp_path: Path, bits: dict[str, bool]) -> None:
    model = load(base, LORA, **bits)
    for parameter in trainable_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.5)
    save_model(model, letter_tokenizer(), tmp_path / "one")
    again = load(base, LORA, tmp_path / "one", **bits)
    save_model(again, letter_tokenizer(), tmp_path / "two")
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two")
    third = load(base, LORA, tmp_path / "two", **bits)
    assert torch.equal(third(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 64}, "hidden_size is 32 but the model file says model.hidden_size: 64"),
        ({"num_layers": 2}, "num_layers is 1"),
        ({"vocab_size": 99}, "vocab_size is 14"),
        ({"architecture": "GPT2LMHeadModel"}, "architecture is 'LlamaForCausalLM'"),
        ({"type": "gpt2"}, "type is 'llama'"),
    ],
)
def test_a_model_file_that_describes_another_model_is_refused(base: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(base, FULL, **settings)


def test_what_is_not_there_is_one_line(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    save_letter_model(broken)
    (broken / "model.safetensors").write_bytes(b"not safetensors")
    partial = tmp_path / "partial"
    save_letter_model(partial)
    weights = load_file(partial / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    cases = [
        ({"base": tmp_path / "nowhere"}, "no such folder"),
        (
            {"base": Path("someone/a-model-that-is-not-there")},
            "cannot be loaded: it is not downloaded and the hub cannot",
        ),
        ({"base": tmp_path / "empty"}, "cannot be loaded"),
        ({"base": broken}, "cannot be loaded"),
        ({"base": partial}, "1 weights are missing"),
        ({"base": base, "checkpoint": tmp_path / "empty"}, "expected a checkpoint folder"),
        ({"base": base, "lora": LoraSettings(use_lora=True, target_modules=("c_attn",))}, "lora.target_modules c_attn"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            load(**{"lora": FULL, **arguments})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cause", "token", "expected"),
    [
        ("GatedRepoError", None, "gated and no token is set: accept the licence at https://huggingface.co/owner/one"),
        (
            "GatedRepoError",
            "hf_x",
            "gated and this account has no access: accept the licence at https://huggingface.co",
        ),
        ("RepositoryNotFoundError", None, "the hub does not know it"),
        ("LocalEntryNotFoundError", None, "run `bash download.sh --model owner/one`, or give a local folder"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    cause: str, token: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`from_pretrained` hides the hub's error behind one of its own, whose first line does not say what to do."""
    import huggingface_hub
    from huggingface_hub import errors

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    answer = SimpleNamespace(status_code=403, headers={}, request=None, url="", text="", json=dict)
    error = OSError("You are trying to access a gated repo.\nMake sure to have access to it.")
    refused: type[Exception] = getattr(errors, cause)
    arguments = {} if cause == "LocalEntryNotFoundError" else {"response": answer}
    error.__cause__ = refused("403 Client Error.\nmore lines", **arguments)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(UserError) as caught:
        load(Path("owner/one"), FULL)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_the_hub_is_asked_for_once_and_only_for_hub_ids(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client itself would try six times, with a line on the terminal for each."""
    calls: list[object] = []

    def refuse(address: object, timeout: float) -> None:
        calls.append(address)
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub.socket, "create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    hub._hub_answers.cache_clear()
    assert not hub.offline(str(base)) and calls == []
    assert hub.offline("owner/one") and hub.offline("owner/two") and calls == [("huggingface.co", 443)]
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    hub._hub_answers.cache_clear()
    assert not hub.offline("owner/one") and len(calls) == 1
    hub._hub_answers.cache_clear()


def test_an_adapter_needs_the_settings_it_was_trained_with(base: Path, tmp_path: Path) -> None:
    save_model(load(base, LORA), letter_tokenizer(), tmp_path / "adapter")
    with pytest.raises(UserError, match="lora.use_lora is false"):
        load(base, FULL, tmp_path / "adapter")


def test_device_and_autocast() -> None:
    assert resolve_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert resolve_device("auto") == CPU
        with pytest.raises(UserError, match="no CUDA device"):
            resolve_device("cuda")
    product = torch.ones(2, 2)
    with autocast(ModelSettings(precision="bf16"), CPU):
        assert (product @ product).dtype == torch.bfloat16
    with autocast(ModelSettings(precision="fp32"), CPU):
        assert (product @ product).dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neo", "codegen", "bloom", "gemma2"])
def test_every_family_s_rows_give_what_its_own_eager_attention_gives(family: str, tmp_path: Path) -> None:
    """Old families know no registered attention; a row padded on both sides equals the same row alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2, "hidden_size": 16}
    own: dict[str, dict[str, object]] = {
        "llama": heads | {"intermediate_size": 16},
        "gemma2": heads | {"intermediate_size": 16, "head_dim": 8, "layer_types": ["full_attention"] * 2},
        "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 2},
        "codegen": {"n_embd": 16, "n_head": 4, "n_layer": 2, "rotary_dim": 4},
        "bloom": {"hidden_size": 16, "n_head": 2, "n_layer": 2},
        "gpt_neo": {
            "hidden_size": 16, "num_heads": 2, "num_layers": 2, "attention_types": [[["global", "local"], 1]],
            "window_size": 3,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, **own[family])
    base = AutoModelForCausalLM.from_config(config)
    for weight in base.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    base.save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base", FULL, trainable=False, type=family, architecture="")
    prompts, groups = [[5, 6, 7, 8, 9], [10, 11]], [[[12, 13, 14], [15]], [[16, 17, 18, 19]]]
    logp, _ = completion_logprobs(model, lay_out(model, prompts, groups, pad_id=0))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager").eval()
    expected = []
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
            expected += [logits[len(prompt) - 1 + t, token] for t, token in enumerate(completion)]
    assert float((logp - torch.stack(expected)).abs().max()) < 1e-5
    assert (unpackable(model) is None) == (family in ("llama", "gpt2"))
