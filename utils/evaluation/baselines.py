"""Answers that need no model: the floor and the ceiling of every table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from utils.errors import UserError
from utils.finqa.answers import format_answer, parse_answer, read_answer
from utils.finqa.failures import by_value
from utils.finqa.program import same_answer
from utils.rewards.scoring import within
from utils.tasks.base import Example, Judgement, Rollout, Task

NOTES = {
    "majority": "no program can be asked of a constant: its typed answer is judged as the executed value",
    "gold": "the gold program of every record: the upper bound of this judge",
    "base": "the base model without any training of ours",
}

GOLD_CONTEXT = "the prompts hold the evidence that the labels name (--context gold in 01), which nobody has in advance"
"""Why accuracies on such records are upper bounds."""


def majority_answers(train: Sequence[Example], examples: Sequence[Example]) -> list[Rollout]:
    """Every example answered by the most frequent `exe_ans` of `train`; of equally frequent ones by the first."""
    value = Counter(example.exe_ans for example in train).most_common(1)[0][0]
    text = f'{{"answer": "{format_answer(value)}"}}'
    return [Rollout(example, 0, text, False, 0) for example in examples]


def gold_answers(task: Task, examples: Sequence[Example]) -> list[Rollout]:
    """Every example answered by its target. UserError when a record has no gold program."""
    answers = []
    for example in examples:
        text = task.target(example)
        if text is None:
            raise UserError(
                f"record {example.id}: no gold program; --baseline gold needs records that all have one (val, test)"
            )
        answers.append(Rollout(example, 0, text, False, 0))
    return answers


def judge_typed(task: Task, answer: Rollout) -> Judgement:
    """The verdict on an answer without a program, whose typed answer is compared as if a program had produced it."""
    judgement, gold = task.judge(answer.example, answer.text), answer.example.exe_ans
    value = parse_answer(str(read_answer(answer.text).answer))
    if value is None:
        return judgement
    correct = same_answer(value, gold)
    return replace(
        judgement,
        execution_correct=correct,
        exact_match=correct,
        numeric_1pct=within(value, gold, 0.01),
        failure="" if correct else by_value(value, gold) or "wrong_value",
        result=format_answer(value),
    )
