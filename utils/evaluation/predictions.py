"""Answers made elsewhere: a JSONL file with `id` and `text` of every record, judged like those of a policy.

    {"id": "ETR/2016/page_23.pdf-2", "text": "{\\"program\\": \\"subtract(5829, 5735)\\", \\"answer\\": \\"94\\"}"}

`tokens` and `truncated` are taken where a line has them, so that samples/predictions.jsonl of an evaluation is such a
file; further keys are passed over. A file that leaves out a record, has one twice or names one that is not asked is
refused: a rate over other records than the ones asked is not an accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_numbered_jsonl
from utils.keys import nearest
from utils.tasks.base import Example, Rollout


def read_predictions(path: Path, examples: Sequence[Example]) -> list[Rollout]:
    """One rollout per example, in the order of the examples.

    UserError with file:line for a line that is no such object, an id that is unknown or occurs twice, and, with the
    first id that is missing, for a file that does not answer every example.
    """
    by_id = {example.id: example for example in examples}
    found: dict[str, Rollout] = {}
    lines: dict[str, int] = {}
    for number, row in read_numbered_jsonl(path):
        where = f"{path}:{number}"
        name = _text(row, "id", where)
        if name not in by_id:
            raise UserError(f"{where}: id {name!r} is none of the {len(examples)} records asked{nearest(name, by_id)}")
        if name in found:
            raise UserError(f"{where}: id {name!r} stands in line {lines[name]} too; expected one answer per record")
        found[name], lines[name] = _rollout(by_id[name], row, where), number
    missing = [example.id for example in examples if example.id not in found]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(examples)} records have no answer (the first is {missing[0]!r}); "
            'expected a line with every id, and text "" where there is none'
        )
    return [found[example.id] for example in examples]


def _rollout(example: Example, row: Mapping[str, Any], where: str) -> Rollout:
    tokens, truncated = row.get("tokens", 0), row.get("truncated", False)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise UserError(f"{where}, key 'tokens': expected a whole number from 0, got {str(tokens)[:60]!r}")
    if not isinstance(truncated, bool):
        raise UserError(f"{where}, key 'truncated': expected true or false, got {str(truncated)[:60]!r}")
    return Rollout(example, 0, _text(row, "text", where), truncated, tokens)


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise UserError(f"{where}: key {key!r} is missing; expected an object with id and text")
    value = row[key]
    if not isinstance(value, str):
        raise UserError(f"{where}, key {key!r}: expected text, got {str(value)[:60]!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}, key {key!r}: half a surrogate pair is not text; write it as UTF-8") from None
    return value
