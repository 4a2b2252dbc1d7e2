"""The attention of all models. In bf16 on CPUs, blocks of queries: there about twice as fast as SDPA.

torch's flash kernel for CPUs spends its time on small exponentials; for bf16, matrix products on whole blocks and one
softmax over each are faster, forward and backward (`utils.models.blocks`). With AMX the kernel's forward pass is the
faster one, two to four times (docs/LOG.md): causal rows of sampling go there, but not a reference's, which must give
the policy's numbers to the bit where it is the policy. Packed rows go piece by piece (`utils.models.pieces`),
everything else (other rows in fp32, other devices, long rows, single queries) to transformers' `sdpa`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from utils.machine import matrix_units
from utils.models.blocks import HIDDEN, CausalBlocks
from utils.models.memory import MOST_PAIRS
from utils.models.packed_rows import described
from utils.models.pieces import attend

NAME = "causal_blocks"
AMX = matrix_units() == "AMX"
"""Whether torch's kernel packs keys for such units."""


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
    in_bf16 = plain and arithmetic == torch.bfloat16
    in_fp32 = plain and all(states.dtype == torch.float32 == arithmetic for states in (query, key, value))
    rows = described(attention_mask) if in_bf16 or in_fp32 else None
    few = query.shape[2] != key.shape[2]
    long = query.shape[2] * key.shape[2] > 2 * MOST_PAIRS
    # for a single query SDPA is the faster one, too
    if rows is None and (not in_bf16 or long or (few and (attention_mask is None or query.shape[2] == 1))):
        rest = {"dropout": dropout, "scaling": scale, **kwargs}
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
        return output, None
    on = torch.is_autocast_enabled("cpu")  # it would take the softmax, and what follows, to fp32
    with torch.autocast("cpu", enabled=False) if on else nullcontext():
        query, key, value = (tensor.to(arithmetic) for tensor in (query, key, value))
        if rows is not None:
            return attend(rows, query, key, value, scale), None
        if few:
            assert attention_mask is not None
            return of_few_queries(query, key, value, attention_mask, scale), None
        if AMX and attention_mask is None and torch.is_inference_mode_enabled():
            grouped = query.shape[1] != key.shape[1]
            drawn = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
            )
            return drawn.transpose(1, 2), None
        return in_blocks(query, key, value, attention_mask, scale), None


def in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """softmax(scale x query key' + mask) value, for causal masks; shapes as in `attention`."""
    batch, heads, width, size = query.shape
    grouped = query.reshape(key.shape[0] * key.shape[1], -1, width, size)
    added = None if mask is None else _added(mask, query.dtype)[:, 0]
    output: torch.Tensor = CausalBlocks.apply(grouped, key.flatten(0, 1), value.flatten(0, 1), added, scale)  # type: ignore[no-untyped-call]
    return output.view(batch, heads, width, size).transpose(1, 2)


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
