"""Completions that hold the reward to its word: cases with hand-computed pay, attacks, and perturbations of gold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_jsonl, read_yaml
from utils.finqa.answers import format_answer, write_answer
from utils.finqa.examples import FinQAExample
from utils.finqa.program import ARITHMETIC, TABLE, Step, parse
from utils.rewards.cases import Case
from utils.rewards.spec import COMPONENTS, RewardSpec

FOLDER = Path(__file__).resolve().parent


@cache
def _file() -> dict[str, Any]:
    return read_yaml(FOLDER / "cases.yaml").data


def case_example() -> FinQAExample:
    """The record that cases and attacks are scored on."""
    facts = _file()["example"]
    prompt = f"the net revenue of 2008 is 5829 ; the net revenue of 2007 is 5735 ;\nquestion: {facts['question']}"
    return FinQAExample(
        id=facts["id"],
        input_text=prompt,
        target_answer=format_answer(facts["exe_ans"]),
        target_program=facts["program"],
        question=facts["question"],
        exe_ans=facts["exe_ans"],
        target_text=write_answer(facts["program"], facts["exe_ans"]),
        table=tuple(tuple(row) for row in facts["table"]),
    )


def cases(spec: RewardSpec, example: FinQAExample) -> list[Case]:
    """Return the hand-computed cases with their pay under `spec`, then the attacks."""
    found = []
    for case in _file()["cases"]:
        expected = {name: spec.weights[name] * case["pays"].get(name, 0) for name in COMPONENTS}
        expected["format"] = spec.weights["format"] * case["format"][spec.profile]
        found.append(Case(case["name"], case["text"], expected))
    return found + [Case(f"attack: {name}", text, None) for name, text in attacks(example)]


def attacks(example: FinQAExample) -> list[tuple[str, str]]:
    """Return (name, completion) of the adversarial corpus; echoes, answers and gold are those of `example`."""
    known = {
        "{prompt}": example.input_text,
        "{question}": example.question,
        "{answer}": example.target_answer,
        "{program}": example.target_program or "",
        "{target}": example.target_text or "",
    }
    found = []
    for title, text in _written_attacks():
        for name, value in known.items():
            text = text.replace(name, value)
        found.append((title, text))
    return found


@cache
def _written_attacks() -> list[tuple[str, str]]:
    return [(row["name"], row["text"]) for row in read_jsonl(FOLDER / "adversarial.jsonl")]


def perturbations(example: FinQAExample) -> Iterator[tuple[str, str]]:
    """Yield (name, completion) that differ from gold in one way; some keep its value, none may earn more than gold.

    Errors: UserError when the example has no gold program.
    """
    if example.target_program is None or example.target_text is None:
        raise UserError(f"record {example.id}: perturbations start from a gold program, and it has none")
    steps = parse(example.target_program)
    for name, program in _program_changes(steps):
        if program != example.target_program:
            yield name, write_answer(program, example.exe_ans)
    yield from _text_changes(example.target_text, example.target_program)


def _program_changes(steps: Sequence[Step]) -> Iterator[tuple[str, str]]:
    for index, step in enumerate(steps):
        for op in TABLE if step.op in TABLE else ARITHMETIC:
            yield f"step {index}: {op}", _replaced(steps, index, Step(op, step.args))
        yield f"step {index}: swapped", _replaced(steps, index, Step(step.op, (step.args[1], step.args[0])))
        for place, arg in enumerate(step.args):
            for changed in (f"-{arg}", f"{arg}0", f"{arg}%", "const_100", "1", "#9"):
                args = (changed, step.args[1]) if place == 0 else (step.args[0], changed)
                yield f"step {index}: argument {place} {changed}", _replaced(steps, index, Step(step.op, args))
    text = ", ".join(map(str, steps))
    yield "last step twice", f"{text}, {steps[-1]}"
    yield "last step lost", ", ".join(map(str, steps[:-1]))
    yield "first step lost", ", ".join(map(str, steps[1:]))
    yield "last bracket lost", text[:-1]
    yield "a dead step in front", f"add(1, 1), {text}"
    yield "times hundred", f"{text}, multiply(#{len(steps) - 1}, const_100)"
    yield "four percent more", f"{text}, multiply(#{len(steps) - 1}, 1.04)"
    yield "upper case", text.upper()


def _replaced(steps: Sequence[Step], index: int, step: Step) -> str:
    return ", ".join(str(step if place == index else other) for place, other in enumerate(steps))


def _text_changes(target: str, program: str) -> Iterator[tuple[str, str]]:
    yield "cut in half", target[: len(target) // 2]
    yield "last character lost", target[:-1]
    yield "twice", target + target
    yield "text behind", f"{target} done"
    yield "text in front", f"answer: {target}"
    yield "program alone", program
    yield "no answer", json.dumps({"program": program})
    yield "answer in words", json.dumps({"program": program, "answer": "about that"})
    yield "additional key", json.dumps({"program": program, "answer": "0", "why": "because"})
