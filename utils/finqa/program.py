"""FinQA's program language, read by a small parser and executed under limits.

A program is `op(arg, arg), op(#0, arg)`: steps separated by ", ", `#n` is the result of step n, and the last step is
the answer. Arithmetic (add subtract multiply divide exp greater) takes numbers (`5829`, `-3.5`, `12%`), constants
(`const_100`, `const_m1`) and references; table operations (table_max table_min table_sum table_average) take a row
label and an ignored second argument, `none`.

Two modes. `official` is the published evaluator with all its quirks (utils/finqa/official.py). `strict` accepts a
subset: whatever executes in strict executes in official, to the same value, and every refusal has a name (REASONS).
How they differ, one test each in tests/unit/test_program.py:

* a last step without its ")" is dropped by official; strict refuses the program, and an empty program too
* official reads `-#0` as `#0` and `1#0` as `#10`; strict knows only `#` and digits
* official takes whatever Python's float() takes (`1,000`, `1_000`, `nan`, `inf`, `1e5`, `5.`); strict takes digits
* official takes any `const_<float>`; strict takes `const_m1` and `const_` with digits
* official joins and compares "yes"/"no" in later steps; strict allows `greater` as the last step only
* official reads the header as a row; strict does not
* `table_max(#0, none)` re-uses the row of an earlier table step in official; strict refuses it
* official ignores the second argument of a table step, whatever it is; strict wants `none` or a number
* official has no limits; strict has MAX_CHARACTERS, MAX_STEPS and MAX_MAGNITUDE
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_CHARACTERS = 1000
"""Longest program; FinQA's longest has 122 characters."""
MAX_STEPS = 16
"""Most steps; FinQA's longest program has 6."""
MAX_MAGNITUDE = 1e18
"""Largest absolute value of any literal, cell or intermediate result."""

ARITHMETIC = ("add", "subtract", "multiply", "divide", "exp", "greater")
TABLE = ("table_max", "table_min", "table_sum", "table_average")
OPERATIONS = ARITHMETIC + TABLE

REASONS = {
    "empty": "there is no program",
    "too_long": f"more than {MAX_CHARACTERS} characters",
    "too_many_steps": f"more than {MAX_STEPS} steps",
    "syntax": "not of the form op(arg, arg), op(arg, arg)",
    "unknown_operation": f"the operation is not one of {', '.join(OPERATIONS)}",
    "bad_argument": "an argument is not a number, a constant or a reference",
    "bad_reference": "a reference does not name an earlier step",
    "not_last": "greater gives yes or no and can only be the last step",
    "unknown_row": "the table has no row of this label",
    "row_not_numeric": "a cell of the row is not a number",
    "division_by_zero": "division by zero",
    "not_real": "the power has no real value",
    "too_large": f"a value beyond {MAX_MAGNITUDE:g}",
    "official_invalid": "the published evaluator calls the program invalid",
}
"""Every reason a ProgramError can have, in words."""

_DIGITS = frozenset("0123456789")


