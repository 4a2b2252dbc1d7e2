"""Names: which folder a stage writes, which run is the newest, which checkpoint a path means."""

from __future__ import annotations

import re
from pathlib import Path

from utils.errors import UserError

STAGES: dict[str, str] = {
    "00_check_data": "00_data_validation",
    "01_prepare_dataset": "01_preprocessing",
    "02_build_rewards": "02_rewards",
    "03_sft_train": "03_sft",
    "04_generate_candidates": "04_candidates",
    "05_train_ppo": "05_ppo",
    "06_train_grpo": "06_grpo",
    "07_train_rloo": "07_rloo",
    "08_build_prefs": "08_preferences",
    "09_train_dpo": "09_dpo",
    "10_evaluate": "10_evaluation",
    "11_compare_runs": "11_comparison",
    "13_generate_dataset": "13_synthetic_data",
    "14_tune_generation": "14_generation_tuning",
}
"""Script -> its folder in a run."""

_NUMBERED = re.compile(r"(?:run|compare)_(\d{3,})")
_MODEL_FILES = ("config.json", "adapter_config.json")


def run_number(folder: Path) -> int | None:
    """7 for `run_007` and for `compare_007`, None for other names."""
    match = _NUMBERED.fullmatch(folder.name)
    return int(match[1]) if match else None


def newest_run(outputs: Path, kind: str = "run") -> Path | None:
    """The folder `run_XXX` (or `compare_XXX`) with the highest number, or None."""
    runs = [folder for folder in outputs.glob(f"{kind}_*") if folder.is_dir() and run_number(folder) is not None]
    return max(runs, key=lambda folder: run_number(folder) or 0, default=None)


def next_run(outputs: Path, kind: str = "run") -> Path:
    """The first free folder after the newest of its kind (not made)."""
    newest = newest_run(outputs, kind)
    return outputs / f"{kind}_{(run_number(newest) or 0) + 1 if newest else 1:03d}"


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint a path means: itself, or the best (else final) of a ckpt_* or stage folder. UserError if none."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected a stage folder, a ckpt_* folder or a checkpoint")
    if _is_checkpoint(path):
        return path
    folders = [path] if path.name.startswith("ckpt_") else sorted(path.glob("ckpt_*"))
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise UserError(f"{path}: holds several checkpoint folders ({names}); name one")
    for folder in folders:
        for name in ("best", "final"):
            if _is_checkpoint(folder / name):
                return folder / name
    raise UserError(f"{path}: holds no checkpoint (ckpt_*/best or ckpt_*/final); has its stage finished?")


def _is_checkpoint(path: Path) -> bool:
    return any((path / name).is_file() for name in _MODEL_FILES)
