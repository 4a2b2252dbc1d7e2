"""The finer figures of stage 10 side by side: two judges on the same answers, and which records each method gets right.

An evaluation made before stage 10 had these figures is left out here and stands in all other tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from utils.evaluation.comparison import Evaluation, by_method, interval_over_runs
from utils.reporting.tables import Row, capital, interval, markdown, percent
from utils.tasks.words import Words

JUDGES = {
    "strict [95 %]": "execution_accuracy",
    "official [95 %]": "official_execution_accuracy",
    "strict program [95 %]": "program_accuracy",
    "official program [95 %]": "official_program_accuracy",
    "right but for x 100 [95 %]": "percent_scale",
    "right, number not in prompt [95 %]": "ungrounded_correct",
}


@dataclass(frozen=True)
class GroupRate:
    """Accuracy of one method on the `n` records of one group, the mean over its seeds; a line of groups.csv.

    For a single run the interval is the one that its metrics.json states, else it resamples records and runs.
    """

    by: str
    group: str
    n: int
    method: str
    seeds: str
    accuracy: float
    low: float
    high: float

    def row(self) -> dict[str, str | int | float]:
        """One line of groups.csv."""
        return asdict(self)


def group_rates(evaluations: Sequence[Evaluation], seed: int) -> list[GroupRate]:
    """Groupings and groups in the order of stage 10, within a group the methods in theirs."""
    methods = {
        name: list(runs.values())
        for name, runs in by_method(evaluations).items()
        if all(_has_groups(one) for one in runs.values())
    }
    if not methods:
        return []
    first: dict[str, Any] = next(iter(methods.values()))[0].metrics["groups"]
    return [
        rate
        for grouping in first
        for group in first[grouping]
        for name, runs in methods.items()
        for rate in _rate(grouping, group, name, runs, seed)
    ]


def _has_groups(evaluation: Evaluation) -> bool:
    """Whether metrics.json states rates by group and breakdown.csv says which record is in which."""
    groups = evaluation.metrics.get("groups") or {}
    stated = all("accuracy" in row for group in groups.values() for row in group.values())
    return bool(groups) and stated and groups.keys() <= evaluation.breakdown.rows[0].keys()


def _rate(grouping: str, group: str, method: str, runs: Sequence[Evaluation], seed: int) -> Iterator[GroupRate]:
    """The rate, unless one of the runs has no such group."""
    stated = [one.metrics["groups"].get(grouping, {}).get(group) for one in runs]
    if None in stated:
        return
    low, high = stated[0]["accuracy_ci95"]
    if len(runs) > 1:
        ids = {row["id"] for row in runs[0].breakdown.rows if row[grouping] == group}
        low, high = interval_over_runs(np.stack([one.correct(ids) for one in runs]), seed)
    mean = sum(float(one["accuracy"]) for one in stated) / len(runs)
    seeds = " ".join(str(one.seed) for one in runs)
    yield GroupRate(grouping, group, int(stated[0]["n"]), method, seeds, mean, low, high)


def by_judge(rows: Sequence[Row]) -> str:
    """The report's section on the published evaluator and on two rates of our own; empty where nobody measured them."""
    measured = [row for row in rows if row.get("official_execution_accuracy", "") != ""]
    if not measured:
        return ""
    words = (
        "The same answers by two judges, in %: `strict` is ours and decides everything else in this report, `official`"
        " is FinQA's published evaluator. Answers that are right but for a factor of 100, a percentage where a fraction"
        " is asked or the reverse, are wrong for both; a judge that takes them would add them. The last column is the"
        " share that is right by a program with a number the prompt does not show: a result that was guessed or worked"
        " out in the head, or a figure from the part of a page that was left out. Both judges count it, rewards pay it."
    )
    lines = [[str(row["method"]), str(row["seed"]), *(interval(row, name) for name in JUDGES.values())] for row in rows]
    return f"## Two judges\n\n{words}\n\n{markdown(['method', 'seed', *JUDGES], lines, text_columns=2)}"


def by_set(evaluations: Sequence[Evaluation]) -> str:
    """The report's section on what the answers are like together; empty where the task says nothing of it."""
    sets = evaluations[0].words.sets
    measured = [one for one in evaluations if one.metrics.get("set")]
    if not sets or not measured:
        return ""
    words = "The answers of each method as a set; every figure is in its metrics.json."
    lines = [
        [one.method, str(one.seed), *(f"{one.metrics['set'][name]:.4g}" for name in sets.values())] for one in measured
    ]
    return f"## The sets\n\n{words}\n\n{markdown(['method', 'seed', *sets], lines, text_columns=2)}"


def by_group(rates: Sequence[GroupRate], task: Words) -> str:
    """The report's section with a table per grouping: a line per group, a column per method; empty without rates."""
    if not rates:
        return ""
    methods = list(dict.fromkeys(rate.method for rate in rates))
    words = f"{capital(task.accuracy)} in %, the mean over seeds; intervals, and further groupings, are in groups.csv."
    sections = ["## By kind of record", words]
    for grouping in task.shown_groupings:
        own = [rate for rate in rates if rate.by == grouping]
        values = {(rate.group, rate.method): percent(rate.accuracy) for rate in own}
        sizes = {rate.group: rate.n for rate in own}
        lines = [
            [group, f"{n:,}", *(values.get((group, method), "–") for method in methods)] for group, n in sizes.items()
        ]
        sections.append(markdown([task.groupings[grouping], "n", *methods], lines))
    return "\n\n".join(sections)
