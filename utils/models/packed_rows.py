"""Where prompts and completions stand in packed rows (`utils.rl.packing`), for an attention that computes no more.

A model hands its attention a mask and no more: `describe` notes which rows a mask stands for, and
`utils.models.attention` looks it up. Where nothing is known of a mask, the mask itself says the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

_described = WeakTensorKeyDictionary()


class Row:
    """One row: its prompt in columns `first` to `start`, its completions from there to `end`.

    The completions are padded to a common length, [samples, _T] slots; columns and slots are numbered from 0.
    """

    def __init__(self, first: int, start: int, lengths: Sequence[int]) -> None:
        self.prompt = slice(first, start)
        self.completions = slice(start, start + sum(lengths))
        self.lengths, self.longest = lengths, max(lengths)
        self.even = min(lengths) == max(lengths)
        length = torch.tensor(lengths)[:, None]
        time = torch.arange(self.longest)
        self.padding = (time >= length)[:, None, :, None]
        column = (length.cumsum(0) - length) + time.where(time < length, 0)
        self.column = column.flatten()
        self.slot = (time < length).flatten().nonzero().flatten()
        prompt, columns = start - first, sum(lengths)
        # of a query and a key that it sees, and of slots, padding among them
        self.pairs = prompt**2 // 2 + columns * (prompt + self.longest) + len(lengths) * self.longest**2

    def samples(self, states: torch.Tensor) -> torch.Tensor:
        """[_H, columns, ...] -> [samples, _H, _T, ...]; padding holds a column of its own sample."""
        found = states if self.even else states.index_select(1, self.column)
        return found.view(len(states), len(self.lengths), self.longest, *states.shape[2:]).transpose(0, 1)

    def columns(self, states: torch.Tensor) -> torch.Tensor:
        """[samples, _H, _T, ...] -> [_H, columns, ...]."""
        found = states.transpose(0, 1).flatten(1, 2)
        return found if self.even else found.index_select(1, self.slot)

    def by_sample(self, states: torch.Tensor) -> torch.Tensor:
        """[_KV, _S, columns, _X] -> [samples * _KV, _S * _T, _X]: a product's factor for each sample."""
        found = self.samples(states.flatten(0, 1))
        return found.reshape(-1, states.shape[1] * self.longest, states.shape[-1])

    def by_column(self, states: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """And back: [_KV, _S, columns, _X], where `like` is [_KV, _S, ...]."""
        found = self.columns(states.view(len(self.lengths), -1, self.longest, states.shape[-1]))
        return found.view(*like.shape[:2], *found.shape[1:])

    def with_slots(self, states: torch.Tensor) -> torch.Tensor:
        """The prompt's [_KV, prompt, _D] and _T zeros: [_KV, prompt + _T, _D]."""
        return functional.pad(states, (0, 0, 0, self.longest))

    def slots(self, scores: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Those of the own sample: [_KV, _S, queries, _T] of [_KV, _S * queries, prompt + _T]."""
        return scores.view(*like.shape[:2], -1, scores.shape[-1])[..., -self.longest :]

    def without_padding(self, states: torch.Tensor) -> torch.Tensor:
        """[samples * _KV, _S * _T, _X] with zeros in padding slots, which hold another's."""
        if self.even:
            return states
        slots = states.view(len(self.lengths), -1, self.longest, states.shape[-1])
        return slots.masked_fill(self.padding, 0.0).view_as(states)

    def clear_padding(self, states: torch.Tensor, skipped: int = 0, dim: int = 1) -> None:
        """Zeros beside prompt and completions of [..., columns from `skipped` on, ...]; columns stand at `dim`."""
        states.narrow(dim, 0, max(0, self.prompt.start - skipped)).zero_()
        end = self.completions.stop - skipped
        states.narrow(dim, end, states.shape[dim] - end).zero_()

    def asking(self, skipped: int) -> tuple[slice, slice]:
        """Where the prompt's and the completions' queries stand when the first columns have none."""
        start = self.prompt.stop - skipped
        return slice(max(0, self.prompt.start - skipped), start), slice(start, self.completions.stop - skipped)


class PackedRows:
    """Where prompts and completions stand in each row of a batch."""

    def __init__(self, start: int, prompts: Sequence[int], completions: Sequence[Sequence[int]]) -> None:
        """Prompts of these lengths end before the column `start`; the completions' lengths, prompt by prompt."""
        self.start = start
        self.rows = [Row(start - prompt, start, lengths) for prompt, lengths in zip(prompts, completions, strict=True)]


def describe(mask: torch.Tensor, rows: PackedRows) -> None:
    """Note which rows this very tensor stands for, as long as it lives."""
    _described[mask] = rows


def described(mask: torch.Tensor | None) -> PackedRows | None:
    """The rows that were noted."""
    found: PackedRows | None = None if mask is None else _described.get(mask)
    return found
