"""Benchmarks of the scripts as programs: how long --help takes, and the stages that make the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import data, startup
from utils.errors import UserError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two scripts, whose second is the slower."""
    monkeypatch.setattr(startup, "ROOT", tmp_path)
    (tmp_path / "00_quick.py").write_text("")
    (tmp_path / "01_slow.py").write_text("import time; time.sleep(0.5)")
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "config.py").write_text("")
    monkeypatch.setitem(startup.OTHERS, "trl grpo --help", ["-c", ""])
    return tmp_path


def test_the_slowest_script_counts(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert startup.main(["--repeats", "1", "--json", str(project / "figures.json")]) == 0
    figures = json.loads((project / "figures.json").read_text())
    assert list(figures["median"]) == ["01_slow.py --help", *startup.OTHERS]
    assert figures["median"]["01_slow.py --help"] >= 0.5 and set(figures["scripts"]) == {"00_quick.py", "01_slow.py"}
    assert capsys.readouterr().out.splitlines()[-1].startswith("| startup, slowest of 2 scripts | 01_slow.py --help ")


def test_settings_that_load_torch_are_no_measurement(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "torch.py").write_text("")
    (project / "utils" / "config.py").write_text("import torch")
    assert startup.main(["--repeats", "1"]) == 2
    assert capsys.readouterr().err.endswith(": utils.config loads torch\n")


def test_a_script_that_fails_is_one_line(project: Path) -> None:
    (project / "00_quick.py").write_text("raise SystemExit('broken')")
    with pytest.raises(UserError, match="python 00_quick.py --help: broken"):
        startup.call(["00_quick.py", "--help"])


def flags_of(records: int, source: Path | None) -> object:
    return type("Flags", (), {"records": records, "data": source})()


def test_records_are_repeated_under_new_ids_and_pages(tmp_path: Path) -> None:
    for split in data.SIZES:
        record = {"id": f"{split}-1", "filename": f"{split}.pdf", "qa": {}}
        (tmp_path / f"{split}.json").write_text(json.dumps([record, {**record, "id": f"{split}-2"}]))
    assert data.make_up(flags_of(40, tmp_path), tmp_path / "made") == 40  # type: ignore[arg-type]
    made = {split: json.loads((tmp_path / "made" / f"{split}.json").read_text()) for split in data.SIZES}
    assert {split: len(records) for split, records in made.items()} == {"train": 31, "dev": 4, "test": 5}
    ids = [record["id"] for records in made.values() for record in records]
    assert len(set(ids)) == 40 and made["train"][:2] == json.loads((tmp_path / "train.json").read_text())
    pages = [{record["filename"] for record in records} for records in made.values()]
    assert not pages[0] & pages[1] and not pages[0] & pages[2] and len(pages[0]) == 16


def test_the_default_is_finqas_size() -> None:
    assert sum(data.SIZES.values()) == 8281


def test_a_folder_without_records_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.main(["--data", str(tmp_path)]) == 2
    assert "train.json: no such file" in capsys.readouterr().err
    (tmp_path / "train.json").write_text("[]")
    assert data.main(["--data", str(tmp_path)]) == 2
    assert "train.json: expected a list of FinQA's records" in capsys.readouterr().err


@pytest.mark.slow
def test_the_stages_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert data.main(["--records", "60", "--repeats", "1", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    own, *others = figures["median"].values()
    assert own == pytest.approx(sum(others)) and min(others) > 0 and len(others) == 3
    assert figures["peak_bytes"] == max(*figures["memory"].values())[0] > 2**24
    assert capsys.readouterr().out.splitlines()[-1].startswith("| data, 60 records by repeating finqa_mini | stages 00")
