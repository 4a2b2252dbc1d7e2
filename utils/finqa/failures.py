"""Why a completion is wrong, one name each. The first of these questions that finds a fault decides.

Could a program be read? Does it parse? Does it execute? Is the value right but for kind, sign, scale or rounding?
Are its numbers in the prompt? Are its operations those of the gold program?
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
    "wrong_operand": "the gold program's operations on other numbers, or on the same in another order",
    "wrong_value": "another value; there are no two programs to compare",
}
"""Every failure name, in words."""

RELATIVE = 1e-4
ROUNDING = 5e-6
"""Half of the last of the 5 decimals that results and gold values are rounded to."""


def wrong_value(program: str, result: float | str, exe_ans: float | str, gold_program: str | None, prompt: str) -> str:
    """The failure of a program that executes to another value than gold: `answer_kind` and what follows in FAILURES."""
    return by_value(result, exe_ans) or _by_program(program, gold_program, prompt)


def by_value(result: float | str, exe_ans: float | str) -> str:
    """The failure that two different values show by themselves, "" when they show none.

    100 times as large is taken up to the rounding of both: 1.63939 is 100 times 0.01639, whose unrounded value is
    nearer to 0.0163939.
    """
    if isinstance(result, str) or isinstance(exe_ans, str):
        return "answer_kind" if type(result) is not type(exe_ans) else ""
    if result == -exe_ans:
        return "sign"
    small, large = sorted((result, exe_ans), key=abs)
    if abs(100 * small - large) <= min(max(RELATIVE * abs(large), 101 * ROUNDING), 0.01 * abs(large)):
        return "scale_100"
    return "rounding" if abs(result - exe_ans) <= 0.01 * abs(exe_ans) else ""


def _by_program(program: str, gold_program: str | None, prompt: str) -> str:
    steps = parse(program)
    if ungrounded(steps, numbers(prompt)):
        return "ungrounded_number"
    if gold_program is None:
        return "wrong_value"
    return "wrong_operand" if _operations(steps) == _operations(parse(gold_program)) else "wrong_operation"


def _operations(steps: tuple[Step, ...]) -> list[str]:
    return [step.op for step in steps]
