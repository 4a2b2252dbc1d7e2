"""Where prompts and completions stand in packed rows (`utils.rl.packing`), for an attention that computes no more.

A model hands its attention a mask and no more: `describe` notes which rows a mask stands for, and
`utils.models.attention` looks it up. Where nothing is known of a mask, the mask itself says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from utils.models.memory import KEYS_MULTIPLE, SLOTS_MULTIPLE, WIDTH_MULTIPLE, round_up

_described = WeakTensorKeyDictionary()


class Row:
    """One row: its prompt in columns `first` to `start`, its completions from there to `end`.

    `prompt` and `completions` are these columns, those rounded up with `ahead` columns of padding before the prompt and
    `behind` behind the completions. The completions are padded to a common length, [samples, _T] slots; columns and
    slots are numbered from 0.
    """

    def __init__(self, first: int, start: int, lengths: Sequence[int], width: int = 0) -> None:
        """`width`: all columns that there are, to round up; 0: not to."""
        self.first, self.end, self.lengths = first, start + sum(lengths), lengths
        prompt, columns, self.longest = start - first, sum(lengths), max(lengths)
        if width:
            prompt = min(start, round_up(prompt, WIDTH_MULTIPLE))
            columns = min(width - start, round_up(columns, WIDTH_MULTIPLE))
            self.longest = round_up(self.longest, SLOTS_MULTIPLE)
        self.prompt, self.completions = slice(start - prompt, start), slice(start, start + columns)
        self.ahead, self.behind = first - self.prompt.start, self.completions.stop - self.end
        self.even = min(lengths) == self.longest and not self.behind
        self.room = round_up(prompt + self.longest, KEYS_MULTIPLE) - prompt
        length = torch.tensor(lengths)[:, None]
        time = torch.arange(self.longest)
        self.padding = (time >= length)[:, None, :, None]
        column = (length.cumsum(0) - length) + time.where(time < length, 0)
        self.column = column.flatten()
        self.slot = functional.pad((time < length).flatten().nonzero().flatten(), (0, self.behind))
        # of a query and a key that it is multiplied with, but for the prompt's blocks, and of two slots
        self.pairs = prompt**2 // 2 + columns * (prompt + self.room) + len(lengths) * self.longest**2

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

    def with_room(self, states: torch.Tensor) -> torch.Tensor:
        """The prompt's [_KV, prompt, _D], and zeros for the slots of a sample: [_KV, prompt + room, _D]."""
        return functional.pad(states, (0, 0, 0, self.room))

    def slots(self, scores: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Those of the own sample: [_KV, _S, queries, _T] of [_KV, _S * queries, prompt + room]."""
        prompt = scores.shape[-1] - self.room
        return scores.view(*like.shape[:2], -1, scores.shape[-1])[..., prompt : prompt + self.longest]

    def hide_padding(self, scores: torch.Tensor, hidden: float) -> None:
        """Of the prompt's keys, and of the room behind the slots."""
        scores[..., : self.ahead] = hidden
        scores[..., scores.shape[-1] - self.room + self.longest :] = hidden

    def without_padding(self, states: torch.Tensor) -> torch.Tensor:
        """[samples * _KV, _S * _T, _X] with zeros in padding slots, which hold another's."""
        if self.even:
            return states
        slots = states.view(len(self.lengths), -1, self.longest, states.shape[-1])
        return slots.masked_fill(self.padding, 0.0).view_as(states)

    def clear_padding(self, states: torch.Tensor, skipped: int = 0, dim: int = 1) -> None:
        """Zeros beside prompt and completions of [..., columns from `skipped` on, ...]; columns stand at `dim`."""
        states.narrow(dim, 0, max(0, self.first - skipped)).zero_()
        end = self.end - skipped
        states.narrow(dim, end, states.shape[dim] - end).zero_()

    def with_padding_cleared(self, states: torch.Tensor, skipped: int) -> torch.Tensor:
        """[_KV, _S, columns from `skipped` on, _D] with zeros where rounding has taken in padding."""
        if self.ahead or self.behind:
            states = states.clone()
            self.clear_padding(states, skipped, 2)
        return states

    def asking(self, skipped: int) -> tuple[slice, slice]:
        """Where the prompt's and the completions' queries stand when the first columns have none."""
        start = self.prompt.stop - skipped
        return slice(max(0, self.prompt.start - skipped), start), slice(start, self.completions.stop - skipped)


class PackedRows:
    """Where prompts and completions stand in each row of a batch."""

    def __init__(self, start: int, width: int, prompts: Sequence[int], completions: Sequence[Sequence[int]]) -> None:
        """Of `width` columns; prompts of these lengths end before `start`; completions' lengths, prompt by prompt."""
        self.start, self.width = start, width
        self.given = [(start - prompt, start, lengths) for prompt, lengths in zip(prompts, completions, strict=True)]

    @cached_property
    def rows(self) -> list[Row]:
        """As they are."""
        return [Row(*given) for given in self.given]

    @cached_property
    def rounded(self) -> list[Row]:
        """Rounded up."""
        return [Row(*given, width=self.width) for given in self.given]


def describe(mask: torch.Tensor, rows: PackedRows) -> None:
    """Note which rows this very tensor stands for, as long as it lives."""
    _described[mask] = rows


def described(mask: torch.Tensor | None) -> PackedRows | None:
    """The rows that were noted."""
    found: PackedRows | None = None if mask is None else _described.get(mask)
    return found
