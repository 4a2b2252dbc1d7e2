"""Answers that need no model: the floor and the ceiling of every table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from utils.errors import UserError
from utils.finqa.answers import format_answer
from utils.finqa.program import same_answer
from utils.rewards.scoring import WRONG_RESULT, within
from utils.tasks.base import Example, Judgement, Task

NOTES = {
    "majority": "no program can be asked of a constant: its typed answer is judged as the executed value",
    "gold": "the gold program of every record: the upper bound of this judge",
    "base": "the base model without any training of ours",
}


def majority_answer(examples: Sequence[Example]) -> float | str:
    """The most frequent `exe_ans`; among equally frequent ones the one that comes first."""
    return Counter(example.exe_ans for example in examples).most_common(1)[0][0]


def judge_constant(task: Task, examples: Sequence[Example], value: float | str) -> list[tuple[str, Judgement]]:
    """(text, verdict) of answering every record with `value`, which is compared as if a program had produced it."""
    text = f'{{"answer": "{format_answer(value)}"}}'
    return [(text, _as_executed(task.judge(example, text), example, value)) for example in examples]


def judge_gold(task: Task, examples: Sequence[Example]) -> list[tuple[str, Judgement]]:
    """(text, verdict) of the gold target. UserError when a record has no gold program."""
    written = []
    for example in examples:
        text = task.target(example)
        if text is None:
            raise UserError(
                f"record {example.id}: no gold program; --baseline gold needs records that all have one (val, test)"
            )
        written.append((text, task.judge(example, text)))
    return written


def _as_executed(judgement: Judgement, example: Example, value: float | str) -> Judgement:
    correct = same_answer(value, example.exe_ans)
    return replace(
        judgement,
        execution_correct=correct,
        exact_match=correct,
        numeric_1pct=within(value, example.exe_ans, 0.01),
        failure="" if correct else WRONG_RESULT,
        result=format_answer(value),
    )
