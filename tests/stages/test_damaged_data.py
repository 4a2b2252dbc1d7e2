"""Damaged data sets: each ends stage 00 (and 01) with one line, exit code 2, and nothing written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.test_00_01 import MODEL, call, check_data, prepare, real
from tests.unit.test_records import as_json, changed
from tests.unit.test_tokens import save_tokenizer
from utils.finqa.records import write_records

Damage = Callable[[Path], None]
RECORDS = [as_json(id="a", filename="a"), as_json(id="b", filename="b")]
TEXT = json.dumps(RECORDS, indent=1)


def content(data: bytes | str) -> Damage:
    """train.json holds this."""
    return lambda folder: write(folder / "train.json", data)


def write(path: Path, data: bytes | str) -> None:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def record(**changes: object) -> Damage:
    """The second training record is changed, as `as_json` does it."""
    return content(json.dumps([RECORDS[0], as_json(**({"id": "b"} | changes))]))


def replaced_by_a_folder(folder: Path) -> None:
    (folder / "train.json").unlink()
    (folder / "train.json").mkdir()


def both_names_of_a_split(folder: Path) -> None:
    write(folder / "val.json", TEXT)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "empty file": (content(""), "train.json:1: not valid JSON"),
    "blank file": (content(" \n \n"), "not valid JSON"),
    "cut in the middle": (content(TEXT[: len(TEXT) // 2]), "not valid JSON"),
    "last bracket lost": (content(TEXT.rstrip("]")), "not valid JSON"),
    "comma behind the last record": (content(TEXT.rstrip("]\n") + ",\n]"), "not valid JSON"),
    "one record a line": (content("\n".join(map(json.dumps, RECORDS))), "train.json:2: not valid JSON: Extra data"),
    "a page of HTML": (content("<!DOCTYPE html><html>404</html>"), "not valid JSON"),
    "a git-lfs pointer": (content("version https://git-lfs.github.com/spec/v1\n"), "not valid JSON"),
    "compressed": (content(gzip.compress(TEXT.encode())), "not UTF-8"),
    "invalid UTF-8": (content(TEXT.encode().replace(b"millions", b"mill\xe9ons")), "not UTF-8"),
    "UTF-16": (content(TEXT.encode("utf-16")), "not UTF-8"),
    "NUL bytes": (content("\0" * 64), "not valid JSON"),
    "a line break in a string": (content(TEXT.replace("net revenue ?", "net\r\nrevenue ?")), "Invalid control"),
    "NaN": (content(TEXT.replace("0.01639", "NaN")), "NaN is not a JSON number"),
    "Infinity": (content(TEXT.replace("0.01639", "-Infinity")), "Infinity is not a JSON number"),
    "a number of 5,000 digits": (content(TEXT.replace("0.01639", "9" * 5000)), "train.json"),
    "nested 100,000 deep": (content("[" * 100_000), "train.json:1: not readable as JSON"),
    "an object": (content('{"data": []}'), "expected a non-empty JSON list of FinQA records, got dict"),
    "an empty list": (content("[]"), "got an empty list"),
    "a list of numbers": (content("[1, 2]"), "record 0: expected an object"),
    "a string of 10 MB": (record(qa__question="x" * 10_000_000), "at most 100000 characters"),
    "half a surrogate pair": (record(qa__question="\ud800"), "half a surrogate pair"),
    "two records of one id": (record(id="a"), "record 1, key 'id': 'a' is the id of record 0 too"),
    "no id": (record(id=KeyError), "record 1: expected key 'id'"),
    "an id that is a number": (record(id=3), "record 1: expected key 'id'"),
    "no qa": (record(qa=KeyError), "key 'qa' is missing"),
    "qa is a list": (record(qa=[]), "key 'qa': expected an object"),
    "no question": (record(qa__question=KeyError), "key 'qa.question' is missing"),
    "no table": (record(table=KeyError), "key 'table' is missing"),
    "a table of numbers": (record(table=[["", 2008]]), "key 'table[0]': expected a string, got 2008"),
    "a table that is text": (record(table="2008 | 2007"), "key 'table': expected a list of rows"),
    "no exe_ans": (record(qa__exe_ans=KeyError), "key 'qa.exe_ans' is missing"),
    "exe_ans is true": (record(qa__exe_ans=True), "key 'qa.exe_ans': expected a finite number"),
    "exe_ans beyond a float": (record(qa__exe_ans=10**400), "key 'qa.exe_ans': expected a finite number"),
    "a program as a list": (record(qa__program=["subtract(1, 2)"]), "key 'qa.program': expected a string"),
    "no program key": (record(qa__program=KeyError), "key 'qa.program' is missing"),
    "text that is no list": (record(pre_text="a sentence ."), "key 'pre_text': expected a list of strings"),
    "no file": (lambda folder: (folder / "train.json").unlink(), "train.json is missing"),
    "a folder of that name": (replaced_by_a_folder, "train.json is missing"),
    "dev and val": (both_names_of_a_split, "both dev.json and val.json are there, expected one of them"),
}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set of three files that pass, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    real(tmp_path / "raw", train=2)
    return tmp_path / "raw"


def written(work: Path) -> list[str]:
    """What stages have left below a working directory, but for the manifest that says why one failed."""
    left = [path for name in ("outputs", "datasets") for path in (work / name).rglob("*") if path.is_file()]
    return [path.name for path in left if path.name not in ("manifest.json", ".lock")]


def flags(raw: Path) -> list[str]:
    return ["--task", "finqa", "--data_root", raw.name, "--quiet"]


def test_there_are_thirty_and_more() -> None:
    assert len(DAMAGES) >= 30


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_and_leaves_nothing(name: str, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = DAMAGES[name]
    damage(raw)
    assert call(check_data, *flags(raw)) == 2
    out, error = capsys.readouterr()
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 500, error
    assert message in error and raw.name in error and out == ""
    assert written(raw.parent) == [] and not (raw.parent / "outputs").exists()


@pytest.mark.parametrize("name", ["cut in the middle", "two records of one id", "no file"])
def test_stage_01_says_it_too(name: str, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DAMAGES[name][0](raw)
    assert call(prepare, *flags(raw), *MODEL) == 2
    error = capsys.readouterr().err
    assert DAMAGES[name][1] in error and error.count("\n") == 1 and written(raw.parent) == []


def test_a_split_that_fails_late_leaves_nothing_of_the_others(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tokenizer(raw.parent / "tok", ["<pad>", "<s>", "</s>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    write_records(raw / "test.json", [changed(id="e", filename="e", qa__question="")])
    assert call(prepare, *flags(raw), *MODEL) == 2
    assert "test: none of 1 records is usable" in capsys.readouterr().err and written(raw.parent) == []
    write_records(raw / "test.json", [changed(id="t0", filename="e")])
    assert call(prepare, *flags(raw), *MODEL, "--overwrite") == 2
    assert "the splits together, record 3, key 'id': 't0' is the id of record 0 too" in capsys.readouterr().err


def test_a_damaged_later_split_is_named(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(raw / "test.json", "[")
    assert call(check_data, *flags(raw)) == 2
    assert "test.json:1: not valid JSON" in capsys.readouterr().err and written(raw.parent) == []


def test_carriage_returns_and_a_byte_order_mark_are_no_damage(raw: Path) -> None:
    write(raw / "train.json", b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert call(check_data, *flags(raw)) == 0
