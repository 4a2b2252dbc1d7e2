"""Small evaluation folders made up for tests: chosen verdicts, metrics computed from them by the code under test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.evaluation.groups import summarise_groups
from utils.evaluation.metrics import summarise, write_breakdown
from utils.files import write_json
from utils.finqa.examples import FinQAJudgement
from utils.tasks.words import FINQA


def verdict(index: int, correct: bool) -> FinQAJudgement:
    """Record `index`: right in everything, or a wrong result with a valid format."""
    return FinQAJudgement(
        id=f"r{index:04d}", correct=correct, program_correct=correct, exact_match=correct, numeric_1pct=correct,
        program_valid=True, format_valid=True, failure="" if correct else "wrong_result",
        reward=1.0 if correct else 0.05, result="1",
    )  # fmt: skip


def groups_of_record(index: int) -> dict[str, str]:
    """Records 0, 1, 2, … have 1, 2, 3, 1, … steps; every second needs text, every fourth asks for yes or no."""
    operations = ("divide", "subtract divide", "subtract multiply divide")[index % 3]
    group = {"steps": str(1 + index % 3), "first_operation": operations.split()[0], "operations": operations}
    group |= {"evidence": ("table", "text")[index % 2], "answer_kind": "number" if index % 4 else "yes/no"}
    return {name: group[name] for name in FINQA.groupings}


def make_evaluation(
    folder: Path,
    method: str,
    correct: Sequence[bool] | np.ndarray[Any, Any],
    seed: int = 0,
    *,
    official: Sequence[bool] | None = None,
    **facts: Any,
) -> Path:
    """metrics.json and breakdown.csv of one policy that is right where `correct` says so; `facts` overwrite keys.

    With the verdicts `official` of the published evaluator they are as stage 10 writes them now, groups included;
    without, as it wrote them before it knew either.
    """
    judgements = [verdict(index, bool(right)) for index, right in enumerate(correct)]
    further = [
        {"official_correct": bool(right), "official_program_correct": bool(right)}
        | {"percent_scale": False, "ungrounded_correct": False}
        for right in official or ()
    ]
    groups: Sequence[Mapping[str, str]] = [groups_of_record(index) for index in range(len(further))]
    metrics = {
        "method": method, "seed": seed, "policy": {"path": f"outputs/{method}_{seed}", "sha256": f"{method}{seed}"},
        "task": "finqa_mini", "split": "test",
        "data": {"targets_sha256": "t"}, "reward_spec": {"sha256": "abcdef012345"},
        **summarise(judgements, 0, FINQA, further), **facts,
    }  # fmt: skip
    if groups:
        metrics["groups"] = summarise_groups(groups, judgements, 0)
    write_json(folder / "metrics.json", metrics)
    write_breakdown(folder / "breakdown.csv", judgements, FINQA, groups)
    return folder


def compute(completions: int = 0, gradient_tokens: int = 0, stages: str = "03_sft") -> dict[str, Any]:
    """The `compute` entry of a trained policy."""
    names = stages.split()
    return {
        "stages": names, "folders": [f"nowhere/{name}" for name in names], "completions": completions,
        "generated_tokens": 50 * completions, "gradient_tokens": gradient_tokens, "forward_tokens": 400 * completions,
        "compute_tokens": 400 * completions + 3 * gradient_tokens,
    }  # fmt: skip


def make_study(root: Path, n: int = 400, seeds: Sequence[int] = (0,)) -> list[Path]:
    """Seven methods on n records: GRPO clearly above SFT, sft_more level with it, rejection sampling between.

    The published evaluator also takes every 25th answer that ours does not.
    """
    rng = np.random.default_rng(5)
    ease = rng.random(n)
    rates = {
        "majority": 0.04, "base": 0.02, "gold": 1.0,
        "sft": 0.48, "sft_more": 0.485, "rejection_sampling": 0.54, "grpo": 0.62,
    }  # fmt: skip
    spent = {
        "sft": compute(0, 900_000), "sft_more": compute(0, 1_700_000, "03_sft 03_sft_more"),
        "rejection_sampling": compute(10_240, 1_500_000, "03_sft 04_candidates 03_sft_rejection"),
        "grpo": compute(10_240, 2_400_000, "03_sft 06_grpo"),
    }  # fmt: skip
    folders = []
    for seed in seeds:
        for method, rate in rates.items():
            wobble = 0.0 if method in ("majority", "base", "gold") else 0.12
            correct = ease + wobble * rng.normal(size=n) + 0.01 * seed * (wobble > 0) <= rate
            correct |= method == "gold"
            facts: dict[str, Any] = {"compute": spent[method]} if method in spent else {}
            facts["official"] = [bool(right) or index % 25 == 24 for index, right in enumerate(correct)]
            folders.append(
                make_evaluation(root / f"run_{seed:03d}" / f"10_evaluation_{method}", method, correct, seed, **facts)
            )
    return folders
