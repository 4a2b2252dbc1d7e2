"""Preference pairs worked by hand: who is preferred to whom, how often, how long, in which split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from utils.errors import UserError
from utils.files import write_jsonl
from utils.rl.preferences import (
    HELD_OUT,
    Answer,
    Pair,
    balanced,
    figures,
    histogram,
    length_bias,
    pairs_of,
    read_scored,
    split_by_prompt,
    statistics,
    why_none,
)
from utils.settings import PairSettings

RIGHT = Answer("right", 10, 1.0, True, True)
RIGHT_TOO = Answer("right too", 12, 1.0, True, True)
UGLY = Answer("right, no JSON", 10, 0.9, True, False)
WRONG = Answer("wrong", 10, 0.1, False, True)
BROKEN = Answer("broken", 30, 0.0, False, False)
GOLD = Answer("gold", 11, 1.0, True, True)
ALL = PairSettings(min_margin=0.05, pairs_per_prompt=4)


def made(*answers: Answer, gold: Answer | None = None, settings: PairSettings = ALL, seed: int = 0) -> list[str]:
    """`chosen>rejected` of each pair, in the order taken."""
    pairs = pairs_of("a", "the prompt", answers, gold, settings, seed)
    assert len({pair.rule for pair in pairs}) <= 1
    assert all(pair.margin == pytest.approx(pair.chosen_score - pair.rejected_score) for pair in pairs)
    return [f"{pair.chosen}>{pair.rejected}" for pair in pairs]


def rule(*answers: Answer, gold: Answer | None = None) -> set[str]:
    return {pair.rule for pair in pairs_of("a", "p", answers, gold, ALL, 0)}


def test_a_correct_candidate_is_preferred_to_every_wrong_one() -> None:
    # the nearer in length comes first
    assert made(RIGHT, WRONG, BROKEN) == ["right>wrong", "right>broken"]
    assert rule(RIGHT, WRONG, BROKEN, gold=GOLD) == {"correct"}


def test_the_gold_program_is_chosen_only_where_no_candidate_is_correct_and_only_when_allowed() -> None:
    assert made(WRONG, BROKEN, gold=GOLD) == ["gold>wrong", "gold>broken"]
    assert rule(WRONG, BROKEN, gold=GOLD) == {"gold"}
    without = replace(ALL, rules=("correct", "score"))
    assert made(WRONG, BROKEN, gold=GOLD, settings=without) == ["wrong>broken"]
    assert made(WRONG, BROKEN, gold=GOLD, settings=replace(ALL, rules=("correct",))) == []
    assert made(WRONG, gold=None) == []
    assert made(RIGHT, WRONG, gold=GOLD, settings=replace(ALL, rules=("gold",))) == []


def test_among_equals_the_better_score_is_preferred() -> None:
    assert made(WRONG, BROKEN) == ["wrong>broken"]
    assert rule(WRONG, BROKEN) == {"score"}
    assert made(RIGHT, UGLY) == ["right>right, no JSON"]  # both correct: the format decides
    assert made(RIGHT, RIGHT_TOO) == []
    assert made(replace(BROKEN, score=0.2), WRONG) == []  # an answer that cannot be read is never chosen
    assert made(UGLY, WRONG) == []  # the correct one cannot be read, and a wrong one is not preferred to it


def test_the_margin_is_the_least_difference_that_counts() -> None:
    assert made(RIGHT, UGLY, settings=replace(ALL, min_margin=0.1)) == ["right>right, no JSON"]  # 1.0 - 0.9
    assert made(RIGHT, UGLY, settings=replace(ALL, min_margin=0.11)) == []
    assert made(RIGHT, WRONG, settings=replace(ALL, min_margin=0.95)) == []
    assert made(RIGHT, replace(WRONG, score=1.0), settings=replace(ALL, min_margin=0.0)) == []  # no margin at all


def test_answers_take_turns_and_equal_texts_count_once() -> None:
    answers = [RIGHT, RIGHT_TOO, WRONG, replace(WRONG, text="wrong too", tokens=12), RIGHT, WRONG]
    pairs = made(*answers)
    assert len(pairs) == len(set(pairs)) == 4
    # two pairs of equal length without a common answer, then the other two
    assert set(pairs[:2]) == {"right>wrong", "right too>wrong too"}
    assert set(pairs[2:]) == {"right>wrong too", "right too>wrong"}
    assert made(*answers, settings=replace(ALL, pairs_per_prompt=2)) == pairs[:2]
    assert made(RIGHT, RIGHT) == []


def test_the_seed_decides_between_equals() -> None:
    answers = [RIGHT, *(replace(WRONG, text=f"wrong {i}") for i in range(6))]
    orders = {tuple(made(*answers, seed=seed)) for seed in range(5)}
    assert len(orders) > 1 and made(*answers, seed=1) == made(*answers, seed=1)


def pair(chosen: int, rejected: int, prompt: str = "p", name: str = "") -> Pair:
    """A pair of these lengths."""
    return Pair(
        name or f"{chosen}-{rejected}", prompt, "c", "r", "train", "correct", 1.0, 0.1, 0.9, chosen, rejected, True
    )


def test_the_largest_differences_on_the_heavier_side_go_until_the_lengths_are_even() -> None:
    pairs = [pair(20, 10), pair(12, 10), pair(10, 12), pair(11, 10), pair(10, 11)]
    # 63 tokens chosen, 53 rejected: 10 more, of 58 on average
    assert length_bias(pairs) == pytest.approx(10 / 58)
    assert [one.id for one in balanced(pairs, 0.02)] == ["12-10", "10-12", "11-10", "10-11"]  # without the first: 0
    assert balanced(pairs, 10 / 58 + 1e-9) == pairs
    short = [pair(10, 20), pair(10, 12), pair(12, 10)]
    assert [one.id for one in balanced(short, 0.02)] == ["10-12", "12-10"]
    assert balanced([pair(20, 10), pair(30, 10)], 0.02) == []  # nothing to set against them
    assert length_bias([]) == 0.0


def test_pairs_of_one_prompt_stay_together() -> None:
    pairs = [pair(10, 10, prompt=f"p{i // 2}", name=str(i)) for i in range(40)]
    pairs.append(pair(10, 10, prompt="p3", name="asked again"))
    split = split_by_prompt(pairs, 0.1, seed=0)
    held_out = {one.prompt for one in split if one.split == HELD_OUT}
    assert len(held_out) == 2  # of 20 prompts
    assert all((one.split == HELD_OUT) == (one.prompt in held_out) for one in split)
    assert split_by_prompt(pairs, 0.1, seed=0) == split != split_by_prompt(pairs, 0.1, seed=1)
    assert {one.split for one in split_by_prompt(pairs, 0.0, seed=0)} == {"train"}
    assert [one.split for one in split_by_prompt(pairs[:1], 0.5, seed=0)] == ["train"]  # something is left to learn
    assert sorted(one.split for one in split_by_prompt(pairs[1:3], 0.01, seed=0)) == ["held_out", "train"]


def test_figures_and_statistics() -> None:
    pairs = split_by_prompt([pair(12, 10, "p"), replace(pair(10, 10, "q"), rule="gold", margin=0.5)], 0.5, seed=0)
    report = figures(pairs, [*pairs, pair(20, 10)])
    assert report["pairs"] == 2 and report["train_pairs"] == report["held_out_pairs"] == 1
    assert report["mean_margin"] == pytest.approx(0.7) and report["least_margin"] == 0.5
    assert (report["pairs_by_rule_correct"], report["pairs_by_rule_gold"], report["dropped_for_length"]) == (1, 1, 1)
    assert report["length_bias"] == pytest.approx(2 / 21) and report["length_bias_before"] == pytest.approx(12 / 36)
    text = statistics(pairs, report, {"correct": 1, "gold": 1, "every candidate correct": 3})
    assert "a smaller scale than the usual 10,000 pairs: 2\n" in text
    assert "every candidate correct: 3" in text and "  0.9       1 ###" in text
    assert "smaller scale" not in statistics([pairs[0]] * 10_000, report, {})


def test_histogram_by_hand() -> None:
    assert histogram("t", [1, 1, 1, 0.5], width=6) == ["t", "  0.5       1 ##", "    1       3 ######"]
    lines = histogram("t", list(range(100)), most_bins=4)
    assert [line.split()[3] for line in lines[1:]] == ["25"] * 4 and "0 to 24.8" in lines[1]


def test_why_a_prompt_has_no_pair() -> None:
    assert why_none([RIGHT, RIGHT_TOO]) == "every candidate correct"
    assert why_none([WRONG, BROKEN]) == "no candidate correct"
    assert why_none([UGLY, WRONG]) == "no candidate better than another"


CAND = {"text": "a", "correct": True, "parse_ok": True, "parsed_json": None}
CASES: dict[str, tuple[Any, Any, str]] = {
    "fewer scores": (
        [{"id": "a", "prompt": "p", "cands": [CAND]}] * 2, [{"id": "a", "scores": []}],
        "s.jsonl: has 1 lines, but c.jsonl 2; run 04 again",
    ),
    "key missing": (
        [{"id": "a", "prompt": "p"}], [{"id": "a", "scores": []}],
        "c.jsonl:1, key 'cands': expected a list, got 'None'",
    ),
    "false as text": (
        [{"id": "a", "prompt": "p", "cands": [CAND | {"correct": "false"}]}], [],
        "c.jsonl:1, candidate 1, key 'correct': expected true or false, got 'false'",
    ),
    "no candidate": (
        [{"id": "a", "prompt": "p", "cands": ["x"]}], [], "candidate 1, key 'text': expected text, got 'x'",
    ),
    "no number": (
        [{"id": "a", "prompt": "p", "cands": [CAND]}], [{"id": "a", "scores": [{"total": "x"}]}],
        "s.jsonl:1, score 1, key 'total': expected a number, got 'x'",
    ),
    "other record": (
        [{"id": "a", "prompt": "p", "cands": [CAND]}], [{"id": "b", "scores": [{"total": 1}]}], "scores of record a",
    ),
    "too few": (
        [{"id": "a", "prompt": "p", "cands": [CAND] * 2}], [{"id": "a", "scores": [{"total": 1}]}], "one for each",
    ),
    "none": ([{"id": "a", "prompt": "p", "cands": []}], [{"id": "a", "scores": []}], "one for each candidate"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_files_that_do_not_fit_together(case: str, tmp_path: Path) -> None:
    rows, scores, message = CASES[case]
    write_jsonl(tmp_path / "c.jsonl", rows)
    write_jsonl(tmp_path / "s.jsonl", scores)
    with pytest.raises(UserError) as caught:
        read_scored(tmp_path / "c.jsonl", tmp_path / "s.jsonl")
    assert message in str(caught.value) and "\n" not in str(caught.value)
