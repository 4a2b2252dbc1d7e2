"""The benchmark of program equality: what it measures, prints and refuses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scorer

ROWS = [
    {"id": "r", "program": "add(2, 1)", "program_equal": True},
    {"id": "r", "program": "subtract(2, 1)", "program_equal": False},
    {"id": "r", "program": "nonsense"},
]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Flags that name three cases and their record."""
    record = {"id": "r", "table": [["", "1"]], "qa": {"program": "add(1, 2)", "exe_ans": 3.0}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.json").write_text(json.dumps([record]))
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return ["--cases", str(tmp_path / "cases.jsonl"), "--data", str(tmp_path / "data")]


def once(files: list[str], way: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    scorer.once(way, *files)
    return dict(json.loads(capsys.readouterr().out))


def test_both_ways_judge_every_case(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for way in scorer.WAYS:
        found = once(files, way, capsys)
        assert found["verdicts"] == [True, False, False] and found["seconds"] >= 0


def test_medians_ratio_and_machine(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.1, 9.0, 0.3, 3.0, 0.2, 6.0])
    monkeypatch.setattr(scorer, "measure", lambda way, arguments: ([True, False, False], next(times)))
    out = tmp_path / "figures.json"
    assert scorer.main([*files, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["median"] == {"project": 0.2, "sympy": 6.0} and figures["ratio"] == {"sympy": pytest.approx(30.0)}
    assert figures["values"]["sympy"] == [9.0, 3.0, 6.0] and (figures["cases"], figures["equal"]) == (3, 1)
    assert figures["machine"]["cores"] >= 1 and figures["machine"]["sympy"]
    *_, note, row = capsys.readouterr().out.splitlines()
    assert note.startswith("3 cases, 1 of them equal; both ways agree")
    assert row == "| program equality, 3 cases | project 0.2 s, sympy 6 s | 30 x sympy |"


def test_a_measurement_is_a_process_of_its_own(files: list[str]) -> None:
    arguments = argparse.Namespace(cases=Path(files[1]), data=Path(files[3]))
    assert scorer.measure("project", arguments)[0] == [True, False, False]


@pytest.mark.parametrize("wrong", [[False, False, False], [True, True, False]])
def test_verdicts_that_differ_are_no_benchmark(
    wrong: list[bool], files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        scorer, "measure", lambda way, arguments: (wrong if way == "sympy" else [True, False, False], 1)
    )
    assert scorer.main([*files, "--repeats", "1"]) == 2
    assert "project" in capsys.readouterr().err
    monkeypatch.setattr(scorer, "measure", lambda way, arguments: (wrong, 1))
    assert scorer.main([*files, "--repeats", "1"]) == 2
    assert ", file " in capsys.readouterr().err


def test_mistakes_are_one_line(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = tmp_path / "cases.jsonl"
    assert scorer.main([*files, "--repeats", "0"]) == 2
    assert "--repeats must be 1 or more" in capsys.readouterr().err
    for content, message in (("", "no cases"), ('{"id": "other", "program": ""}', "cases.jsonl:1: expected the `id`")):
        cases.write_text(content)
        with pytest.raises(SystemExit):
            scorer.once("project", *files)
        assert message in capsys.readouterr().err
        assert scorer.main([*files, "--repeats", "1"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("error: ") == 1


def test_without_cases_it_makes_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    found = once([], "project", capsys)["verdicts"]
    assert len(found) == scorer.MINI_CASES and 0 < sum(found) < len(found)
