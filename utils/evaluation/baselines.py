"""Answers that need no model: the floor and the ceiling of every table."""

from __future__ import annotations

from collections.abc import Sequence

from utils.errors import UserError
from utils.tasks.base import Example, Rollout, Task

BASE = "the base model without any training of ours"

GOLD_CONTEXT = "the prompts hold the evidence that the labels name (--context gold in 01), which nobody has in advance"
"""Why accuracies on such records are upper bounds."""


def majority_answers(task: Task, train: Sequence[Example], examples: Sequence[Example]) -> list[Rollout]:
    """Every example answered by the constant that is most often right in `train`."""
    text = task.majority(train)
    return [Rollout(example, 0, text, False, 0) for example in examples]


def gold_answers(task: Task, examples: Sequence[Example]) -> list[Rollout]:
    """Every example answered by its target. UserError when a record has none."""
    answers = []
    for example in examples:
        text = task.target(example)
        if text is None:
            raise UserError(
                f"record {example.id}: no target to learn; --baseline gold needs records that all have one (val, test)"
            )
        answers.append(Rollout(example, 0, text, False, 0))
    return answers
