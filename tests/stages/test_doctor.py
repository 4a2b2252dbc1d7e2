"""The doctor names what is missing and how to mend it, and never shows a secret."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path

import pytest

from utils.config import ROOT
from utils.files import read_yaml

driver = importlib.import_module("12_driver")
LLAMA = read_yaml(ROOT / "configs/models/llama-3.2-1b.yaml").data["model"]["name"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def doctor(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = driver.main(["doctor", *argv])
    return code, capsys.readouterr().out


def test_the_default_course_on_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    code, text = doctor(capsys, "--seed", "4")
    assert code == 0 and text.splitlines()[-1] == "doctor: all well"
    for part in ("python", "torch 2.", "cores", "checkpoints about", "data seed 0", "assets/llama-tiny (a folder)"):
        assert part in text
    assert "set: HF_TOKEN" in text and "WANDB_API_KEY" in text.split("not set:")[1] and "secret" not in text
    assert "would run  16 stages into outputs/run_001: model " in text
    assert text.count("python 03_sft_train.py") == 3 and "--seed 4" in text
    assert list(Path().iterdir()) == []


def test_what_is_missing_is_named_with_its_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("utils.disk.free_bytes", lambda path: 10**6)
    code, text = doctor(capsys, "--task", "finqa", "--config", "llama-3.2-1b", "--to_stage", "03")
    assert code == 1
    assert "data       WRONG: finqa: datasets/finqa has no train, dev, test (.json): bash download.sh" in text
    assert f"model      WRONG: {LLAMA}: not downloaded yet: bash download.sh --model {LLAMA}" in text
    assert "disk       WRONG: checkpoints about" in text and "1 MB are free" in text
    assert text.splitlines()[-1] == "doctor: 3 to mend (disk, data, model)"
    assert "would run  4 stages" in text


def test_what_was_downloaded_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cached = tmp_path / f"hub/hub/models--{LLAMA.replace('/', '--')}/snapshots/0"
    data = Path("datasets/finqa")
    for path in (cached / "config.json", data / "train.json", data / "val.json", data / "test.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (data / "SOURCE.json").write_text('{"warning": "not the official FinQA files"}')
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    code, text = doctor(capsys, "--task", "finqa", "--config", "llama-3.2-1b")
    assert code == 0
    assert f"model      {LLAMA} (in {cached.parents[1]})" in text
    assert "data       NOTE: finqa in datasets/finqa: not the official FinQA files" in text


def test_keys_that_this_shell_has_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("utils.doctor.ENV_FILE", tmp_path / ".env")
    (tmp_path / ".env").write_text("HF_TOKEN=hf_very_secret\n#HF_HOME=/x\nHF_HUB_OFFLINE=\n")
    _, text = doctor(capsys)
    assert "keys       NOTE: in .env, but not in this shell: HF_TOKEN: source activate.sh" in text
    assert "secret" not in text and "(.env is there)" in text


def test_a_copied_template_sets_nothing() -> None:
    """An empty CUDA_VISIBLE_DEVICES would hide every GPU, an empty HF_HOME move the models into the working folder."""
    command = ["bash", "-c", 'set -a; . "$0"; env', str(ROOT / ".env.template")]
    set_there = subprocess.run(command, env={}, capture_output=True, text=True, check=True).stdout
    assert "PWD=" in set_there and not {"HF_", "CUDA", "WANDB", "TRACKIO"} & set(re.findall("HF_|[A-Z]+", set_there))


def test_gpus_that_would_not_be_used(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.manifest.gpus", lambda: ["NVIDIA Test"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    _, text = doctor(capsys)
    assert "device     NOTE: a GPU is there but would not be used" in text
    assert "keys       NOTE: CUDA_VISIBLE_DEVICES is set to nothing, which hides every GPU" in text
    monkeypatch.setattr("utils.manifest.gpus", lambda: [])
    code, text = doctor(capsys, "--device", "cuda")
    assert code == 1 and "device     WRONG: --device cuda, but there is no NVIDIA GPU; use --device auto" in text
