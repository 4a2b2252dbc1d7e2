"""Training logs: `logs/train.jsonl` holds what was computed, `logs/timing.jsonl` when.

Two equal runs write the same bytes to train.jsonl: no clock, keys as given, floats in their shortest exact form.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.boards import open_board
from utils.files import read_text, write_text
from utils.folders import remove_temporaries


class TrainLog:
    """Appends one line per step to both files in `folder`/logs, and the figures to the board that `report_to` names.

    Without `resume_step` the files begin empty; with it, lines of later steps (and a torn last line) are dropped first,
    so that a continued run leaves the file that an uninterrupted run leaves. `repeated` names a phase whose line of
    that very step goes from train.jsonl, too, because it comes again.
    """

    def __init__(
        self, folder: Path, resume_step: int | None = None, report_to: str = "none", repeated: str = ""
    ) -> None:
        self._start = time.perf_counter()
        logs = Path(folder) / "logs"
        self.path, self.timing_path = logs / "train.jsonl", logs / "timing.jsonl"
        if resume_step is None:  # what this run replaces makes room for its checkpoints
            remove_temporaries(Path(folder))
        for path in (self.path, self.timing_path):
            write_text(path, "" if resume_step is None else _lines_until(path, resume_step, repeated))
        self._train = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - closed in close()
        self._timing = open(self.timing_path, "a", encoding="utf-8", newline="")  # noqa: SIM115
        self._board = open_board(report_to, Path(folder), resume_step)

    def write(self, step: int, metrics: Mapping[str, float | int | str]) -> None:
        """Log one step. ValueError for NaN and infinity: the caller has to stop and diagnose, not to log."""
        row: dict[str, Any] = {"step": step}
        for name, value in metrics.items():
            row[name] = plain = _plain(value)
            if isinstance(plain, float) and not math.isfinite(plain):
                raise ValueError(f"step {step}: {name} is {plain}")
        self._train.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._train.flush()
        seconds = round(time.perf_counter() - self._start, 3)
        self._timing.write(json.dumps({"step": step, "seconds": seconds, "time": round(time.time(), 3)}) + "\n")
        self._timing.flush()
        if self._board:
            numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
            self._board.write(step, {name: value for name, value in numbers.items() if name != "step"})

    def sync(self) -> None:
        """Put what was logged on the disk: a checkpoint must not outlive the lines of its steps."""
        os.fsync(self._train.fileno())

    def close(self) -> None:
        """Close the files; closing twice does nothing."""
        self._train.close()
        self._timing.close()
        if self._board:
            self._board.close()


def _plain(value: Any) -> Any:
    """numpy and torch scalars as Python numbers."""
    return value if type(value) in (bool, int, float, str) else value.item()


def _lines_until(path: Path, last_step: int, repeated: str) -> str:
    """The complete lines of a log up to and including a step, but for that step's of one phase."""
    if not path.is_file():
        return ""
    kept = []
    for line in read_text(path).split("\n")[:-1]:
        row = json.loads(line)
        if row["step"] <= last_step and (row["step"], row.get("phase")) != (last_step, repeated):
            kept.append(f"{line}\n")
    return "".join(kept)
