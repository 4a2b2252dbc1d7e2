"""Attention of bf16 on a CPU in blocks of queries: matrix products on a whole block, and one softmax over it.

A block of queries looks at no key behind its end, so that half of the work of a causal mask is left out. In a packed
row the completions' queries look at the prompt in such blocks, at their own sample in a product per sample, and one
softmax goes over both. Scores are rounded to bf16 before it, as in transformers' `eager`; its sums are fp32. The
backward passes are written out, since autograd would make a zero-filled gradient of all keys for every block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from utils.models.memory import BLOCK, ROW_BLOCK
from utils.models.packed_rows import Row

HIDDEN = -1e30
"""Added where a query may not look: weight 0 beside any key that it sees, and no NaN for padding, which sees none."""
KeysValues = tuple[torch.Tensor, torch.Tensor]


class CausalBlocks(torch.autograd.Function):
    """query [M, _S, _Q, _D] of the _S heads that share a key head, key and value [M, _Q, _D], mask [B or 1, _Q, _Q].

    M is B times the key heads; the mask is what is added to the scores, None: HIDDEN behind a query's own place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        output, kept = _causal(query, (key, value), mask, scale, BLOCK, any(ctx.needs_input_grad))
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        found = torch.zeros_like(key), torch.zeros_like(value)
        of_query = _causal_backward(gradients[0], query, (key, value), kept, ctx.scale, BLOCK, found)
        return of_query, *found, None, None


class PackedBlocks(torch.autograd.Function):
    """query [B, _KV, _S, _Q, _D], of the last _Q columns, of _S heads to a key head; key and value [B, _KV, _W, _D]."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Sequence[Row], scale: float
    ) -> torch.Tensor:
        output, kept = torch.empty_like(query), []
        skipped, keep = key.shape[2] - query.shape[3], any(ctx.needs_input_grad)
        for i, row in enumerate(rows):
            of_prompt, of_completions = row.asking(skipped)
            prompt = key[i, :, row.prompt], value[i, :, row.prompt]
            own = key[i, :, row.completions], value[i, :, row.completions]
            found, causal = _causal(query[i, :, :, of_prompt], prompt, None, scale, ROW_BLOCK, keep, row.ahead)
            output[i, :, :, of_prompt] = found
            found, seen = _completions(query[i, :, :, of_completions], prompt, own, row, scale, keep)
            output[i, :, :, of_completions] = found
            row.clear_padding(output[i], skipped, 2)
            kept += [causal, seen]
        ctx.save_for_backward(query, key, value, *(weights for part in kept for weights in part))
        ctx.counts, ctx.rows, ctx.scale = list(map(len, kept)), rows, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(states) for states in (query, key, value))
        skipped, rest, counts = key.shape[2] - query.shape[3], iter(kept), iter(ctx.counts)
        for i, row in enumerate(ctx.rows):
            causal, seen = (list(islice(rest, next(counts))) for _ in range(2))
            of_prompt, of_completions = row.asking(skipped)
            prompt = key[i, :, row.prompt], value[i, :, row.prompt]
            own = key[i, :, row.completions], value[i, :, row.completions]
            of_output = row.with_padding_cleared(gradients[0][i], skipped)
            asked, given = query[i, :, :, of_completions], of_output[:, :, of_completions]
            of_asked, across, within = _completions_backward(given, asked, prompt, own, seen, row, ctx.scale)
            of_query[i, :, :, of_completions] = of_asked
            asked, given = query[i, :, :, of_prompt], of_output[:, :, of_prompt]
            of_query[i, :, :, of_prompt] = _causal_backward(given, asked, prompt, causal, ctx.scale, ROW_BLOCK, across)
            for found, of_shared, of_own in zip((of_key, of_value), across, within, strict=True):
                found[i, :, row.prompt], found[i, :, row.completions] = of_shared, of_own
                row.clear_padding(found[i])
            row.clear_padding(of_query[i], skipped, 2)
        return of_query, of_key, of_value, None, None


def _causal(
    query: torch.Tensor,
    seen: KeysValues,
    mask: torch.Tensor | None,
    scale: float,
    size: int,
    keep: bool,
    ahead: int = 0,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """query [M, _S, _Q, _D], the last _Q of the _K keys; keys and values [M, _K, _D]; mask [B, _Q, _K] or None.

    So many keys `ahead` are padding. Returns output [M, _S, _Q, _D] and, to keep, each block's weights
    [M, _S * queries, keys seen].
    """
    (key, value), output, kept = seen, torch.empty_like(query), []
    before = key.shape[1] - query.shape[2]
    for block in _blocks(query, size):
        end, count = before + block.stop, block.stop - block.start
        scores = _products(query[:, :, block].flatten(1, 2), key[:, :end].transpose(1, 2), scale)
        if mask is None:
            scores.unflatten(1, (-1, count))[..., end - count :] += _hidden_behind(count, scores)
            scores[..., :ahead] = HIDDEN
        else:
            scores.view(len(mask), -1, count, end).add_(mask[:, None, block, :end])
        weights = scores.softmax(dim=-1)
        output[:, :, block] = torch.bmm(weights, value[:, :end]).view_as(output[:, :, block])
        if keep:
            kept.append(weights)
    return output, kept


def _causal_backward(
    of_output: torch.Tensor,
    query: torch.Tensor,
    seen: KeysValues,
    kept: Sequence[torch.Tensor],
    scale: float,
    size: int,
    found: KeysValues,
) -> torch.Tensor:
    """The query's gradient; those of keys and values are added to `found`."""
    of_query, before = torch.empty_like(query), seen[0].shape[1] - query.shape[2]
    for block, weights in zip(_blocks(query, size), kept, strict=True):
        key, value, of_key, of_value = (states[:, : before + block.stop] for states in (*seen, *found))
        of_block = of_output[:, :, block].flatten(1, 2)
        of_scores = _softmax_backward(torch.bmm(of_block, value.transpose(1, 2)), weights)
        of_value.baddbmm_(weights.transpose(1, 2), of_block)
        of_key.baddbmm_(of_scores.transpose(1, 2), query[:, :, block].flatten(1, 2), alpha=scale)
        of_query[:, :, block] = _products(of_scores, key, scale).view_as(of_query[:, :, block])
    return of_query


