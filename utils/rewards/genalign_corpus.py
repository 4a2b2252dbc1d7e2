"""Small sets of texts that hold the genalign reward to its word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from utils.rewards.genalign import GenAlignSpec, Labelled, learn, score_set
from utils.tasks.base import Reward

LABELS = ("drink", "tool")
GOLDEN = tuple(
    Labelled(text, label)
    for label, words in (("drink", ("tea", "milk", "juice", "water")), ("tool", ("hammer", "saw", "drill", "rake")))
    for word in words
    for text in (f"she bought {word} in town", f"{word} of a good kind")
)
GOOD = (
    Labelled("he took some tea today", "drink"),
    Labelled("fresh milk for the child", "drink"),
    Labelled("some juice came then", "drink"),
    Labelled("cold water every morning", "drink"),
    Labelled("he lost the hammer again", "tool"),
    Labelled("this saw was rather old", "tool"),
    Labelled("the drill made much noise", "tool"),
    Labelled("leave that rake outside please", "tool"),
)


@dataclass(frozen=True)
class SetCase:
    """A set of texts, and what must hold of the rewards that they get."""

    name: str
    texts: Sequence[Labelled]
    expected: str
    holds: Callable[[Sequence[Reward]], bool]


def cases(spec: GenAlignSpec) -> list[SetCase]:
    """Cases of every profile, then, where it is safe to optimise, the attacks: none may earn anything in sum."""
    swapped = [Labelled(one.text, "tool" if one.label == "drink" else "drink") for one in GOOD]
    one_wrong = [*GOOD[:7], Labelled(GOOD[7].text, "drink")]
    found = [
        SetCase("good texts of both labels", GOOD, "golden is at least 0.1 of its weight", _share(spec, "golden", 0.1)),
        SetCase(
            "every label is the other one",
            swapped,
            "golden is below 0, where it has a weight",
            lambda paid: paid[0].components["golden"] < 0 or not spec.weights["golden"],
        ),
        SetCase(
            "one label is wrong",
            one_wrong,
            "the wrong one has the least credit, below 0 where credit is paid",
            lambda paid: _least(paid, "credit") == 7 or not spec.weights["credit"],
        ),
        SetCase(
            "words that no golden text has",
            [Labelled(f"qq{i} rr{i} ss{i} tt{i}", LABELS[i % 2]) for i in range(8)],
            "golden and credit are 0",
            lambda paid: all(abs(one.components[name]) < 1e-6 for one in paid for name in ("golden", "credit")),
        ),
    ]
    attacks = {
        "one sentence per label": [Labelled("tea milk juice water", "drink"), Labelled("hammer saw drill rake", "tool")]
        * 4,
        "copies of the prompt": [Labelled(one.text, one.label, (one.text,)) for one in GOOD],
        "copies with dots between": [Labelled(one.text.replace(" ", " . "), one.label, (one.text,)) for one in GOOD],
        "pieces of two shown texts": [
            Labelled("he took some tea fresh milk for the child", "drink", (GOOD[0].text, GOOD[1].text)),
            Labelled("he lost the hammer this saw was rather old", "tool", (GOOD[4].text, GOOD[5].text)),
        ],
        "signs for words": [Labelled(f"- - {one.label}", one.label) for one in GOOD],
        "words that nobody knows": [Labelled(f"qq{i} rr{i} ss{i} tt{i}", LABELS[i % 2]) for i in range(8)],
        "cut off": [Labelled(one.text, one.label, (), whole=False) for one in GOOD],
        "nothing at all": [Labelled("", one.label) for one in GOOD],
        "two words": [Labelled(" ".join(one.text.split()[-2:]), one.label) for one in GOOD],
        "the label alone": [Labelled(one.label, one.label) for one in GOOD],
    }
    if spec.profile == "strict":
        words = "the set earns nothing in sum"
        found += [SetCase(f"attack: {name}", texts, words, _nothing) for name, texts in attacks.items()]
    return found


def _share(spec: GenAlignSpec, name: str, least: float) -> Callable[[Sequence[Reward]], bool]:
    return lambda paid: all(one.components[name] >= least * spec.weights[name] for one in paid)


def _least(paid: Sequence[Reward], name: str) -> int:
    return min(range(len(paid)), key=lambda index: paid[index].components[name])


def _nothing(paid: Sequence[Reward]) -> bool:
    return sum(one.total for one in paid) <= 0


def pay(texts: Sequence[Labelled], spec: GenAlignSpec) -> list[Reward]:
    """The rewards of a set; the good texts are the pool."""
    pool = learn(GOOD, GOLDEN, LABELS).classifier
    return score_set(learn(texts, GOLDEN, LABELS), pool, spec)


def run(spec: GenAlignSpec) -> list[dict[str, Any]]:
    """Score every case: name, means of components and total, expected, reasons and `passed`."""
    results = []
    for case in cases(spec):
        paid = pay(case.texts, spec)
        means = {name: sum(one.components[name] for one in paid) / len(paid) for name in paid[0].components}
        reasons = sorted({reason for one in paid for reason in one.reasons})
        row = {"name": case.name, "passed": case.holds(paid), "total": sum(one.total for one in paid) / len(paid)}
        results.append({**row, "components": means, "expected": case.expected, "reasons": reasons})
    return results


def written(spec: GenAlignSpec) -> list[dict[str, Any]]:
    """The cases as JSON."""
    return [
        {"name": case.name, "texts": [[one.label, one.text] for one in case.texts], "expected": case.expected}
        for case in cases(spec)
    ]
