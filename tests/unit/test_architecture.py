"""What a model is made of: published totals, adapters as peft makes them, bytes as bitsandbytes takes them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import inspect_model_architecture as script
from tests.invariants.chat import save_chat_tokenizer
from tests.invariants.tiny import save_letter_model, tiny_model
from utils.config import resolve
from utils.errors import UserError
from utils.files import read_yaml
from utils.models import hub
from utils.models.architecture import architecture, file_of_model, find_config
from utils.models.load import load_model
from utils.models.memory import PRECISIONS, adapter_parameters, gigabytes, weight_bytes
from utils.models.model_file import file_name
from utils.settings import LoraSettings, ModelSettings

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3-8b": 8_030_261_248,
    "tinyllama-1.1b": 1_100_048_384,
    "dialogpt-medium": 354_823_168,
}
"""Parameters of the published weights."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_model_files_hold_the_whole_architecture(name: str) -> None:
    found = architecture(find_config(name)[1])
    assert found.parameters == PUBLISHED[name]
    data = read_yaml(ROOT / "configs/models" / f"{name}.yaml").data
    assert found.layer_names == data["metadata"]["all_available_layers"]
    config: Any = found.config
    told = data["model"]
    assert (told["type"], told["architecture"]) == (config.model_type, found.kind)
    assert told["hidden_size"] == config.hidden_size and told["num_layers"] == config.num_hidden_layers
    assert told["vocab_size"] == config.vocab_size


def test_parts_by_hand() -> None:
    """Llama 3.2 1B: keys and values for 8 heads of width 64; three matrices of 2048 x 8192 in each MLP; a tied head."""
    found = architecture(find_config("llama-3.2-1b")[1])
    assert found.parts == {
        "embeddings": 128256 * 2048,
        "attention": 16 * (2 * 2048 * 2048 + 2 * 2048 * 512),
        "mlp": 16 * 3 * 2048 * 8192,
        "norms": (2 * 16 + 1) * 2048,
        "head": 0,
    }
    assert found.cache_values_per_token == 2 * 16 * 8 * 64
    assert found.attention_names == ["q_proj", "k_proj", "v_proj", "o_proj"]
    # q and o: 32 x (2048 + 2048); k and v: 32 x (2048 + 512)
    assert adapter_parameters(found.targets(found.attention_names), 32) == 16 * 32 * (2 * 4096 + 2 * 2560)


def test_gpt2_has_one_matrix_for_queries_keys_and_values() -> None:
    found = architecture(find_config("dialogpt-medium")[1])
    assert found.attention_names == ["c_attn", "c_proj"]
    assert found.targets(["c_attn"]) == [(1024, 3072)] * 24
    assert found.targets(["c_proj"]) == [(1024, 1024), (4096, 1024)] * 24  # attention and MLP
    with pytest.raises(UserError, match="lora.target_modules q_proj: the model has c_attn, c_proj, c_fc"):
        found.targets(["q_proj"])


