"""How much arithmetic an update on packed groups needs, and which share of the machine's plain products it achieves."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.measure import seconds
from benchmarks.rollouts import SHAPES, vocabulary
from utils.models.linear import use_wide_products

WIDTH = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices whose product is the machine's peak."""
TRIALS = 5


def tokens(flags: argparse.Namespace, *, shared: bool) -> int:
    """Tokens of a batch that a forward pass computes."""
    rows: int = flags.prompts if shared else flags.prompts * flags.group
    answers: int = flags.prompts * flags.group
    return rows * int(flags.prompt) + answers * int(flags.completion)


def operations(flags: argparse.Namespace) -> float:
    """Multiplications and additions of an update's products, forward and backward (twice as many), prompts shared.

    Linear layers, attention over the pairs of tokens that see each other, and the output layer at the completions. Of
    the prompts the last layer needs keys and values alone.
    """
    shape: dict[str, Any] = SHAPES[flags.model]
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    key_width = hidden * shape.get("num_key_value_heads", shape["num_attention_heads"]) // shape["num_attention_heads"]
    keys = 2 * hidden * key_width
    weights = 2 * hidden * hidden + keys + 3 * hidden * shape["intermediate_size"]
    per_sample = flags.completion * flags.prompt + flags.completion * (flags.completion + 1) / 2
    of_prompts = flags.prompts * flags.prompt * (flags.prompt + 1) / 2
    of_samples = flags.prompts * flags.group * per_sample
    scored = flags.prompts * flags.group * flags.completion
    every = tokens(flags, shared=True)
    products = (layers - 1) * (weights * every + 2 * hidden * (of_prompts + of_samples))
    products += keys * every + (weights - keys) * scored + 2 * hidden * of_samples
    products += hidden * vocabulary(flags) * scored
    return float(3 * 2 * products)


def share_of_peak(flags: argparse.Namespace, taken: float) -> float:
    """Operations per second of an update that took so many seconds, as a share of a plain product's."""
    return operations(flags) / taken / peak(flags)


def peak(flags: argparse.Namespace) -> float:
    """Operations per second of a layer that multiplies two square matrices, the best of a few."""
    width = WIDTH[flags.device]
    dtype = torch.bfloat16 if flags.dtype == "bf16" else torch.float32
    layer = torch.nn.Linear(width, width, bias=False, dtype=dtype, device=flags.device)
    use_wide_products(layer)
    one = torch.randn(width, width, dtype=dtype, device=flags.device)
    with torch.no_grad():
        layer(one)
        return 2 * width**3 / min(seconds(lambda: layer(one)) for _ in range(TRIALS))


def line(flags: argparse.Namespace, share: float) -> str:
    """The same in words."""
    fewer = tokens(flags, shared=False) / tokens(flags, shared=True)
    speed = f"the project computes at {share:.0%} of the speed of a plain product"
    return f"sharing prompts leaves {1 / fewer:.1%} of the tokens ({fewer:.2f} x fewer); {speed}"
