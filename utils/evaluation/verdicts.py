"""Everything that is said about the answers of an evaluation, record by record and in sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.evaluation.groups import summarise_groups
from utils.evaluation.metrics import summarise
from utils.tasks.base import Judgement, Rollout, Task
from utils.tasks.words import WORDS, Words


@dataclass(frozen=True)
class Verdicts:
    """One entry per answer: our verdict, what the task adds to it, and the record's group in every grouping."""

    judged: list[Judgement]
    further: list[Mapping[str, bool]]
    groups: list[Mapping[str, str]]
    words: Words

    def summary(self, seed: int) -> dict[str, Any]:
        """The entries of metrics.json: rates, failures, `groups`."""
        rates = summarise(self.judged, seed, self.words, self.further)
        return rates | {"groups": summarise_groups(self.groups, self.judged, seed)}

    def columns(self) -> list[Mapping[str, str | bool]]:
        """What stands in breakdown.csv beside our verdict."""
        return [{**one, **group} for one, group in zip(self.further, self.groups, strict=True)]


def judge_all(task: Task, answers: Sequence[Rollout], *, constant: bool) -> Verdicts:
    """Judge every answer; `constant`: they are the control that answers all records alike."""
    judged = [task.judge_constant(one) if constant else task.judge(one.example, one.text) for one in answers]
    further = [task.assess(one, verdict) for one, verdict in zip(answers, judged, strict=True)]
    return Verdicts(judged, further, [task.groups(one.example) for one in answers], WORDS[task.kind])
