"""Which of several trials of a method is evaluated: the one that did best on validation records, all of them listed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils import manifest
from utils.errors import UserError
from utils.runs import resolve_checkpoint
from utils.stage import Stage

CRITERION = "best_val_accuracy"
"""What 03, 05-07 and 09 report of the checkpoint that they call best."""


def choose_trial(stage: Stage, policies: Sequence[str]) -> tuple[Path, list[dict[str, Any]]]:
    """The checkpoint of the best of these policies (the first of equals), and a line for each of several.

    A line: `folder`, `learning_rate`, CRITERION, `chosen`. A policy alone is taken as it is. What was read becomes an
    input of the stage. UserError when a trial's manifest does not say how it did.
    """
    checkpoints = [resolve_checkpoint(policy) for policy in policies]
    if len(checkpoints) == 1:
        return stage.input(checkpoints[0]), []
    lines = [_line(stage, checkpoint) for checkpoint in checkpoints]
    best = max(range(len(lines)), key=lambda index: (lines[index][CRITERION], -index))
    return stage.input(checkpoints[best]), [{**line, "chosen": index == best} for index, line in enumerate(lines)]


def _line(stage: Stage, checkpoint: Path) -> dict[str, Any]:
    folder = manifest.stage_above(checkpoint)
    if folder is None:
        raise UserError(f"{checkpoint}: lies in no stage with a {manifest.NAME}; of several policies each must")
    stage.input(folder / manifest.NAME)
    record = manifest.read(folder)
    if CRITERION not in record["metrics"]:
        raise UserError(f"{folder}: its {manifest.NAME} has no {CRITERION}; was it trained with validation?")
    config = record["config"]
    rate = next(config[name]["learning_rate"] for name in ("rl", "preference", "training") if name in config)
    return {"folder": manifest.shown(folder), "learning_rate": rate, CRITERION: record["metrics"][CRITERION]}
