"""Where curves go beside logs/train.jsonl (`--report_to`): TensorBoard, trackio or Weights & Biases.

Nothing leaves the machine unless the user asks for it: TensorBoard writes to the stage's folder `tb/`, trackio to its
own local folder (TRACKIO_DIR), Weights & Biases to the stage's folder `wandb/` in offline mode unless WANDB_API_KEY or
WANDB_MODE is set. Telemetry and error reports of these packages are off.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

BOARDS = ("none", "tensorboard", "trackio", "wandb")
PROJECT = "finqa-rl"
"""Name of the project on boards that have projects, unless TRACKIO_PROJECT or WANDB_PROJECT names another."""
FOLDERS = ("tb", "wandb")
"""Folders of a stage that boards write; they hold clock times."""
_QUIET = {
    "trackio": {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"},
    "wandb": {
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_DISABLE_GIT": "true",
        "WANDB_DISABLE_CODE": "true",
    },
}


class Board(Protocol):
    """Takes the figures of a step."""

    def write(self, step: int, figures: Mapping[str, float | int]) -> None: ...
    def close(self) -> None: ...


def missing(name: str) -> str:
    """One line about a board whose package is not installed; empty when it is there."""
    if name == "none" or find_spec(name) is not None:
        return ""
    how = "./setup.sh" if name == "tensorboard" else f"./setup.sh --extras {name}"
    return f"--report_to {name}: the package {name} is not installed; {how} installs it"


def open_board(name: str, folder: Path, resume_step: int | None) -> Board | None:
    """The board of a stage folder, or None for `none`. `resume_step`: the last step that counts, where one goes on."""
    if name == "none":
        return None
    for variable, value in _QUIET.get(name, {}).items():
        os.environ.setdefault(variable, value)
    boards: dict[str, type[_TensorBoard | _Trackio | _Wandb]]
    boards = {"tensorboard": _TensorBoard, "trackio": _Trackio, "wandb": _Wandb}
    return boards[name](Path(folder), resume_step)


def _names(folder: Path) -> dict[str, str]:
    """A stage is a run, named by its run folder and itself; the stages of a run folder are a group."""
    folder = folder.absolute()
    return {"name": f"{folder.parent.name}/{folder.name}", "group": folder.parent.name}


class _TensorBoard:
    def __init__(self, folder: Path, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tb"), purge_step=None if resume_step is None else resume_step + 1)

    def write(self, step: int, figures: Mapping[str, float | int]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, folder: Path, resume_step: int | None) -> None:
        trackio: Any = importlib.import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        # without "never", a stage done again would go on in the curves of the one it replaces
        resume = "never" if resume_step is None else "allow"
        self._trackio = trackio
        trackio.init(project=project, resume=resume, **_names(folder))

    def write(self, step: int, figures: Mapping[str, float | int]) -> None:
        self._trackio.log(dict(figures), step=step)

    def close(self) -> None:
        self._trackio.finish()


class _Wandb:
    def __init__(self, folder: Path, resume_step: int | None) -> None:
        """A stage that goes on becomes a second run of the same name: offline runs cannot be continued."""
        wandb: Any = importlib.import_module("wandb")
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        # wandb writes where it is told only into a folder that exists, else into a temporary one
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(project=project, dir=str(folder), mode=mode, **_names(folder))

    def write(self, step: int, figures: Mapping[str, float | int]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()
