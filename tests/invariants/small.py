"""The model of a shipped model file in small: its architecture and kind of tokenizer, two layers of width 64."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.invariants.chat import save_chat_tokenizer
from tests.unit.test_tokens import save_tokenizer
from utils.files import read_yaml
from utils.models.tokens import load_tokenizer
from utils.settings import ModelSettings

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs/models").glob("*.yaml"))


def save_small_model(file: Path, folder: Path) -> list[str]:
    """Write it with random weights into `folder`; flags that name it beside `--config file`.

    What the file's `metadata.config` says stays as it is, but for width, depth and vocabulary.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    data = read_yaml(file).data
    if file.stem == "llama-tiny":
        shape = AutoConfig.from_pretrained(ROOT / data["model"]["name"]).to_dict()
        shape.pop("dtype")
        for path in (ROOT / data["model"]["name"]).glob("*token*"):
            shutil.copy(path, folder)
    else:
        shape = dict(data["metadata"]["config"])
    if shape["model_type"] == "gpt2":
        save_tokenizer(folder, ["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>")
        shape |= {"n_embd": 64, "n_layer": 2, "n_head": 4}
    else:
        if file.stem != "llama-tiny":
            save_chat_tokenizer(folder, "tinyllama" if "tinyllama" in file.stem else "llama3")
        groups = shape["num_attention_heads"] // shape["num_key_value_heads"]
        shape |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": groups,
                  "num_key_value_heads": 1, "head_dim": 16}  # fmt: skip
    style = data["model"]["prompt_style"]
    vocabulary = len(load_tokenizer(ModelSettings(name=str(folder), prompt_style=style)))
    torch.manual_seed(0)
    shape |= {"vocab_size": vocabulary, "initializer_range": 0.2}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape)).save_pretrained(folder)
    return ["--model", str(folder), "--hidden_size", "64", "--num_layers", "2", "--vocab_size", str(vocabulary)]
