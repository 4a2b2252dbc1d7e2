"""FinQA records: one type, one validator for reading and writing.

A file is a JSON list in FinQA's schema (Chen et al. 2021, EMNLP, "FinQA"):

    {"id": "ETR/2016/page_23.pdf-2", "filename": "ETR/2016/page_23.pdf",
     "pre_text": ["sentence .", ...], "post_text": [...], "table_ori": [],
     "table": [["", "2008"], ["net revenue", "731"]],
     "qa": {"question": "...", "answer": "94", "program": "subtract(5829, 5735)", "exe_ans": 94.0,
            "gold_inds": {"table_1": "the net revenue of 2008 is 731 ;"}}}

Further keys are accepted and left out. A record without a program has `program == ""` in the file and None in memory.
The validator checks types, not sense: an empty question is reported by 00, a question that is a number is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json, write_text

MAX_TEXT = 100_000
"""Longest string of a record in characters; the longest sentence of the published files has under 2,000."""


@dataclass(frozen=True)
class Record:
    """One question about one report page."""

    id: str
    filename: str  # the page; several records share one
    question: str
    pre_text: tuple[str, ...]  # sentences before the table
    post_text: tuple[str, ...]  # sentences after the table
    table: tuple[tuple[str, ...], ...]  # the header row first, the row label in front
    program: str | None
    exe_ans: float | str  # gold: the program's value, a number or "yes" / "no"
    answer: str = ""  # as written by the annotator; disagrees with exe_ans on about 7 % of the published records
    gold_inds: dict[str, str] = field(
        default_factory=dict
    )  # {"text_3": sentence, "table_1": row sentence}; {} = unknown
    table_ori: tuple[tuple[str, ...], ...] = ()  # the table before FinQA's normalisation, where known


class _Reader:
    """Checks one record; every complaint names the place."""

    def __init__(self, place: str, record_id: str) -> None:
        self.place = place
        self.record_id = record_id

    def wrong(self, key: str, expected: str, got: object) -> UserError:
        shown = json.dumps(got, default=str)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return UserError(f"{self.place}, id {self.record_id!r}, key {key!r}: expected {expected}, got {shown}")

    def get(self, holder: dict[str, Any], key: str, name: str, expected: str) -> Any:
        if key not in holder:
            raise UserError(f"{self.place}, id {self.record_id!r}: key {name!r} is missing, expected {expected}")
        return holder[key]

    def text(self, value: object, key: str) -> str:
        if not isinstance(value, str):
            raise self.wrong(key, "a string", value)
        if len(value) > MAX_TEXT:
            raise self.wrong(key, f"at most {MAX_TEXT} characters, this string has {len(value)}", value)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self.wrong(key, "valid Unicode (half a surrogate pair cannot be written)", value) from None
        return value

    def texts(self, value: object, key: str) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self.wrong(key, "a list of strings", value)
        return tuple([self.text(item, key) for item in value])

    def rows(self, value: object, key: str) -> tuple[tuple[str, ...], ...]:
        if not isinstance(value, list):
            raise self.wrong(key, "a list of rows, each a list of strings", value)
        return tuple([self.texts(row, f"{key}[{i}]") for i, row in enumerate(value)])

    def number_or_word(self, value: object, key: str) -> float | str:
        if isinstance(value, str):
            return self.text(value, key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, 'a finite number, "yes" or "no"', value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.wrong(key, 'a finite number, "yes" or "no"', value)
        return number


def record_from_dict(value: object, place: str) -> Record:
    """Check one record of a file.

    Args:
        value: what JSON held.
        place: "file, record 3", the beginning of every error message.

    Raises:
        UserError: one line with place, id, key and what was expected.
    """
    if not isinstance(value, dict):
        raise UserError(
            f"{place}: expected an object with id, filename, pre_text, post_text, table and qa, "
            f"got {type(value).__name__}"
        )
    record_id = value.get("id")
    if not isinstance(record_id, str) or not record_id:
        raise UserError(
            f"{place}: expected key 'id' to be a non-empty string, got {json.dumps(record_id, default=str)[:60]}"
        )
    reader = _Reader(place, record_id)
    qa = reader.get(value, "qa", "qa", "an object with question, program and exe_ans")
    if not isinstance(qa, dict):
        raise reader.wrong("qa", "an object with question, program and exe_ans", qa)
    gold = qa.get("gold_inds") or {}
    if not isinstance(gold, dict):
        raise reader.wrong("qa.gold_inds", "an object of strings", gold)
    return Record(
        id=reader.text(record_id, "id"),
        filename=reader.text(reader.get(value, "filename", "filename", "the name of the page"), "filename"),
        question=reader.text(reader.get(qa, "question", "qa.question", "a string"), "qa.question"),
        pre_text=reader.texts(reader.get(value, "pre_text", "pre_text", "a list of strings"), "pre_text"),
        post_text=reader.texts(reader.get(value, "post_text", "post_text", "a list of strings"), "post_text"),
        table=reader.rows(reader.get(value, "table", "table", "a list of rows, the header first"), "table"),
        program=reader.text(reader.get(qa, "program", "qa.program", 'a string, "" for none'), "qa.program") or None,
        exe_ans=reader.number_or_word(reader.get(qa, "exe_ans", "qa.exe_ans", 'a number, "yes" or "no"'), "qa.exe_ans"),
        answer=reader.text(qa.get("answer", ""), "qa.answer"),
        gold_inds={reader.text(k, "qa.gold_inds"): reader.text(v, f"qa.gold_inds.{k}") for k, v in gold.items()},
        table_ori=reader.rows(value.get("table_ori") or [], "table_ori"),
    )


def record_to_dict(record: Record) -> dict[str, Any]:
    """The record in FinQA's schema, ready for JSON; the inverse of `record_from_dict`."""
    return {
        "pre_text": list(record.pre_text),
        "post_text": list(record.post_text),
        "filename": record.filename,
        "table_ori": [list(row) for row in record.table_ori],
        "table": [list(row) for row in record.table],
        "qa": {
            "question": record.question,
            "answer": record.answer,
            "program": record.program or "",
            "gold_inds": dict(record.gold_inds),
            "exe_ans": record.exe_ans,
        },
        "id": record.id,
    }


