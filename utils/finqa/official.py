"""The published FinQA evaluator, reproduced verdict for verdict (czyssrs/FinQA, code/evaluate/evaluate.py).

    python -m utils.finqa.official CASES.jsonl --data DIR

reads lines with `id` and `program`, looks the records up in DIR/*.json and writes each line back to stdout with
`invalid, result, exe_correct, program_equal`, the verdicts of the published evaluator for the tokenised program with
'EOF' appended. Its quirks are kept, because published numbers contain them: a step without ")" disappears, `-#0` is
`#0`, numbers are whatever float() reads, the header is a row, a table step on a reference re-uses the row of the
table step before it, the value reported for an invalid program is the last one computed.
For a language without surprises use mode "strict" of utils/finqa/program.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json, read_text
from utils.finqa.equality import Formula, join, same_algebra, truth_inside
from utils.finqa.program import ARITHMETIC, OPERATIONS, ProgramError, add_up

Table = Sequence[Sequence[str]]


def tokenise(program: str) -> list[str]:
    """Split a program into the published tokens, `op(`, argument, argument, `)`, without the final 'EOF'."""
    tokens: list[str] = []
    for piece in program.split(", "):
        token = ""
        for character in piece:
            if character == ")" and token:
                tokens.append(token)
                token = ""
            token += character
            if character in "()":
                tokens.append(token)
                token = ""
        if token:
            tokens.append(token)
    return tokens


def well_formed(tokens: Sequence[str]) -> bool:
    """The published structure check: every fourth token an operation, every fourth a ")", whatever is between."""
    return all(token.strip("(") in OPERATIONS for token in tokens[::4]) and all(token == ")" for token in tokens[3::4])


def step_texts(tokens: Sequence[str]) -> list[str]:
    """Return the steps as `op(|arg|arg|`; what stands behind the last ")" is lost, as published."""
    return [text.strip() for text in "|".join(tokens).split(")")[:-1]]


def step_parts(step: str) -> tuple[str, str, str]:
    """Return operation and two arguments of a step text; IndexError where the published code has one."""
    pieces = step.split("(")
    args = pieces[1].strip("|").strip().split("|")
    return pieces[0].strip("|").strip(), args[0].strip(), args[1].strip()


def read_number(text: str) -> float | None:
    """What float() reads without commas, a percentage, or `const_<float>`; None for the published "n/a".

    Errors: ValueError for an unreadable constant, as published.
    """
    text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        pass
    if "%" in text:
        try:
            return float(text.replace("%", "")) / 100.0
        except ValueError:
            return None
    if "const" not in text:
        return None
    text = text.replace("const_", "")
    return -1.0 if text == "m1" else float(text)


def read_row(cells: Sequence[str]) -> list[float] | None:
    """Return the numbers of a table row, None as soon as one cell has none."""
    values = []
    for cell in cells:
        value = read_number(cell.replace("$", "").strip().split("(")[0].strip())
        if value is None:
            return None
        values.append(value)
    return values


class _Machine:
    """Execution state: `value` is the latest result, `row` the latest table row; both outlive a failing step."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.value: Any = "n/a"
        self.row: list[float] | None = None
        self.results: dict[int, Any] = {}

    def operand(self, arg: str) -> Any:
        if "#" in arg:
            return self.results[int(arg.replace("#", ""))]
        return read_number(arg)

    def step(self, index: int, text: str) -> bool:
        """Run one step; False where the published code stops with its invalid flag."""
        if text.count("(") > 1:
            return False
        op, first, second = step_parts(text)
        if op in ARITHMETIC:
            left = self.operand(first)
            if left is None:
                return False
            right = self.operand(second)
            if right is None:
                return False
            self.value = arithmetic(op, left, right)
            self.results[index] = self.value
        elif "table" in op:
            if not self.load_row(first):
                return False
            self.value = self.reduce_row(op)
            self.results[index] = self.value
        return True

    def load_row(self, label: str) -> bool:
        rows = {row[0]: row[1:] for row in self.table}
        if "#" in label:
            self.results[int(label.replace("#", ""))]  # a KeyError when the step does not exist; the row stays
            if not self.results or self.row is None:
                raise LookupError("no table row was read before")
            return True
        if label not in rows:
            return False
        self.row = read_row(rows[label])
        return self.row is not None

    def reduce_row(self, op: str) -> float:
        assert self.row is not None
        if op == "table_max":
            return max(self.row)
        if op == "table_min":
            return min(self.row)
        return add_up(self.row) if op == "table_sum" else add_up(self.row) / len(self.row)


def arithmetic(op: str, left: Any, right: Any) -> Any:
    """Python's own arithmetic on floats, complex powers and the words of `greater`, as published."""
    if op == "add":
        return left + right
    if op == "subtract":
        return left - right
    if op == "multiply":
        return left * right
    if op == "divide":
        return left / right
    if op == "exp":
        return left**right
    return "yes" if left > right else "no"


def run_official(program: str, table: Table) -> tuple[int, Any]:
    """Return (invalid 0/1, result) of the published `eval_program`: a number, "yes", "no", "n/a", or a left-over."""
    tokens = tokenise(program)
    if not well_formed(tokens):
        return 1, "n/a"
    machine = _Machine(table)
    try:
        valid = all(machine.step(index, text) for index, text in enumerate(step_texts(tokens)))
        value = machine.value
        return int(not valid), value if value in ("yes", "no", "n/a") else round(value, 5)
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
        return 1, machine.value


