"""Attention over packed rows, piece by piece: nothing is computed that their mask would hide.

A packed row is a prompt and its completions side by side (`utils.rl.packing`). Its pieces are the prompt's own causal
triangle, what the completions see of the prompt, which is all of it, and a small triangle per completion. Two kernels
compute them: bf16 goes to products in blocks (`utils.models.blocks`), forward and backward the faster ones; fp32, and
rows whose weights would take too much memory, to torch's flash kernel. There what a token finds in two pieces is put
together by their log-sum-exps (Juravsky et al. 2024, arXiv:2402.05099, section 3.1), and the backward pass of each
piece takes the sums over both (Dao et al. 2022, arXiv:2205.14135, appendix B.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from utils.models.blocks import PackedBlocks
from utils.models.memory import MOST_PAIRS
from utils.models.packed_rows import PackedRows, Row


def attend(rows: PackedRows, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """query [B, _H, _Q, _D], key and value [B, _KV, _W, _D], on a CPU -> [B, _Q, _H, _D]; zeros for padding.

    Queries are those of all columns, or of the completions and the prompt's last one before them.
    """
    if query.dtype == torch.bfloat16 and all(row.pairs <= MOST_PAIRS for row in rows.rounded):
        grouped = query.unflatten(1, (key.shape[1], -1))
        output: torch.Tensor = PackedBlocks.apply(grouped, key, value, rows.rounded, scale)  # type: ignore[no-untyped-call]
        return output.flatten(1, 2).transpose(1, 2)
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    output = _Flash.apply(query, key, value, rows.rows, scale)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2)


class _Flash(torch.autograd.Function):
    """query [B, _H, _Q, _D], of the last _Q columns; key and value [B, _H, _W, _D]."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Sequence[Row], scale: float
    ) -> torch.Tensor:
        output, total = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)
        skipped = key.shape[2] - query.shape[2]
        for i, row in enumerate(rows):
            row.clear_padding(output[i], skipped)
            row.clear_padding(total[i], skipped)
            of_prompt, of_completions = row.asking(skipped)
            k, v = (states[i, :, row.prompt] for states in (key, value))
            own_k, own_v = (states[i, :, row.completions] for states in (key, value))
            q = query[i, :, of_prompt]
            output[i, :, of_prompt], total[i, :, of_prompt] = _flash(q, k, v, not skipped, scale)
            q = query[i, :, of_completions]
            across, sum_across = _flash(q, k, v, False, scale)
            found = _flash(row.samples(q), row.samples(own_k), row.samples(own_v), True, scale)
            within, sum_within = map(row.columns, found)
            both = torch.logaddexp(sum_across, sum_within)
            across = across * (sum_across - both).exp()[..., None]
            output[i, :, of_completions] = across.addcmul_(within, (sum_within - both).exp()[..., None])
            total[i, :, of_completions] = both
        ctx.save_for_backward(query, key, value, output, total)
        ctx.rows, ctx.scale = rows, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, total = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(states) for states in (query, key, value))
        skipped = key.shape[2] - query.shape[2]
        for i, row in enumerate(ctx.rows):
            row.clear_padding(of_query[i], skipped)
            row.clear_padding(of_key[i])
            row.clear_padding(of_value[i])
            of_prompt, of_completions = row.asking(skipped)
            of_queries = [states[i] for states in (gradients[0], query, output, total)]
            of_keys = [states[i] for states in (key, value)]
            seeing, asked = ([s[:, part] for s in of_queries] for part in (of_completions, of_prompt))
            own, prompt = ([s[:, part] for s in of_keys] for part in (row.completions, row.prompt))
            causal = _flash_backward(asked, prompt, not skipped, ctx.scale)
            across = _flash_backward(seeing, prompt, False, ctx.scale)
            slots = [row.samples(states) for states in seeing]
            if not row.even:
                # no gradient, and no weights: those of a padding slot know nothing of its own sum, and may overflow
                slots[0] = slots[0].masked_fill(row.padding, 0.0)
                slots[3] = slots[3].masked_fill(row.padding[..., 0], torch.inf)
            within = _flash_backward(slots, [row.samples(states) for states in own], True, ctx.scale)
            of_query[i, :, of_prompt] = causal[0]
            of_query[i, :, of_completions] = row.columns(within[0]).add_(across[0])
            for found, one, other, third in zip((of_key, of_value), causal[1:], across[1:], within[1:], strict=True):
                found[i, :, row.prompt] = one.add_(other)
                found[i, :, row.completions] = row.columns(third)
        return of_query, of_key, of_value, None, None


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of the scores, [..., queries, _D] and [..., queries], for [_H, ...] or [B, _H, ...]."""
    batched = query.dim() == 4
    given = (query, key, value) if batched else (query[None], key[None], value[None])
    output, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*given, 0.0, causal, scale=scale)
    return (output, total) if batched else (output[0], total[0])


def _flash_backward(
    queries: Sequence[torch.Tensor], keys: Sequence[torch.Tensor], causal: bool, scale: float
) -> Sequence[torch.Tensor]:
    """Gradients of query, key and value; `queries`: output's gradient, query, output, log-sum-exp, over all pieces."""
    gradient, query, output, total = queries
    batched = query.dim() == 4
    given = (gradient, query, *keys, output, total)
    given = given if batched else tuple(states[None] for states in given)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    found: Sequence[torch.Tensor] = kernel(*given, 0.0, causal, scale=scale)
    return found if batched else [states[0] for states in found]
