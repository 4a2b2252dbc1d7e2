"""The work that the engine's benchmarks measure: llama-shaped models, and prompts with groups of completions."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.measure import at_least_one
from utils.errors import UserError
from utils.models.attention import attention_in_blocks
from utils.models.linear import use_wide_products
from utils.models.load import resolve_device

SHAPES: dict[str, dict[str, Any]] = {
    "5M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 5, "num_attention_heads": 8},
    "60M": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 11, "num_attention_heads": 10},
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""By the number of parameters with the vocabulary that they have by default; 1B and 8B are Llama-3.2-1B and
Llama-3-8B with random weights. Printed beside each figure is the exact number."""
VOCABULARY, PAD, END = 4096, 0, 2


@dataclass(frozen=True)
class Work:
    """Prompts [_B] and completions [_B][_G] of exactly `prompt` and `completion` tokens, for each sample an advantage
    [_B, _G], for each token the reference's log-prob [_B * _G, _T]."""

    prompts: list[list[int]]
    completions: list[list[list[int]]]
    advantages: torch.Tensor
    reference: torch.Tensor

    @classmethod
    def of(cls, flags: argparse.Namespace) -> Work:
        """Random numbers; the same for the same flags."""
        rng, size = np.random.default_rng(0), vocabulary(flags)
        tokens = rng.integers(3, size, size=(flags.prompts, flags.prompt + flags.group * flags.completion))
        prompts = tokens[:, : flags.prompt].tolist()
        groups = tokens[:, flags.prompt :].reshape(flags.prompts, flags.group, flags.completion).tolist()
        advantages = torch.from_numpy(rng.standard_normal((flags.prompts, flags.group))).float()
        noise = rng.standard_normal((flags.prompts * flags.group, flags.completion))
        reference = torch.from_numpy(0.1 * noise - np.log(size)).float()
        return cls(prompts, groups, advantages.to(flags.device), reference.to(flags.device))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of the project's targets."""
    parser.add_argument("--model", choices=tuple(SHAPES), default="5M")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast over fp32 weights")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--vocabulary", type=int, help=f"tokens (default: the model's, {VOCABULARY} for 5M and 60M)")
    for name, value in (("prompt", 700), ("completion", 48), ("prompts", 8), ("group", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", nargs="+", metavar="WAY", help="measure these ways alone, as named in the row")


def check(flags: argparse.Namespace) -> None:
    """UserError for sizes that are no sizes; `flags.device` becomes what it stands for."""
    at_least_one(flags, "prompt", "completion", "prompts", "group")
    if flags.vocabulary is not None and flags.vocabulary < 8:
        raise UserError(f"--vocabulary must be 8 or more, got {flags.vocabulary}")
    flags.device = resolve_device(flags.device).type


def wanted(flags: argparse.Namespace, ways: dict[str, Any]) -> dict[str, Any]:
    """The ways of --only, or all. UserError for one that is not there."""
    for name in flags.only or ():
        if name not in ways:
            raise UserError(f"--only {name!r}: expected some of {', '.join(map(repr, ways))}")
    return {name: way for name, way in ways.items() if name in (flags.only or ways)}


def vocabulary(flags: argparse.Namespace) -> int:
    """Tokens of the model."""
    size: int = flags.vocabulary or SHAPES[flags.model].get("vocab_size", VOCABULARY)
    return size


def build(flags: argparse.Namespace, attention: str, dtype: torch.dtype = torch.float32) -> Any:
    """A LlamaForCausalLM with random weights, the same for every attention; never there in another dtype."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"tie_word_embeddings": True, **SHAPES[flags.model], "vocab_size": vocabulary(flags)}
    config = LlamaConfig(
        **shape, max_position_embeddings=4096, attn_implementation=attention, pad_token_id=PAD, bos_token_id=1,
        eos_token_id=END,
    )  # fmt: skip
    torch.set_default_dtype(dtype)
    try:
        with torch.device(flags.device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def build_own(flags: argparse.Namespace) -> Any:
    """The same model with the project's attention and products, as `utils.models.load` makes it."""
    model = build(flags, attention_in_blocks())
    use_wide_products(model)
    return model


def context(flags: argparse.Namespace) -> AbstractContextManager[Any]:
    """Autocast for bf16."""
    return torch.autocast(flags.device, dtype=torch.bfloat16) if flags.dtype == "bf16" else nullcontext()


def title(what: str, flags: argparse.Namespace, model: Any) -> str:
    """The row's name."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = f"prompt {flags.prompt}, completion {flags.completion}, {flags.prompts} x {flags.group}"
    device = "" if flags.device == "cpu" else f"{flags.device}, "
    return f"{what}, {parameters / 1e6:.1f} M parameters, {flags.dtype}, {device}{sizes}"
