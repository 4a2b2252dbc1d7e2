"""Kill -9 in the middle of each trainer, twice, and --resume: the bytes of a run that was left alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import campaign
from utils.files import read_json, sha256, write_json


@pytest.mark.slow
@pytest.mark.parametrize("trainer", campaign.TRAINERS)
def test_two_kills_change_no_byte(trainer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--kills", "2", "--trainers", trainer, "--dir", str(tmp_path / "campaign")]
    assert campaign.main(command) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{trainer} .* 2 .* equal", lines[-1])
    if trainer == "sft":
        goes_on_and_notices_a_difference(tmp_path / "campaign", command, lines, capsys)


def goes_on_and_notices_a_difference(
    root: Path, command: list[str], before: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command makes nothing again; a kill more is compared with a run that has been tampered with."""
    whole = root / "sft" / "whole" / "03_sft"
    made = (whole / "manifest.json").stat().st_mtime_ns
    assert campaign.main(command) == 0
    assert capsys.readouterr().out.splitlines() == before
    log = whole / "logs" / "train.jsonl"
    log.write_text(log.read_text().replace('"step": 8', '"step": 9'))
    manifest = read_json(whole / "manifest.json")
    assert (whole / "manifest.json").stat().st_mtime_ns == made
    write_json(whole / "manifest.json", manifest | {"outputs": manifest["outputs"] | {"logs/train.jsonl": sha256(log)}})
    assert campaign.main([*command, "--kills", "3"]) == 1
    said = capsys.readouterr().out
    assert "sft, run 1, killed " in said and "1 of " in said and "first 03_sft/logs/train.jsonl differs" in said
    assert said.splitlines()[-1].endswith("differ")


def test_a_folder_of_others_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert campaign.main(["--dir", str(tmp_path)]) == 2
    assert "holds other files; name another --dir" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["manifest.json"], "start"),
        (["logs/train.jsonl"], "step"),
        (["logs/train.jsonl", "ckpt_ppo/.step_2.77.tmp/config.json"], "checkpoint"),
        (["ckpt_ppo/.last_complete.77.tmp"], "checkpoint"),
        (["ckpt_sft/checkpoint-2/optimizer.pt"], "checkpoint"),
        (["ckpt_sft/.best.77.tmp/config.json"], "policy"),
        (["val_generations/.step_2.json.77.tmp"], "file"),
        (["logs/train.jsonl", "ckpt_dpo/final/config.json"], "end"),
    ],
)
def test_what_a_kill_interrupted_is_told_by_what_it_left(names: list[str], kind: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"step": 1, "phase": "train"}\n')
    assert campaign.interrupted(tmp_path) == kind
