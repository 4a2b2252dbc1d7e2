"""What a set of labelled texts is worth, and what each text in it: how well a classifier learns from them.

All texts of a rollout batch train one classifier, which is scored on golden texts. Seven parts, each a weight of the
specification times

    golden      1 - loss / log(labels), at least -1: the classifier's golden loss against one that knows nothing; the
                same for every text of the set, so that an advantage within a group does not see it: it says what the
                set is worth, and is what a text loses that earns nothing
    credit      what this text adds to it: by how much the golden loss would rise without it, times the number of texts,
                relative to log(labels), from -1 to 1 (`utils.genalign.classifier`)
    inter       its distance to the other labels' texts, 0 to 1
    intra       minus its distance to its own label's texts, 0 to 1
    label       -1 where a classifier that has learned from the pool takes it for another label than was asked for
    copy        -1 for a copy of a text in its prompt, or of pieces of several
    repetition  -1 for a text that an earlier one of the set has said

Every scale is fixed: the same texts are always paid the same, whatever came before. The profiles:

    seed     1 golden, 1 inter, 1 intra, nothing else: the formula of GenAlign, reward = w1 inter - w2 intra - w3 loss.
             Copies and one sentence again and again are paid
    strict   0.5 golden, 3 credit, 0.1 inter, 0.1 intra, 0.5 label, 1 copy, 0.3 repetition; a copy, a repetition, a text
             of another label, of fewer than three words or without an end earns none of the parts that pay
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from utils.errors import UserError
from utils.files import write_text
from utils.genalign.classifier import Classifier, features, golden_loss, train, words_of_text
from utils.genalign.quality import copies, distances, repeats
from utils.rewards.weights import check_hash, open_spec, parse_weights, pick, weights_in
from utils.tasks.base import Reward

VERSION = 1
COMPONENTS = ("golden", "credit", "inter", "intra", "label", "copy", "repetition")
KEYS = ("version", "kind", "profile", "weights", "hash")
MIN_WORDS = 3


@dataclass(frozen=True)
class Labelled:
    """A generated text with the label that was asked for, and the texts its prompt showed."""

    text: str
    label: str
    shown: tuple[str, ...] = ()
    whole: bool = True
    """Not cut off, and nothing behind its line."""


@dataclass(frozen=True)
class GenAlignSpec:
    """One reward."""

    profile: str
    weights: Mapping[str, float]
    version: int = VERSION

    def __post_init__(self) -> None:
        if not math.isfinite(sum(self.weights.values())):
            raise ValueError(f"weights must have a finite sum; got {dict(self.weights)}")
        if set(self.weights) != set(COMPONENTS):
            raise ValueError(f"weights must be {', '.join(COMPONENTS)}; got {dict(self.weights)}")
        if not self.weights["golden"] and not self.weights["credit"]:
            raise ValueError("weights golden and credit are 0: nothing would tell what texts are good for")

    @property
    def hash(self) -> str:
        """Sha256 of everything that decides a score."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {"version": self.version, "kind": "genalign", "profile": self.profile}
        return {**content, "weights": {name: float(self.weights[name]) for name in COMPONENTS}}

    def save(self, path: Path) -> None:
        """Write the YAML file, keys in fixed order, so that `diff` compares two runs."""
        content = yaml.safe_dump({**self._content(), "hash": self.hash}, sort_keys=False)
        write_text(path, "# How sets of texts are paid; utils/rewards/genalign.py explains the keys.\n" + content)


PROFILES: dict[str, GenAlignSpec] = {
    "strict": GenAlignSpec(
        "strict",
        {"golden": 0.5, "credit": 3.0, "inter": 0.1, "intra": 0.1, "label": 0.5, "copy": 1.0, "repetition": 0.3},
    ),
    "seed": GenAlignSpec(
        "seed",
        {"golden": 1.0, "credit": 0.0, "inter": 1.0, "intra": 1.0, "label": 0.0, "copy": 0.0, "repetition": 0.0},
    ),
}

FAILURES = {
    "unfinished": "cut off, or further lines behind its own",
    "too_short": "fewer than three words",
    "copy": "a copy of a text in the prompt",
    "wrong_label": "a classifier that has learned from the pool takes it for another label",
}
"""Why a single text is not one of its label, the first that holds."""


