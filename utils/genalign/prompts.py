"""Prompts that ask for a text of a label, after examples from the pool (in-context learning).

    label: sports
    text: the captain won the final match despite the cold
    label: world
    text:

Three ways to choose the examples: `random` from the whole pool; `balanced`, each label equally often, the asked one
last; `diverse`, each the one that is least like those chosen before, by the words they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.random import Generator

from utils.genalign.records import Golden

STRATEGIES = ("random", "balanced", "diverse")
CANDIDATES = 24
"""Random texts of the pool among which `diverse` chooses: of the whole pool it would always take the same."""


def choose_examples(pool: Sequence[Golden], label: str, count: int, strategy: str, rng: Generator) -> list[Golden]:
    """`count` texts of the pool to show before a text of `label` is asked for, none twice (fewer in a smaller pool)."""
    order = [pool[i] for i in rng.permutation(len(pool))]
    if not count:
        return []
    if strategy == "balanced":
        return _balanced(order, label, count, rng)
    if strategy == "diverse":
        return _diverse(order[: max(count, CANDIDATES)], count)
    return order[:count]


def _balanced(order: Sequence[Golden], label: str, count: int, rng: Generator) -> list[Golden]:
    """The labels in random order, the asked one last, again and again from the end."""
    labels = sorted({one.label for one in order} - {label})
    turn = [labels[i] for i in rng.permutation(len(labels))] + [label]
    by_label = {name: [one for one in order if one.label == name] for name in turn}
    chosen: list[Golden] = []
    while len(chosen) < min(count, len(order)):
        for name in reversed(turn):
            if by_label[name] and len(chosen) < count:
                chosen.append(by_label[name].pop())
    return chosen[::-1]


def _diverse(candidates: Sequence[Golden], count: int) -> list[Golden]:
    """The first, then each the farthest from its nearest chosen one."""
    words = [set(one.text.lower().split()) for one in candidates]
    chosen = [0]
    while len(chosen) < min(count, len(candidates)):
        rest = [i for i in range(len(candidates)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (min(_distance(words[i], words[j]) for j in chosen), -i)))
    return [candidates[i] for i in chosen]


def _distance(one: set[str], other: set[str]) -> float:
    """Jaccard's."""
    return 1 - len(one & other) / max(1, len(one | other))


def render(examples: Sequence[Golden], label: str) -> str:
    """The prompt; what the model writes behind it, up to the end of the line, is a text of the label."""
    shown = "".join(f"label: {one.label}\ntext: {one.text}\n" for one in examples)
    return f"{shown}label: {label}\ntext:"


def text_of(completion: str) -> str:
    """The text in a completion: its first line that is not empty, white space made single."""
    lines = (" ".join(line.split()) for line in completion.splitlines())
    return next((line for line in lines if line), "")


def is_one_line(completion: str) -> bool:
    """Whether nothing stands behind that line."""
    return sum(bool(line.strip()) for line in completion.splitlines()) <= 1


def make_rows(
    part: str,
    count: int,
    pool: Sequence[Golden],
    labels: Sequence[str],
    examples: int,
    strategy: str,
    rng: Generator,
) -> list[dict[str, Any]]:
    """Rows of stage 01: `count` prompts, labels in turn, each with a pool text of its label that it does not show.

    All of a label's texts are targets equally often.
    """
    rows = []
    left: dict[str, list[Golden]] = {label: [] for label in labels}
    for index in range(count):
        label = labels[index % len(labels)]
        own = [one for one in pool if one.label == label]
        if not left[label]:
            left[label] = [own[i] for i in rng.permutation(len(own))]
        target = left[label].pop()
        shown = choose_examples([one for one in pool if one is not target], label, examples, strategy, rng)
        rows.append(
            {
                "id": f"{part}-{index}",
                "input_text": render(shown, label),
                "target_text": f" {target.text}",
                "label": label,
                "part": part,
            }
        )
    return rows
