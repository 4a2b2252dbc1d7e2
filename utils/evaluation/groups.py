"""Which records a policy gets right: accuracy by the groups that the task puts records in."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.evaluation.statistics import rate_ci95
from utils.files import write_text
from utils.tasks.base import Judgement
from utils.tasks.words import Words

UNKNOWN = ("no gold", "unknown")
"""How the names of groups begin whose records lack what the grouping looks at; they come last."""
COLUMNS = ("by", "group", "n", "correct", "accuracy", "ci95_low", "ci95_high")


def summarise_groups(
    groups: Sequence[Mapping[str, str]], judgements: Sequence[Judgement], seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Grouping -> group -> n, correct, accuracy and its `_ci95`, groupings in the order of the records' first.

    Groups that are numbers are in their order, others by falling n; what is not known comes last.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for grouping in groups[0]:
        verdicts: dict[str, list[float]] = {}
        for group, judgement in zip(groups, judgements, strict=True):
            verdicts.setdefault(group[grouping], []).append(float(judgement.correct))
        ordered = sorted(verdicts, key=lambda name: _place(name, len(verdicts[name])))
        summary[grouping] = {name: _rate(verdicts[name], seed) for name in ordered}
    return summary


def _place(name: str, n: int) -> tuple[bool, int, str]:
    return name.startswith(UNKNOWN), int(name) if name.isdecimal() else -n, name


def _rate(verdicts: Sequence[float], seed: int) -> dict[str, Any]:
    return {
        "n": len(verdicts),
        "correct": int(sum(verdicts)),
        "accuracy": sum(verdicts) / len(verdicts),
        "accuracy_ci95": list(rate_ci95(verdicts, seed)),
    }


def write_groups(path: Path, summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Write one CSV line per group, columns COLUMNS, in the summary's order."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(COLUMNS)
    for grouping, groups in summary.items():
        for name, row in groups.items():
            interval = row["accuracy_ci95"]
            table.writerow([grouping, name, row["n"], row["correct"], row["accuracy"], *interval])
    write_text(path, buffer.getvalue())


def in_words(grouping: str, groups: Mapping[str, Mapping[str, Any]], words: Words) -> str:
    """One line: `by steps of the gold program: 1 61.2 % of 654, 2 40.1 % of 409`."""
    shown = ", ".join(f"{name} {100 * row['accuracy']:.1f} % of {row['n']}" for name, row in groups.items())
    unknown = next((name for name in groups if name.startswith(UNKNOWN)), None)
    if unknown is not None and len(groups) == 1:
        shown = f"not known, these records have {unknown}"
    return f"by {words.groupings[grouping]}: {shown}"
