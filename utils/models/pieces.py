"""Attention over packed rows, piece by piece: nothing is computed that their mask would hide.

A packed row is a prompt and its completions side by side (`utils.rl.packing`). Its pieces are the prompt's own causal
triangle, what the completions see of the prompt, which is all of it, and a small triangle per completion. What a token
finds in two pieces is put together by their log-sum-exps (Juravsky et al. 2024, arXiv:2402.05099, section 3.1); the
backward pass of each piece takes the sums over both (Dao et al. 2022, arXiv:2205.14135, appendix B.2).

A model hands its attention a mask and no more: `describe` notes which rows a mask stands for, and
`utils.models.attention` looks it up. Where nothing is known of a mask, the mask itself says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_described = WeakTensorKeyDictionary()


class _Row:
    """One row: its prompt in columns `first` to `start`, its completions from there to `end`.

    The completions are padded to a common length, [samples, _T] slots; columns and slots are numbered from 0.
    """

    def __init__(self, first: int, start: int, lengths: Sequence[int]) -> None:
        self.starts = [start + sum(lengths[:i]) for i in range(len(lengths))]
        self.prompt = slice(first, start)
        self.completions = slice(start, start + sum(lengths))
        self.shape = len(lengths), max(lengths)
        self.even = min(lengths) == max(lengths)
        length = torch.tensor(lengths)[:, None]
        time = torch.arange(self.shape[1])
        self.padding = (time >= length)[:, None, :, None]
        column = (length.cumsum(0) - length) + time.where(time < length, 0)
        self.column = column.flatten()
        self.slot = (time < length).flatten().nonzero().flatten()

    def samples(self, states: torch.Tensor) -> torch.Tensor:
        """[_H, columns, ...] -> [samples, _H, _T, ...]; padding holds a column of its own sample."""
        found = states if self.even else states.index_select(1, self.column)
        return found.view(len(states), *self.shape, *states.shape[2:]).transpose(0, 1)

    def columns(self, states: torch.Tensor) -> torch.Tensor:
        """[samples, _H, _T, ...] -> [_H, columns, ...]."""
        found = states.transpose(0, 1).flatten(1, 2)
        return found if self.even else found.index_select(1, self.slot)

    def clear_padding(self, states: torch.Tensor, skipped: int = 0) -> None:
        """Zeros beside prompt and completions of [_H, columns from `skipped` on, ...]."""
        states[:, : max(0, self.prompt.start - skipped)] = 0
        states[:, self.completions.stop - skipped :] = 0

    def asking(self, skipped: int) -> tuple[slice, slice]:
        """Where the prompt's and the completions' queries stand when the first columns have none."""
        start = self.prompt.stop - skipped
        return slice(max(0, self.prompt.start - skipped), start), slice(start, self.completions.stop - skipped)


class PackedRows:
    """Where prompts and completions stand in each row of a batch."""

    def __init__(self, start: int, prompts: Sequence[int], completions: Sequence[Sequence[int]]) -> None:
        """Prompts of these lengths end before the column `start`; the completions' lengths, prompt by prompt."""
        self.start = start
        self.rows = [_Row(start - prompt, start, lengths) for prompt, lengths in zip(prompts, completions, strict=True)]

    def first_seen(self, column: int) -> int:
        """The first column behind the prompts that any row's token at `column` or behind it sees."""
        return min(
            max((first for first in row.starts if first <= column), default=column)
            if column < row.completions.stop
            else column
            for row in self.rows
        )

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """query [B, _H, _Q, _D], key and value [B, _KV, _W, _D], fp32 on a CPU -> [B, _Q, _H, _D]; zeros for padding.

        Queries are those of all columns, or of the completions and the prompt's last one before them. Only in fp32 on
        a CPU torch has a kernel that gives log-sum-exps and takes them for the backward pass.
        """
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        output: torch.Tensor = _Pieces.apply(query, key, value, self.rows, scale)  # type: ignore[no-untyped-call]
        return output.transpose(1, 2)


def describe(mask: torch.Tensor, rows: PackedRows) -> None:
    """Note which rows this very tensor stands for, as long as it lives."""
    _described[mask] = rows


def described(mask: torch.Tensor | None) -> PackedRows | None:
    """The rows that were noted."""
    found: PackedRows | None = None if mask is None else _described.get(mask)
    return found


class _Pieces(torch.autograd.Function):
    """query [B, _H, _Q, _D], of the last _Q columns; key and value [B, _H, _W, _D]."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Sequence[_Row], scale: float
    ) -> torch.Tensor:
        output, total = torch.empty_like(query), query.new_empty(query.shape[:-1])
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
