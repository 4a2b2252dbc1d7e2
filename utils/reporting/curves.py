"""Training curves of the compared policies, from the logs that their stages left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.evaluation.comparison import Evaluation
from utils.evaluation.lineage import find_folder
from utils.files import read_jsonl

PANELS = {
    "val_accuracy": "validation accuracy",
    "reward_mean": "mean reward of the samples",
    "kl": "KL to the start, nats per token",
    "entropy": "entropy, nats per token",
    "completion_length": "tokens of a completion",
}
"""Key of logs/train.jsonl -> title of its panel; drawn where it is logged."""
OLD_NAMES = {"val_execution_accuracy": "val_accuracy"}
"""What logs called it before there were other tasks."""


@dataclass(frozen=True)
class Curve:
    """One key of one log over steps: `name` is the method, `panel` the title of the picture it belongs to."""

    name: str
    panel: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def find_logs(evaluations: Sequence[Evaluation]) -> list[tuple[str, Path]]:
    """(method, logs/train.jsonl) of the last trained stage of each evaluation whose log is within reach."""
    logs = []
    for one in evaluations:
        folders = (one.metrics.get("compute") or {}).get("folders", ())
        policy = one.metrics.get("policy") or {}
        read = {policy["path"]: policy["sha256"]} if policy else {}
        folder = find_folder(folders[-1], beside=one.folder, read=read) if folders else None
        if folder and (folder / "logs" / "train.jsonl").is_file():
            logs.append((one.method, folder / "logs" / "train.jsonl"))
    return logs


def read_curves(logs: Sequence[tuple[str, Path]]) -> list[Curve]:
    """The curves of PANELS that stand in these logs.

    A step of supervised training is one batch, a step of RL a whole rollout: their validations get a panel each.
    """
    curves = []
    for method, path in logs:
        lines = [{OLD_NAMES.get(key, key): value for key, value in line.items()} for line in read_jsonl(path)]
        kind = "RL" if any(_is_number(line, "reward_mean") for line in lines) else "supervised"
        for metric, title in PANELS.items():
            points = [(int(line["step"]), float(line[metric])) for line in lines if _is_number(line, metric)]
            if points:
                steps, values = zip(*points, strict=True)
                panel = f"{title}, {kind}" if metric.startswith("val_") else title
                curves.append(Curve(method, panel, steps, values))
    return curves


def _is_number(line: Mapping[str, Any], metric: str) -> bool:
    return isinstance(line.get(metric), (int, float)) and "step" in line
