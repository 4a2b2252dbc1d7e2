"""Completions that hold a reward to its word: cases with hand-computed pay, and attacks that must earn nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from utils.tasks.base import Reward


@dataclass(frozen=True)
class Case:
    """One completion and the components it must get; `expected` is None for an attack: it must earn 0 or less."""

    name: str
    text: str
    expected: dict[str, float] | None


def run_cases(cases: Sequence[Case], score: Callable[[str], Reward]) -> list[dict[str, Any]]:
    """Score every case: name, components, total, expected, reasons and `passed`."""
    results = []
    for case in cases:
        reward = score(case.text)
        if case.expected is None:
            passed = reward.total <= 0
        else:
            passed = all(abs(reward.components[name] - value) < 1e-9 for name, value in case.expected.items())
        row = {"name": case.name, "passed": passed, "total": reward.total, "components": dict(reward.components)}
        results.append({**row, "expected": case.expected, "reasons": list(reward.reasons)})
    return results
