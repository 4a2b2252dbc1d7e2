"""Small evaluation folders made up for tests: chosen verdicts, metrics computed from them by the code under test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.evaluation.metrics import summarise, write_breakdown
from utils.files import write_json
from utils.tasks.base import Judgement


def verdict(index: int, correct: bool) -> Judgement:
    """Record `index`: right in everything, or a wrong result with a valid format."""
    return Judgement(
        f"r{index:04d}", correct, correct, correct, correct, True, True, "" if correct else "wrong_result",
        1.0 if correct else 0.05, "1",
    )  # fmt: skip


def make_evaluation(
    folder: Path, method: str, correct: Sequence[bool] | np.ndarray[Any, Any], seed: int = 0, **facts: Any
) -> Path:
    """metrics.json and breakdown.csv of one policy that is right where `correct` says so; `facts` overwrite keys."""
    judgements = [verdict(index, bool(right)) for index, right in enumerate(correct)]
    metrics = {
        "method": method, "seed": seed, "policy": {"path": f"outputs/{method}_{seed}", "sha256": f"{method}{seed}"},
        "task": "finqa_mini", "split": "test",
        "data": {"targets_sha256": "t"}, "reward_spec": {"sha256": "abcdef012345"},
        **summarise(judgements, seed=0), **facts,
    }  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    write_breakdown(folder / "breakdown.csv", judgements)
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
    """Eight methods on n records: GRPO clearly above SFT, sft_more level with it, rejection sampling between."""
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
            facts = {"compute": spent[method]} if method in spent else {}
            folders.append(
                make_evaluation(root / f"run_{seed:03d}" / f"10_evaluation_{method}", method, correct, seed, **facts)
            )
    return folders