def _completions(
    query: torch.Tensor, prompt: KeysValues, own: KeysValues, row: Row, scale: float, keep: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What a row's completions [_KV, _S, columns, _D] find in the prompt [_KV, prompt, _D] and in their own columns.

    And, to keep, each block's weights [_KV, _S * queries, prompt + room]: behind those of the prompt's keys, those of
    the own sample's slots.
    """
    key, value = map(row.with_room, prompt)
    own_key, own_value = (row.by_sample(states[:, None]) for states in own)
    scores = _products(row.by_sample(query), own_key.transpose(1, 2), scale)
    scores.unflatten(1, (-1, row.longest)).add_(_hidden_behind(row.longest, scores))
    own_scores = row.by_column(scores, query)
    own_weights, output, kept = torch.empty_like(own_scores), torch.empty_like(query), []
    for block in _blocks(query, ROW_BLOCK):
        scores = _products(query[:, :, block].flatten(1, 2), key.transpose(1, 2), scale)
        row.slots(scores, query)[:] = own_scores[:, :, block]
        row.hide_padding(scores, HIDDEN)
        weights = scores.softmax(dim=-1)
        own_weights[:, :, block] = row.slots(weights, query)
        output[:, :, block] = torch.bmm(weights, value).view_as(output[:, :, block])
        if keep:
            kept.append(weights)
    output += row.by_column(torch.bmm(row.by_sample(own_weights), own_value), query)
    return output, kept


def _completions_backward(
    of_output: torch.Tensor,
    query: torch.Tensor,
    prompt: KeysValues,
    own: KeysValues,
    kept: Sequence[torch.Tensor],
    row: Row,
    scale: float,
) -> tuple[torch.Tensor, KeysValues, KeysValues]:
    """Gradients of the query, of the prompt's keys and values, and of the completions' own."""
    key, value = map(row.with_room, prompt)
    of_key, of_value, of_query = torch.zeros_like(key), torch.zeros_like(value), torch.empty_like(query)
    asked, given = row.by_sample(query), row.by_sample(of_output)
    own_key, own_value = (row.by_sample(states[:, None]) for states in own)
    of_own_weights = row.by_column(torch.bmm(given, own_value.transpose(1, 2)), query)
    of_own_weights[:, :, of_own_weights.shape[2] - row.behind :] = 0
    of_own_scores, own_weights = torch.empty_like(of_own_weights), torch.empty_like(of_own_weights)
    for block, weights in zip(_blocks(query, ROW_BLOCK), kept, strict=True):
        of_block = of_output[:, :, block].flatten(1, 2)
        of_weights = torch.bmm(of_block, value.transpose(1, 2))
        row.slots(of_weights, query)[:] = of_own_weights[:, :, block]
        of_scores = _softmax_backward(of_weights, weights)
        of_value.baddbmm_(weights.transpose(1, 2), of_block)
        of_key.baddbmm_(of_scores.transpose(1, 2), query[:, :, block].flatten(1, 2), alpha=scale)
        of_query[:, :, block] = _products(of_scores, key, scale).view_as(of_query[:, :, block])
        own_weights[:, :, block] = row.slots(weights, query)
        of_own_scores[:, :, block] = row.slots(of_scores, query)
    weights, of_scores = (row.without_padding(row.by_sample(states)) for states in (own_weights, of_own_scores))
    of_query += row.by_column(_products(of_scores, own_key, scale), query)
    of_own_key = row.by_column(_products(of_scores.transpose(1, 2), asked, scale), own[0][:, None])
    of_own_value = row.by_column(torch.bmm(weights.transpose(1, 2), given), own[1][:, None])
    shared = prompt[0].shape[1]  # behind it the room for slots, where no key or value of the prompt stands
    return of_query, (of_key[:, :shared], of_value[:, :shared]), (of_own_key[:, 0], of_own_value[:, 0])


def _blocks(query: torch.Tensor, size: int) -> Iterator[slice]:
    """The queries of [M, _S, _Q, _D], so many at a time."""
    count = query.shape[2]
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _softmax_backward(of_weights: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The scores' gradient."""
    of_scores: torch.Tensor = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
    return of_scores


def _products(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """scale x left right, rounded once."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)


def _hidden_behind(count: int, like: torch.Tensor) -> torch.Tensor:
    """[count, count]: HIDDEN where a key comes after the query, else 0."""
    return like.new_full((count, count), HIDDEN).triu_(1)
