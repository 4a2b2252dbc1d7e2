"""From verdicts to files: `metrics.json` (rates with intervals, failures) and `breakdown.csv` (a line per record)."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.evaluation.published import Official
from utils.evaluation.statistics import pass_at_k, rate_ci95
from utils.files import read_text, write_text
from utils.tasks.base import Example, Judgement

RATES: dict[str, str] = {
    "execution_accuracy": "execution_correct",
    "program_accuracy": "program_correct",
    "exact_match": "exact_match",
    "numeric_1pct": "numeric_1pct",
    "program_valid": "program_valid",
    "format_valid": "format_valid",
}
"""Rate in metrics.json -> field of Judgement that it averages: our strict verdicts."""

OFFICIAL_RATES: dict[str, str] = {
    "official_execution_accuracy": "execution_correct",
    "official_program_accuracy": "program_correct",
}
"""Rate in metrics.json -> field of Official that it averages: what the published evaluator prints."""

FURTHER_RATES = ("percent_scale", "ungrounded_correct")
"""Rates of our own: right but for a factor of 100, and right by a program with a number that is not in the prompt."""

FIRST_COLUMNS = ("id", "execution_correct", "program_correct", "format_valid", "failure")
COLUMNS = (*FIRST_COLUMNS, *(field.name for field in fields(Judgement) if field.name not in FIRST_COLUMNS))


def summarise(judgements: Sequence[Judgement], seed: int, published: Sequence[Official] = ()) -> dict[str, Any]:
    """Return n, rates with a `_ci95` pair each, and `failures`, most frequent first.

    The rates are those of RATES and FURTHER_RATES, `mean_reward` and, with the verdicts `published`, those of
    OFFICIAL_RATES. Raises UserError when there is nothing to average or an id occurs twice.
    """
    check_ids([judgement.id for judgement in judgements], "judgements")
    metrics: dict[str, Any] = {"n": len(judgements)}
    columns = {name: [float(getattr(one, field)) for one in judgements] for name, field in RATES.items()}
    columns["mean_reward"] = [one.reward for one in judgements]
    columns["percent_scale"] = [float(one.failure == "scale_100") for one in judgements]
    columns["ungrounded_correct"] = [float(one.execution_correct and one.ungrounded) for one in judgements]
    if published:
        columns |= {name: [float(getattr(one, field)) for one in published] for name, field in OFFICIAL_RATES.items()}
    for name, values in columns.items():
        metrics[name] = sum(values) / len(values)
        metrics[f"{name}_ci95"] = list(rate_ci95(values, seed))
    failures = Counter(one.failure for one in judgements if one.failure)
    metrics["failures"] = dict(sorted(failures.items(), key=lambda item: (-item[1], item[0])))
    return metrics


def summarise_pass_k(correct: Sequence[Sequence[bool]], ks: Sequence[int], seed: int) -> dict[str, Any]:
    """Return `records`, `samples` and the unbiased `pass@k` with its `_ci95` for verdicts [records][samples]."""
    samples = len(correct[0])
    report: dict[str, Any] = {"records": len(correct), "samples": samples, "temperature": 1.0}
    for k in ks:
        values = [pass_at_k(samples, sum(verdicts), k) for verdicts in correct]
        report[f"pass@{k}"] = sum(values) / len(values)
        report[f"pass@{k}_ci95"] = list(rate_ci95(values, seed))
    return report


def write_breakdown(
    path: Path, judgements: Sequence[Judgement], further: Sequence[Mapping[str, str | bool]] = ()
) -> None:
    """Write one CSV line per judgement in the order given, truth values as 1 and 0.

    Columns are COLUMNS and the keys of `further`, which has a row per judgement.
    """
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow([*COLUMNS, *(further[0] if further else ())])
    for judgement, row in zip(judgements, further or [{}] * len(judgements), strict=True):
        values = [*(getattr(judgement, column) for column in COLUMNS), *row.values()]
        table.writerow([int(value) if isinstance(value, bool) else value for value in values])
    write_text(path, buffer.getvalue())


@dataclass(frozen=True)
class Breakdown:
    """What a comparison needs of breakdown.csv, in file order."""

    ids: tuple[str, ...]
    execution_correct: tuple[bool, ...]
    rows: tuple[Mapping[str, str], ...]


def read_breakdown(path: Path) -> Breakdown:
    """Read what `write_breakdown` wrote; UserError with the file and line otherwise."""
    lines = csv.DictReader(io.StringIO(read_text(path)))
    missing = [column for column in FIRST_COLUMNS if column not in (lines.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; write it again with 10_evaluate.py")
    rows = []
    for row in lines:
        if row["execution_correct"] not in ("0", "1"):
            raise UserError(
                f"{path}:{lines.line_num}: execution_correct is {row['execution_correct']!r}, expected 0 or 1"
            )
        rows.append(row)
    ids = tuple(row["id"] for row in rows)
    check_ids(ids, str(path))
    return Breakdown(ids, tuple(row["execution_correct"] == "1" for row in rows), tuple(rows))


def check_ids(ids: Sequence[str], where: str) -> None:
    """Raise UserError when there is no id or one occurs twice: a mean over such records is not an accuracy."""
    if not ids:
        raise UserError(f"{where}: no record; expected one line per record")
    name, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where}: id {name!r} occurs {count} times; every record must be there exactly once")


def targets_sha256(examples: Sequence[Example]) -> str:
    """Digest of ids and gold values in order of id: equal for two evaluations that answered the same questions."""
    pairs = sorted((example.id, example.exe_ans) for example in examples)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
