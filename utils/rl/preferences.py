"""Preference pairs from scored candidates: which answer is preferred to which, made fair in length, split by prompt.

For each prompt the first of these rules that gives a pair gives all of its pairs:

    correct  a correct candidate to a wrong one
    gold     the gold program to a wrong candidate, where no candidate is correct and a program is known
    score    a candidate to one that pays less, where all are wrong (or all correct, but for their format)

A chosen answer is always in valid format, and pays at least `min_margin` more than the rejected one. Answers to one
prompt that are equal letter by letter count once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.candidates import read_candidates, read_scores
from utils.errors import UserError
from utils.seeds import generator
from utils.settings import PairSettings

TRAIN, HELD_OUT = "train", "held_out"
PAIRS_EXPECTED = 10_000
"""Below this many pairs, stats.txt says that the scale is small."""


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt: `tokens` with the end of text, `valid` when its format can be read."""

    text: str
    tokens: int
    score: float
    correct: bool
    valid: bool


@dataclass(frozen=True)
class Pair:
    """One line of pairs.jsonl: `margin` is the difference of the scores, `split` train or held_out."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    split: str
    rule: str
    chosen_score: float
    rejected_score: float
    margin: float
    chosen_tokens: int
    rejected_tokens: int
    rejected_valid: bool

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self)

    @property
    def longer(self) -> int:
        """Tokens by which the chosen answer is longer."""
        return self.chosen_tokens - self.rejected_tokens


def pairs_of(
    name: str, prompt: str, answers: Sequence[Answer], gold: Answer | None, settings: PairSettings, seed: int
) -> list[Pair]:
    """The pairs of one prompt, at most `pairs_per_prompt`; `gold` None where no program is known.

    Answers take turns: the next pair is one whose answers stand in the fewest pairs so far, among those the one of the
    most equal lengths, among those one by the seed.
    """
    distinct = list({answer.text: answer for answer in reversed(answers)}.values())[::-1]
    rule, options = _options(distinct, gold, settings)
    order = generator(seed, "pairs", name).permutation(len(options)).tolist()
    left = [options[i] for i in order]
    uses: dict[str, int] = {}
    taken: list[tuple[Answer, Answer]] = []
    while left and len(taken) < settings.pairs_per_prompt:
        best = min(left, key=lambda pair: (sum(uses.get(one.text, 0) for one in pair), _difference(pair)))
        left.remove(best)
        taken.append(best)
        for one in best:
            uses[one.text] = uses.get(one.text, 0) + 1
    return [_pair(name, prompt, chosen, rejected, rule) for chosen, rejected in taken]


def _options(
    answers: Sequence[Answer], gold: Answer | None, settings: PairSettings
) -> tuple[str, list[tuple[Answer, Answer]]]:
    """Every pair of the first rule that gives one, and the rule's name; ("", []) when none does."""
    right = [answer for answer in answers if answer.correct]
    wrong = [answer for answer in answers if not answer.correct]
    choices = {
        "correct": (right, wrong),
        "gold": ([gold] if gold is not None and not right else [], wrong),
        "score": (answers, answers) if not (right and wrong) else ([], []),
    }
    for rule, (better, worse) in choices.items():
        if rule in settings.rules:
            found = [(a, b) for a in better for b in worse if a.valid and _wins(a, b, settings.min_margin)]
            if found:
                return rule, found
    return "", []


def _wins(a: Answer, b: Answer, margin: float) -> bool:
    # 1.0 - 0.9 is a little below 0.1
    return a.text != b.text and a.score > b.score and a.score - b.score >= margin - 1e-9


def _difference(pair: tuple[Answer, Answer]) -> int:
    return abs(pair[0].tokens - pair[1].tokens)


def _pair(name: str, prompt: str, chosen: Answer, rejected: Answer, rule: str) -> Pair:
    return Pair(
        id=name, prompt=prompt, chosen=chosen.text, rejected=rejected.text, split=TRAIN, rule=rule,
        chosen_score=chosen.score, rejected_score=rejected.score, margin=round(chosen.score - rejected.score, 12),
        chosen_tokens=chosen.tokens, rejected_tokens=rejected.tokens, rejected_valid=rejected.valid,
    )  # fmt: skip


def length_bias(pairs: Sequence[Pair]) -> float:
    """By how much chosen answers are longer than rejected ones, as a share of the mean length; 0 without pairs."""
    both = sum(pair.chosen_tokens + pair.rejected_tokens for pair in pairs)
    return 2 * sum(pair.longer for pair in pairs) / both if both else 0.0


