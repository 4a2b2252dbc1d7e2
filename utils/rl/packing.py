"""Packed groups: one row per prompt, the prompt once, then its completions one after another.

    row 0:  [pad pad p p p | a a a a b b b c c c c c]      a, b, c: the samples of the prompt
    row 1:  [p p p p p     | a a b b b c pad pad ...]

Prompts are left-padded to one column, so that logits are needed only from the last prompt column on. A completion
token sees its prompt and its own earlier tokens (4-D mask) and its position restarts after the prompt: the unpatched
model then computes what it computes for separate rows, and each prompt once instead of _G times. `separate` lays out
one row per sample behind the same fields: the oracle of the tests and the layout of models without custom masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from utils.models.memory import WIDTH_MULTIPLE, round_up
from utils.models.packed_rows import PackedRows, describe

if TYPE_CHECKING:
    from utils.models.load import Model


@dataclass(frozen=True)
class PackedBatch:
    """Rows for one forward pass, and where each completion token's prediction stands.

    `input_ids`, `position_ids` [rows, _W]; `attention_mask` [rows, 1, _W, _W], True where a query may look (2-D
    [rows, _W] for `separate`); `logits_to_keep`: logits are computed for this many last columns.
    For the _N completion tokens, sample by sample: `tokens` their ids, `row` and `source` where among the kept logits
    each is predicted, `sample` which of the _S samples it belongs to, `time` its place in the completion.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    logits_to_keep: int
    tokens: torch.Tensor
    row: torch.Tensor
    source: torch.Tensor
    sample: torch.Tensor
    time: torch.Tensor
    samples: int
    prompts: Sequence[Sequence[int]]
    groups: Sequence[Sequence[Sequence[int]]]
    """Prompts and each one's completions as they were given, to lay them out again."""
    computed_tokens: int
    """Tokens of all rows without padding: what a forward pass computes."""

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        moved: dict[str, Any] = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)

    def padded(self, values: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """[_N] per completion token -> [_S, _T]."""
        length = int(self.time.max()) + 1
        result = values.new_full((self.samples, length), fill)
        result[self.sample, self.time] = values
        return result


def unpackable(model: Model) -> str | None:
    """Why a model cannot take packed rows (its attention is more than a mask can say), or None when it can."""
    config = model.config
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"{config.model_type} attends within a sliding window of {config.sliding_window} tokens"
    if getattr(config, "attn_logit_softcapping", None):
        return f"{config.model_type} soft-caps its attention logits"
    if getattr(config, "_attn_implementation", None) == "eager":  # it adds masks to scores: ours are True and False
        return f"{config.model_type} has attention of its own"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return f"{config.model_type} has layers that are not full attention"
    return None


def lay_out(
    model: Model, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], pad_id: int
) -> PackedBatch:
    """`pack` where the model can take it, else `separate`."""
    return pack(prompts, completions, pad_id) if unpackable(model) is None else separate(prompts, completions, pad_id)


def pack(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], pad_id: int) -> PackedBatch:
    """One row per prompt with all its completions; groups may differ in size, completions hold at least one token."""
    _check(prompts, completions)
    start = round_up(max(len(prompt) for prompt in prompts), WIDTH_MULTIPLE)
    width = start + round_up(max(sum(map(len, group)) for group in completions), WIDTH_MULTIPLE)
    ids = torch.full((len(prompts), width), pad_id)
    positions = torch.zeros(len(prompts), width, dtype=torch.long)
    # which completion of its row a column belongs to: -1 the prompt, -2 padding
    segment = torch.full((len(prompts), width), -2)
    row: list[int] = []
    source: list[int] = []
    for i, (prompt, group) in enumerate(zip(prompts, completions, strict=True)):
        ids[i, start - len(prompt) : start] = torch.tensor(list(prompt))
        positions[i, start - len(prompt) : start] = torch.arange(len(prompt))
        segment[i, start - len(prompt) : start] = -1
        column = start
        for k, completion in enumerate(group):
            end = column + len(completion)
            ids[i, column:end] = torch.tensor(list(completion))
            positions[i, column:end] = torch.arange(len(prompt), len(prompt) + len(completion))
            segment[i, column:end] = k
            row += [i] * len(completion)
            # the first token is predicted at the prompt's last column, the others at the column before their own
            source += [0, *range(column - start + 1, end - start)]
            column = end
    mask = _group_mask(segment)[:, None]
    describe(mask, PackedRows(start, width, list(map(len, prompts)), [list(map(len, group)) for group in completions]))
    return PackedBatch(
        input_ids=ids,
        position_ids=positions,
        attention_mask=mask,
        logits_to_keep=width - start + 1,
        row=torch.tensor(row),
        source=torch.tensor(source),
        computed_tokens=int((segment > -2).sum()),
        **_flat_tokens(prompts, completions),
    )


