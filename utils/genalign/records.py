"""Golden data of the genalign task: real texts with their labels, read from CSV, checked, counted, divided.

text,label
the young keeper saved a penalty in front of a large crowd,sports
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from utils.errors import UserError
from utils.files import read_text
from utils.seeds import generator

PARTS = ("pool", "reward", "dev", "test")
"""Disjoint: examples in prompts and texts that SFT learns; what training's classifier is scored on; what checkpoints
are chosen by; what stage 10 reports."""
SHARES = (0.2, 0.25, 0.2, 0.35)
LEAST_PER_LABEL = 4
PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Golden:
    """A real text; `id` is its line in the file."""

    id: str
    text: str
    label: str


def read_golden(path: Path) -> list[Golden]:
    """Every line of a CSV file with the columns text and label. UserError with file:line for a line without."""
    lines = csv.DictReader(io.StringIO(read_text(path), newline=""))
    records = []
    try:
        missing = [name for name in ("text", "label") if name not in (lines.fieldnames or ())]
        if missing:
            raise UserError(f"{path}:1: column {missing[0]!r} is missing; expected a header with text and label")
        for row in lines:
            if None in row or row["text"] is None or row["label"] is None:
                raise UserError(
                    f"{path}:{lines.line_num}: expected {len(lines.fieldnames or ())} columns as in the header; "
                    "a text with a comma stands in quotes"
                )
            records.append(
                Golden(f"line-{lines.line_num}", " ".join(row["text"].split()), " ".join(row["label"].split()))
            )
    except csv.Error as error:
        raise UserError(f"{path}:{lines.line_num}: {error}") from None
    if not records:
        raise UserError(f"{path}: no line below the header; expected texts with their labels")
    return records


def defect(record: Golden) -> str | None:
    """Why a line cannot be used, or None."""
    return "no text" if not record.text else "no label" if not record.label else None


def find_problems(records: Sequence[Golden], file: str) -> list[dict[str, Any]]:
    """Lines without text or label, and texts that stand twice, as rows of problems.jsonl."""
    found: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for index, record in enumerate(records):
        reason, malformed = defect(record), True
        if reason is None and (start := first.setdefault(record.text.lower(), index)) != index:
            verb = "repeats" if records[start].label == record.label else "contradicts"
            reason, malformed = f"{verb} record {start}", False
        if reason:
            found.append({"file": file, "index": index, "id": record.id, "reason": reason, "malformed": malformed})
    return found


def usable(records: Sequence[Golden]) -> list[Golden]:
    """Lines with text and label, each text once."""
    bad = {row["index"] for row in find_problems(records, "")}
    return [record for index, record in enumerate(records) if index not in bad]


def statistics(records: Sequence[Golden]) -> dict[str, Any]:
    """Counts: malformed, labels, words of a text."""
    lengths = sorted(len(record.text.split()) for record in records)
    return {
        "records": len(records),
        "malformed": sum(defect(record) is not None for record in records),
        "labels": dict(sorted(Counter(record.label for record in records if record.label).items())),
        "text_words": {"min": lengths[0], "median": median(lengths), "max": lengths[-1]},
    }


def size_line(split: str, facts: Mapping[str, Any]) -> str:
    """What the terminal says."""
    return f"{split}: {facts['records']} texts, {len(facts['labels'])} labels, {facts['malformed']} malformed"


def summary(counts: Mapping[str, Mapping[str, Any]], problems: Sequence[Mapping[str, Any]]) -> str:
    """The page that a person reads."""
    lines = []
    for split, facts in counts.items():
        lines.append(size_line(split, facts))
        for title in ("labels", "text_words"):
            lines.append(f"  {title}: " + ", ".join(f"{name} {count:g}" for name, count in facts[title].items()))
        lines.append("")
    lines.append(f"{len(problems)} lines in problems.jsonl")
    lines += [
        f"  {one['file']}, record {one['index']}, id {one['id']}: {one['reason']}" for one in problems[:PROBLEMS_SHOWN]
    ]
    return "\n".join(lines) + "\n"


def divide(records: Sequence[Golden], shares: Sequence[float], seed: int) -> dict[str, list[Golden]]:
    """PARTS of the records, of each label about its share (`shares` add up to 1), shuffled by `seed`.

    UserError for a label with too few texts, or where there is one label only.
    """
    by_label: dict[str, list[Golden]] = {}
    for record in records:
        by_label.setdefault(record.label, []).append(record)
    if len(by_label) < 2:
        raise UserError(f"the golden data have {len(by_label)} label; a classifier needs two at least")
    parts: dict[str, list[Golden]] = {name: [] for name in PARTS}
    for label, own in sorted(by_label.items()):
        if len(own) < LEAST_PER_LABEL:
            raise UserError(f"label {label!r} has {len(own)} texts; expected {LEAST_PER_LABEL}, one for each part")
        order = [own[i] for i in generator(seed, "divide_golden", label).permutation(len(own))]
        for part, (start, end) in zip(PARTS, _bounds(len(order), shares), strict=True):
            parts[part] += order[start:end]
    return {part: sorted(found, key=lambda one: int(one.id.split("-")[1])) for part, found in parts.items()}


def _bounds(count: int, shares: Sequence[float]) -> list[tuple[int, int]]:
    """(start, end) of each share of `count`, none of them empty."""
    sizes = [max(1, round(share * count)) for share in shares]
    while sum(sizes) > count:
        sizes[sizes.index(max(sizes))] -= 1
    sizes[sizes.index(max(sizes))] += count - sum(sizes)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return list(zip([0, *ends], ends, strict=False))


def to_row(record: Golden) -> dict[str, str]:
    """One line of golden_<part>.jsonl."""
    return asdict(record)
