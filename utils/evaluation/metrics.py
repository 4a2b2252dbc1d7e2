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
from utils.evaluation.statistics import pass_at_k, rate_ci95
from utils.files import read_text, write_text
from utils.tasks.base import Example, Judgement, Task
from utils.tasks.words import Words


def summarise(
    judgements: Sequence[Judgement],
    seed: int,
    words: Words,
    further: Sequence[Mapping[str, bool]] = (),
    rewards: Sequence[float] = (),
) -> dict[str, Any]:
    """Return n, rates with a `_ci95` pair each, and `failures`, most frequent first.

    The rates are those of `words` whose column the judgements or `further` (one per judgement) have, and `mean_reward`
    (of `rewards`, or else of the judgements). Raises UserError when there is nothing to average or an id occurs twice.
    """
    check_ids([judgement.id for judgement in judgements], "judgements")
    metrics: dict[str, Any] = {"n": len(judgements)}
    rows = breakdown_rows(judgements, words, further)
    columns = {name: [float(row[c]) for row in rows] for name, c in words.rates.items() if c in rows[0]}
    columns["mean_reward"] = list(rewards) or [one.reward for one in judgements]
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


def breakdown_rows(
    judgements: Sequence[Judgement], words: Words, further: Sequence[Mapping[str, str | bool]] = ()
) -> list[dict[str, Any]]:
    """Column -> value for each judgement, columns in the order of breakdown.csv: those of the judgement, `further`."""
    rows = []
    for judgement, others in zip(judgements, further or [{}] * len(judgements), strict=True):
        own = {field.name: getattr(judgement, field.name) for field in fields(judgement)}
        own = {words.rates[words.decides]: own.pop("correct")} | own
        rows.append({name: own.pop(name) for name in words.first_columns} | own | dict(others))
    return rows


def write_breakdown(
    path: Path, judgements: Sequence[Judgement], words: Words, further: Sequence[Mapping[str, str | bool]] = ()
) -> None:
    """Write one CSV line per judgement in the order given, truth values as 1 and 0; see `breakdown_rows`."""
    rows = breakdown_rows(judgements, words, further)
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({name: int(value) if isinstance(value, bool) else value for name, value in row.items()})
    write_text(path, buffer.getvalue())


@dataclass(frozen=True)
class Breakdown:
    """What a comparison needs of breakdown.csv, in file order."""

    ids: tuple[str, ...]
    correct: tuple[bool, ...]
    rows: tuple[Mapping[str, str], ...]


def read_breakdown(path: Path, words: Words) -> Breakdown:
    """Read what `write_breakdown` wrote; UserError with the file and line otherwise."""
    lines = csv.DictReader(io.StringIO(read_text(path)))
    missing = [column for column in words.first_columns if column not in (lines.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; write it again with 10_evaluate.py")
    decides, rows = words.rates[words.decides], []
    for row in lines:
        if row[decides] not in ("0", "1"):
            raise UserError(f"{path}:{lines.line_num}: {decides} is {row[decides]!r}, expected 0 or 1")
        rows.append(row)
    ids = tuple(row["id"] for row in rows)
    check_ids(ids, str(path))
    return Breakdown(ids, tuple(row[decides] == "1" for row in rows), tuple(rows))


def check_ids(ids: Sequence[str], where: str) -> None:
    """Raise UserError when there is no id or one occurs twice: a mean over such records is not an accuracy."""
    if not ids:
        raise UserError(f"{where}: no record; expected one line per record")
    name, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where}: id {name!r} occurs {count} times; every record must be there exactly once")


def targets_sha256(task: Task, examples: Sequence[Example]) -> str:
    """Digest of ids and gold values in order of id: equal for two evaluations that answered the same questions."""
    pairs = sorted((example.id, task.gold(example)) for example in examples)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
