"""Records: what is read equals what was written, and every damage is one line with the place in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import UserError
from utils.finqa.checks import defect, histogram, pages_in_two_splits, repeated, statistics
from utils.finqa.grounding import numbers, ungrounded
from utils.finqa.program import parse
from utils.finqa.records import MAX_TEXT, Record, read_records, record_from_dict, record_to_dict, write_records

RECORD = Record(
    id="A/2008/page_1.pdf-1",
    filename="A/2008/page_1.pdf",
    question="what was the change in net revenue ?",
    pre_text=("the company reports in millions .",),
    post_text=(),
    table=(("", "2008", "2007"), ("net revenue", "$ 5,829", "$ 5,735")),
    program="subtract(5829, 5735), divide(#0, 5735)",
    exe_ans=0.01639,
    answer="1.6%",
    gold_inds={"table_1": "the net revenue of 2008 is $ 5,829 ; the net revenue of 2007 is $ 5,735 ;"},
)


def as_json(**changes: Any) -> dict[str, Any]:
    """RECORD as read from a file; `qa__x=` changes qa.x, and a value of KeyError removes the key."""
    value = json.loads(json.dumps(record_to_dict(RECORD)))
    for name, new in changes.items():
        holder, key = (value["qa"], name[4:]) if name.startswith("qa__") else (value, name)
        if new is KeyError:
            del holder[key]
        else:
            holder[key] = new
    return dict(value)


texts = st.text(st.characters(codec="utf-8"), max_size=12)
rows = st.lists(st.lists(texts, max_size=4).map(tuple), max_size=4).map(tuple)
records = st.builds(
    Record,
    id=texts.filter(bool),
    filename=texts,
    question=texts,
    pre_text=st.lists(texts, max_size=3).map(tuple),
    post_text=st.lists(texts, max_size=3).map(tuple),
    table=rows,
    program=st.none() | texts.filter(bool),
    exe_ans=st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["yes", "no"]),
    answer=texts,
    gold_inds=st.dictionaries(texts, texts, max_size=2),
    table_ori=rows,
)


@settings(deadline=None)
@given(records)
def test_a_record_survives_json(record: Record) -> None:
    assert record_from_dict(json.loads(json.dumps(record_to_dict(record))), "here") == record


def test_files_are_equal_bytes_and_read_back(tmp_path: Path) -> None:
    unknown = Record("B-1", "B", "?", (), (), (("", "a"), ("b", "1")), None, "yes")
    for name in ("one.json", "two.json"):
        write_records(tmp_path / name, [RECORD, unknown])
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert read_records(tmp_path / "one.json") == [RECORD, unknown]
    assert json.loads((tmp_path / "one.json").read_text())[1]["qa"]["program"] == ""


def test_keys_that_are_not_used_and_whole_numbers_are_accepted() -> None:
    value = as_json(qa__exe_ans=3, qa__gold_inds=None, table_ori=KeyError, qa__answer=KeyError, annotation={"x": [1]})
    record = record_from_dict(value, "here")
    assert (record.exe_ans, record.gold_inds, record.answer) == (3.0, {}, "")
    assert isinstance(record.exe_ans, float)


DAMAGED: list[tuple[dict[str, Any], str]] = [
    ({"id": 7}, "'id' to be a non-empty string"),
    ({"id": ""}, "'id' to be a non-empty string"),
    ({"table": KeyError}, "key 'table' is missing"),
    ({"qa": KeyError}, "key 'qa' is missing"),
    ({"qa": []}, "key 'qa': expected an object"),
    ({"qa__question": KeyError}, "key 'qa.question' is missing"),
    ({"qa__question": None}, "key 'qa.question': expected a string"),
    ({"qa__program": ["add(1, 2)"]}, "key 'qa.program': expected a string"),
    ({"qa__exe_ans": True}, "key 'qa.exe_ans': expected a finite number"),
    ({"qa__exe_ans": 10**400}, "key 'qa.exe_ans': expected a finite number"),
    ({"qa__exe_ans": None}, "key 'qa.exe_ans': expected a finite number"),
    ({"pre_text": "a sentence"}, "key 'pre_text': expected a list of strings"),
    ({"post_text": [1]}, "key 'post_text': expected a string"),
    ({"table": [["a", 1]]}, "key 'table[0]': expected a string"),
    ({"table": ["a"]}, "key 'table[0]': expected a list of strings"),
    ({"qa__gold_inds": ["table_1"]}, "key 'qa.gold_inds': expected an object of strings"),
    ({"qa__gold_inds": {"table_1": 3}}, "key 'qa.gold_inds.table_1': expected a string"),
    ({"qa__question": "x" * (MAX_TEXT + 1)}, "at most 100000 characters"),
    ({"qa__question": "\ud800"}, "half a surrogate pair"),
]


@pytest.mark.parametrize(
    ("changes", "message"), DAMAGED, ids=[str(list(changes)[0]) + str(i) for i, (changes, _) in enumerate(DAMAGED)]
)
def test_damage_is_one_line_with_the_place(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([as_json(id="first"), as_json(**changes)]))
    with pytest.raises(UserError) as caught:
        read_records(path)
    line = str(caught.value)
    assert message in line and f"{path}, record 1" in line and "\n" not in line and len(line) < 400
    if "id" not in changes:
        assert "A/2008/page_1.pdf-1" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "an empty list"),
        (b"{}", "expected a non-empty JSON list"),
        (b'[{"id": "a"', "not valid JSON"),
        (b'["\xff"]', "not UTF-8"),
        (b"[" * 100_000, "JSON"),
        (b'[{"id": "x", "qa": {"exe_ans": NaN}}]', "NaN"),
        (b"[3]", "record 0: expected an object"),
    ],
)
def test_broken_files_are_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)) as caught:
        read_records(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_id_stands_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="record 1, key 'id'.*is the id of record 0 too"):
        write_records(tmp_path / "x.json", [RECORD, RECORD])
    assert not list(tmp_path.iterdir())


def test_carriage_returns_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    text = json.dumps([as_json()], indent=1).replace("\n", "\r\n")
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_records(tmp_path / "x.json") == [RECORD]


def changed(**changes: Any) -> Record:
    return record_from_dict(as_json(**changes), "here")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (changed(), None),
        (changed(qa__program=""), None),
        (changed(qa__question="  "), "no question"),
        (changed(table=[]), "no table"),
        (changed(table=[["", ""], [""]]), "no table"),
        (changed(qa__exe_ans="maybe"), "exe_ans is 'maybe', expected a number, yes or no"),
        (
            changed(qa__program="", qa__exe_ans=0.123456789),
            "exe_ans is 0.123456789, expected at most 5 decimals and 1e+18",
        ),
        (changed(qa__program="", qa__exe_ans=3e18), "exe_ans is 3e+18, expected at most 5 decimals and 1e+18"),
        (
            changed(qa__program=", ".join(["add(1, 1)", *(f"add(#{i}, #{i})" for i in range(8))]), qa__exe_ans=512),
            "program has no formula of at most 500 operations and arguments",
        ),
        (changed(qa__program="subtract(5829, 5735)"), "program gives 94, exe_ans is 0.01639"),
        (changed(qa__program="subtract(5829)"), "program does not execute: not of the form op(arg, arg), op(arg, arg)"),
    ],
)
def test_what_makes_a_record_unusable(record: Record, reason: str | None) -> None:
    found = defect(record)
    assert found == reason or (found or "").startswith(str(reason))


def test_repeated_and_contradictory_questions() -> None:
    other_page = changed(id="c", filename="B")
    again = changed(id="b", qa__question="What was the change in  net revenue ?")
    contradiction = changed(id="d", qa__exe_ans=5.0)
    assert repeated([RECORD, other_page, again, contradiction]) == [(2, 0, True), (3, 0, False)]


def test_statistics_count_by_hand() -> None:
    bare = changed(id="b", qa__program="", qa__exe_ans="yes", qa__answer="", qa__gold_inds={})
    facts = statistics([RECORD, bare])
    assert facts["records"] == 2 and facts["pages"] == 1 and facts["questions_per_page"] == 2.0
    assert facts["operations"] == {"subtract": 1, "divide": 1} and facts["steps"] == {"2": 1}
    assert facts["answer_types"] == {"decimal": 1, "yes/no": 1}
    assert facts["missing"]["program"] == facts["missing"]["answer"] == facts["missing"]["gold_inds"] == 1
    assert facts["missing"]["table_ori"] == 2 and facts["missing"]["question"] == 0
    # 6 in the sentence, 2 years, 2 + 2 x 2 in the row
    assert facts["page_words"] == {"min": 14, "median": 14.0, "p95": 14, "max": 14}
    assert statistics([changed(qa__program="subtract(5829")])["operations"] == {}


def test_histogram_by_hand() -> None:
    lines = histogram({"add": 3, "divide": 1})
    assert lines == ["    add                 3   75.0% " + "#" * 30, "    divide              1   25.0% " + "#" * 10]
    assert histogram({}) == []


def test_pages_in_two_splits() -> None:
    splits = {
        "train": [RECORD, changed(filename="B")],
        "val": [],
        "test": [changed(filename="B"), changed(filename="C")],
    }
    assert pages_in_two_splits(splits) == [("B", "train", "test")]


def test_numbers_of_a_text_and_of_a_program() -> None:
    assert numbers("$ -1,234.5 ( 12% ) in 2008, .5 and 7.") == {1234.5, 12.0, 2008.0, 0.5, 7.0}
    known = numbers("net revenue was $ 5,829 , up 12% , loss of ( 3.5 )")
    check: Callable[[str], list[str]] = lambda program: ungrounded(parse(program), known)  # noqa: E731
    assert check("subtract(5829, const_100), multiply(#0, 12%)") == []
    assert check("add(-3.5, 5829)") == []
    assert check("divide(94, 5829), add(#0, 95)") == ["94", "95"]
    assert check("table_max(net revenue 1999, none)") == []


@pytest.mark.finqa
def test_real_files_read_and_have_no_defect(finqa_folder: Path) -> None:
    for split in ("train", "dev", "test"):
        found = read_records(finqa_folder / f"{split}.json")
        assert [record.id for record in found if defect(record) is not None] == []
        assert [record_from_dict(record_to_dict(record), "") for record in found] == found