def balanced(pairs: Sequence[Pair], max_bias: float) -> list[Pair]:
    """The pairs without those that make chosen answers systematically longer (or shorter) than rejected ones.

    DPO's margin grows with every token by which two answers differ, so that length alone can be learned (Park et al.
    2024, arXiv:2403.19159). The largest differences on the heavier side go first, until |length_bias| <= `max_bias`.
    """
    order = sorted(range(len(pairs)), key=lambda i: pairs[i].longer)
    longer = sum(pair.longer for pair in pairs)
    both = sum(pair.chosen_tokens + pair.rejected_tokens for pair in pairs)
    while order and 2 * abs(longer) > max_bias * both:
        gone = pairs[order.pop(-1 if longer > 0 else 0)]
        longer -= gone.longer
        both -= gone.chosen_tokens + gone.rejected_tokens
    return [pairs[i] for i in sorted(order)]


def split_by_prompt(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """The pairs with their split: of a `share` of the prompts (one at least, never all) every pair is held out."""
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1) if share else 0
    order = generator(seed, "held-out prompts").permutation(len(prompts))
    held_out = {prompts[i] for i in order[:count]}
    return [replace(pair, split=HELD_OUT if pair.prompt in held_out else TRAIN) for pair in pairs]


def figures(pairs: Sequence[Pair], made: Sequence[Pair]) -> dict[str, float]:
    """What the manifest and stats.txt say of the pairs; `made` are those before the lengths were balanced."""
    train = [pair for pair in pairs if pair.split == TRAIN]
    held_out = [pair for pair in pairs if pair.split == HELD_OUT]
    return {
        "pairs": len(pairs),
        "train_pairs": len(train),
        "held_out_pairs": len(held_out),
        "prompts_with_pairs": len({pair.prompt for pair in pairs}),
        **{f"pairs_by_rule_{rule}": sum(pair.rule == rule for pair in pairs) for rule in ("correct", "gold", "score")},
        "mean_margin": float(np.mean([pair.margin for pair in pairs])),
        "least_margin": min(pair.margin for pair in pairs),
        "rejected_parse_rate": float(np.mean([pair.rejected_valid for pair in pairs])),
        "chosen_tokens": float(np.mean([pair.chosen_tokens for pair in pairs])),
        "rejected_tokens": float(np.mean([pair.rejected_tokens for pair in pairs])),
        "length_bias_before": length_bias(made),
        "length_bias": length_bias(pairs),
        "length_bias_train": length_bias(train),
        "length_bias_held_out": length_bias(held_out),
        "dropped_for_length": len(made) - len(pairs),
    }


def histogram(title: str, values: Sequence[float], width: int = 50, most_bins: int = 12) -> list[str]:
    """Lines of a histogram, a bin each; where few values occur each has its own bin."""
    points = sorted({round(value, 6) for value in values})
    if len(points) <= most_bins:
        counts = [sum(round(value, 6) == point for value in values) for point in points]
        names = [f"{point:g}" for point in points]
    else:
        found, edges = np.histogram(values, bins=most_bins)
        counts = found.tolist()
        names = [f"{low:.3g} to {high:.3g}" for low, high in zip(edges, edges[1:], strict=False)]
    wide, most = max(map(len, names)), max(counts)
    bars = [
        f"  {name:>{wide}} {count:7d} {'#' * -(-width * count // most)}"
        for name, count in zip(names, counts, strict=True)
    ]
    return [title, *(bar.rstrip() for bar in bars)]


def why_none(answers: Sequence[Answer]) -> str:
    """Why a prompt gave no pair."""
    if all(answer.correct for answer in answers):
        return "every candidate correct"
    right = any(answer.correct for answer in answers)
    return "no candidate better than another" if right else "no candidate correct"


def statistics(pairs: Sequence[Pair], report: Mapping[str, float], outcomes: Mapping[str, int]) -> str:
    """stats.txt: the figures, what became of the prompts, histograms of margin and length."""
    lines = [
        f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}" for name, value in report.items()
    ]
    if len(pairs) < PAIRS_EXPECTED:
        lines.append(f"a smaller scale than the usual {PAIRS_EXPECTED:,} pairs: {len(pairs):,}")
    lines += ["", "prompts by the rule of their pairs, or why they have none"]
    lines += [f"  {reason}: {count}" for reason, count in sorted(outcomes.items())]
    lines += ["", *histogram("margin: reward of the chosen minus the rejected answer", [one.margin for one in pairs])]
    lines += ["", *histogram("tokens by which the chosen answer is longer", [one.longer for one in pairs])]
    return "\n".join(lines) + "\n"


def read_scored(candidates: Path, scores: Path) -> list[dict[str, Any]]:
    """{"line", "id", "prompt", "cands", "totals"} per prompt, from stage 04's two files.

    UserError with file:line for what does not fit together.
    """
    rows, paid = read_candidates(candidates), read_scores(scores)
    if len(rows) != len(paid):
        raise UserError(f"{scores}: has {len(paid)} lines, but {candidates.name} {len(rows)}; run 04 again")
    result = []
    for (line, row), (place, score) in zip(rows, paid, strict=True):
        if row["id"] != score["id"] or not len(row["cands"]) == len(score["totals"]) > 0:
            raise UserError(f"{scores}:{place}: expected the scores of record {row['id']}, one for each candidate")
        result.append({"line": line, **row, "totals": score["totals"]})
    return result