def separate(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], pad_id: int
) -> PackedBatch:
    """One row per sample: the prompt again for each completion, padding left and right, a plain 2-D mask."""
    _check(prompts, completions)
    pairs = [(prompt, completion) for prompt, group in zip(prompts, completions, strict=True) for completion in group]
    start = round_up(max(len(prompt) for prompt in prompts), WIDTH_MULTIPLE)
    width = start + round_up(max(len(completion) for _, completion in pairs), WIDTH_MULTIPLE)
    ids = torch.full((len(pairs), width), pad_id)
    mask = torch.zeros(len(pairs), width, dtype=torch.bool)
    row: list[int] = []
    source: list[int] = []
    for i, (prompt, completion) in enumerate(pairs):
        first, end = start - len(prompt), start + len(completion)
        ids[i, first:end] = torch.tensor([*prompt, *completion])
        mask[i, first:end] = True
        row += [i] * len(completion)
        source += range(len(completion))
    return PackedBatch(
        input_ids=ids,
        position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
        attention_mask=mask,
        logits_to_keep=width - start + 1,
        row=torch.tensor(row),
        source=torch.tensor(source),
        computed_tokens=int(mask.sum()),
        **_flat_tokens(prompts, completions),
    )


def row_tokens(model: Model, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> int:
    """Tokens that a prompt with its completions takes in the layout of `lay_out`."""
    prompts = 1 if unpackable(model) is None else len(completions)
    return prompts * len(prompt) + sum(map(len, completions))


def micro_batches(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Consecutive indices of rows, cut so that rows x widest row stays within `budget` tokens (one row always goes)."""
    batches: list[list[int]] = [[]]
    for i, tokens in enumerate(sizes):
        widest = max([tokens, *(sizes[j] for j in batches[-1])])
        if batches[-1] and widest * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(i)
    return [batch for batch in batches if batch]


def in_pieces(batches: Sequence[list[int]], count: int) -> list[list[int]]:
    """The same rows in the same order as `count` batches, of which there are fewer: the fullest are halved."""
    pieces = list(batches)
    while len(pieces) < count:
        fullest = max(range(len(pieces)), key=lambda i: len(pieces[i]))
        rows = pieces[fullest]
        pieces[fullest : fullest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return pieces


def _group_mask(segment: torch.Tensor) -> torch.Tensor:
    """[rows, _W, _W]: causal, and the key is the prompt's or of the query's own completion; padding sees itself."""
    query, key = segment[:, :, None], segment[:, None, :]
    width = segment.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    seen = causal & ((key == -1) & (query > -2) | (key == query) & (key > -1))
    return seen | torch.eye(width, dtype=torch.bool)


def _flat_tokens(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> dict[str, Any]:
    samples = [completion for group in completions for completion in group]
    return {
        "tokens": torch.tensor([token for completion in samples for token in completion]),
        "sample": torch.tensor([s for s, completion in enumerate(samples) for _ in completion]),
        "time": torch.tensor([t for completion in samples for t in range(len(completion))]),
        "samples": len(samples),
        "prompts": prompts,
        "groups": completions,
    }


def _check(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> None:
    if not prompts or len(prompts) != len(completions):
        raise ValueError(f"pack: {len(prompts)} prompts and {len(completions)} groups; expected as many, at least one")
    if not all(prompts) or not all(group and all(group) for group in completions):
        raise ValueError("pack: an empty prompt, group or completion has no token to predict")
