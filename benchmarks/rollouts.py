"""The work that the engine's benchmarks measure: llama-shaped models, and prompts with groups of completions."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.errors import UserError

SHAPES = {
    "5M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 5, "num_attention_heads": 8},
    "60M": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 11, "num_attention_heads": 10},
}
"""Names by the number of parameters; printed beside each figure is the exact number."""
VOCABULARY, PAD, END = 4096, 0, 2


@dataclass(frozen=True)
class Work:
    """Prompts [_B] and completions [_B][_G] of exactly `prompt` and `completion` tokens, advantages [_B, _G]."""

    prompts: list[list[int]]
    completions: list[list[list[int]]]
    advantages: torch.Tensor

    @classmethod
    def of(cls, flags: argparse.Namespace) -> Work:
        """Random tokens; the same for the same flags."""
        rng = np.random.default_rng(0)
        tokens = rng.integers(3, VOCABULARY, size=(flags.prompts, flags.prompt + flags.group * flags.completion))
        prompts = tokens[:, : flags.prompt].tolist()
        groups = tokens[:, flags.prompt :].reshape(flags.prompts, flags.group, flags.completion).tolist()
        return cls(prompts, groups, torch.from_numpy(rng.standard_normal((flags.prompts, flags.group))).float())


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of the project's targets."""
    parser.add_argument("--model", choices=sorted(SHAPES), default="5M")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast over fp32 weights")
    for name, value in (("prompt", 700), ("completion", 48), ("prompts", 8), ("group", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)


def check(flags: argparse.Namespace) -> None:
    """UserError for sizes that are no sizes."""
    for name in ("prompt", "completion", "prompts", "group"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} must be 1 or more, got {getattr(flags, name)}")


def build(name: str, attention: str) -> Any:
    """A LlamaForCausalLM with random weights, the same for every attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=4096, tie_word_embeddings=True, attn_implementation=attention,
        pad_token_id=PAD, eos_token_id=END, bos_token_id=1, **SHAPES[name],
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def context(flags: argparse.Namespace) -> AbstractContextManager[Any]:
    """Autocast for bf16."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if flags.dtype == "bf16" else nullcontext()


def title(what: str, flags: argparse.Namespace, model: Any) -> str:
    """The row's name."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = f"prompt {flags.prompt}, completion {flags.completion}, {flags.prompts} x {flags.group}"
    return f"{what}, {parameters / 1e6:.1f} M parameters, {flags.dtype}, {sizes}"
