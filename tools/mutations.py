"""Random changes of programs and completions, as a policy in training could make them and worse."""

from __future__ import annotations

import json
import random

from utils.finqa.examples import FinQAExample
from utils.finqa.program import OPERATIONS
from utils.rewards.corpus import attacks

ARGUMENTS: tuple[str, ...] = (
    *("0", "1", "-1", "100", ".5", "12%", "-3.5", "1,234", "1e6", "nan", "inf", "1_0", "$5", "(5)", "5.", "", " ", "%"),
    *("const_1", "const_100", "const_m1", "const_1.5", "const_", "none", "yes", "#0", "#1", "#2", "-#0", "#", "#99"),
    *("9" * 18, "9" * 40, "0.00001", "\u0661", "\uff11", "1\x00", "add(1, 1)", "a|b", "x" * 200),
)
"""What an argument may become: numbers, what looks like one, constants, references, and nonsense."""
PIECES: tuple[str, ...] = (
    *("(", ")", ", ", ",", "#", " ", "\n", '"', "\\", "{", "}", "[", "]", ":", "%", "-", ".", "0", "9", "e", "\x00"),
    *("\ud800", "\u200b", "\U0001f4b0", "null", "NaN", "program", "answer", "EOF", "table_max", "add", "1e999"),
)
"""What may be put into a text."""


def mutate_program(rng: random.Random, program: str) -> str:
    """Return the program with one change: an operation, argument or step, or any characters."""
    steps = program.split("), ")
    at = rng.randrange(len(steps))
    op, opening, inside = steps[at].partition("(")
    args = inside.removesuffix(")").split(", ")
    match rng.randrange(9):
        case 0:
            steps[at] = f"{rng.choice(OPERATIONS)}{opening}{inside}"
        case 1:
            steps[at] = f"{op}({', '.join(reversed(args))}" + ")" * (at == len(steps) - 1)
        case 2:
            args[rng.randrange(len(args))] = rng.choice(ARGUMENTS)
            steps[at] = f"{op}({', '.join(args)}" + ")" * (at == len(steps) - 1)
        case 3:
            steps.insert(at, steps[at].removesuffix(")"))
        case 4 if len(steps) > 1:
            del steps[at]
        case 5:
            return f"{program}, {rng.choice(OPERATIONS)}(#{len(steps) - 1}, {rng.choice(ARGUMENTS)})"
        case 6:
            return f"{rng.choice(OPERATIONS)}({rng.choice(ARGUMENTS)}, {rng.choice(ARGUMENTS)}), {program}"
        case 7:
            return ", ".join([program] * rng.choice((2, 3, 12)))
        case _:
            return mutate_text(rng, program)
    return "), ".join(steps)


def mutate_text(rng: random.Random, text: str) -> str:
    """Return the text with one change at random places: put in, taken out, replaced, doubled, cut or turned."""
    start = rng.randrange(len(text) + 1)
    end = min(len(text), start + rng.choice((0, 0, 1, 1, 2, 5, 40)))
    match rng.randrange(7):
        case 0:
            return text[:start] + rng.choice(PIECES) + text[end:]
        case 1:
            return text[:start] + text[end:]
        case 2:
            return text[:end] + text[start:]
        case 3:
            return text[:start]
        case 4:
            return text[start:] + text[:start]
        case 5:
            return text[:start] + rng.choice(PIECES) * rng.choice((1, 2, 50, 2000)) + text[start:]
        case _:
            return rng.choice((text.upper(), text.swapcase(), text[::-1], text + text, text.replace(" ", "")))


def mutate_completion(rng: random.Random, program: str, answer: str, example: FinQAExample) -> str:
    """Return a completion around a program: the format as it should be, another one, or an attack."""
    values = {"program": program, "answer": rng.choice((answer, answer, example.target_answer, rng.choice(ARGUMENTS)))}
    match rng.randrange(8):
        case 0:
            text = json.dumps(values, indent=rng.choice((1, 4, "\t")), sort_keys=True)
        case 1:
            values[rng.choice(("program", "answer", "why", "Program"))] = rng.choice(ARGUMENTS)
            text = json.dumps(values)
        case 2:
            text = json.dumps({**values, rng.choice(("program", "answer")): rng.choice((None, 1, [program], {}, True))})
        case 3:
            text = rng.choice(("{text}", "```json\n{text}\n```", "Answer: {text}", "[{text}]", "{text} {text}"))
            text = text.replace("{text}", json.dumps(values))
        case 4:
            text = rng.choice(attacks(example))[1]
        case _:
            text = json.dumps(values, ensure_ascii=rng.random() < 0.5)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        text = mutate_text(rng, text)
    return text
