"""Files: whole or absent, and every reading error with file and line."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import (
    new_folder,
    read_json,
    read_jsonl,
    read_text,
    read_yaml,
    sha256,
    write_json,
    write_jsonl,
    write_text,
)

ROOT = Path(__file__).resolve().parents[2]


def test_write_then_read(tmp_path: Path) -> None:
    write_json(tmp_path / "deep/a.json", {"b": 1.5, "a": "é\u2028"})
    assert read_json(tmp_path / "deep/a.json") == {"b": 1.5, "a": "é\u2028"}
    assert list(read_json(tmp_path / "deep/a.json")) == ["b", "a"]
    rows = [{"text": "one\u2028line\x85"}, {"text": "two\r"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
    write_text(tmp_path / "t", "a\r\nb")
    assert (tmp_path / "t").read_bytes() == b"a\r\nb"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "rows.jsonl", "t"]


def full_disk(handle: int) -> None:
    raise OSError(28, "No space left on device")


def test_half_of_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    """A model may write it into the JSON of an answer; no text file can hold it."""
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "\ud800"}])
    assert (tmp_path / "rows.jsonl").read_bytes() == b'{"text": "\\ud800"}\n'
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"text": "\ud800"}]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"x": float("nan")})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("utils.files.os.fsync", full_disk)
        write_text(path, "new")
    assert read_json(path) == {"x": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1}\n{"a": \n', "f:2: not valid JSON"),
        (b'{"a": 1}\n[1]\n', "f:2: expected a JSON object, got list"),
        (b'{"a": NaN}\n', "f:1: NaN is not a JSON number"),
        (b'{"a": 1}\n\n{"a": -1e999}\n', "f:3: -1e999 is not a JSON number"),
        (b"{}\n\xff\n", "f: byte 3 is not UTF-8 text"),
    ],
)
def test_jsonl_errors_name_file_and_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_jsonl(tmp_path / "f")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_json_errors(tmp_path: Path) -> None:
    (tmp_path / "f").write_text('{\n  "a": 1,\n  oops\n}')
    with pytest.raises(UserError, match="f:3: not valid JSON"):
        read_json(tmp_path / "f")
    (tmp_path / "f").write_text("[" * 100_000)
    with pytest.raises(UserError, match="f:1: not readable as JSON"):
        read_json(tmp_path / "f")
    with pytest.raises(UserError, match="no such file"):
        read_text(tmp_path / "none")
    with pytest.raises(UserError, match="is a folder"):
        read_text(tmp_path)


def test_empty_lines_windows_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert read_jsonl(tmp_path / "f") == [{"a": 1}, {"a": 2}]


def test_yaml_lines(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("a:\n  b: 1\nc: [1, 2]\n")
    file = read_yaml(tmp_path / "f.yaml")
    assert file.data == {"a": {"b": 1}, "c": [1, 2]}
    assert (file.where("a.b"), file.where("x")) == (f"{tmp_path}/f.yaml:2", f"{tmp_path}/f.yaml")


def test_sha256_of_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/b").write_bytes(b"two")
    (tmp_path / "d/a").write_bytes(b"one")
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
    assert sha256(tmp_path / "d/a") == one
    folder = hashlib.sha256(f"a\0{one}\nb\0{two}\n".encode()).hexdigest()
    assert sha256(tmp_path / "d") == folder
    (tmp_path / "d/a").rename(tmp_path / "d/c")
    assert sha256(tmp_path / "d") != folder


def test_new_folder_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "best"
    with new_folder(target) as fresh:
        (fresh / "weights").write_text("1")
        assert not target.exists()
    with new_folder(target) as fresh:
        (fresh / "other").write_text("2")
        assert (target / "weights").read_text() == "1"
    assert [path.name for path in target.iterdir()] == ["other"]
    with pytest.raises(KeyError), new_folder(target) as fresh:
        (fresh / "third").write_text("3")
        raise KeyError
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


WRITER = """
import sys
from utils.files import new_folder, write_json
print("go", flush=True)
number = 0
while True:
    number += 1
    write_json(f"{sys.argv[1]}/state.json", {"number": number, "filler": "x" * 100_000})
    with new_folder(f"{sys.argv[1]}/best") as fresh:
        for name in "abc":
            (fresh / name).write_text(str(number))
"""


def test_kill_at_any_moment_leaves_whole_files_and_folders(tmp_path: Path) -> None:
    for delay in (0.0, 0.013, 0.05, 0.11):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout and process.stdout.readline() == "go\n"
        while not (tmp_path / "best").exists():
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert len(json.loads((tmp_path / "state.json").read_text())["filler"]) == 100_000
        contents = {(tmp_path / "best" / name).read_text() for name in "abc"}
        assert len(contents) == 1
