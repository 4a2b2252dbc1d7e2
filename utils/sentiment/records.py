"""Raw records of the sentiment task: read, checked, counted, written.

A file is a JSON list of objects; only `id` and `prompt` are needed:

    [{"id": "train-0", "prompt": "the soup by the river was", "text": "good and the room was lovely .",
      "opening": "… was", "subject": "the soup", "subject_kind": "food"}]
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from utils.errors import UserError
from utils.files import read_json
from utils.rewards.sentiment import PROFILES, mood

PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class TextRecord:
    """A prompt and, where it is not "", a text that goes on from it. The others group records in reports."""

    id: str
    prompt: str
    text: str = ""
    opening: str = ""
    subject: str = ""
    subject_kind: str = ""


def read_records(path: Path) -> list[TextRecord]:
    """Every record of a file. UserError with the file, the record's number and key for what is no such record."""
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a JSON list of objects, each with an id and a prompt")
    records = [_record(row, f"{path}, record {index}") for index, row in enumerate(rows)]
    name, count = Counter(record.id for record in records).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: id {name!r} occurs {count} times; every record needs one of its own")
    return records


def _record(row: Any, where: str) -> TextRecord:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with id and prompt, got {str(row)[:60]!r}")
    values = {}
    for field in fields(TextRecord):
        if field.name not in row and field.name not in ("id", "prompt"):
            continue
        value = row.get(field.name)
        if not isinstance(value, str):
            raise UserError(f"{where}, key {field.name!r}: expected text, got {str(value)[:60]!r}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}, key {field.name!r}: half a surrogate pair is not text; write UTF-8") from None
        values[field.name] = value if field.name == "prompt" else value.strip()
    return TextRecord(**values)


def format_records(rows: Sequence[Mapping[str, str]]) -> str:
    """The text of a file."""
    return json.dumps(list(rows), ensure_ascii=False, indent=1) + "\n"


def defect(record: TextRecord) -> str | None:
    """Why a record cannot be used, or None."""
    return None if record.prompt.strip() else "no prompt"


def find_problems(records: Sequence[TextRecord], file: str) -> list[dict[str, Any]]:
    """Records without a prompt and repeated prompts, as rows of problems.jsonl."""
    found, first = [], dict[str, int]()
    for index, record in enumerate(records):
        reason, malformed = defect(record), True
        if reason is None and (start := first.setdefault(key_of(record), index)) != index:
            reason, malformed = f"repeats the prompt of record {start}", False
        if reason:
            found.append({"file": file, "index": index, "id": record.id, "reason": reason, "malformed": malformed})
    return found


def shared_problems(splits: Mapping[str, Sequence[TextRecord]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Prompts that stand in two splits, as rows of problems.jsonl."""
    owner: dict[str, str] = {}
    found = []
    for split, records in splits.items():
        for index, record in enumerate(records):
            if defect(record) is None and (other := owner.setdefault(key_of(record), split)) != split:
                reason = f"has the prompt of a record in {names[other]}"
                found.append(
                    {"file": names[split], "index": index, "id": record.id, "reason": reason, "malformed": False}
                )
    return found


def key_of(record: TextRecord) -> str:
    """What makes two prompts the same."""
    return " ".join(record.prompt.lower().split())


def each_prompt_once(records: Sequence[TextRecord]) -> list[TextRecord]:
    """Of records with the same prompt the first, or the first with a text; those without a prompt all stay."""
    kept: dict[str, TextRecord] = {}
    for record in records:
        key = key_of(record) or f"no prompt: {record.id}"
        if key not in kept or (record.text and not kept[key].text):
            kept[key] = record
    return list(kept.values())


def statistics(records: Sequence[TextRecord]) -> dict[str, Any]:
    """Counts of one split: malformed, without a text, the texts' moods by the shipped keywords, words, kinds."""
    texts = [record.text for record in records if record.text]
    lengths = sorted(len(text.split()) for text in texts) or [0]
    return {
        "records": len(records),
        "malformed": sum(defect(record) is not None for record in records),
        "without_text": len(records) - len(texts),
        "moods": dict(sorted(Counter(mood(text, PROFILES["strict"]) for text in texts).items())),
        "text_words": {"min": lengths[0], "median": median(lengths), "max": lengths[-1]},
        "subject_kinds": dict(sorted(Counter(record.subject_kind or "unknown" for record in records).items())),
    }


def size_line(split: str, facts: Mapping[str, Any]) -> str:
    """What the terminal says of a split."""
    return f"{split}: {facts['records']} prompts, {facts['without_text']} without text, {facts['malformed']} malformed"


def summary(counts: Mapping[str, Mapping[str, Any]], problems: Sequence[Mapping[str, Any]]) -> str:
    """The page that a person reads."""
    lines = []
    for split, facts in counts.items():
        lines.append(size_line(split, facts))
        for title in ("moods", "text_words", "subject_kinds"):
            lines.append(f"  {title}: " + ", ".join(f"{name} {count:g}" for name, count in facts[title].items()))
        lines.append("")
    lines.append(f"{len(problems)} lines in problems.jsonl")
    lines += [
        f"  {one['file']}, record {one['index']}, id {one['id']}: {one['reason']}" for one in problems[:PROBLEMS_SHOWN]
    ]
    return "\n".join(lines) + "\n"


def shown(record: TextRecord) -> dict[str, Any]:
    """An example for a person."""
    return asdict(record)
