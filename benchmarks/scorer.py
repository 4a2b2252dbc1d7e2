"""How much faster is the program equality of utils/finqa/equality.py than asking sympy about every pair?

Both ways give FinQA's published verdict `program_equal` for every line of a file of cases. Each measurement is a fresh
process, so all caches are cold and the import of sympy counts where sympy is asked; reading the files does not count.
"sympy" is what the published evaluator does: both programs of every case go through `simplify`, nothing is kept between
cases. Seconds are processor time of one thread, so that other work on the machine matters little. No case is decided by
comparing the two strings. Verdicts are compared between both ways, and with the file's where it has them.

    python -m benchmarks.scorer
    python -m benchmarks.scorer --cases evaluator_cases.jsonl --data datasets/finqa --repeats 5 --json scorer.json

Without --cases, programs mutated from finqa_mini's gold programs are judged.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Figures, command, compared
from utils.errors import UserError
from utils.finqa.equality import SYMPY_ERRORS, Formula, infix, same_algebra
from utils.finqa.official import equal_official, read_cases, read_folder

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("project", "sympy")
MINI_CASES = 500

Pair = tuple[str, str, bool | None]
"""Program, gold program, and the published verdict where the file has one."""


def read_pairs(cases: Path, data: Path) -> list[Pair]:
    """Return the pairs of a file of cases. UserError for a line whose record is not in the data."""
    records = read_folder(data)
    pairs = []
    for where, case in read_cases(cases):
        record = records.get(str(case.get("id")))
        if record is None or not isinstance(case.get("program"), str):
            raise UserError(f"{where}: expected the `id` of a record in {data} and a `program` string")
        pairs.append((case["program"], str(record["qa"]["program"]), case.get("program_equal")))
    if not pairs:
        raise UserError(f"{cases}: no cases; expected JSON lines with id and program")
    return pairs


def mini_pairs() -> list[Pair]:
    """Return mutated gold programs of finqa_mini, about a third of them unchanged or rewritten to equal ones."""
    import random

    from tools.mutations import mutate_program
    from utils.finqa.mini import generate

    rng = random.Random(0)
    gold = [record.program for record in generate(0)["dev"] if record.program]
    golds = [rng.choice(gold) for _ in range(MINI_CASES)]
    return [(program if i % 3 == 0 else mutate_program(rng, program), program, None) for i, program in enumerate(golds)]


def verdicts(pairs: Sequence[Pair], way: str) -> tuple[list[bool], float]:
    """Judge all pairs in this process; returns the verdicts and the seconds of processor time they took."""
    same = same_algebra if way == "project" else same_by_sympy_alone
    start = time.process_time()
    found = [equal_official(program, gold, same) for program, gold, _ in pairs]
    return found, time.process_time() - start


def same_by_sympy_alone(gold: Formula, own: Formula) -> bool:
    """What the published evaluator does with a pair of formulas: both through sympy, nothing remembered."""
    from sympy import simplify

    simplified = simplify(infix(gold), evaluate=False)
    try:
        return bool(simplified == simplify(infix(own), evaluate=False))
    except SYMPY_ERRORS:
        return False


def measure(way: str, arguments: argparse.Namespace) -> tuple[list[bool], float]:
    """Judge all pairs in a fresh process."""
    files = ["--cases", str(arguments.cases), "--data", str(arguments.data)] if arguments.cases else []
    program = "import sys; from benchmarks import scorer; scorer.once(*sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, way, *files], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError((done.stderr.strip().splitlines() or ["the measuring process ended"])[-1])
    result = json.loads(done.stdout)
    return result["verdicts"], result["seconds"]


def compare(arguments: argparse.Namespace) -> Figures:
    """Measure both ways alternately. UserError when they disagree, or differ from the verdicts in the file."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, list[bool]] = {}
    for _ in range(arguments.repeats):
        for way in WAYS:
            found[way], taken = measure(way, arguments)
            seconds[way].append(taken)
    pairs = read_pairs(arguments.cases, arguments.data) if arguments.cases else mini_pairs()
    for name, wanted in [(way, found[way]) for way in WAYS] + [("file", [verdict for *_, verdict in pairs])]:
        for number, (own, other) in enumerate(zip(found["project"], wanted, strict=True), start=1):
            if other is not None and own is not other:
                raise UserError(f"case {number}, program {pairs[number - 1][0]!r}: project {own}, {name} {other}")
    equal = sum(found["project"])
    note = f"{len(pairs)} cases, {equal} of them equal; both ways agree on each; seconds of processor time"
    title = f"program equality, {len(pairs)} cases"
    return {"title": title, **compared(seconds), "cases": len(pairs), "equal": equal, "notes": [note]}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The files; without them cases are made up."""
    parser.add_argument("--cases", type=Path, help="JSONL file with id and program (default: made from finqa_mini)")
    parser.add_argument("--data", type=Path, default=Path("datasets/finqa"), help="folder of FinQA's JSON files")


def once(way: str, *argv: str) -> None:
    """Judge all pairs here and print verdicts and seconds as JSON; exit code 2 with one line for bad input."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    arguments = parser.parse_args(argv)
    try:
        found, seconds = verdicts(read_pairs(arguments.cases, arguments.data) if arguments.cases else mini_pairs(), way)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps({"verdicts": found, "seconds": seconds}))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit code 2 with one line for bad input and for verdicts that differ."""
    return command("benchmarks.scorer", __doc__, argv, add_flags, compare, ("sympy",))


if __name__ == "__main__":
    raise SystemExit(main())
