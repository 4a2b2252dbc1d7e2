"""Stage 02 as a program: its files, its table, and what it says about mistakes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from utils.rewards import PROFILES, load_spec
from utils.stage import main

stage_02: Any = importlib.import_module("02_build_rewards")


def run(folder: Path, *flags: str) -> int:
    argv = ["--output_dir", str(folder), *flags]
    return main(stage_02.Config, stage_02.run, stage_02.__doc__, "02_build_rewards.py", argv=argv)


def test_files_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run_001" / "02_rewards"
    assert run(folder) == 0
    assert load_spec(folder / "reward_spec.yaml") == PROFILES["strict"]
    for name, spec in PROFILES.items():
        assert load_spec(folder / f"reward_spec_{name}.yaml") == spec
    cases = json.loads((folder / "unit_tests" / "test_cases.json").read_text())
    results = json.loads((folder / "unit_tests" / "test_results.json").read_text())
    assert [case["name"] for case in cases] == [result["name"] for result in results]
    assert all(result["passed"] for result in results)
    out = capsys.readouterr().out
    assert all(case["name"] in out for case in cases if not case["name"].startswith("attack: ")) and "numeric" in out
    attacks = sum(case["name"].startswith("attack: ") for case in cases)
    assert attacks >= 130 and f"{attacks} of {attacks} attacks earn at most 0" in out
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "completed"
    assert manifest["metrics"] == {
        "profile": "strict",
        "hash": PROFILES["strict"].hash,
        "tests": len(cases),
        "failed": 0,
    }


def test_weights_and_profile_by_flag(tmp_path: Path) -> None:
    folder = tmp_path / "run_001" / "02_rewards"
    assert run(folder, "--reward_profile", "seed", "--weights", "exact=1.0,program=0.3,format=0.2,numeric=0.5") == 0
    spec = load_spec(folder / "reward_spec.yaml")
    assert spec.profile == "seed" and spec.weights["numeric"] == 0.5
    assert load_spec(folder / "reward_spec_seed.yaml") == PROFILES["seed"]


def test_a_wrong_weight_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "run_001" / "02_rewards", "--weights", "exakt=1") == 2
    assert capsys.readouterr().err == (
        "error: --weights: unknown weight exakt; expected exact, numeric, program, format; did you mean exact?\n"
    )


def test_a_case_that_differs_fails_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("utils.rewards.scoring.within", lambda value, gold, tolerance: True)
    folder = tmp_path / "run_001" / "02_rewards"
    assert run(folder, "--reward_profile", "seed") == 2
    assert "reward tests differ; first" in capsys.readouterr().err
    assert json.loads((folder / "manifest.json").read_text())["status"] == "failed"
    assert (folder / "unit_tests" / "test_results.json").is_file()
