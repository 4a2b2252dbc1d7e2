"""Attention in blocks of queries: the kernel that bf16 models use on CPUs, where it is about twice as fast as SDPA's.

torch's flash kernel for CPUs spends its time on small exponentials; for bf16, matrix products on whole blocks and one
softmax over each are faster, forward and backward. A block of queries looks at no key behind its end, so that half of
the work of a causal mask is left out, whatever else the mask says. Scores are rounded to bf16 before the softmax, as in
transformers' `eager`; its sums are fp32. Everything else (fp32, other devices, decoding) goes to transformers' `sdpa`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "causal_blocks"
BLOCK = 128
"""Queries per block."""
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

    `attention_mask` [B, 1, _Q, _K]: bool, True where a query may look, or added to the scores; a query must not look
    behind its own place. None: every earlier key.
    """
    arithmetic = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    ours = query.device.type == "cpu" and arithmetic == torch.bfloat16 and not dropout and not kwargs.get("softcap")
    decoding = query.shape[2] != key.shape[2]
    if not ours or (decoding and attention_mask is None):
        rest = {"dropout": dropout, "scaling": scaling, **kwargs}
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
        return output, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):  # it would take the softmax, and what follows, to fp32
        query, key, value = (tensor.to(arithmetic) for tensor in (query, key, value))
        if decoding:
            assert attention_mask is not None
            return of_few_queries(query, key, value, attention_mask, scale), None
        return in_blocks(query, key, value, attention_mask, scale), None


def in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """softmax(scale x query key' + mask) value, for causal masks; shapes as in `attention`."""
    batch, heads, width, size = query.shape
    shared = heads // key.shape[1]
    query = query.reshape(-1, shared, width, size)
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    if mask is None:
        mask = torch.ones(1, 1, width, width, dtype=torch.bool, device=query.device).tril()
    mask = _added(mask, query.dtype)
    outputs = []
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        scores = _products(query[:, :, start:end].flatten(1, 2), key[:, :end].transpose(1, 2), scale)
        scores = (scores.view(batch, heads, end - start, end) + mask[:, :, start:end, :end]).view_as(scores)
        outputs.append(torch.bmm(scores.softmax(dim=-1), value[:, :end]).view(batch, heads, end - start, size))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def of_few_queries(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """The same for queries at the end of a cache; the mask may be any. key query' is the faster product here."""
    batch, heads, count, size = query.shape
    shared = heads // key.shape[1]
    query = query.reshape(-1, shared * count, size)
    scores = _products(key.flatten(0, 1), query.transpose(1, 2), scale).transpose(1, 2)
    scores = scores.reshape(batch, heads, count, key.shape[2]) + _added(mask, query.dtype)
    weights = scores.softmax(dim=-1).view(batch * key.shape[1], shared * count, -1)
    return torch.bmm(weights, value.flatten(0, 1)).view(batch, heads, count, size).transpose(1, 2)


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
