"""What tasks have in common whose answers are judged one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from utils.tasks.base import Evaluated, Judgement, Rollout
from utils.tasks.words import WORDS


class PerAnswer(ABC):
    """The part of `utils.tasks.base.Task` that follows from single verdicts."""

    kind: str
    sampled = False

    @abstractmethod
    def judge(self, example: Any, text: str) -> Judgement:
        """The verdict on one completion."""

    @abstractmethod
    def judge_constant(self, answer: Rollout) -> Judgement:
        """The verdict on the control that answers all records alike."""

    @abstractmethod
    def assess(self, answer: Rollout, judgement: Judgement) -> Mapping[str, bool]:
        """Further columns of breakdown.csv."""

    @abstractmethod
    def groups(self, example: Any) -> Mapping[str, str]:
        """The group of a record in each of the groupings of the task's words."""

    def figures(self, rollouts: Sequence[Rollout], verdicts: Sequence[Judgement]) -> dict[str, float]:
        """The share that is right, and of what else train.jsonl has the mean."""
        names = {"accuracy": "correct", **{name: name for name in WORDS[self.kind].logged}}
        return {name: sum(getattr(one, field) for one in verdicts) / len(verdicts) for name, field in names.items()}

    def evaluate(self, answers: Sequence[Rollout], *, constant: bool) -> Evaluated:
        """A judgement, further columns and groups for each answer."""
        judged = [self.judge_constant(one) if constant else self.judge(one.example, one.text) for one in answers]
        further = [self.assess(one, verdict) for one, verdict in zip(answers, judged, strict=True)]
        return Evaluated(judged, judged, further, [self.groups(one.example) for one in answers])
