"""How much arithmetic packed groups need, and which share of the speed of plain products is achieved."""

from __future__ import annotations

import argparse
from functools import cache
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


def products(flags: argparse.Namespace) -> tuple[float, float]:
    """Multiplications of a forward pass, prompts shared: (with weights, of attention).

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
    with_weights = (layers - 1) * weights * every + keys * every + (weights - keys) * scored
    with_weights += hidden * vocabulary(flags) * scored
    attention = (layers - 1) * 2 * hidden * (of_prompts + of_samples) + 2 * hidden * of_samples
    return float(with_weights), float(attention)


def of_an_update(flags: argparse.Namespace) -> float:
    """Multiplications and additions of an update's products, forward and backward (twice as many)."""
    return 3 * 2 * sum(products(flags))


def of_a_step(flags: argparse.Namespace) -> float:
    """The same of a whole step of --method: besides the update a pass of sampling, of the reference, and of PPO's old
    policy. With adapters the backward pass computes no gradient of the weights; their own products are left out."""
    with_weights, attention = products(flags)
    forward = 3 if flags.method == "ppo" else 2
    frozen = with_weights if flags.lora else 0.0
    return 2 * ((forward + 3) * (with_weights + attention) - frozen)


def share_of_peak(flags: argparse.Namespace, operations: float, taken: float) -> float:
    """Operations per second of what took so many seconds, as a share of a plain product's."""
    return operations / taken / peak(flags.device, flags.dtype)


@cache
def peak(device: str, dtype: str) -> float:
    """Operations per second of a layer that multiplies two square matrices, the best of a few."""
    width, kind = WIDTH[device], torch.bfloat16 if dtype == "bf16" else torch.float32
    layer = torch.nn.Linear(width, width, bias=False, dtype=kind, device=device)
    use_wide_products(layer)
    one = torch.randn(width, width, dtype=kind, device=device)
    with torch.no_grad():
        layer(one)
        return 2 * width**3 / min(seconds(lambda: layer(one)) for _ in range(TRIALS))


def line(flags: argparse.Namespace, share: float) -> str:
    """The same in words."""
    fewer = tokens(flags, shared=False) / tokens(flags, shared=True)
    plain = f"a plain product ({peak(flags.device, flags.dtype) / 1e9:.0f} GFLOP/s)"
    speed = f"the project computes at {share:.0%} of the speed of {plain}"
    return f"sharing prompts leaves {1 / fewer:.1%} of the tokens ({fewer:.2f} x fewer); {speed}"
