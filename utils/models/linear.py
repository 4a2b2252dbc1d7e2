"""Linear layers in fp32 by oneDNN on AMD's processors with AVX512.

torch multiplies fp32 matrices by MKL, which leaves the wide units of these processors alone: two cores of an EPYC
(family 26) reach 215 GFLOP/s with it and 480 with oneDNN, which torch brings along for bf16 (docs/LOG.md). Elsewhere,
in bf16 and on GPUs a layer is torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from utils.machine import wide_products_unused_by_mkl


def use_wide_products(model: torch.nn.Module) -> None:
    """Let a model's plain linear layers multiply by oneDNN where that is the faster one; nothing elsewhere."""
    if not wide_products_unused_by_mkl() or not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if type(module) is torch.nn.Linear:  # not those of adapters or of quantised weights, which hold such ones
            module.__class__ = WideLinear


class WideLinear(torch.nn.Linear):
    """A linear layer whose fp32 products on a CPU are oneDNN's."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [..., in] -> [..., out]."""
        plain = input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        if not plain or torch.is_autocast_enabled("cpu") or not input.numel():
            return functional.linear(input, self.weight, self.bias)
        rows = input.reshape(-1, input.shape[-1])
        product = _Linear.apply if torch.is_grad_enabled() else _times_transposed
        output: torch.Tensor = product(rows, self.weight, self.bias)
        return output.view(*input.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """x weight' + bias; x [rows, in], weight [out, in], bias [out] or None."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(x if wanted[1] else None, weight if wanted[0] else None)
        return _times_transposed(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_output = gradients[0].contiguous()
        of_x = None if weight is None else _times_transposed(of_output, weight.t())
        of_weight = None if x is None else _times_transposed(of_output.t(), x.t())
        of_bias = of_output.sum(0) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias


def _times_transposed(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """left [rows, n] right' [n, m] + bias [m]; `right` may be a transposed view, `left` is copied if it is one."""
    return linear_of_blocks(left, right, bias)


def takes_blocks(weight: torch.Tensor) -> bool:
    """Whether oneDNN multiplies by such a weight on this machine."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def blocked(weight: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] laid out as oneDNN reads it fastest: for `linear_of_blocks` alone."""
    blocks: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return blocks


def linear_of_blocks(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x weight' + bias by oneDNN; `weight` may be a plain one, too."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
