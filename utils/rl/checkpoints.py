"""Checkpoints of a training loop that continues as if it had never stopped.

    ckpt_<method>/
      step_20/        the policy as a model folder + training_state.pt (optimiser, counters, task state)
      last_complete   the name of the newest whole step folder
      best/ final/    policies alone

A step folder is written beside its place and renamed, the marker follows, then all but the newest step folders go
(`validation.keep_checkpoints`): a kill at any moment leaves a marker that names a whole checkpoint.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.errors import UserError
from utils.files import new_folder, read_text, write_text
from utils.models.load import write_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.models.load import Model

MARKER = "last_complete"
STATE = "training_state.pt"


def save_checkpoint(
    folder: Path, step: int, model: Model, tokenizer: PreTrainedTokenizerBase, state: dict[str, Any], keep: int = 1
) -> Path:
    """Write `folder`/step_N, move the marker to it and drop older steps. `state`: tensors and plain values by name."""
    target = folder / f"step_{step}"
    with new_folder(target) as new:
        write_model(model, tokenizer, new)
        torch.save({"step": step, "rng": torch.get_rng_state(), **state}, new / STATE)
    write_text(folder / MARKER, target.name + "\n")
    drop_old(folder, step, keep)
    return target


def drop_old(folder: Path, step: int, keep: int) -> None:
    """Remove all step folders but step_`step` and the newest before it, `keep` in all (0: every one stays)."""
    earlier = [path for path in steps_in(folder) if step_number(path) < step]
    later = [path for path in steps_in(folder) if step_number(path) > step]  # of a run that was cut off and went back
    for old in later + (earlier[: -(keep - 1) or None] if keep else []):
        shutil.rmtree(old)


def steps_in(folder: Path) -> list[Path]:
    """The step folders, oldest first."""
    found = [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdecimal()]
    return sorted(found, key=step_number)


def step_number(path: Path) -> int:
    """20 for step_20."""
    return int(path.name.removeprefix("step_"))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None where there is none. UserError when the marker names what is not there."""
    if not (folder / MARKER).is_file():
        return None
    target = folder / read_text(folder / MARKER).strip()
    if not (target / STATE).is_file():
        raise UserError(
            f"{folder / MARKER} names {target.name}, which holds no {STATE}: the folder was changed; use --overwrite"
        )
    return target


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given, plus `step`; torch's generator continues where it stood."""
    state: dict[str, Any] = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    torch.set_rng_state(state.pop("rng"))
    return state
