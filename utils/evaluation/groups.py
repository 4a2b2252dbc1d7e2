"""Which records a policy gets right: accuracy by steps, operations, evidence and kind of answer.

The groups follow from gold: the program's steps and operations, where `gold_inds` says the evidence stands, what kind
of value is asked. A record without a gold program or without gold_inds is in a group that says so.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.evaluation.statistics import rate_ci95
from utils.files import write_text
from utils.finqa.program import OPERATIONS
from utils.rewards.scoring import gold_steps
from utils.tasks.base import Example, Judgement

GROUPINGS = {
    "steps": "steps of the gold program",
    "first_operation": "first operation of the gold program",
    "operations": "set of operations of the gold program",
    "evidence": "where the gold evidence stands",
    "answer_kind": "kind of answer",
}
"""Every way of grouping, in words."""

NO_PROGRAM, NO_EVIDENCE = "no gold program", "no gold_inds"
COLUMNS = ("by", "group", "n", "correct", "execution_accuracy", "ci95_low", "ci95_high")

_ASKS_FOR_PERCENT = re.compile(r"%|\bpercent", re.IGNORECASE)


def groups_of(example: Example) -> dict[str, str]:
    """The group of a record in each of GROUPINGS. UserError when its gold program cannot be read."""
    steps = gold_steps(example)
    used = [step.op for step in steps or ()]
    return {
        "steps": str(len(used)) if used else NO_PROGRAM,
        "first_operation": used[0] if used else NO_PROGRAM,
        "operations": " ".join(op for op in OPERATIONS if op in used) or NO_PROGRAM,
        "evidence": evidence_type(example.gold_inds),
        "answer_kind": answer_kind(example),
    }


def evidence_type(gold_inds: Mapping[str, str] | None) -> str:
    """`table`, `text` or `both`, from names such as table_1 and text_3."""
    kinds = {name.split("_")[0] for name in gold_inds or {}} & {"table", "text"}
    return "both" if len(kinds) == 2 else next(iter(kinds), NO_EVIDENCE)


def answer_kind(example: Example) -> str:
    """`yes/no`, `percent` or `number`.

    Gold values are fractions, so percents are known by how the data set writes the answer ("12.5%") or, where it
    leaves that out, by a question that asks for percent.
    """
    if isinstance(example.exe_ans, str):
        return "yes/no"
    return "percent" if _ASKS_FOR_PERCENT.search(example.answer or example.question) else "number"


def summarise_groups(
    groups: Sequence[Mapping[str, str]], judgements: Sequence[Judgement], seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Grouping -> group -> n, correct, execution_accuracy and its `_ci95`.

    Steps are in order of number, other groups by falling n; what is not known comes last.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for grouping in GROUPINGS:
        verdicts: dict[str, list[float]] = {}
        for group, judgement in zip(groups, judgements, strict=True):
            verdicts.setdefault(group[grouping], []).append(float(judgement.execution_correct))
        ordered = sorted(verdicts, key=lambda name: _place(grouping, name, len(verdicts[name])))
        summary[grouping] = {name: _rate(verdicts[name], seed) for name in ordered}
    return summary


def _place(grouping: str, name: str, n: int) -> tuple[bool, int, str]:
    return name in (NO_PROGRAM, NO_EVIDENCE), int(name) if grouping == "steps" and name.isdecimal() else -n, name


def _rate(verdicts: Sequence[float], seed: int) -> dict[str, Any]:
    return {
        "n": len(verdicts),
        "correct": int(sum(verdicts)),
        "execution_accuracy": sum(verdicts) / len(verdicts),
        "execution_accuracy_ci95": list(rate_ci95(verdicts, seed)),
    }


def write_groups(path: Path, summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Write one CSV line per group, columns COLUMNS, in the summary's order."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(COLUMNS)
    for grouping, groups in summary.items():
        for name, row in groups.items():
            interval = row["execution_accuracy_ci95"]
            table.writerow([grouping, name, row["n"], row["correct"], row["execution_accuracy"], *interval])
    write_text(path, buffer.getvalue())


def in_words(grouping: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    """One line: `by steps of the gold program: 1 61.2 % of 654, 2 40.1 % of 409`."""
    shown = ", ".join(f"{name} {100 * row['execution_accuracy']:.1f} % of {row['n']}" for name, row in groups.items())
    unknown = next((name for name in groups if name in (NO_PROGRAM, NO_EVIDENCE)), None)
    if unknown is not None and len(groups) == 1:
        shown = f"not known, these records have {unknown}"
    return f"by {GROUPINGS[grouping]}: {shown}"
