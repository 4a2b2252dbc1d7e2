"""Where a policy comes from: the stages that led to it, what they spent, and which method that makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import manifest
from utils.errors import UserError

METHODS: dict[str, str] = {
    "03_sft": "sft",
    "03_sft_more": "sft_more",
    "03_sft_rejection": "rejection_sampling",
    "05_ppo": "ppo",
    "06_grpo": "grpo",
    "07_rloo": "rloo",
    "09_dpo": "dpo",
}
"""Folder of a trained stage -> name of the method in tables."""

COUNTS = ("completions", "generated_tokens", "gradient_tokens", "forward_tokens")


@dataclass(frozen=True)
class TrainedStage:
    """One stage on the way to a policy; `spent` as its manifest counts it."""

    folder: Path
    stage: str
    spent: Mapping[str, int]
    seconds: float

    @property
    def compute_tokens(self) -> int:
        """Work in forward passes of one token: a token with gradient costs three (forward, and twice that backward).

        Stages that count no forward passes at all count at least what they generated.
        """
        read = max(self.spent.get("forward_tokens", 0), self.spent.get("generated_tokens", 0))
        return read + 3 * self.spent.get("gradient_tokens", 0)


@dataclass(frozen=True)
class Lineage:
    """Stages that spent tokens, ancestors first, and the folders of parents that are gone."""

    stages: tuple[TrainedStage, ...]
    missing: tuple[str, ...]

    def compute(self) -> dict[str, Any]:
        """Sums over the stages, with their names and folders; no clock in it."""
        totals = {name: sum(one.spent.get(name, 0) for one in self.stages) for name in COUNTS}
        return {
            "stages": [one.folder.name for one in self.stages],
            "folders": [manifest.shown(one.folder) for one in self.stages],
            **totals,
            "compute_tokens": sum(one.compute_tokens for one in self.stages),
        }

    def seconds(self) -> float:
        """Clock time of the stages."""
        return round(sum(one.seconds for one in self.stages), 3)


def method_of(checkpoint: Path) -> str:
    """The method's name: from the stage folder a checkpoint lies in, else its manifest's stage, else its own name."""
    folder = manifest.stage_above(checkpoint)
    if folder is None:
        return checkpoint.name
    stage = str(manifest.read(folder)["stage"])
    return METHODS.get(folder.resolve().name) or METHODS.get(stage) or folder.resolve().name


def seed_of(checkpoint: Path, otherwise: int) -> int:
    """The seed that the checkpoint's stage was trained with; `otherwise` for a checkpoint from elsewhere."""
    folder = manifest.stage_above(checkpoint)
    return otherwise if folder is None else int(manifest.read(folder)["seed"])


def lineage(checkpoint: Path) -> Lineage:
    """Follow the manifests from the stage above `checkpoint` to the base model."""
    found: dict[Path, TrainedStage] = {}
    missing: list[str] = []
    top = manifest.stage_above(checkpoint)
    if top is not None:
        _follow(top, found, missing)
    return Lineage(tuple(one for one in found.values() if one.spent), tuple(dict.fromkeys(missing)))


def compute_beyond(stage: Path, start: Path | None) -> int:
    """Token passes that led to a stage (its folder, or its manifest.json) and not already to `start`.

    UserError when its manifests count none.
    """
    common = set() if start is None else {one.folder.resolve() for one in lineage(start).stages}
    passes = sum(one.compute_tokens for one in lineage(stage).stages if one.folder.resolve() not in common)
    if not passes:
        raise UserError(f"{stage}: its manifest counts no tokens; expected that of a stage that trains or samples")
    return passes


def validations_of(stages: Sequence[Path]) -> int:
    """The most validations that one of some trained stages (manifest.json) had: `best` is the best of so many.

    0 when none counts them.
    """
    return max(int(manifest.read(path.parent)["metrics"].get("validations", 0)) for path in stages)


def _follow(folder: Path, found: dict[Path, TrainedStage], missing: list[str]) -> None:
    """Depth first, parents before the stage itself, each stage once."""
    record = manifest.read(folder)
    for entry in record["parents"]:
        if not _made_from(record["inputs"], entry["path"]):
            continue
        parent = find_folder(entry["path"], beside=folder, read=record["inputs"])
        if parent is None:
            missing.append(entry["path"])
        elif parent.resolve() not in found:
            _follow(parent, found, missing)
    found[folder.resolve()] = TrainedStage(folder, record["stage"], record["spent"], float(record["seconds"]))


def _made_from(inputs: Mapping[str, str], parent: str) -> bool:
    """Whether a stage read more of another than its manifest, which controls read to match its budget."""
    names = [name for name in inputs if name == parent or name.startswith(f"{parent}/")]
    return any(name != f"{parent}/{manifest.NAME}" for name in names)


def find_folder(noted: str, beside: Path, read: Mapping[str, str]) -> Path | None:
    """A stage folder as a manifest notes it or, when the run was moved, under that name beside another of the run.

    `read`: path -> digest of what was read of it. It tells the folder from another run's of the same name, such as this
    machine's own where a run was brought from elsewhere.
    """
    candidates: Sequence[Path] = (Path(noted), beside.parent / Path(noted).name)
    there = [folder for folder in candidates if (folder / manifest.NAME).is_file()]
    if len({folder.resolve() for folder in there}) < 2:
        return there[0] if there else None
    digests = {path.removeprefix(f"{noted}/"): digest for path, digest in read.items() if path.startswith(f"{noted}/")}
    wrote = (folder for folder in there if manifest.wrote(manifest.read(folder), digests))
    return next(wrote, there[0])
