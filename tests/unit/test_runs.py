"""Names of runs and checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.runs import STAGES, newest_run, next_run, resolve_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def test_newest_is_by_number_and_next_is_after_it(tmp_path: Path) -> None:
    assert newest_run(tmp_path) is None
    assert next_run(tmp_path).name == "run_001"
    for name in ("run_002", "run_999", "run_1000", "run_x", "compare_001"):
        (tmp_path / name).mkdir()
    (tmp_path / "run_2000").write_text("a file")
    assert newest_run(tmp_path) == tmp_path / "run_1000"
    assert next_run(tmp_path).name == "run_1001"
    assert newest_run(tmp_path / "absent") is None


def make_checkpoint(path: Path, name: str = "config.json") -> Path:
    path.mkdir(parents=True)
    (path / name).write_text("{}")
    return path


def test_a_checkpoint_is_found_from_each_level(tmp_path: Path) -> None:
    final = make_checkpoint(tmp_path / "03_sft/ckpt_sft/final")
    assert resolve_checkpoint(tmp_path / "03_sft") == final
    best = make_checkpoint(tmp_path / "03_sft/ckpt_sft/best", "adapter_config.json")
    assert resolve_checkpoint(str(tmp_path / "03_sft")) == best
    assert resolve_checkpoint(tmp_path / "03_sft/ckpt_sft") == best
    assert resolve_checkpoint(final) == final


def test_no_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        resolve_checkpoint(tmp_path / "none")
    (tmp_path / "03_sft/ckpt_sft/step_10").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no checkpoint"):
        resolve_checkpoint(tmp_path / "03_sft")
    (tmp_path / "03_sft/ckpt_other").mkdir()
    with pytest.raises(UserError, match=r"holds several checkpoint folders \(ckpt_other, ckpt_sft\); name one"):
        resolve_checkpoint(tmp_path / "03_sft")


def test_every_stage_script_has_a_folder() -> None:
    scripts = {path.stem for path in ROOT.glob("[01][0-9]_*.py")} - {"12_driver"}
    assert scripts <= set(STAGES)
    assert len(set(STAGES.values())) == len(STAGES)
