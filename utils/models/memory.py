"""Bytes that a model takes on a device, from its shapes alone. No torch.

The figures are lower bounds: allocators, kernels' work space and the activations come on top.
"""

from __future__ import annotations

from collections.abc import Iterable

PRECISIONS = ("fp32", "bf16", "8-bit", "4-bit")
"""How the weights of a frozen base are held. 8-bit and 4-bit: the linear layers alone, all else as in bf16."""

BLOCK, ROW_BLOCK = 128, 256
"""Queries per block of attention in bf16 on a CPU: of a batch; of a single row, which is less work."""
MOST_PAIRS = 2**21
"""Its weights of all heads wait for the backward pass, two bytes for each pair of a query and a key: of packed rows
with no more pairs than a causal row of 2,048 tokens has."""
WIDTH_MULTIPLE, SLOTS_MULTIPLE, KEYS_MULTIPLE = 32, 16, 64
"""Numbers of columns, of slots and of keys are rounded up: CPU kernels cache a plan per shape, and ever-changing shapes
cost time and let memory grow."""
CUT_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose last layer computes no more than is read of it (`utils.models.last_layer`)."""

TRAINED_BYTES = 16
"""Per trained parameter, all in fp32: weight, gradient and Adam's two moments."""

NF4_BLOCK, NF4_CONSTANTS_BLOCK = 64, 256
"""Weights per constant, and constants per constant of their own (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""


def weight_bytes(linear: Iterable[tuple[int, int]], others: int, precision: str) -> int:
    """Bytes of a frozen base.

    Args:
        linear: (inputs, outputs) of every linear layer that is quantised, so without the output head.
        others: all other parameters.
        precision: one of PRECISIONS.

    Raises:
        ValueError: another precision.
    """
    shapes = list(linear)
    if precision in ("fp32", "bf16"):
        each = 4 if precision == "fp32" else 2
        return each * (others + sum(inputs * outputs for inputs, outputs in shapes))
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    layer = _int8_bytes if precision == "8-bit" else _nf4_bytes
    return 2 * others + sum(layer(inputs, outputs) for inputs, outputs in shapes)


def _int8_bytes(inputs: int, outputs: int) -> int:
    return inputs * outputs + 4 * outputs  # an fp32 scale per row


def _nf4_bytes(inputs: int, outputs: int) -> int:
    """Two weights per byte, a byte per block, fp32 per block of blocks, and the layer's two tables and offset."""
    blocks = -(-inputs * outputs // NF4_BLOCK)
    tables = 4 * (16 + 256 + 1)
    return -(-inputs * outputs // 2) + blocks + 4 * -(-blocks // NF4_CONSTANTS_BLOCK) + tables


def adapter_parameters(targets: Iterable[tuple[int, int]], r: int) -> int:
    """Trained parameters of LoRA on layers of shape (inputs, outputs): A is [r, inputs], B [outputs, r]."""
    return r * sum(inputs + outputs for inputs, outputs in targets)


def gigabytes(count: float) -> str:
    """Bytes as text, in units of 1e9: `2.47 GB`, small ones as `0.4 MB`."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def round_up(count: int, multiple: int) -> int:
    """To a multiple."""
    return -(-count // multiple) * multiple
