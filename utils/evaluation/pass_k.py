"""pass@k, would one of k samples be right? Unbiased, from n samples each (Chen et al. 2021, arXiv:2107.03374)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.evaluation.policies import Policy
    from utils.stage import Stage
    from utils.tasks.base import Example, Task


DEFAULT = "1,4,8"


@dataclass(frozen=True)
class PassPlan:
    """Every k, ascending; on how many of the first records it is measured (0: not at all), with `samples` each."""

    ks: tuple[int, ...]
    records: int
    samples: int

    @classmethod
    def read(cls, words: str, records: int, samples: int) -> PassPlan:
        """From --pass_k "1,4,8", --pass_records and --pass_samples (0: the largest k). ValueError when they clash."""
        if not records and (words or samples):
            raise ValueError("--pass_k and --pass_samples need --pass_records: on how many records pass@k is measured")
        parts = (words or DEFAULT).split(",")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"--pass_k must be whole numbers from 1, separated by commas; got {words!r}")
        ks = tuple(sorted({int(part) for part in parts}))
        if records and 0 < samples < ks[-1]:
            raise ValueError(f"--pass_samples {samples} is less than the largest k of --pass_k {words or DEFAULT}")
        return cls(ks, records, samples or ks[-1])


def measure(policy: Policy, task: Task, examples: Sequence[Example], plan: PassPlan, stage: Stage) -> dict[str, Any]:
    """The `pass_at_k` entry of metrics.json, nothing without records; the samples go to samples/pass_k.jsonl."""
    from utils.evaluation.metrics import summarise_pass_k
    from utils.evaluation.outputs import sample_rows
    from utils.files import write_jsonl

    first = examples[: plan.records]
    if not first:
        return {}
    groups = policy.sampled(first, plan.samples)
    correct = [[task.judge(one.example, one.text).correct for one in group] for group in groups]
    write_jsonl(stage.path("samples", "pass_k.jsonl"), sample_rows(groups, correct))
    stage.spent(pass_k_tokens=sum(one.tokens for group in groups for one in group))
    return {"pass_at_k": summarise_pass_k(correct, plan.ks, stage.seed)}
