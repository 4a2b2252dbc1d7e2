"""The cache of keys and values that the sampler writes in place."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

SEEN = 32
"""Decoding steps see columns up to a multiple of this."""


def seen(columns: int, capacity: int) -> int:
    """How many columns a pass sees when so many are written."""
    return min(-(-columns // SEEN) * SEEN, capacity)


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in a buffer of `rows` x `capacity` columns, written in place and never re-copied.

    They are kept in the dtype that attention computes in, so that no step casts them again. Prompts come in parts:
    while `part` is set, the pass writes those rows from column 0 on and sees no other. Later passes see columns up to a
    multiple of SEEN, which their mask must hide where nothing stands yet: kernels are made for a few shapes only.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__()
        self.rows, self.capacity, self.length = rows, capacity, 0
        self.part: slice | None = None
        self.is_initialized = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
            self.is_initialized = True
        rows = self.part or slice(None)
        end = self.length + key_states.shape[-2]
        self.keys[rows, :, self.length : end] = key_states
        self.values[rows, :, self.length : end] = value_states
        if self.part is None:
            self.length = end
            end = seen(end, self.capacity)
        return self.keys[rows, :, :end], self.values[rows, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def _buffer(self, states: torch.Tensor) -> torch.Tensor:
        """Zeros, since a column that nobody may see still enters the products with weight 0."""
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        return states.new_zeros(self.rows, states.shape[1], self.capacity, states.shape[-1], dtype=dtype)


def preallocated(layers: int, rows: int, capacity: int) -> Cache:
    """A cache of as many `PreallocatedLayer`s."""
    return Cache(layers=[PreallocatedLayer(rows, capacity) for _ in range(layers)])
