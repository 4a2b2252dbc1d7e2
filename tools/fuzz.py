"""Mutated programs and completions through parser, executor and reward: nothing crashes, hangs or pays unexplained.

Every case starts from a gold program of finqa_mini (or of --data, a file in FinQA's schema), is changed one to four
times, written as a completion, and that often changed too. Then it must hold that

* the parser and the executor answer or refuse by a name of `REASONS`; what parses is written back as it was; what
  executes executes to the same value in the published evaluator, and equals itself
* under both reward profiles the components sum to the total, which lies within the profile's range; less than the full
  pay has a reason; `exact` is paid exactly where the published evaluator, fed by a JSON reader of its own, finds gold;
  anything else above 0 has a valid program and its cause (a near value, a step of gold, a valid format)
* white space between JSON tokens changes nothing; verdict and reward agree; a case takes less than SECONDS of
  processor time

    python -m tools.fuzz --count 20000 --seed 0
    python -m tools.fuzz --seed 0 --only 1234

The first case that breaks a rule is printed, with the command that repeats it alone; exit code 1.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from tools.mutations import mutate_completion, mutate_program
from utils.errors import UserError
from utils.finqa.answers import MAX_CHARACTERS, format_answer, read_answer
from utils.finqa.examples import FinQAExample
from utils.finqa.failures import FAILURES
from utils.finqa.official import run_official
from utils.finqa.program import REASONS, ProgramError, equal, execute, parse, same_answer
from utils.finqa.records import Record, read_records
from utils.rewards import PROFILES, RewardSpec, judge, score_text
from utils.rewards.corpus import case_example
from utils.rewards.scoring import within
from utils.tasks.base import Reward

SECONDS = 5.0
"""Processor time after which a case counts as hanging."""


class Broken(Exception):
    """A case breaks a rule; the message says which."""


def make_case(seed: int, number: int, examples: Sequence[FinQAExample]) -> tuple[FinQAExample, str, str]:
    """Return example, program and completion of one case; it depends on nothing but seed, number and examples."""
    rng = random.Random(f"{seed}:{number}")
    example = rng.choice(examples)
    program = str(example.target_program)
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3, 4))):
        program = mutate_program(rng, program)
    if rng.random() < 0.2:  # the record as RL mostly sees it
        example = replace(example, target_program=None, target_text=None)
    try:
        answer = format_answer(execute(program, example.table))
    except ProgramError:
        answer = example.target_answer
    return example, program, mutate_completion(rng, program, answer, example)


def check_program(program: str, example: FinQAExample) -> None:
    """Hold parser and executor to their word. Errors: Broken."""
    verdict = run_official(program, example.table)
    try:
        steps = parse(program)
        written = ", ".join(map(str, steps))
        if written != program:
            raise Broken(f"parses and is written back as {written!r}")
        value = execute(program, example.table)
    except ProgramError as error:
        if error.reason not in REASONS:
            raise Broken(f"is refused by the unknown reason {error.reason!r}") from None
        return
    if verdict != (0, value):
        raise Broken(f"gives {value!r}, in the published evaluator {verdict!r}")
    if not equal(program, program):
        raise Broken("does not equal itself")


def check_reward(text: str, example: FinQAExample, spec: RewardSpec) -> Reward:
    """Hold the reward of one completion to its word. Errors: Broken."""
    reward = score_text(text, example, spec)
    verdict = judge(text, example, spec)
    if verdict.reward != reward.total or verdict.correct != (verdict.failure == ""):
        raise Broken(f"is judged {verdict} and paid {reward}")
    if verdict.failure and verdict.failure not in FAILURES:
        raise Broken(f"fails by the unknown name {verdict.failure!r}")
    if problem := unexplained(text, example, spec, reward):
        raise Broken(f"is paid {dict(reward.components)} under {spec.profile} {problem}")
    if read_answer(text).problem is None:
        spaced = json.dumps(json.loads(text), indent=3)
        if len(spaced) <= MAX_CHARACTERS and score_text(spaced, example, spec) != reward:
            raise Broken(f"is paid differently as {spaced!r}")
    return reward


def unexplained(text: str, example: FinQAExample, spec: RewardSpec, reward: Reward) -> str:
    """Say what is wrong with the pay of a completion, judged without the project's own reader; "" when nothing is."""
    paid, weights = reward.components, spec.weights
    if abs(sum(paid.values()) - reward.total) > 1e-9 or not -weights["format"] <= reward.total <= weights["exact"]:
        return "beyond its range"
    if reward.total < weights["exact"] and not reward.reasons:
        return "without a reason"
    program = own_reading(text)
    invalid, value = (1, "n/a") if program is None else run_official(program, example.table)
    try:
        strict = execute(program or "", example.table)
    except ProgramError:
        strict = None
    right = strict is not None and not invalid and same_answer(value, example.exe_ans)
    if (paid["exact"] > 0) is not right:
        return f"though the program gives {value!r} and gold is {example.exe_ans!r}"
    if reward.total > 0 and strict is None:
        return "for a program that does not execute"
    if paid["numeric"] > 0 and (strict is None or not within(strict, example.exe_ans, spec.tolerance)):
        return f"for nearness, though the program gives {value!r} and gold is {example.exe_ans!r}"
    gold = str(example.target_program)
    if paid["program"] > 0 and not any(step.op in gold for step in parse(program or "")):
        return "for steps of gold, of which it has none"
    return ""


