"""The completion format: one JSON object with a program and an answer.

    {"program": "subtract(5829, 5735), divide(#0, 5735)", "answer": "0.01639"}

`write_answer` writes the one target text; `read_answer` reads what a policy wrote and never raises. White space is
free wherever JSON allows it; anything before or behind the object, a missing, repeated or additional key, a value that
is not a string or an answer that is not a number, yes or no is a named format problem. What could still be read is
returned beside the problem.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from utils.finqa.program import plain_number

KEYS = ("program", "answer")
MAX_CHARACTERS = 4000
"""Longest completion that is read at all."""

PROBLEMS = {
    "empty": "nothing was written",
    "too_long": f"more than {MAX_CHARACTERS} characters",
    "not_json": "does not begin with a JSON object",
    "cut_json": "the JSON object does not end",
    "trailing_text": "text behind the JSON object",
    "not_object": "JSON, but not an object",
    "repeated_key": "a key occurs twice",
    "missing_program": "no key program",
    "missing_answer": "no key answer",
    "unknown_key": "a key other than program and answer",
    "program_not_text": "program is not a string",
    "answer_not_text": "answer is not a string",
    "answer_unreadable": "answer is not a plain number, yes or no",
}
"""Every format problem, in words."""


@dataclass(frozen=True)
class Answer:
    """What a completion says; `problem` is None or a key of PROBLEMS."""

    program: str | None
    answer: str | None
    problem: str | None


class _RepeatedKey(ValueError):
    """The JSON object has a key twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RepeatedKey
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)
_BLANKS = " \t\n\r"


def read_answer(text: str) -> Answer:
    """Read the one JSON object of a completion; never raises, whatever the text is."""
    body = text.strip(_BLANKS)
    if not body:
        return Answer(None, None, "empty")
    if len(body) > MAX_CHARACTERS:
        return Answer(None, None, "too_long")
    try:
        found, end = _DECODER.raw_decode(body)
    except _RepeatedKey:
        return Answer(None, None, "repeated_key")
    except (ValueError, RecursionError):  # cut or broken JSON, or nested deeper than the decoder goes
        return Answer(None, None, "cut_json" if body[0] == "{" else "not_json")
    if not isinstance(found, dict):
        return Answer(None, None, "not_object")
    program, answer = found.get("program"), found.get("answer")
    return Answer(
        program if isinstance(program, str) else None,
        answer if isinstance(answer, str) else None,
        "trailing_text" if end < len(body) else _key_problem(found),
    )


def _key_problem(found: dict[str, Any]) -> str | None:
    for key in KEYS:
        if key not in found:
            return f"missing_{key}"
        if not isinstance(found[key], str):
            return f"{key}_not_text"
    if len(found) > len(KEYS):
        return "unknown_key"
    return "answer_unreadable" if parse_answer(found["answer"]) is None else None


def write_answer(program: str, exe_ans: float | str) -> str:
    """Return the target text for a program and its value, keys in fixed order, escapes only where JSON needs them."""
    return json.dumps({"program": program, "answer": format_answer(exe_ans)}, ensure_ascii=False)


def format_answer(value: float | str) -> str:
    """Write an answer short and canonical: 731.0 -> "731", 0.01639, -0.5, 1e-05 -> "0.00001", yes, no."""
    if isinstance(value, str):
        return value
    text = f"{float(value):.5f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def parse_answer(text: str) -> float | str | None:
    """Read a typed answer: a plain number (`12%` is 0.12, as in programs), "yes", "no", or None for anything else."""
    text = text.strip()
    if text in ("yes", "no"):
        return text
    percent = text.endswith("%")
    value = plain_number(text[:-1] if percent else text)
    if value is None:
        return None
    return round(value / 100.0 if percent else value, 5)
