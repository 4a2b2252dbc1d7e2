"""From a completion to its reward and its verdict: read the JSON, parse the program, execute it, compare.

The scored answer is the executed program's value; the typed answer only counts as format and is compared beside it.
Nothing is paid before the program has executed, and only `seed`'s partial steps look at the gold program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from utils.errors import UserError
from utils.finqa.answers import Answer, format_answer, parse_answer, read_answer
from utils.finqa.examples import FinQAExample, FinQAJudgement
from utils.finqa.failures import wrong_value
from utils.finqa.grounding import numbers, ungrounded
from utils.finqa.program import ProgramError, Step, equal, parse, round_result, run_steps, same_answer
from utils.rewards.spec import RewardSpec
from utils.tasks.base import Reward

WRONG_RESULT = "wrong_result"


@dataclass(frozen=True)
class Reading:
    """What could be made of a completion: `steps` when its program parses, `value` when it executes.

    `failure` is "" for a correct value, else format (no program to be found), unparsable, not_executable or
    wrong_result; `detail` is the format problem or the ProgramError's reason behind it.
    """

    answer: Answer
    steps: tuple[Step, ...] | None
    value: float | str | None
    failure: str
    detail: str = ""


def read_completion(text: str, example: FinQAExample) -> Reading:
    """Read, parse and execute one completion; never raises, whatever the text is."""
    answer = read_answer(text)
    if answer.program is None:
        return Reading(answer, None, None, "format", str(answer.problem))
    try:
        steps = parse(answer.program)
    except ProgramError as error:
        return Reading(answer, None, None, "unparsable", error.reason)
    try:
        value = round_result(run_steps(steps, example.table)[-1])
    except ProgramError as error:
        return Reading(answer, steps, None, "not_executable", error.reason)
    return Reading(answer, steps, value, "" if same_answer(value, example.exe_ans) else WRONG_RESULT)


def score_text(text: str, example: FinQAExample, spec: RewardSpec) -> Reward:
    """Pay one completion. The components sum to the total; the reasons are the failure and the format problem."""
    return score_reading(read_completion(text, example), example, spec)


def score_reading(reading: Reading, example: FinQAExample, spec: RewardSpec) -> Reward:
    """Pay what was read: the largest of exact, numeric and program, and the format as the profile has it."""
    weights = spec.weights
    parts = {"exact": 0.0, "numeric": 0.0, "program": 0.0}
    if not reading.failure:
        parts["exact"] = weights["exact"]
    elif reading.value is not None and reading.steps is not None:
        numeric = weights["numeric"] * within(reading.value, example.exe_ans, spec.tolerance)
        program = 0.0
        if weights["program"]:
            program = weights["program"] * matched_steps(reading.steps, gold_steps(example))
        parts["numeric" if numeric >= program else "program"] = max(numeric, program)
    parts["format"] = _format_part(reading, spec)
    return Reward(sum(parts.values()), parts, _reasons(reading))


def _reasons(reading: Reading) -> tuple[str, ...]:
    """Why not the full reward: the failure with its detail, and a format problem that hid no program."""
    reasons = [reading.failure + (f":{reading.detail}" if reading.detail else "")] if reading.failure else []
    if reading.answer.problem and reading.failure != "format":
        reasons.append(f"format:{reading.answer.problem}")
    return tuple(reasons)


def _format_part(reading: Reading, spec: RewardSpec) -> float:
    valid, correct = reading.answer.problem is None, not reading.failure
    if spec.profile == "seed":
        return 0.0 if valid else -spec.weights["format"]
    if correct:
        return 0.0 if valid else -spec.weights["format"]
    return spec.weights["format"] if valid and reading.value is not None else 0.0


def within(value: float | str, gold: float | str, tolerance: float) -> bool:
    """Say whether a value is within a relative tolerance of gold; words and a gold of 0 must be equal."""
    if isinstance(value, str) or isinstance(gold, str):
        return same_answer(value, gold)
    return abs(value - gold) <= tolerance * abs(gold)


def gold_steps(example: FinQAExample) -> tuple[Step, ...] | None:
    """Return the parsed gold program, None when none is known. Errors: UserError when it cannot be read."""
    if example.target_program is None:
        return None
    try:
        return parse(example.target_program)
    except ProgramError as error:
        raise UserError(f"record {example.id}: target_program cannot be read ({error}); stage 00 checks data") from None


def matched_steps(steps: Sequence[Step], gold: Sequence[Step] | None) -> float:
    """Return the share of gold's steps found among `steps`, each once, of the longer program's length; 0 without gold.

    Steps are compared with their references followed, whatever their position; operands of + and * may be swapped.
    """
    if gold is None:
        return 0.0
    numbers: dict[tuple[str, ...], int] = {}
    found, wanted = _step_numbers(steps, numbers), _step_numbers(gold, numbers)
    return len(set(found) & set(wanted)) / max(len(found), len(wanted))


def _step_numbers(steps: Sequence[Step], numbers: dict[tuple[str, ...], int]) -> list[int]:
    """Number every step such that steps that compute the same in the same way have the same number."""
    own: list[int] = []
    for step in steps:
        args = [f"={own[int(arg[1:])]}" if arg.startswith("#") else arg for arg in step.args]
        if step.op in ("add", "multiply"):
            args.sort()
        own.append(numbers.setdefault((step.op, *args), len(numbers)))
    return own


def judge(text: str, example: FinQAExample, spec: RewardSpec) -> FinQAJudgement:
    """Return the verdict on one completion; `failure` is one of utils.finqa.failures.FAILURES.

    `program_correct` is equality by the published rules and needs a known gold program: without one it is False.
    Errors: UserError when the example's own gold program cannot be read.
    """
    gold_steps(example)
    gold = example.target_program
    reading = read_completion(text, example)
    program, value = str(reading.answer.program), reading.value
    typed = None if reading.answer.answer is None else parse_answer(reading.answer.answer)
    correct, failure = not reading.failure, reading.failure
    if failure == WRONG_RESULT and value is not None:
        failure = wrong_value(program, value, example.exe_ans, gold, example.input_text)
    return FinQAJudgement(
        id=example.id,
        correct=correct,
        program_correct=correct and gold is not None and equal(program, gold),
        exact_match=typed is not None and same_answer(typed, example.exe_ans),
        numeric_1pct=value is not None and within(value, example.exe_ans, 0.01),
        program_valid=value is not None,
        format_valid=reading.answer.problem is None,
        failure=failure,
        reward=score_reading(reading, example, spec).total,
        result="" if value is None else format_answer(value),
        ungrounded=value is not None and bool(ungrounded(parse(program), numbers(example.input_text))),
    )
