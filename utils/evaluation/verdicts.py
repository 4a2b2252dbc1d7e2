"""Everything that is said about the answers of an evaluation, record by record and in sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.evaluation.baselines import judge_typed
from utils.evaluation.groups import groups_of, summarise_groups
from utils.evaluation.metrics import summarise
from utils.evaluation.published import Official, official
from utils.tasks.base import Judgement, Rollout, Task


@dataclass(frozen=True)
class Verdicts:
    """One entry per answer: our verdict, the published evaluator's, and the record's group in every grouping."""

    judged: list[Judgement]
    published: list[Official]
    groups: list[dict[str, str]]

    def summary(self, seed: int) -> dict[str, Any]:
        """The entries of metrics.json: rates, failures, `groups`."""
        rates = summarise(self.judged, seed, self.published)
        return rates | {"groups": summarise_groups(self.groups, self.judged, seed)}

    def columns(self) -> list[Mapping[str, str | bool]]:
        """What stands in breakdown.csv beside our verdict."""
        return [
            {"official_correct": one.execution_correct, "official_program_correct": one.program_correct, **group}
            for one, group in zip(self.published, self.groups, strict=True)
        ]


def judge_all(task: Task, answers: Sequence[Rollout], *, typed: bool) -> Verdicts:
    """Judge every answer; `typed`: the answers have no program, their typed answer is judged in its place."""
    judged = [judge_typed(task, one) if typed else task.judge(one.example, one.text) for one in answers]
    published = [official(one.example, one.text, verdict) for one, verdict in zip(answers, judged, strict=True)]
    return Verdicts(judged, published, [groups_of(one.example) for one in answers])
