"""Training logs: equal runs write equal bytes, and a continued run leaves no trace of having been cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from utils.files import read_jsonl
from utils.logs import TrainLog


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

    log = TrainLog(tmp_path, tensorboard=True)
    log.write(1, {"loss": 2.0, "split": "train"})
    log.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0)]
