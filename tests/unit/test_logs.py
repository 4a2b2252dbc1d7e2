"""Training logs: equal runs write equal bytes, and a continued run leaves no trace of having been cut."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from utils.boards import BOARDS, missing, open_board
from utils.files import read_jsonl
from utils.logs import TrainLog
from utils.settings import RunSettings


def write_steps(folder: Path, steps: range, resume_step: int | None = None) -> None:
    log = TrainLog(folder, resume_step)
    for step in steps:
        log.write(step, {"loss": 0.1 * step, "split": "train", "count": step})
    log.close()


def test_bytes_are_equal_and_exact(tmp_path: Path) -> None:
    for name in "ab":
        write_steps(tmp_path / name, range(1, 4))
    first = (tmp_path / "a/logs/train.jsonl").read_bytes()
    assert first == (tmp_path / "b/logs/train.jsonl").read_bytes()
    expected = b'{"step": 3, "loss": 0.30000000000000004, "split": "train", "count": 3}'
    assert first.splitlines()[2] == expected
    assert [list(row) for row in read_jsonl(tmp_path / "a/logs/timing.jsonl")] == [["step", "seconds", "time"]] * 3


def test_resume_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    write_steps(tmp_path / "whole", range(1, 6))
    write_steps(tmp_path / "cut", range(1, 5))
    with open(tmp_path / "cut/logs/train.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    write_steps(tmp_path / "cut", range(3, 6), resume_step=2)
    names = [(tmp_path / name / "logs/train.jsonl").read_bytes() for name in ("whole", "cut")]
    assert names[0] == names[1]
    assert [row["step"] for row in read_jsonl(tmp_path / "cut/logs/timing.jsonl")] == [1, 2, 3, 4, 5]


def test_a_line_that_comes_again_is_dropped_at_the_resume(tmp_path: Path) -> None:
    log = TrainLog(tmp_path)
    for step in (1, 2):
        log.write(step, {"phase": "train"})
        log.write(step, {"phase": "validation"})
    log.close()
    TrainLog(tmp_path, 2, repeated="validation").close()
    found = [(row["step"], row["phase"]) for row in read_jsonl(tmp_path / "logs" / "train.jsonl")]
    assert found == [(1, "train"), (1, "validation"), (2, "train")]


def test_resume_where_nothing_was_written(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 3), resume_step=0)
    assert len(read_jsonl(tmp_path / "logs/train.jsonl")) == 2


def test_a_fresh_log_begins_empty(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    write_steps(tmp_path, range(1, 2))
    assert len(read_jsonl(tmp_path / "logs/train.jsonl")) == 1


def test_numpy_scalars_are_numbers_and_nan_is_refused(tmp_path: Path) -> None:
    log = TrainLog(tmp_path)
    log.write(1, {"a": np.float32(0.5), "b": np.int64(3), "c": np.float64(0.1)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="step 2: loss is nan"):
        log.write(2, {"loss": float("nan")})
    log.close()
    log.close()
    assert (tmp_path / "logs/train.jsonl").read_text() == '{"step": 1, "a": 0.5, "b": 3, "c": 0.1}\n'


def test_lines_are_on_disk_before_the_next_step(tmp_path: Path) -> None:
    log = TrainLog(tmp_path)
    log.write(1, {"loss": 1.0})
    assert json.loads((tmp_path / "logs/train.jsonl").read_text())["step"] == 1
    log.close()


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TrainLog(tmp_path, report_to="tensorboard")
    log.write(1, {"loss": 2.0, "split": "train"})
    log.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0)]


FAKE_BOARD = """
import json, os
calls = []
class Run:
    def log(self, figures, step): calls.append(("log", figures, step))
    def finish(self): calls.append(("finish",))
def init(**given):
    calls.append(("init", given))
    return Run()
def log(figures, step): calls.append(("log", figures, step))
def finish(): calls.append(("finish",))
"""


@pytest.fixture(autouse=True)
def no_board_stays() -> Iterator[None]:
    """The stand-ins are gone again after each test: accelerate would take them for the packages."""
    yield
    for name in ("trackio", "wandb"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_boards_get_numbers_and_steps_and_send_nothing_home(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text(FAKE_BOARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    quiet = {"trackio": "GRADIO_ANALYTICS_ENABLED", "wandb": "WANDB_ERROR_REPORTING"}[name]
    monkeypatch.setenv(quiet, "")
    monkeypatch.delenv(quiet)
    folder = tmp_path / "run_004/06_grpo"
    log = TrainLog(folder, report_to=name)
    log.write(1, {"phase": "train", "loss": np.float32(0.5)})  # type: ignore[dict-item]
    log.close()
    begun, written, ended = sys.modules[name].calls
    assert begun[1]["name"] == "run_004/06_grpo" and begun[1]["group"] == "run_004"
    assert begun[1]["project"] == "finqa-rl" and os.environ[quiet].lower() == "false"
    if name == "wandb":
        assert (begun[1]["dir"], begun[1]["mode"]) == (str(folder), "offline") and (folder / "wandb").is_dir()
    else:
        assert begun[1]["resume"] == "never"
    assert (written, ended) == (("log", {"loss": 0.5}, 1), ("finish",))
    assert read_jsonl(folder / "logs/train.jsonl") == [{"step": 1, "phase": "train", "loss": 0.5}]


def test_wandb_goes_online_with_a_key_and_trackio_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("trackio", "wandb"):
        (tmp_path / f"{name}.py").write_text(FAKE_BOARD)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    open_board("wandb", tmp_path / "run_001/06_grpo", None)
    open_board("trackio", tmp_path / "run_001/06_grpo", 3)
    given = sys.modules["wandb"].calls[0][1]
    assert (given["mode"], given["project"]) == ("online", "mine")
    assert sys.modules["trackio"].calls[0][1]["resume"] == "allow"


def test_a_board_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.boards.find_spec", lambda name: None)
    with pytest.raises(ValueError) as caught:
        RunSettings(report_to="wandb")
    expected = "--report_to wandb: the package wandb is not installed; ./setup.sh --extras wandb installs it"
    assert str(caught.value) == expected
    assert missing("tensorboard").endswith("; ./setup.sh installs it") and missing("none") == ""
    root = Path(__file__).resolve().parents[2]
    assert all((root / f"requirements-{name}.txt").is_file() for name in BOARDS if name in ("trackio", "wandb"))