class ProgramError(ValueError):
    """A program that cannot be read or executed; `reason` is a key of REASONS, `detail` shows the piece."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(REASONS[reason] + (f": {detail[:60]!r}" if detail else ""))
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Step:
    """One operation and its two arguments as written."""

    op: str
    args: tuple[str, str]

    def __str__(self) -> str:
        return f"{self.op}({self.args[0]}, {self.args[1]})"


def parse(text: str) -> tuple[Step, ...]:
    """Read a program in strict form; `", ".join(map(str, parse(text))) == text`.

    Errors: ProgramError with reason empty, too_long, too_many_steps, syntax, unknown_operation, bad_argument,
    bad_reference or not_last.
    """
    if not text:
        raise ProgramError("empty")
    if len(text) > MAX_CHARACTERS:
        raise ProgramError("too_long")
    steps: list[Step] = []
    position = 0
    while True:
        step, position = _read_step(text, position)
        if len(steps) == MAX_STEPS:
            raise ProgramError("too_many_steps")
        if steps and steps[-1].op == "greater":
            raise ProgramError("not_last", str(steps[-1]))
        _check_arguments(step, len(steps))
        steps.append(step)
        if position == len(text):
            return tuple(steps)
        if not text.startswith(", ", position):
            raise ProgramError("syntax", text[position:])
        position += 2


def _read_step(text: str, start: int) -> tuple[Step, int]:
    """Return the step that begins at `start` and the position behind its ")"."""
    opening = text.find("(", start)
    closing = text.find(")", start)
    if opening < 0 or closing < opening:
        raise ProgramError("syntax", text[start:])
    op = text[start:opening]
    if op not in OPERATIONS:
        raise ProgramError("unknown_operation", op)
    args = text[opening + 1 : closing].split(", ")
    if len(args) != 2 or any(not arg or arg != arg.strip() or "(" in arg or "|" in arg for arg in args):
        raise ProgramError("syntax", text[start : closing + 1])
    return Step(op, (args[0], args[1])), closing + 1


def _check_arguments(step: Step, index: int) -> None:
    """Refuse arguments that no table could make valid."""
    if step.op in TABLE:
        if "#" in step.args[0]:
            raise ProgramError("bad_reference", step.args[0])
        if step.args[1] != "none":
            read_number(step.args[1])
        return
    for arg in step.args:
        if arg.startswith("#"):
            reference_index(arg, index)
        else:
            read_number(arg)


def reference_index(arg: str, before: int) -> int:
    """Return n of `#n`; ProgramError bad_reference unless n is a step earlier than `before`."""
    digits = arg[1:]
    if not digits or len(digits) > 2 or not _DIGITS.issuperset(digits) or int(digits) >= before:
        raise ProgramError("bad_reference", arg)
    return int(digits)


def read_number(arg: str) -> float:
    """Return the value of a literal (`5829`, `-3.5`, `.5`, `12%` = 0.12) or constant (`const_100`, `const_m1`).

    Errors: ProgramError bad_argument, or too_large.
    """
    if arg == "const_m1":
        return -1.0
    if arg.startswith("const_"):
        if not _DIGITS.issuperset(arg[6:]) or arg == "const_":
            raise ProgramError("bad_argument", arg)
        return _bounded(float(arg[6:]), arg)
    percent = arg.endswith("%")
    value = plain_number(arg[:-1] if percent else arg)
    if value is None:
        raise ProgramError("bad_argument", arg)
    return _bounded(value / 100.0 if percent else value, arg)


def plain_number(text: str) -> float | None:
    """Return the value of `[-]digits[.digits]` or `[-].digits`, else None; never infinite through `1e999`."""
    whole, point, fraction = text.removeprefix("-").partition(".")
    if not (whole or fraction) or (point and not fraction):
        return None
    if not (_DIGITS.issuperset(whole) and _DIGITS.issuperset(fraction)):
        return None
    return float(text)


def _bounded(value: float, detail: str) -> float:
    if abs(value) > MAX_MAGNITUDE:
        raise ProgramError("too_large", detail)
    return value


def execute(program: str, table: Sequence[Sequence[str]], mode: str = "strict") -> float | str:
    """Execute a program on a table (rows of cells, the first row is the header, the first cell of a row its label).

    Returns the last step's value rounded to 5 decimals, or "yes"/"no" for `greater`. Intermediate steps are not
    rounded. `official` mode returns "n/a" where the published evaluator calls an empty result valid.
    Errors: ProgramError with one of REASONS.
    """
    if mode == "official":
        from utils.finqa.official import run_official

        invalid, result = run_official(program, table)
        if invalid:
            raise ProgramError("official_invalid", program)
        verdict: float | str = result
        return verdict
    if mode != "strict":
        raise ValueError(f"mode is {mode!r}, expected strict or official")
    return round_result(run_steps(parse(program), table)[-1])


def round_result(value: float | str) -> float | str:
    """Round a number to 5 decimals, as the published evaluator does with the last step; -0.0 becomes 0.0."""
    return value if isinstance(value, str) else round(value, 5) + 0.0


def run_steps(steps: Sequence[Step], table: Sequence[Sequence[str]]) -> list[float | str]:
    """Return the unrounded result of every parsed step; only the last can be "yes" or "no"."""
    results: list[float | str] = []
    for step in steps:
        if step.op in TABLE:
            results.append(_bounded(_reduce_row(step.op, numeric_row(step.args[0], table)), str(step)))
            continue
        left, right = (_value(arg, results) for arg in step.args)
        if step.op == "greater":
            results.append("yes" if left > right else "no")
        else:
            results.append(_bounded(_arithmetic(step.op, left, right), str(step)))
    return results


def _value(arg: str, results: Sequence[float | str]) -> float:
    if not arg.startswith("#"):
        return read_number(arg)
    value = results[reference_index(arg, len(results))]
    assert isinstance(value, float)  # parse() lets greater stand last only
    return value


def _add(left: float, right: float) -> float:
    return left + right


def _subtract(left: float, right: float) -> float:
    return left - right


def _multiply(left: float, right: float) -> float:
    return left * right


def _divide(left: float, right: float) -> float:
    return left / right


def _power(left: float, right: float) -> float:
    value = left**right
    if isinstance(value, complex):
        raise ProgramError("not_real", f"{left} ** {right}")
    return float(value)


_FUNCTIONS: dict[str, Callable[[float, float], float]] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _divide,
    "exp": _power,
}


def _arithmetic(op: str, left: float, right: float) -> float:
    try:
        return _FUNCTIONS[op](left, right)
    except ZeroDivisionError:
        raise ProgramError("division_by_zero", f"{left:g}, {right:g}") from None
    except OverflowError:
        raise ProgramError("too_large", f"{left:g}, {right:g}") from None


def numeric_row(label: str, table: Sequence[Sequence[str]]) -> list[float]:
    """Return the numbers of the row with this exact label; of several, the last (real programs rely on it).

    Errors: ProgramError unknown_row, row_not_numeric.
    """
    for row in reversed(table[1:]):
        if row and row[0] == label:
            values = [value for value in map(read_cell, row[1:]) if value is not None]
            if not values or len(values) < len(row) - 1:
                raise ProgramError("row_not_numeric", label)
            return values
    raise ProgramError("unknown_row", label)


def read_cell(cell: str) -> float | None:
    """Return the number of a table cell such as `$ 1,234`, `-5 ( 5 )` or `12%` (0.12), else None.

    A cell in accounting brackets alone, `(12)`, is None: the published evaluator cannot read it either.
    """
    text = cell.replace("$", "").strip().split("(")[0].strip().replace(",", "")
    percent = text.endswith("%")
    value = plain_number(text[:-1].rstrip() if percent else text)
    if value is None or abs(value) > MAX_MAGNITUDE:
        return None
    return value / 100.0 if percent else value


def _reduce_row(op: str, values: Sequence[float]) -> float:
    if op == "table_max":
        return max(values)
    if op == "table_min":
        return min(values)
    total = add_up(values)
    return total if op == "table_sum" else total / len(values)


def add_up(values: Sequence[float]) -> float:
    """Sum from left to right: the built-in compensates rounding since Python 3.12, and digits would depend on it."""
    total = 0.0
    for value in values:
        total += value
    return total


def same_answer(result: float | str, exe_ans: float | str) -> bool:
    """Say whether an executed result is the gold answer: exact, as the published evaluator compares.

    Both are numbers rounded to 5 decimals or "yes"/"no"; a number never equals a word.
    """
    if isinstance(result, str) or isinstance(exe_ans, str):
        return isinstance(result, str) and isinstance(exe_ans, str) and result == exe_ans
    return float(result) == float(exe_ans)


def equal(program: str, gold: str, mode: str = "strict") -> bool:
    """Say whether two programs are the same up to the algebra of the published evaluator.

    Arguments must occur literally in gold; commutation, regrouping and dead steps do not matter. `strict` also wants
    `program` to parse. Errors: ProgramError when `gold` does not.
    """
    from utils.finqa.official import equal_official

    if mode == "strict":
        parse(gold)
        try:
            parse(program)
        except ProgramError:
            return False
    return equal_official(program, gold)
