"""Groups of records, by hand."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.test_metrics import judgement
from utils.errors import UserError
from utils.evaluation.groups import in_words, summarise_groups, write_groups
from utils.evaluation.statistics import rate_ci95
from utils.finqa.examples import FinQAExample
from utils.finqa.groups import groups_of
from utils.tasks.words import FINQA

TABLE, TEXT = {"table_1": "the revenue ;"}, {"text_12": "in 2018 ."}
CHANGE = "subtract(9, 8), divide(#0, 8)"


def example(
    program: str | None = CHANGE,
    gold_inds: Mapping[str, str] | None = None,
    exe_ans: float | str = 0.125,
    answer: str = "",
    question: str = "what is the change ?",
) -> FinQAExample:
    return FinQAExample(
        id="a",
        input_text="",
        target_answer=str(exe_ans),
        target_program=program,
        question=question,
        exe_ans=exe_ans,
        gold_inds=gold_inds,
        answer=answer,
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (example(), "2|subtract|subtract divide|no gold_inds|number"),
        (example(gold_inds=TABLE, answer="12.5%"), "2|subtract|subtract divide|table|percent"),
        (
            example(gold_inds=TEXT, question="what is the percentage change ?"),
            "2|subtract|subtract divide|text|percent",
        ),
        (
            example(gold_inds=TABLE | TEXT, answer="1", question="in percent ?"),
            "2|subtract|subtract divide|both|number",
        ),
        (example("divide(1, 2), divide(#0, 2), add(#1, 1)"), "3|divide|add divide|no gold_inds|number"),
        (example("table_max(a, none)", {}), "1|table_max|table_max|no gold_inds|number"),
        (example("greater(2, 1)", TABLE, "yes", "yes"), "1|greater|greater|table|yes/no"),
        (example(None, TABLE), "no gold program|no gold program|no gold program|table|number"),
    ],
)
def test_a_record_s_groups(asked: FinQAExample, expected: str) -> None:
    assert groups_of(asked) == dict(zip(FINQA.groupings, expected.split("|"), strict=True))


def test_a_gold_program_that_cannot_be_read_is_one_line() -> None:
    with pytest.raises(UserError, match="record a: target_program cannot be read"):
        groups_of(example("add(1"))


def test_rates_add_up_and_what_is_unknown_comes_last(tmp_path: Path) -> None:
    """Two steps: 1 of 3; one step: 1 of 1; without a program: 0 of 2."""
    records = [example(), example("add(1, 2)"), example(None), example(), example(), example(None)]
    right = [True, True, False, False, False, False]
    judged = [judgement(str(i), correct) for i, correct in enumerate(right)]
    summary = summarise_groups([groups_of(one) for one in records], judged, seed=4)
    steps = summary["steps"]
    assert list(steps) == ["1", "2", "no gold program"]
    assert [(row["n"], row["correct"]) for row in steps.values()] == [(1, 1), (3, 1), (2, 0)]
    assert steps["2"]["accuracy"] == 1 / 3
    assert steps["2"]["accuracy_ci95"] == list(rate_ci95([1.0, 0.0, 0.0], 4))
    assert list(summary["operations"]) == ["subtract divide", "add", "no gold program"]
    for groups in summary.values():
        assert sum(row["n"] for row in groups.values()) == 6 and sum(row["correct"] for row in groups.values()) == 2
    write_groups(tmp_path / "groups.csv", summary)
    with (tmp_path / "groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["by"] for row in rows)) == list(FINQA.groupings)
    found = next(row for row in rows if (row["by"], row["group"]) == ("steps", "2"))
    assert (found["n"], found["correct"], float(found["accuracy"])) == ("3", "1", 1 / 3)
    assert float(found["ci95_low"]) < 1 / 3 < float(found["ci95_high"])


def test_unknown_groups_of_any_task_come_last() -> None:
    judged = [judgement(str(i), True) for i in range(3)]
    summary = summarise_groups([{"seen": name} for name in ("unknown", "unknown", "in training")], judged, seed=0)
    assert list(summary["seen"]) == ["in training", "unknown"]


def test_groups_in_words_say_when_nothing_is_known() -> None:
    judged = [judgement("a", True), judgement("b", False)]
    known = summarise_groups([groups_of(example()), groups_of(example("add(1, 2)"))], judged, 0)
    assert in_words("steps", known["steps"], FINQA) == "by steps of the gold program: 1 0.0 % of 1, 2 100.0 % of 1"
    unknown = summarise_groups([groups_of(example(None))] * 2, judged, 0)
    assert in_words("steps", unknown["steps"], FINQA) == (
        "by steps of the gold program: not known, these records have no gold program"
    )
    assert in_words("evidence", unknown["evidence"], FINQA).endswith("not known, these records have no gold_inds")
