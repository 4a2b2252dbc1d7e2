"""Two judges and groups of records side by side in the report, and reports of evaluations that know neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.fabricated import make_evaluation, make_study
from tests.unit.test_reporting import compare, table_after
from utils.evaluation.comparison import Evaluation, differences, load_evaluations, notes_on, over_seeds
from utils.evaluation.statistics import paired_difference
from utils.files import read_json, write_json
from utils.reporting import plots
from utils.reporting.breakdowns import GroupRate, by_group, by_judge, group_rates
from utils.reporting.report import Comparison, write_report
from utils.reporting.tables import read_table, result_table, summary_rows, write_table
from utils.tasks.words import FINQA

RIGHT = [True, False, True, True, False, False, True, True]
"""Records 0, 3 and 6 have 1 step, 1, 4 and 7 two, 2 and 5 three: right are 3 of 3, 1 of 3 and 1 of 2."""
OFFICIAL = [True, True, True, True, False, False, True, True]


def report_of(evaluations: list[Evaluation]) -> str:
    rows, pairs = summary_rows(evaluations), differences(evaluations, 0)
    groups, accuracy = group_rates(evaluations, 0), over_seeds(evaluations, 0)
    return write_report(Comparison(evaluations, rows, pairs, accuracy, [], notes_on(evaluations), 0, groups))


def test_both_judges_stand_side_by_side(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "a", "sft", RIGHT, official=OFFICIAL)
    report = report_of(load_evaluations([folder]))
    source = read_json(folder / "metrics.json")
    (row,) = table_after(report, "Two judges")
    low, high = (100 * bound for bound in source["official_execution_accuracy_ci95"])
    assert row["official [95 %]"] == f"75.0 [{low:.1f}, {high:.1f}]" and row["strict [95 %]"].startswith("62.5 [")
    assert row["right but for x 100 [95 %]"].startswith("0.0 [0.0, 36.9]")  # 1 - 0.025^(1/8), Clopper and Pearson
    (result,) = table_after(report, "Results")
    assert (result["official"], result["execution accuracy [95 %]"][:4]) == ("75.0", "62.5")


def test_accuracy_by_group_is_that_of_the_groups_records(tmp_path: Path) -> None:
    """Methods beside each other, groups in the order of stage 10."""
    a = make_evaluation(tmp_path / "a", "sft", RIGHT, official=OFFICIAL)
    b = make_evaluation(tmp_path / "b", "grpo", [True] * 8, official=OFFICIAL)
    evaluations = load_evaluations([a, b])
    rates = {(one.by, one.group, one.method): one for one in group_rates(evaluations, 0)}
    by_hand = {"1": 1.0, "2": 1 / 3, "3": 1 / 2}
    assert {name: rates["steps", name, "sft"].accuracy for name in by_hand} == by_hand
    assert [rates["steps", name, "sft"].n for name in by_hand] == [3, 3, 2]
    stated = read_json(a / "metrics.json")["groups"]["steps"]["2"]["accuracy_ci95"]
    assert [rates["steps", "2", "sft"].low, rates["steps", "2", "sft"].high] == stated
    assert rates["answer_kind", "yes/no", "sft"].accuracy == 0.5  # records 0 and 4

    lines = [line for line in report_of(evaluations).splitlines() if line.startswith("| 2 |")]
    assert lines == ["| 2 | 3 | 33.3 | 100.0 |"]
    assert "| where the gold evidence stands | n | sft | grpo |" in report_of(evaluations)


def test_over_several_runs_records_and_runs_are_resampled(tmp_path: Path) -> None:
    runs = (RIGHT * 5, [index % 4 == 1 for index in range(40)])
    folders = [
        make_evaluation(tmp_path / str(seed), "sft", verdicts, seed, official=verdicts)
        for seed, verdicts in enumerate(runs)
    ]
    rates = {(one.by, one.group): one for one in group_rates(load_evaluations(folders), 0)}
    two = rates["steps", "2"]  # records 1, 4, ... 37, of which the runs have 7 and 4 right
    correct = [verdicts[1::3] for verdicts in runs]
    assert [sum(verdicts) for verdicts in correct] == [7, 4]
    assert (two.seeds, two.n) == ("0 1", 13)
    assert two.accuracy == pytest.approx(11 / 26)
    assert (two.low, two.high) == paired_difference(correct, [[0] * 13] * 2, 0)[1:]


def test_evaluations_made_before_these_figures_still_compare(tmp_path: Path) -> None:
    old = make_evaluation(tmp_path / "old", "sft", RIGHT)
    report = report_of(load_evaluations([old]))
    assert "Two judges" not in report and "By kind of record" not in report and "official" not in report
    assert group_rates(load_evaluations([old]), 0) == [] and by_judge([]) == by_group([], FINQA) == ""
    assert not plots.accuracy_by_group(tmp_path / "none.png", [], FINQA) and not (tmp_path / "none.png").exists()

    new = make_evaluation(tmp_path / "new", "grpo", RIGHT, official=OFFICIAL)
    both = load_evaluations([old, new])
    rows = summary_rows(both)
    write_table(tmp_path / "summary.csv", rows, list(rows[0]))
    assert result_table(read_table(tmp_path / "summary.csv")) == result_table(rows)
    report = report_of(both)
    assert [row["official"] for row in table_after(report, "Results")] == ["–", "75.0"]
    assert [row["official [95 %]"][:4] for row in table_after(report, "Two judges")] == ["–", "75.0"]
    assert {one.method for one in group_rates(both, 0)} == {"grpo"}


def test_groups_by_their_old_name_are_read(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "a", "sft", RIGHT, official=OFFICIAL)
    (now,) = load_evaluations([folder])
    metrics = read_json(folder / "metrics.json")
    for row in (row for group in metrics["groups"].values() for row in group.values()):
        row |= {"execution_accuracy": row.pop("accuracy"), "execution_accuracy_ci95": row.pop("accuracy_ci95")}
    write_json(folder / "metrics.json", metrics)
    assert group_rates(load_evaluations([folder]), 0) == group_rates([now], 0) != []


def test_a_summary_without_the_columns_is_still_a_table(tmp_path: Path) -> None:
    """The driver shows the summary.csv of a run that was finished before."""
    (row,) = summary_rows(load_evaluations([make_evaluation(tmp_path / "a", "sft", RIGHT)]))
    for name in [name for name in row if name.startswith(("official", "percent_scale", "ungrounded_correct", "kind"))]:
        del row[name]
    columns, lines = result_table([row])
    assert "official" not in columns and lines[0][3].startswith("62.5 [")


def test_the_picture_is_drawn_from_the_groups(tmp_path: Path) -> None:
    made = compare(make_study(tmp_path, n=80))
    rates = group_rates(made.evaluations, 0)
    assert {one.by for one in rates} == {"steps", "first_operation", "operations", "evidence", "answer_kind"}
    assert plots.accuracy_by_group(tmp_path / "a.png", rates, FINQA)
    assert plots.accuracy_by_group(tmp_path / "b.png", rates, FINQA)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    gold = [GroupRate("steps", "1", 3, "gold", "0", 1.0, 0.3, 1.0)]
    assert not plots.accuracy_by_group(tmp_path / "none.png", gold, FINQA)  # gold and majority read no record
