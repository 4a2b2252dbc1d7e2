"""The attention of all models. In bf16 on CPUs, blocks of queries: there about twice as fast as SDPA.

torch's flash kernel for CPUs spends its time on small exponentials; for bf16, matrix products on whole blocks and one
softmax over each are faster, forward and backward. A block of queries looks at no key behind its end, so that half of
the work of a causal mask is left out, whatever else the mask says. Scores are rounded to bf16 before the softmax, as in
transformers' `eager`; its sums are fp32. With AMX the kernel's forward pass is the faster one, two to four times
(docs/LOG.md): causal rows of sampling go there, but not a reference's, which must give the policy's numbers to the bit
where it is the policy. Packed rows in fp32 go piece by piece (`utils.models.pieces`), everything else (other masks,
other devices, long rows, single queries) to transformers' `sdpa`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from utils.machine import matrix_units
from utils.models.pieces import PackedRows, described

NAME = "causal_blocks"
BLOCK = 128
"""Queries per block."""
LONGEST = 2048
"""Longer rows go to SDPA: the weights of all blocks, _H x _W^2 bytes per row and layer, wait for the backward pass.
For few queries it is the same number of pairs."""
AMX = matrix_units() == "AMX"
"""Whether torch's kernel packs keys for such units."""
GAP = 64
"""Columns that a block can leave out, from which on it does."""
HIDDEN = -1e30
"""Added where a query may not look: weight 0 beside any key that it sees, and no NaN for padding, which sees none."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The interface of transformers: query [B, _H, _Q, _D], key and value [B, _KV, _K, _D] -> [B, _Q, _H, _D].

    `attention_mask` [B, 1, _Q, _K]: bool, True where a query may look, or added to the scores; where there are as many
    queries as keys, none must look behind its own place. None: every earlier key.
    """
    arithmetic = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    plain = query.device.type == "cpu" and not dropout and not kwargs.get("softcap")
    if plain and all(states.dtype == torch.float32 == arithmetic for states in (query, key, value)):
        rows = described(attention_mask)
        if rows is not None:
            return rows.attend(query, key, value, scale), None
    ours = plain and arithmetic == torch.bfloat16
    few = query.shape[2] != key.shape[2]
    long = query.shape[2] * key.shape[2] > LONGEST**2
    # for a single query SDPA is the faster one, too
    if not ours or long or (few and (attention_mask is None or query.shape[2] == 1)):
        rest = {"dropout": dropout, "scaling": scale, **kwargs}
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
        return output, None
    on = torch.is_autocast_enabled("cpu")  # it would take the softmax, and what follows, to fp32
    with torch.autocast("cpu", enabled=False) if on else nullcontext():
        query, key, value = (tensor.to(arithmetic) for tensor in (query, key, value))
        if few:
            assert attention_mask is not None
            return of_few_queries(query, key, value, attention_mask, scale), None
        if AMX and attention_mask is None and torch.is_inference_mode_enabled():
            grouped = query.shape[1] != key.shape[1]
            drawn = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
            )
            return drawn.transpose(1, 2), None
        return in_blocks(query, key, value, attention_mask, scale, described(attention_mask)), None


def in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    rows: PackedRows | None = None,
) -> torch.Tensor:
    """softmax(scale x query key' + mask) value, for causal masks; shapes as in `attention`. `rows`: what they are."""
    batch, heads, width, size = query.shape
    if mask is None:
        mask = torch.ones(1, 1, width, width, dtype=torch.bool, device=query.device).tril()
    grouped = query.reshape(key.shape[0] * key.shape[1], -1, width, size)
    output: torch.Tensor = _Blocks.apply(
        grouped, key.flatten(0, 1), value.flatten(0, 1), _added(mask, query.dtype), scale, _blocks(width, rows)
    )  # type: ignore[no-untyped-call]
    return output.view(batch, heads, width, size).transpose(1, 2)


