"""Why a completion is wrong, one name each. The first of these questions that finds a fault decides.

Could a program be read? Does it parse? Does it execute? Is the value right but for kind, sign, scale or rounding?
Could a program be read? Does it parse? Does it execute? Is the value right but for kind, sign, scale, rounding?
"""

from __future__ import annotations

from utils.finqa.grounding import numbers, ungrounded
from utils.finqa.program import Step, parse

FAILURES = {
    "format": "no program could be read from the completion",
    "unparsable": "the program is not of the language",
    "not_executable": "the program parses and does not execute",
    "answer_kind": "yes or no where a number is asked, or the reverse",
    "sign": "the value has the wrong sign",
    "scale_100": "the value is 100 times too large or too small",
    "rounding": "the value lies within 1 % of gold",
    "ungrounded_number": "the program uses a number that is not in the prompt",
    "wrong_operation": "other operations than the gold program's",
    "wrong_operand": "the gold program's operations on other numbers",
    "wrong_value": "another value; there is no gold program to compare with",
}
"""Every failure name, in words."""


def wrong_value(program: str, result: float | str, exe_ans: float | str, gold_program: str | None, prompt: str) -> str:
    """The failure of a program that executes to another value than gold: `answer_kind` and what follows in FAILURES."""
    if isinstance(result, str) or isinstance(exe_ans, str):
        return "answer_kind" if type(result) is not type(exe_ans) else _by_program(program, gold_program, prompt)
    if result == -exe_ans:
        return "sign"
    if any(abs(result - scaled) <= 1e-4 * abs(scaled) for scaled in (exe_ans * 100, exe_ans / 100) if exe_ans):
        return "scale_100"
    if abs(result - exe_ans) <= 0.01 * abs(exe_ans):
        return "rounding"
    return _by_program(program, gold_program, prompt)


def _by_program(program: str, gold_program: str | None, prompt: str) -> str:
    steps = parse(program)
    if ungrounded(steps, numbers(prompt)):
        return "ungrounded_number"
    if gold_program is None:
        return "wrong_value"
    return "wrong_operand" if _operations(steps) == _operations(parse(gold_program)) else "wrong_operation"


def _operations(steps: tuple[Step, ...]) -> list[str]:
    return [step.op for step in steps]
