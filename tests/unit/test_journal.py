"""What an interrupted computation leaves and what is taken up again; and files of answers made elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from utils.errors import UserError
from utils.evaluation.journal import Journal
from utils.evaluation.predictions import read_predictions
from utils.tasks.base import Example, Rollout

ORIGIN: dict[str, dict[str, Any]] = {"policy": {"checkpoint": "c0ffee"}, "lora": {"target_modules": ("q", "v")}}


def opened(path: Path, origin: dict[str, dict[str, Any]] = ORIGIN) -> tuple[Journal, list[str]]:
    said: list[str] = []
    return Journal(path, origin, said.append), said


def test_pieces_are_there_again_and_a_torn_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "unfinished" / "greedy.jsonl"
    first, _ = opened(path)
    for piece in ([["a", True, 3]], ["\u2028 \n", 1.5]):
        first.append(piece)
    whole = path.read_bytes()
    path.write_bytes(whole + b'[["b", fal')
    again, said = opened(path)
    assert again.pieces == [[["a", True, 3]], ["\u2028 \n", 1.5]] and said == []
    assert path.read_bytes() == whole
    again.append("c")
    assert opened(path)[0].pieces == [*first.pieces, "c"]


def test_a_broken_line_ends_what_can_be_used(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path / "j.jsonl")
    journal.append(1)
    with journal.path.open("a") as file:
        file.write("\0\0\0\n2\n")
    assert opened(journal.path)[0].pieces == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": {"checkpoint": "decaf"}}, "policy.checkpoint was c0ffee and is now decaf"),
        ({"lora": {"target_modules": ("q",)}}, "lora.target_modules was"),
        ({"more": {"samples": 4}}, "more.samples was None and is now 4"),
    ],
)
def test_nothing_of_another_origin_is_used(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    journal, _ = opened(tmp_path / "j.jsonl")
    journal.append(1)
    other, said = opened(journal.path, ORIGIN | change)
    assert other.pieces == [] and len(said) == 1 and message in said[0]
    assert opened(journal.path, ORIGIN | change)[1] == []  # the file is now of the new origin


@pytest.mark.parametrize("header", ["5", "not JSON", '{"policy": 1}'])
def test_a_file_that_does_not_say_its_origin_is_not_used(tmp_path: Path, header: str) -> None:
    (tmp_path / "j.jsonl").write_text(f"{header}\n1\n")
    journal, said = opened(tmp_path / "j.jsonl")
    assert journal.pieces == [] and "does not say what it was made from" in said[0]


EXAMPLES = [Example(id=name, input_text=f"prompt {name}") for name in ("AB/2018/page_1.pdf-1", "b", "c")]
A, B, C = (json.dumps({"id": one.id, "text": f"text {one.id}"}) for one in EXAMPLES)


def test_predictions_come_in_the_records_order_with_what_their_lines_say(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{C}\r\n\n{{"id": "b", "text": "", "tokens": 7, "truncated": true, "reward": 1}}\n{A}')
    assert read_predictions(path, EXAMPLES) == [
        Rollout(EXAMPLES[0], 0, "text AB/2018/page_1.pdf-1", False, 0),
        Rollout(EXAMPLES[1], 0, "", True, 7),
        Rollout(EXAMPLES[2], 0, "text c", False, 0),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "3 of 3 records have no answer (the first is 'AB/2018/page_1.pdf-1')"),
        ([A, C], "1 of 3 records have no answer (the first is 'b'); expected a line with every id"),
        ([A, "", B, C, A], "p.jsonl:5: id 'AB/2018/page_1.pdf-1' stands in line 1 too"),
        ([A, B, C.replace('"c"', '"cc"')], "p.jsonl:3: id 'cc' is none of the 3 records asked"),
        ([A.replace("page_1", "page_2"), B, C], "did you mean AB/2018/page_1.pdf-1?"),
        ([A, B, '{"id": "c"}'], "p.jsonl:3: key 'text' is missing"),
        ([A, B, '{"text": "c"}'], "p.jsonl:3: key 'id' is missing"),
        ([A, B, '{"id": 3, "text": "c"}'], "p.jsonl:3, key 'id': expected text, got '3'"),
        ([A, B, '{"id": "c", "text": null}'], "key 'text': expected text, got 'None'"),
        ([A, B, '{"id": "c", "text": {"program": "add(1, 2)"}}'], "key 'text': expected text, got"),
        ([A, B, '{"id": "c", "text": "\\ud800"}'], "key 'text': half a surrogate pair"),
        ([A, B, '{"id": "c", "text": "", "tokens": 1.5}'], "key 'tokens': expected a whole number from 0"),
        ([A, B, '{"id": "c", "text": "", "tokens": true}'], "key 'tokens'"),
        ([A, B, '{"id": "c", "text": "", "truncated": 1}'], "key 'truncated': expected true or false"),
        ([A, B, '["c", "text"]'], "p.jsonl:3: expected a JSON object, got list"),
        ([A, B, C[:-3]], "p.jsonl:3: not valid JSON"),
    ],
)
def test_a_file_that_is_not_one_answer_per_record_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        read_predictions(path, EXAMPLES)
    assert message in str(caught.value) and "\n" not in str(caught.value)
