"""The published FinQA evaluator's verdict on a completion, beside our strict one.

Its score is what papers print; how it differs from strict mode is listed in utils/finqa/program.py. It is asked about
the program that stands in the completion's JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.finqa.answers import read_answer
from utils.finqa.examples import FinQAExample
from utils.finqa.official import equal_official, run_official
from utils.tasks.base import Judgement


@dataclass(frozen=True)
class Official:
    """Both verdicts of the published evaluator; `program_correct` is False where there is no gold program."""

    correct: bool
    program_correct: bool


def official(example: FinQAExample, text: str, judgement: Judgement) -> Official:
    """The published verdicts on one completion.

    A program is equal to gold only where its value is: the published code asserts that, and ends where it is not so.
    Where no program can be read, execution is judged as `judgement` has it: a control that writes no program
    (`majority`) is judged by its typed answer in both modes. Errors: ProgramError for a gold program without formula.
    """
    program = read_answer(text).program
    if program is None:
        return Official(judgement.correct, False)
    invalid, result = run_official(program, example.table)
    correct, gold = bool(not invalid and result == example.exe_ans), example.target_program
    return Official(correct, correct and gold is not None and equal_official(program, gold))