@pytest.mark.parametrize(("kind", "names"), [("llama", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"])])
def test_adapters_and_cache_are_what_the_libraries_make(kind: str, names: list[str]) -> None:
    model = tiny_model(f"{kind}-lora")  # rank 4
    found = architecture(model.config)
    trained = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert adapter_parameters(found.targets(names), 4) == trained
    assert found.parameters == sum(p.numel() for n, p in model.named_parameters() if "lora_" not in n)
    cache = model(torch.tensor([[3, 4, 5]]), use_cache=True).past_key_values
    values = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert found.cache_values_per_token == values // 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_take_the_bytes_that_are_foretold(precision: str, tmp_path: Path) -> None:
    save_letter_model(tmp_path)
    settings = ModelSettings(
        name=str(tmp_path), precision="fp32" if precision == "fp32" else "bf16",
        load_in_4bit=precision == "4-bit", load_in_8bit=precision == "8-bit",
    )  # fmt: skip
    lora = LoraSettings(use_lora=precision != "fp32", r=1, target_modules=("q_proj",))
    model = load_model(settings, lora, checkpoint=None, trainable=False, device=torch.device("cpu"))
    found = architecture(model.config)
    linear = [(layer.inputs, layer.outputs) for layer in found.linear]
    others = found.parameters - sum(inputs * outputs for inputs, outputs in linear)
    taken = sum(bytes_of(p) for n, p in model.named_parameters() if "lora_" not in n)
    assert weight_bytes(linear, others, precision) == pytest.approx(taken, rel=0.01)


def bytes_of(parameter: Any) -> int:
    """Of the weight and of what bitsandbytes keeps beside it."""
    tensors = [parameter.data]
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    if getattr(parameter, "SCB", None) is not None:
        tensors.append(parameter.SCB)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_bytes_by_hand() -> None:
    assert weight_bytes([(64, 128)], 10, "fp32") == 4 * (64 * 128 + 10)
    assert weight_bytes([(64, 128)], 10, "8-bit") == 64 * 128 + 4 * 128 + 20
    # 128 blocks of 64 weights, one block of constants, tables of 16 and 256 values and an offset
    assert weight_bytes([(64, 128)], 10, "4-bit") == 4096 + 128 + 4 + 4 * 273 + 20
    with pytest.raises(ValueError, match="fp16"):
        weight_bytes([], 0, "fp16")
    assert gigabytes(2_471_628_800) == "2.47 GB" and gigabytes(400_000) == "0.40 MB"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chat model's folder, and an empty configs/models to write into."""
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setattr("inspect_model_architecture.MODEL_FILES", tmp_path / "files")
    monkeypatch.setattr("utils.models.architecture.MODEL_FILES", tmp_path / "files")
    target = tmp_path / "My-Model"
    save_chat_tokenizer(target, "llama3")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=320, max_position_embeddings=512, **shape)).save_pretrained(target)
    return target


def test_a_folder_gives_a_model_file_that_the_stages_take(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from importlib import import_module

    assert script.main(["--model", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM" in printed and "4-bit" in printed and "key-value cache: 128 bytes per token" in printed
    target = folder.parent / "files/my-model.yaml"
    sft: Any = import_module("03_sft_train")
    cfg = resolve(sft.Config, ["--config", str(target)], doc="", script="03_sft_train.py").config
    assert cfg.model.prompt_style == "chat" and cfg.model.hidden_size == 32 and cfg.training.max_length == 512
    assert cfg.lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    load_model(cfg.model, cfg.lora, checkpoint=None, trainable=True, device=torch.device("cpu"))
    # what is there is kept, and serves without the folder
    before = target.read_text()
    assert script.main(["--model", str(folder)]) == 0 and "kept" in capsys.readouterr().out
    assert target.read_text() == before
    assert find_config(str(target))[1].hidden_size == 32


def test_no_config_and_all_write_nothing_new(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--model", str(folder), "--no_config"]) == 0
    assert not (folder.parent / "files").exists()
    assert script.main(["--model", str(folder)]) == 0 and script.main(["--all", "--no_config"]) == 0
    assert re.findall(r"^\S*My-Model: ", capsys.readouterr().out, re.M) == [f"{folder}: "] * 3
    assert [path.name for path in (folder.parent / "files").iterdir()] == ["my-model.yaml"]


def test_names_of_files_follow_one_rule() -> None:
    assert file_name("meta-llama/Llama-3.2-3B-Instruct") == "llama-3.2-3b-instruct.yaml"
    assert file_name("some/folder/Mine/") == "mine.yaml"


def test_a_known_model_is_described_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    name = "meta-llama/Llama-3.2-1B-Instruct"
    source, config = find_config(name)
    assert config.hidden_size == 2048 and source.startswith("llama-3.2-1b.yaml")
    assert file_of_model("nobody/nothing") is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "give one of --model NAME"),
        (["--model", "a", "--all"], "give one of --model NAME"),
        (["--modle", "a"], "unrecognized arguments: --modle"),
        (["--model", "nowhere"], "no such folder"),
        (["--model", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--model", "nobody/nothing"], "it is not downloaded and the hub cannot be reached"),
        (["--model", "tests"], "'.*tests' cannot be loaded"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    assert script.main(flags) == 2
    printed = capsys.readouterr()
    assert re.search(expected, printed.err) and printed.err.count("\n") == 1 and printed.out == ""


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, inspect_model_architecture; print(*sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