def own_reading(text: str) -> str | None:
    """The program of a completion by Python's JSON reader alone; of two equal keys, none counts."""
    body = text.strip(" \t\n\r")

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        found, _ = json.JSONDecoder(object_pairs_hook=once).raw_decode(body)
    except (ValueError, RecursionError):
        return None
    program = found.get("program") if isinstance(found, dict) and len(body) <= MAX_CHARACTERS else None
    return program if isinstance(program, str) else None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Broken in the block when it has used so much processor time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Broken(f"takes more than {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def run_case(seed: int, number: int, examples: Sequence[FinQAExample]) -> str:
    """Run one case and return what became of it: correct, or its failure. Errors: Broken with the whole story."""
    example, program, text = make_case(seed, number, examples)
    checked = f"program {program!r}"
    try:
        with time_limit(SECONDS):
            check_program(program, example)
            checked = f"completion {text!r}"
            rewards = [check_reward(text, example, spec) for spec in PROFILES.values()]
    except (Broken, ArithmeticError, AssertionError, LookupError, RecursionError, TypeError, ValueError) as error:
        what = str(error) if isinstance(error, Broken) else f"raises {type(error).__name__}: {error}"
        raise Broken(f"record {example.id}, {checked} {what}") from error
    reasons = rewards[0].reasons
    return reasons[0].partition(":")[0] if reasons and not rewards[0].components["exact"] else "correct"


def load_examples(data: Path | None) -> list[FinQAExample]:
    """The records that cases start from: of a file, or of finqa_mini; the reward's own example is always there."""
    from utils.finqa.mini import generate
    from utils.tasks.finqa import make_examples

    records: list[Record] = generate(0)["dev"] if data is None else read_records(data)
    known = [record for record in records if record.program is not None]
    count: Callable[[list[str]], list[int]] = lambda texts: [0] * len(texts)  # noqa: E731
    return [case_example(), *make_examples(known, 1, count)[0]]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit code 1 for a case that breaks a rule, 2 with one line for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000, help="cases (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases")
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument("--data", type=Path, help="a file in FinQA's schema (default: generated)")
    arguments = parser.parse_args(argv)
    try:
        examples = load_examples(arguments.data)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    numbers = range(arguments.count) if arguments.only is None else [arguments.only]
    outcomes: Counter[str] = Counter()
    start = time.perf_counter()
    for number in numbers:
        try:
            outcomes[run_case(arguments.seed, number, examples)] += 1
        except Broken as error:
            data = f" --data {arguments.data}" if arguments.data else ""
            print(f"case {number}: {error}\nagain: python -m tools.fuzz --seed {arguments.seed} --only {number}{data}")
            return 1
    counts = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
    print(f"{len(numbers)} cases in {time.perf_counter() - start:.1f} s, seed {arguments.seed}: {counts}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
