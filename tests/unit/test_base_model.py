"""A stage that read a base model is not up to date once that is another one, however large its files are."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from utils import base_model, manifest
from utils.base_model import SAMPLED, digest_of, sampled
from utils.files import sha256
from utils.settings import RunSettings
from utils.stage import Stage, main

FOLDER = Path("outputs/run_001/03_sft")
BASE = Path("models/base")


@dataclass(frozen=True)
class Config:
    run: RunSettings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder with a model of two files, the larger of 17 bytes; more than 10 bytes count as large."""
    monkeypatch.chdir(tmp_path)
    BASE.mkdir(parents=True)
    (BASE / "config.json").write_text("{}")
    (BASE / "w.safetensors").write_bytes(bytes(range(17)))
    for name, value in {"WHOLE_BYTES": 10, "BLOCKS": 3, "BLOCK_BYTES": 3}.items():
        monkeypatch.setattr(base_model, name, value)


def test_a_large_file_is_known_by_its_size_and_blocks_at_even_distances() -> None:
    blocks = hashlib.sha256(b"17\0" + bytes([0, 1, 2, 7, 8, 9, 14, 15, 16])).hexdigest()
    small = hashlib.sha256(b"{}").hexdigest()
    folder = hashlib.sha256(f"config.json\0{small}\nw.safetensors\0{blocks}\n".encode()).hexdigest()
    assert sampled(BASE) == SAMPLED + folder == digest_of("models/base")


def test_what_changes_the_digest_and_what_does_not() -> None:
    before = sampled(BASE)
    os.utime(BASE / "w.safetensors", (1, 1))
    (BASE / ".cache").mkdir()
    (BASE / ".cache" / "times").write_text("today")
    assert sampled(BASE) == before
    digests = {before}
    for content in (bytes(range(18)), bytes([9, *range(1, 17)]), bytes([*range(16), 9])):  # size, first, last byte
        (BASE / "w.safetensors").write_bytes(content)
        digests.add(sampled(BASE))
    (BASE / "config.json").rename(BASE / "other.json")
    assert len(digests | {sampled(BASE)}) == 5


def start(name: str, *argv: str) -> int:
    def run(cfg: Config, stage: Stage) -> None:
        stage.base_model(name)
        stage.path("out.txt").write_text("done")

    return main(Config, run, "", "03_sft_train.py", argv=["--output_dir", str(FOLDER), "--quiet", *argv])


def test_a_stage_is_not_up_to_date_once_its_base_has_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert start("models/base") == 0
    assert manifest.read(FOLDER)["inputs"] == {"models/base": sampled(BASE)}
    assert start("models/base", "--if_needed") == 0
    (BASE / "config.json").write_text("{1}")
    assert start("models/base", "--if_needed") == 2
    assert "is finished, but input models/base has changed since; --overwrite" in capsys.readouterr().err
    (BASE / "config.json").write_text("{}")
    BASE.rename("models/gone")
    assert start("models/base", "--if_needed") == 2
    assert "input models/base is gone" in capsys.readouterr().err


def test_a_hub_s_model_is_known_by_its_commit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def load(commit: str) -> None:
        """What downloading a commit leaves in the hub's cache."""
        folder = tmp_path / "hub" / "models--owner--name"
        for name, content in {"refs/main": commit, f"snapshots/{commit}/config.json": "{}"}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert digest_of("owner/name") == "owner/name"
    load("a" * 40)
    assert start("owner/name") == 0
    assert manifest.read(FOLDER)["inputs"] == {"hub:owner/name": "a" * 40}
    (tmp_path / "hub").rename(tmp_path / "elsewhere")  # not in the cache any more is not another model
    assert start("owner/name", "--if_needed") == 0
    load("b" * 40)
    assert start("owner/name", "--if_needed") == 2
    assert "input hub:owner/name has changed since" in capsys.readouterr().err


def test_other_inputs_keep_their_whole_digest() -> None:
    def run(cfg: Config, stage: Stage) -> None:
        stage.input(BASE / "w.safetensors")

    assert main(Config, run, "", "03_sft_train.py", argv=["--output_dir", str(FOLDER), "--quiet"]) == 0
    assert manifest.read(FOLDER)["inputs"] == {"models/base/w.safetensors": sha256(BASE / "w.safetensors")}
