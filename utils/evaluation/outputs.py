"""What stage 10 leaves behind beside its rates: who was evaluated on what, and every answer with what it was paid."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import manifest
from utils.evaluation.baselines import BASE, GOLD_CONTEXT
from utils.evaluation.groups import in_words
from utils.evaluation.lineage import lineage, method_of, seed_of
from utils.evaluation.metrics import targets_sha256
from utils.files import read_json
from utils.stage import Stage
from utils.tasks.base import Example, Judgement, Reward, Rollout, Task
from utils.tasks.words import Words


def describe_policy(stage: Stage, checkpoint: Path | None, name: str, base: str) -> dict[str, Any]:
    """Method (`name`, or by the stage that trained it), seed of its training, path and sha256, and what it cost.

    `checkpoint` must be an input of the stage; without one it is the `base` model, with a note instead of a cost.
    Clock time goes into the manifest only.
    """
    if checkpoint is None:
        policy = {"path": base, "sha256": None}
        return {"method": name or "base", "seed": stage.seed, "policy": policy, "note": BASE}
    origin = lineage(checkpoint)
    for folder in origin.missing:
        stage.warn(f"{folder}: gone, so what it spent is missing from the cost of this policy")
    stage.report({"trained_seconds": origin.seconds()})
    return {
        "method": name or method_of(checkpoint),
        "seed": seed_of(checkpoint, otherwise=stage.seed),
        "policy": hashed(stage, checkpoint),
        "compute": origin.compute(),
    }


def describe_constant(stage: Stage, baseline: str, name: str, words: Words) -> dict[str, Any]:
    """The same for a control without a model."""
    policy = {"path": baseline, "sha256": None}
    return {"method": name or baseline, "seed": stage.seed, "policy": policy, "note": words.controls[baseline]}


def describe_predictions(stage: Stage, path: Path, name: str) -> dict[str, Any]:
    """The same for answers from a file, named by it unless `name` is given; `path` must be an input of the stage."""
    note = "answers made elsewhere; what they cost is not known here"
    return {"method": name or path.stem, "seed": stage.seed, "policy": hashed(stage, path), "note": note}


def describe_inputs(stage: Stage, task: Task, data: Path, spec: Path, examples: Sequence[Example]) -> dict[str, Any]:
    """The records and the reward specification; `targets_sha256` tells whether two evaluations asked the same.

    `context` says how stage 01 chose what the prompts show, where its manifest lies beside the records.
    """
    context = shown_context(data)
    if context == "gold":
        stage.warn(f"{data}: {GOLD_CONTEXT}")
    return {
        "data": {**hashed(stage, data), "targets_sha256": targets_sha256(task, examples), "context": context},
        "reward_spec": hashed(stage, spec),
    }


def shown_context(data: Path) -> str | None:
    """`full`, `retrieved` or `gold`; None where no manifest of stage 01 says it."""
    path = data.with_name(manifest.NAME)
    evidence = read_json(path).get("metrics", {}).get("evidence", {}) if path.is_file() else {}
    return evidence.get("context")


def lengths(answers: Sequence[Rollout]) -> dict[str, int]:
    """Tokens of all answers, and how many answers were cut."""
    return {"generated_tokens": sum(one.tokens for one in answers), "truncated": sum(one.truncated for one in answers)}


def prediction_rows(
    task: Task, rollouts: Sequence[Rollout], judgements: Sequence[Judgement], rewards: Sequence[Reward]
) -> list[dict[str, Any]]:
    """Lines of predictions.jsonl: what was asked, wanted and written, and what each component paid for it."""
    return [
        {
            "id": one.example.id,
            **task.describe(one.example),
            "text": one.text,
            "tokens": one.tokens,
            "truncated": one.truncated,
            "result": judgement.result,
            "correct": judgement.correct,
            "failure": judgement.failure,
            "reward": reward.total,
            "components": dict(reward.components),
            "reasons": list(reward.reasons),
        }
        for one, judgement, reward in zip(rollouts, judgements, rewards, strict=True)
    ]


def sample_rows(groups: Sequence[Sequence[Rollout]], correct: Sequence[Sequence[bool]]) -> list[dict[str, Any]]:
    """Lines of pass_k.jsonl: every sample of a record with its verdict."""
    return [
        {"id": group[0].example.id, "texts": [one.text for one in group], "correct": list(verdicts)}
        for group, verdicts in zip(groups, correct, strict=True)
    ]


def unfinished(stage: Stage) -> Path:
    """Folder of what an interrupted stage goes on from; a finished one has none."""
    return stage.dir / "unfinished"


def remove_unfinished(stage: Stage) -> None:
    """Remove that folder, when everything else is written."""
    if unfinished(stage).is_dir():
        shutil.rmtree(unfinished(stage))


def show(stage: Stage, metrics: Mapping[str, Any], words: Words) -> None:
    """The result on the terminal: rates in a table, groups and failures in a line each."""
    rows = [
        [name, *(f"{100 * value:.1f}" for value in (metrics[name], *metrics[f"{name}_ci95"]))] for name in words.rates
    ]
    title = f"{metrics['method']}, seed {metrics['seed']}: {metrics['n']} {metrics['split']} records, in %"
    stage.terminal.table(title, ["", "rate", "low", "high"], rows)
    for grouping in words.pictured:
        stage.terminal.say(in_words(grouping, metrics["groups"][grouping], words))
    if figures := metrics.get("set"):
        shown = ", ".join(f"{head} {figures[name]:.4g}" for head, name in words.sets.items())
        stage.terminal.say(f"the answers as a set: {shown}")
    failures = ", ".join(f"{name} {number}" for name, number in metrics["failures"].items())
    stage.terminal.say(f"failures: {failures or 'none'}")


def hashed(stage: Stage, path: Path) -> dict[str, Any]:
    """Path and sha256 as the stage noted them when it took the input."""
    shown = manifest.shown(path)
    return {"path": shown, "sha256": manifest.read(stage.dir)["inputs"][shown]}
