"""Checkpoints of a training loop that continues as if it had never stopped.

    ckpt_<method>/
      step_20/        the policy as a model folder, and what the run keeps beside it (optimiser, counters, randomness)
      last_complete   `step_20 <sha256>`: the newest whole step folder and the digest of what it holds
      best/ final/    policies alone

A step folder is written beside its place, put on the disk and renamed; the marker follows in the same way, then all but
the newest step folders go (`validation.keep_checkpoints`). A kill or a power cut at any moment leaves a marker that
names a whole checkpoint; the digest tells what the disk or a person changed afterwards.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.errors import UserError
from utils.files import new_folder, read_text, sha256, write_text
from utils.models.load import write_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.models.load import Model

MARKER = "last_complete"
STATE = "training_state.pt"


@contextmanager
def new_checkpoint(folder: Path, step: int, keep: int = 1) -> Iterator[Path]:
    """Yield an empty folder; at a clean exit it is `folder`/step_N, the marker names it, and older steps go."""
    target = folder / f"step_{step}"
    with new_folder(target) as new:
        yield new
    write_text(folder / MARKER, f"{target.name} {sha256(target)}\n")
    drop_old(folder, step, keep)


def save_checkpoint(
    folder: Path,
    step: int,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, Any],
    keep: int = 1,
    weights: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write a checkpoint of 05 to 07, and where it is. `state`: tensors and plain values by name.

    `weights`: those of a model that is in shares (`utils.models.load.save_model`).
    """
    with new_checkpoint(folder, step, keep) as new:
        write_model(model, tokenizer, new, weights)
        torch.save(_canonical({"step": step, "rng": torch.get_rng_state(), **state}), new / STATE)
    return folder / f"step_{step}"


def _canonical(value: Any) -> Any:
    """The same, so that equal states are written as equal bytes also after a resume.

    Pickle writes a string or tuple that it meets again as a reference when it is the same object: so all equal strings
    become one object, and no tuple is shared.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    return type(value)(map(_canonical, value)) if isinstance(value, (list, tuple)) else value


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
    """The newest whole checkpoint, or None where there is none. UserError when it is not what the marker says."""
    marker = folder / MARKER
    if not marker.is_file():
        return None
    name, _, digest = read_text(marker).strip().partition(" ")
    target = folder / name
    if not name or not target.is_dir():
        problem = f"names {name or 'nothing'}, which is not there"
    elif sha256(target) != digest:
        problem = f"names {name}, which is not as it was written (another sha256)"
    else:
        return target
    raise UserError(f"{marker} {problem}: put back what was there, or start again with --overwrite")


def resume_point(folder: Path, keep: int) -> Path | None:
    """`last_checkpoint`; step folders that a kill left beside those to keep are removed."""
    found = last_checkpoint(folder)
    if found is not None:
        drop_old(folder, step_number(found), keep)
    return found


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given, plus `step`; torch's generator continues where it stood."""
    state: dict[str, Any] = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    torch.set_rng_state(state.pop("rng"))
    return state
