"""What stage 10 leaves behind beside its rates: who was evaluated on what, and every answer with what it was paid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils import manifest
from utils.evaluation.baselines import NOTES
from utils.evaluation.lineage import lineage, method_of, seed_of
from utils.evaluation.metrics import targets_sha256
from utils.stage import Stage
from utils.tasks.base import Example, Judgement, Rollout, Task


def describe_policy(stage: Stage, checkpoint: Path, name: str) -> dict[str, Any]:
    """Method (`name`, or by the stage that trained it), seed of its training, path and sha256, and what it cost.

    `checkpoint` must be an input of the stage. Clock time goes into the manifest only.
    """
    origin = lineage(checkpoint)
    for folder in origin.missing:
        stage.warn(f"{folder}: gone, so what it spent is missing from the cost of this policy")
    stage.report({"trained_seconds": origin.seconds()})
    return {
        "method": name or method_of(checkpoint),
        "seed": seed_of(checkpoint, otherwise=stage.seed),
        "policy": _hashed(stage, checkpoint),
        "compute": origin.compute(),
    }


def describe_baseline(stage: Stage, baseline: str, model: str, name: str) -> dict[str, Any]:
    """The same for a control, which was not trained: its note instead of a cost."""
    policy = {"path": model if baseline == "base" else baseline, "sha256": None}
    return {"method": name or baseline, "seed": stage.seed, "policy": policy, "note": NOTES[baseline]}


def describe_inputs(stage: Stage, data: Path, spec: Path, examples: Sequence[Example]) -> dict[str, Any]:
    """The records and the reward specification; `targets_sha256` tells whether two evaluations asked the same."""
    return {
        "data": {**_hashed(stage, data), "targets_sha256": targets_sha256(examples)},
        "reward_spec": _hashed(stage, spec),
    }


def prediction_rows(task: Task, rollouts: Sequence[Rollout], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Lines of predictions.jsonl: what was asked, wanted and written, and what each component paid for it."""
    return [
        {
            "id": one.example.id,
            "question": one.example.question,
            "target_program": one.example.target_program,
            "target_answer": one.example.target_answer,
            "text": one.text,
            "tokens": one.tokens,
            "truncated": one.truncated,
            "result": judgement.result,
            "execution_correct": judgement.execution_correct,
            "failure": judgement.failure,
            "reward": reward.total,
            "components": dict(reward.components),
            "reasons": list(reward.reasons),
        }
        for one, judgement, reward in zip(rollouts, judgements, task.score(rollouts), strict=True)
    ]


def sample_rows(groups: Sequence[Sequence[Rollout]], correct: Sequence[Sequence[bool]]) -> list[dict[str, Any]]:
    """Lines of pass_k.jsonl: every sample of a record with its verdict."""
    return [
        {"id": group[0].example.id, "texts": [one.text for one in group], "correct": list(verdicts)}
        for group, verdicts in zip(groups, correct, strict=True)
    ]


def _hashed(stage: Stage, path: Path) -> dict[str, Any]:
    """Path and sha256 as the stage noted them when it took the input."""
    shown = manifest.shown(path)
    return {"path": shown, "sha256": manifest.read(stage.dir)["inputs"][shown]}