class _Blocks(torch.autograd.Function):
    """query [M, _S, _Q, _D] of the _S heads that share a key head, key and value [M, _K, _D], mask [B or 1, 1, _Q, _K].

    Written out since autograd would make a zero-filled gradient of all keys for every block and add them up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        scale: float,
        blocks: list[_Block],
    ) -> torch.Tensor:
        output, kept = torch.empty_like(query), []
        for block in blocks:
            queries = query[:, :, block.queries].flatten(1, 2)
            scores = _products(queries, block.seen(key).transpose(1, 2), scale)
            # the mask is the same for all heads of a row
            hidden = block.seen(mask[:, 0, block.queries], 2).unsqueeze(1)
            by_row = scores.view(len(mask), -1, *hidden.shape[2:])
            by_row += hidden
            weights = scores.softmax(dim=-1)
            output[:, :, block.queries] = torch.bmm(weights, block.seen(value)).view_as(query[:, :, block.queries])
            if any(ctx.needs_input_grad):
                kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale, ctx.blocks = scale, blocks
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        (of_output,) = gradients
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for block, weights in zip(ctx.blocks, kept, strict=True):
            queries = query[:, :, block.queries].flatten(1, 2)
            of_block = of_output[:, :, block.queries].flatten(1, 2)
            block.add_product(of_value, weights.transpose(1, 2), of_block)
            of_weights = torch.bmm(of_block, block.seen(value).transpose(1, 2))
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            found = _products(of_scores, block.seen(key), ctx.scale)
            of_query[:, :, block.queries] = found.view_as(query[:, :, block.queries])
            block.add_product(of_key, of_scores.transpose(1, 2), queries, ctx.scale)
        return of_query, of_key, of_value, None, None, None


@dataclass(frozen=True)
class _Block:
    """Some queries, and the keys that they may see: those before `prompt`, and from `own` to the block's end.

    Both are 0 where those are all keys up to its end.
    """

    queries: slice
    prompt: int
    own: int

    def seen(self, states: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """Of [..., _K, ...] along `dim`."""
        if self.own == self.prompt:
            return states.narrow(dim, 0, self.queries.stop)
        own = states.narrow(dim, self.own, self.queries.stop - self.own)
        return torch.cat([states.narrow(dim, 0, self.prompt), own], dim)

    def add_product(self, to: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> None:
        """Add scale x left right [M, keys seen, _D] to [M, _K, _D] at these keys."""
        if self.own == self.prompt:
            to[:, : self.queries.stop].baddbmm_(left, right, alpha=scale)
            return
        product = _products(left, right, scale)
        to[:, : self.prompt] += product[:, : self.prompt]
        to[:, self.own : self.queries.stop] += product[:, self.prompt :]


def _blocks(width: int, rows: PackedRows | None) -> list[_Block]:
    """Of packed rows, a block leaves out the samples that none of its queries belongs to, if they are at least GAP
    columns: putting the others side by side is a copy."""
    found = []
    for start in range(0, width, BLOCK):
        prompt = own = 0
        if rows is not None and start > rows.start and rows.first_seen(start) - rows.start >= GAP:
            prompt, own = rows.start, rows.first_seen(start)
        found.append(_Block(slice(start, min(start + BLOCK, width)), prompt, own))
    return found


def of_few_queries(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """The same for fewer queries than keys, as at the end of a cache; the mask may be any."""
    batch, heads, count, size = query.shape
    columns, shared = key.shape[2], heads // key.shape[1]
    scores = query.new_empty(batch, heads, count, columns).copy_(_added(mask, query.dtype))
    scores = scores.view(-1, shared * count, columns)
    query = query.reshape(-1, shared * count, size)
    scores.baddbmm_(query, key.flatten(0, 1).transpose(1, 2), alpha=scale)
    found = torch.bmm(scores.softmax(dim=-1), value.flatten(0, 1))
    return found.view(batch, heads, count, size).transpose(1, 2)


def _products(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """scale x left right, rounded once."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)


def _added(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask as what is added to the scores: 0 or HIDDEN."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, HIDDEN)


def attention_mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> torch.Tensor | None:
    """transformers' mask for SDPA, left out where rows are padded on the right alone: no real token looks there."""
    plain = allow_is_causal_skip and local_size is None and q_length == kv_length
    if plain and attention_mask is not None and bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all()):
        return None
    mask: torch.Tensor | None = sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        **kwargs,
    )
    return mask


def attention_in_blocks() -> str:
    """The name under which transformers now knows it, for `attn_implementation`."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, attention_mask)
    return NAME
