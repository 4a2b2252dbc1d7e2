"""The cache of keys and values that the sampler writes in place."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from utils.models.memory import WIDTH_MULTIPLE, round_up

GROWTH = 44
"""Columns that a buffer has room for when it grows, times the root of those that a step writes: then copying what it
holds, and looking at columns where nothing stands yet, cost about the same."""


def cached_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """What attention computes in on a device (cpu, cuda), for keys that come as `dtype`."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


def buffer_columns(end: int, width: int, per_step: int) -> int:
    """Columns of a buffer that grows when `end` are written: room for prompts of `width`, then some steps."""
    first = round_up(width, WIDTH_MULTIPLE)
    return first + round_up(max(0, end - first), round_up(int(GROWTH * per_step**0.5), WIDTH_MULTIPLE))


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in a buffer of `rows` rows, written in place.

    SDPA in fp32 on a CPU takes a part of a buffer as it is: there it has all `columns` from the start. Elsewhere
    attention gets the whole buffer, since bf16 products on CPUs copy a part of one at every call: it begins with room
    for prompts of `width` columns and grows by that of some steps of `per_step` tokens. Its mask must hide columns
    where nothing stands yet. It has the dtype that attention computes in, so that no step casts it again. Prompts come
    in parts: while `part` is set, the pass writes those rows from column 0 on and sees no other.
    """

    def __init__(self, rows: int, width: int, per_step: int, columns: int) -> None:
        super().__init__()
        self.rows, self.width, self.per_step, self.columns, self.length = rows, width, per_step, columns, 0
        self.part: slice | None = None
        self.whole = True
        self.is_initialized = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
            self.is_initialized = True
        rows, end = self.part or slice(None), self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            columns = buffer_columns(end, self.width, self.per_step)
            self.keys, self.values = (self._grown(old, columns) for old in (self.keys, self.values))
        self.keys[rows, :, self.length : end] = key_states
        self.values[rows, :, self.length : end] = value_states
        if not self.length:  # columns that nobody may see still enter the products, with weight 0
            for states in (self.keys, self.values):
                states[rows, :, end : self.seen(self.width)] = 0
        if self.part is not None:
            return self.keys[rows, :, :end], self.values[rows, :, :end]
        self.length = end
        seen = self.seen(end)
        return self.keys[:, :, :seen], self.values[:, :, :seen]

    def seen(self, end: int) -> int:
        """Columns that attention gets, and a mask has to have, when `end` are written."""
        return buffer_columns(end, self.width, self.per_step) if self.whole else end

    def get_seq_length(self) -> int:
        return self.length

    def _buffer(self, states: torch.Tensor) -> torch.Tensor:
        dtype = cached_dtype(states.dtype, states.device.type)
        self.whole = dtype != torch.float32 or states.device.type != "cpu"
        columns = self.seen(self.width) if self.whole else self.columns
        return states.new_empty(self.rows, states.shape[1], columns, states.shape[-1], dtype=dtype)

    def _grown(self, old: torch.Tensor, columns: int) -> torch.Tensor:
        new = old.new_empty(*old.shape[:2], columns, old.shape[-1])
        new[:, :, : old.shape[-2]] = old
        new[:, :, old.shape[-2] :] = 0
        return new


def growing(layers: int, rows: int, width: int, per_step: int, columns: int) -> Cache:
    """A cache of as many `GrowingLayer`s."""
    return Cache(layers=[GrowingLayer(rows, width, per_step, columns) for _ in range(layers)])


def seen(cache: Cache, end: int) -> int:
    """Columns that a mask has to have for such a cache; a model without layers looks at none of them."""
    return cache.layers[0].seen(end) if cache.layers else end
