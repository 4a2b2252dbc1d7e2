"""Repeating a run: which commands, in which order, and what counts as the same bytes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from utils.config import resolve, to_dict
from utils.errors import UserError
from utils.files import sha256, write_json, write_text
from utils.rerun import command_of_record, compare, environment_difference, ordered

OLD, NEW = Path("outputs/run_001"), Path("outputs/run_002")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recorded(*words: str, script: str = "03_sft_train", folder: str = "03_sft") -> dict[str, Any]:
    """What a manifest records of a call."""
    module = importlib.import_module(script)
    argv = [*words, "--output_dir", f"{OLD.as_posix()}/{folder}", "--if_needed"]
    found = resolve(module.Config, argv, doc="", script=f"{script}.py")
    facts = {"command": " ".join(["python", f"{script}.py", *argv]), "config": to_dict(found.config)}
    return {"stage": folder, **facts, "files": found.files, "inputs": {}, "code": {"commit": "abc"}}


def test_the_command_is_the_recorded_one_for_another_folder() -> None:
    record = recorded("--init_from", "outputs/run_001/03_sft", "--seed=3", "--quiet", "--report_to", "tensorboard")
    assert command_of_record(record, OLD, NEW / "03_sft") == (
        "03_sft_train",
        ["--init_from", "outputs/run_002/03_sft", "--seed=3"],
    )
    moved = Path("elsewhere/mine")
    assert command_of_record(record, moved, NEW / "03_sft")[1][1] == "outputs/run_002/03_sft"
    files = recorded("outputs/run_001/10_evaluation/metrics.json", script="11_compare_runs", folder="11_comparison")
    assert command_of_record(files, OLD, NEW / "11_comparison")[1] == ["outputs/run_002/10_evaluation/metrics.json"]


def test_settings_that_files_have_changed_since_become_flags() -> None:
    record = recorded("--epochs", "5")
    record["config"]["training"]["patience"] = 8
    record["config"]["lora"]["target_modules"] = ["a", "b"]
    record["config"]["lora"]["use_lora"] = True
    words = command_of_record(record, OLD, NEW / "03_sft")[1]
    assert words == ["--epochs", "5", "--use_lora", "True", "--target_modules", "a", "b", "--patience", "8"]
    config = importlib.import_module("03_sft_train").Config
    found = resolve(config, words, doc="", script="03_sft_train.py").config
    assert (found.training.patience, found.lora.target_modules, found.lora.use_lora) == (8, ("a", "b"), True)
    chosen = recorded("--task", "finqa")
    chosen["command"] = "python 03_sft_train.py"  # configs/local.yaml chose the task, and is gone
    assert command_of_record(chosen, OLD, NEW / "03_sft")[1] == ["--task", chosen["files"]["task"]]
    record["config"]["task"]["name"] = "other"
    with pytest.raises(UserError, match=r"03_sft: task.name was other and is now finqa_mini \(.*finqa_mini.yaml\)"):
        command_of_record(record, OLD, NEW / "03_sft")
    record["config"]["task"] = {"lost": 1}
    with pytest.raises(UserError, match="task.lost is no setting of this code; it ran with commit abc"):
        command_of_record(record, OLD, NEW / "03_sft")


def test_inputs_come_first() -> None:
    def stage(*inputs: str) -> dict[str, Any]:
        return {"inputs": dict.fromkeys(inputs, ""), "config": {"run": {"output_dir": "then/run_009/x"}}}

    records = {
        "03_sft": stage("datasets/x.json"),
        "03_sft_more": stage("outputs/run_001/06_grpo/manifest.json", "outputs/run_001/03_sft/ckpt_sft/best"),
        "06_grpo": stage("then/run_009/03_sft/ckpt_sft/best"),
        "11_comparison": stage("outputs/run_001/03_sft_more"),
    }
    assert list(ordered(records, OLD)) == ["03_sft", "06_grpo", "03_sft_more", "11_comparison"]
    records["03_sft"] = stage("outputs/run_001/06_grpo/x")
    with pytest.raises(UserError, match="read each other's files"):
        ordered(records, OLD)


def make_runs(**changed: str) -> None:
    """Two runs of one stage that agree but for the run's name and the clock; `changed` files of the second."""
    for run in (OLD, NEW):
        folder = run / "11_comparison"
        files = {
            "report_md": f"from {run.as_posix()}/10_evaluation\n",
            "summary_csv": f"method,wall_seconds\nsft,{len(changed)}{run.name[-1]}\n",
            "weights_bin": "same",
            "tb/events": run.name,
            "last_complete": run.name,
        }
        for name, text in (files | (changed if run == NEW else {})).items():
            write_text(folder / name.replace("_bin", ".bin").replace("_csv", ".csv").replace("_md", ".md"), text)
        outputs = {p.relative_to(folder).as_posix(): sha256(p) for p in folder.rglob("*") if p.is_file()}
        facts = {"code": {"commit": run.name * 2, "dirty": None}, "libraries": {"torch": "2"}, "hardware": {"cores": 2}}
        write_json(folder / "manifest.json", {"schema": 1, "outputs": outputs, **facts})


def test_names_and_clocks_do_not_count() -> None:
    make_runs()
    expected = "rerun: 1 stages, 3 files: the bytes of outputs/run_001 came out again"
    assert compare(OLD, NEW, ["11_comparison"]) == (expected, True)


@pytest.mark.parametrize(
    ("name", "text", "first"),
    [
        ("weights_bin", "outputs/run_002", "11_comparison/weights.bin differs"),
        ("report_md", "other", "11_comparison/report.md differs"),
        ("summary_csv", "method,wall_seconds\ngrpo,1\n", "11_comparison/summary.csv differs"),
        ("new_md", "x", "11_comparison/new.md is only in outputs/run_002"),
    ],
)
def test_the_first_difference_and_its_likely_cause(name: str, text: str, first: str) -> None:
    make_runs(**{name: text})
    line, agree = compare(OLD, NEW, ["11_comparison"])
    assert not agree and f"do not agree, first {first}; not the same: code run_001r → run_002r" in line


def test_environments() -> None:
    before = {"code": {"commit": "a" * 40, "dirty": None}, "libraries": {"torch": "2.1"}, "hardware": {"cores": 2}}
    assert environment_difference(before, before) == ""
    after = {"code": {"commit": None, "dirty": "x"}, "libraries": {"torch": "2.2"}, "hardware": {"cores": 4}}
    expected = "not the same: code aaaaaaaa → unknown with changes, torch 2.1 → 2.2, cores 2 → 4"
    assert environment_difference(before, after) == expected