def read_records(path: str | Path) -> list[Record]:
    """Read a FinQA file.

    Raises:
        UserError: one line when the file is missing, empty, no UTF-8, no JSON list, when a record has a missing or
            mistyped key, or when two records share an id.
    """
    values = read_json(path)
    if not isinstance(values, list) or not values:
        raise UserError(
            f"{path}: expected a non-empty JSON list of FinQA records, "
            f"got {'an empty list' if values == [] else type(values).__name__}"
        )
    records = [record_from_dict(value, f"{path}, record {index}") for index, value in enumerate(values)]
    check_ids(records, str(path))
    return records


def check_ids(records: Sequence[Record], place: str) -> None:
    """Raise a UserError that names the first id that two records share."""
    first: dict[str, int] = {}
    for index, record in enumerate(records):
        if first.setdefault(record.id, index) != index:
            raise UserError(
                f"{place}, record {index}, key 'id': {record.id!r} is the id of record {first[record.id]} too, "
                "expected unique ids"
            )


def format_records(records: Iterable[Record], place: str) -> str:
    """The text of a FinQA file; equal records give equal text.

    Raises:
        UserError: a record that `read_records` would refuse.
    """
    checked = [record_to_dict(record) for record in records]
    check_ids([record_from_dict(value, f"{place}, record {index}") for index, value in enumerate(checked)], place)
    return json.dumps(checked, indent=1, allow_nan=False) + "\n"


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write a FinQA file whole or not at all. UserError for a record that `read_records` would refuse."""
    write_text(path, format_records(records, str(path)))
