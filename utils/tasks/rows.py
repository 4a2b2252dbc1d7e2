"""Rows of stage 01's files: held to their schema, read as examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import UserError
from utils.files import read_numbered_jsonl
from utils.tasks.base import Example

E = TypeVar("E", bound=Example)

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def row_schema(properties: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of a task's rows, written as schema_used.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "one line of train.jsonl, val.jsonl and test.jsonl",
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
    }


def check_schema(row: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> None:
    """Hold one row to the keys and types of a JSON schema. UserError with place, id, key and what was expected."""
    who = f"{place}, id {row.get('id')!r}"
    for key in schema["required"]:
        if key not in row:
            raise UserError(f"{who}: key {key!r} is missing; write the file again with python 01_prepare_dataset.py")
    for key, rule in schema["properties"].items():
        if key in row and not _fits(row[key], rule):
            kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
            shown = repr(row[key])[:60]
            raise UserError(f"{who}, key {key!r}: expected {' or '.join(kinds)}, got {shown}")


def _fits(value: Any, rule: Mapping[str, Any]) -> bool:
    kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    if isinstance(value, bool) or not any(isinstance(value, _TYPES[kind]) for kind in kinds):
        return False
    if isinstance(value, list):
        return all(_fits(item, rule["items"]) for item in value)
    if isinstance(value, dict):
        return all(_fits(item, rule["additionalProperties"]) for item in value.values())
    return True


def read_examples(
    path: Path, check_row: Callable[[Mapping[str, Any], str], None], make: Callable[[Mapping[str, Any], str], E]
) -> list[E]:
    """Read one split of stage 01. UserError with file:line for a row off the schema, a repeated id, no rows."""
    examples: list[E] = []
    first: dict[str, int] = {}
    for line, row in read_numbered_jsonl(path):
        check_row(row, f"{path}:{line}")
        example = make(row, f"{path}:{line}")
        if first.setdefault(example.id, line) != line:
            raise UserError(f"{path}:{line}, key 'id': {example.id!r} stands in line {first[example.id]} too")
        examples.append(example)
    if not examples:
        raise UserError(f"{path}: no examples; write it again with python 01_prepare_dataset.py")
    return examples
