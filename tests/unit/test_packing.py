"""The packed layout, read off by hand."""

from __future__ import annotations

import pytest
import torch

from tests.invariants.tiny import tiny_model
from utils.rl import packing
from utils.rl.packing import micro_batches, pack, row_tokens, separate

PROMPTS = [[5, 6], [7, 8, 9]]
COMPLETIONS = [[[11, 12], [13]], [[14, 15, 16]]]


@pytest.fixture(autouse=True)
def exact_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WIDTH_MULTIPLE", 1)


def test_pack_by_hand() -> None:
    batch = pack(PROMPTS, COMPLETIONS, pad_id=0)
    assert batch.input_ids.tolist() == [[0, 5, 6, 11, 12, 13], [7, 8, 9, 14, 15, 16]]
    # positions restart after the prompt for each completion
    assert batch.position_ids.tolist() == [[0, 0, 1, 2, 3, 2], [0, 1, 2, 3, 4, 5]]
    assert batch.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],  # padding sees itself alone
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 0, 0, 1],  # the second completion does not see the first
    ]
    # kept logits start at the last prompt column: 6, 11, 12, 13
    assert batch.logits_to_keep == 4
    assert batch.tokens.tolist() == [11, 12, 13, 14, 15, 16]
    assert batch.row.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.source.tolist() == [0, 1, 0, 0, 1, 2]
    assert batch.sample.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.time.tolist() == [0, 1, 0, 0, 1, 2]
    assert (batch.samples, batch.computed_tokens) == (3, 11)


def test_separate_by_hand() -> None:
    batch = separate(PROMPTS, COMPLETIONS, pad_id=0)
    assert batch.input_ids.tolist() == [[0, 5, 6, 11, 12, 0], [0, 5, 6, 13, 0, 0], [7, 8, 9, 14, 15, 16]]
    assert batch.attention_mask.int().tolist() == [[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0], [1] * 6]
    assert batch.position_ids[0, :5].tolist() == [0, 0, 1, 2, 3]
    assert batch.row.tolist() == [0, 0, 1, 2, 2, 2] and batch.source.tolist() == [0, 1, 0, 0, 1, 2]
    assert batch.computed_tokens == 13


def test_padded_puts_tokens_back_into_rows() -> None:
    batch = pack(PROMPTS, COMPLETIONS, pad_id=0)
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert batch.padded(values).tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]


def test_widths_are_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WIDTH_MULTIPLE", 8)
    assert pack(PROMPTS, COMPLETIONS, pad_id=0).input_ids.shape == (2, 16)


def test_micro_batches_stay_within_the_budget_and_keep_the_order() -> None:
    assert micro_batches([10, 20, 30, 40], 60) == [[0, 1], [2], [3]]
    assert micro_batches([100, 10], 60) == [[0], [1]]
    assert micro_batches([10, 10, 10], 30) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("prompts", "completions"), [([], []), ([[1]], []), ([[]], [[[1]]]), ([[1]], [[]]), ([[1]], [[[1], []]])]
)
def test_nothing_to_predict_is_an_error(prompts: list[list[int]], completions: list[list[list[int]]]) -> None:
    for layout in (pack, separate):
        with pytest.raises(ValueError, match="pack:"):
            layout(prompts, completions, pad_id=0)


def test_a_model_that_takes_no_packed_rows_is_counted_with_every_prompt() -> None:
    prompt, group = [1, 2, 3], [[4], [5, 6]]
    assert row_tokens(tiny_model("llama"), prompt, group) == int(pack([prompt], [group], 0).computed_tokens) == 6
    assert row_tokens(tiny_model("mistral"), prompt, group) == int(separate([prompt], [group], 0).computed_tokens) == 9