@dataclass(frozen=True)
class Learned:
    """A classifier that has learned from texts, and what it makes of golden ones; shapes as in the classifier."""

    texts: Sequence[Labelled]
    x: Any
    y: NDArray[np.int64]
    gold: Any
    right: NDArray[np.int64]
    classifier: Classifier
    log_probs: NDArray[np.float64]

    @property
    def loss(self) -> float:
        """The golden loss in nats."""
        return golden_loss(self.log_probs, self.right)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The label of each golden text, by the classifier."""
        return self.classifier.predict(self.gold)

    @property
    def repeated(self) -> NDArray[np.bool_]:
        """Which texts an earlier one has said."""
        return repeats([one.text for one in self.texts], self.y)


def learn(texts: Sequence[Labelled], golden: Sequence[Labelled], labels: Sequence[str]) -> Learned:
    """Train on the texts and look at the golden ones."""
    place = {label: index for index, label in enumerate(labels)}
    x, y = features([one.text for one in texts]), np.array([place[one.label] for one in texts])
    gold, right = features([one.text for one in golden]), np.array([place[one.label] for one in golden])
    classifier = train(x, y, len(labels))
    return Learned(texts, x, y, gold, right, classifier, classifier.log_probs(gold))


def score_set(learned: Learned, pool: Classifier, spec: GenAlignSpec) -> list[Reward]:
    """Pay every text of a batch by what a classifier, trained on all of them, makes of the golden ones.

    `pool`: a classifier that has learned from the pool.
    """
    texts, most = learned.texts, math.log(learned.log_probs.shape[1])
    value = max(-1.0, 1 - learned.loss / most)
    credit = np.clip(len(texts) * learned.classifier.credits(learned.gold, learned.right) / most, -1.0, 1.0)
    inter, intra = distances(learned.x, learned.y)
    repeated = learned.repeated
    other = pool.predict(learned.x) != learned.y
    rewards = []
    for index, one in enumerate(texts):
        shares = {"golden": value, "credit": float(credit[index]), "inter": float(inter[index])}
        shares |= {"intra": -float(intra[index]), "copy": -float(copies(one.text, one.shown))}
        shares |= {"label": -float(other[index]), "repetition": -float(repeated[index])}
        reasons = _reasons(one, shares, spec)
        if spec.profile == "strict" and reasons:
            shares |= {name: min(0.0, shares[name]) for name in ("golden", "credit", "inter")}
        parts = {name: spec.weights[name] * shares[name] + 0.0 for name in COMPONENTS}
        rewards.append(Reward(math.fsum(parts.values()), parts, reasons))
    return rewards


def _reasons(one: Labelled, shares: Mapping[str, float], spec: GenAlignSpec) -> tuple[str, ...]:
    """Why a text earns nothing in profile strict: its form, and each guard that it sets off and that has a weight."""
    form = form_of(one)
    guards = [name for name in ("label", "copy", "repetition") if shares[name] and spec.weights[name]]
    return (form, *guards) if form else tuple(guards)


def form_of(one: Labelled) -> str:
    """`unfinished` or `too_short`, or "" for a text as it should be."""
    if not one.whole:
        return "unfinished"
    return "too_short" if len(words_of_text(one.text)) < MIN_WORDS else ""


def range_line(spec: GenAlignSpec) -> str:
    """What the terminal says of the range."""
    weights = spec.weights
    highest = weights["golden"] + weights["credit"] + weights["inter"]
    return f"from {highest - sum(weights.values()) - weights['golden'] - weights['credit']:g} to {highest:g}"


def load_spec(path: Path) -> GenAlignSpec:
    """Read a reward_spec.yaml. Errors: UserError with file, line and key; missing weights are those of the profile."""
    file = open_spec(path, "genalign", VERSION, KEYS, COMPONENTS)
    base = profile_of(file.data.get("profile"), file.where("profile"))
    spec = _with(base, weights_in(file, COMPONENTS), file.where("weights"))
    check_hash(file, spec.hash)
    return spec


def profile_of(name: object, where: str) -> GenAlignSpec:
    """Return a shipped profile by name. Errors: UserError with the nearest name."""
    return pick(PROFILES, name, where)


def override(spec: GenAlignSpec, text: str) -> GenAlignSpec:
    """Return the spec with weights such as `golden=1,inter=0` put in; empty text changes nothing."""
    return _with(spec, parse_weights(text, COMPONENTS), "--weights")


def _with(spec: GenAlignSpec, weights: Mapping[str, float], where: str) -> GenAlignSpec:
    try:
        return replace(spec, weights={**spec.weights, **weights})
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