def equal_official(program: str, gold: str, same: Callable[[Formula, Formula], bool] = same_algebra) -> bool:
    """The published `equal_program`: arguments literally from gold, then sympy's opinion of the two formulas.

    `same` gives that opinion; benchmarks/scorer.py puts sympy itself in its place.
    Errors: ProgramError when gold itself has no formula that sympy takes (the published code crashes).
    """
    gold_texts = step_texts(tokenise(gold))
    try:
        symbols = number_symbols(gold_texts)
        gold_formula = formula(gold_texts, symbols)
    except (LookupError, RecursionError, ValueError):
        raise ProgramError("syntax", gold) from None
    if truth_inside(gold_formula):
        raise ProgramError("not_last", gold)
    tokens = tokenise(program)
    texts = step_texts(tokens)
    try:
        if not well_formed(tokens) or not all(_known(text, index, symbols) for index, text in enumerate(texts)):
            return False
        own_formula = formula(texts, symbols)
    except (LookupError, RecursionError, ValueError):
        return False
    return same(gold_formula, own_formula)


def number_symbols(texts: Sequence[str]) -> dict[str, int]:
    """Number gold's arguments, and its table steps as wholes, by first occurrence."""
    symbols: dict[str, int] = {}
    for text in texts:
        if text.count("(") > 1:
            raise ValueError(f"nested step {text!r}")
        op, first, second = step_parts(text)
        for name in (text,) if "table" in op else (first, second):
            if name == text or "#" not in name:
                symbols.setdefault(name, len(symbols))
    return symbols


def _known(text: str, index: int, symbols: dict[str, int]) -> bool:
    """Say whether a step uses gold's arguments and earlier steps only."""
    if text.count("(") > 1:
        return False
    op, first, second = step_parts(text)
    if "table" in op:
        return text in symbols
    return all(int(arg.strip("#")) < index if "#" in arg else arg in symbols for arg in (first, second))


def formula(texts: Sequence[str], symbols: dict[str, int]) -> Formula:
    """Return the last step with all references replaced; steps that it does not reach are not looked at.

    Errors: LookupError for a reference or argument that is not there, ValueError for a formula beyond MAX_NODES,
    RecursionError for a step that refers to itself.
    """
    by_index = dict(enumerate(texts))
    built: dict[int, Formula] = {}

    def operand(arg: str) -> Formula:
        return build(int(arg.replace("#", ""))) if "#" in arg else Formula(symbol=symbols[arg])

    def build(index: int) -> Formula:
        if index not in built:
            op, first, second = step_parts(by_index[index])
            whole = Formula(symbol=symbols[by_index[index]]) if "table" in op else None
            built[index] = whole or join(op, operand(first), operand(second))
        return built[index]

    return build(len(texts) - 1)


def judge_case(case: dict[str, Any], records: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the case with the four published verdicts. Errors: UserError beginning with `where`."""
    record = records.get(str(case.get("id")))
    if record is None or not isinstance(case.get("program"), str):
        raise UserError(f"{where}: expected the `id` of a known record and a `program` string, got {str(case)[:80]}")
    try:
        table, gold, exe_ans = record["table"], record["qa"]["program"], record["qa"]["exe_ans"]
        invalid, result = run_official(case["program"], table)
        equal = equal_official(case["program"], gold)
    except (KeyError, TypeError, ProgramError) as error:
        raise UserError(f"{where}: record {case['id']} has no usable table, program and exe_ans ({error})") from None
    return {
        **case,
        "invalid": invalid,
        "result": result if isinstance(result, (int, float, str)) else str(result),  # a left-over complex power
        "exe_correct": not invalid and result == exe_ans,
        "program_equal": equal,
    }


def read_cases(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:line, object) of a JSONL file. Errors: UserError."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                case = json.loads(line)
            except (ValueError, RecursionError):
                case = None
            if not isinstance(case, dict):
                raise UserError(f"{path}:{number}: expected a JSON object with id and program, got {line[:60]!r}")
            yield f"{path}:{number}", case


def read_folder(folder: Path) -> dict[str, Any]:
    """Return the records of every JSON list in a folder by id. Errors: UserError when there is none."""
    lists = [rows for path in sorted(folder.glob("*.json")) if isinstance(rows := read_json(path), list)]
    records = {str(row["id"]): row for rows in lists for row in rows if isinstance(row, dict) and "id" in row}
    if not records:
        raise UserError(f"{folder}: no records; expected a folder with FinQA's train.json, dev.json or test.json")
    return records


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit code 2 with one line for bad input."""
    parser = argparse.ArgumentParser(prog="python -m utils.finqa.official", description=__doc__.split("\n\n")[0])
    parser.add_argument("cases", type=Path, help="JSONL file with id and program")
    parser.add_argument("--data", type=Path, required=True, help="folder of FinQA's JSON files")
    arguments = parser.parse_args(argv)
    try:
        records = read_folder(arguments.data)
        for where, case in read_cases(arguments.cases):
            print(json.dumps(judge_case(case, records, where), ensure_ascii=False))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
