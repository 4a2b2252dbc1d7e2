"""What a continuation is worth when it shall be positive: keywords, a preferred ending, a moderate length.

Four parts, each a weight of the specification times

    sentiment   (p - n) / (p + n), where p and n are how many different positive and negative keywords stand in it
                (-1 to 1; 0 without any); a keyword behind a negation, at most four words, counts for the other side
    ending      1 where it ends in one of the preferred endings
    length      -1 to 0: how far, relative to the limits, it has fewer or more words than is moderate
    repetition  -1 where it repeats itself or is a mere list of keywords

Keywords are whole words of the continuation alone: `sad` is not in `crusade`, and what the prompt says counts nothing.
The profiles differ in what a text that is no sentence may earn, because only one of them is safe to optimise:

    seed     1.0 sentiment, 0.5 ending, 0.2 length, no repetition: the parts are simply added up
    strict   1.0 sentiment, 0.2 ending, 0.2 length, 0.2 repetition; a text of immoderate length or without an end, one
             that repeats itself and a list of keywords earn neither sentiment nor ending, and only a positive text
             earns its ending

Criteria of one's own are lines of the file: the lists of words and endings, the limits, the weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError
from utils.files import write_text
from utils.rewards.weights import check_hash, open_spec, parse_weights, pick, weights_in
from utils.tasks.base import Reward

VERSION = 1
"""Raised whenever the same file would score a continuation differently; older files are refused."""
COMPONENTS = ("sentiment", "ending", "length", "repetition")
MAX_REPEATED = 0.4
"""A text with so large a share of words that stood before repeats itself."""
MAX_KEYWORDS = 0.7
"""A text with a larger share of keywords is a list of them."""

_WORD = re.compile(r"\w+(?:'\w+)?")
_END = re.compile(r"[.!?][\"')\s]*$")

POSITIVE = (
    "good", "great", "wonderful", "excellent", "amazing", "happy", "best", "love", "loved", "fantastic", "enjoyable",
    "friendly", "lovely", "nice", "delicious", "beautiful", "pleasant", "perfect",
)  # fmt: skip
NEGATIVE = (
    "bad", "terrible", "awful", "boring", "bored", "sad", "worst", "poor", "hate", "hated", "horrible",
    "disappointing", "rude", "dirty", "ugly", "unpleasant", "broken",
)  # fmt: skip
NEGATIONS = (
    "not", "never", "no", "nothing", "nobody", "none", "hardly", "without", "isn't", "wasn't", "aren't", "weren't",
    "don't", "doesn't", "didn't", "ain't", "can't", "cannot", "isnt", "wasnt", "dont", "doesnt", "didnt", "aint",
)  # fmt: skip
NEGATION_REACH = 4
"""A keyword counts for the other side when a negation is one of so many words before it."""
ENDINGS = ("thank you .", "we will come again .")


@dataclass(frozen=True)
class SentimentSpec:
    """One reward. Range of the total with all weights at their part's extremes: see `range_line`."""

    profile: str
    weights: Mapping[str, float]
    positive: tuple[str, ...] = POSITIVE
    negative: tuple[str, ...] = NEGATIVE
    negations: tuple[str, ...] = NEGATIONS
    endings: tuple[str, ...] = ENDINGS
    min_words: int = 4
    max_words: int = 16
    version: int = field(default=VERSION)

    def __post_init__(self) -> None:
        if not math.isfinite(sum(self.weights.values())):
            raise ValueError(f"weights must have a finite sum; got {dict(self.weights)}")
        if set(self.weights) != set(COMPONENTS):
            raise ValueError(f"weights must be {', '.join(COMPONENTS)}; got {dict(self.weights)}")
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(f"min_words {self.min_words} and max_words {self.max_words}: expected 1 <= min <= max")
        if both := set(self.positive) & set(self.negative):
            raise ValueError(f"{sorted(both)[0]} is both positive and negative; keep one")
        if not self.positive or not self.negative:
            raise ValueError("positive and negative must each hold a word")
        if not self.weights["sentiment"]:
            raise ValueError("weight sentiment is 0: nothing would tell a positive text from a negative one")

    @property
    def hash(self) -> str:
        """Sha256 of everything that decides a score."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    @property
    def judge_hash(self) -> str:
        """Sha256 of what decides whether a text reads as positive: all but profile and weights."""
        content = {key: value for key, value in self._content().items() if key not in ("profile", "weights")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {"version": self.version, "kind": "sentiment", "profile": self.profile}
        content |= {name: list(getattr(self, name)) for name in LISTS}
        content |= {name: getattr(self, name) for name in LIMITS}
        return {**content, "weights": {name: float(self.weights[name]) for name in COMPONENTS}}

    def save(self, path: Path) -> None:
        """Write the YAML file, keys in fixed order, so that `diff` compares two runs."""
        content = yaml.safe_dump({**self._content(), "hash": self.hash}, sort_keys=False)
        write_text(path, "# How continuations are paid; utils/rewards/sentiment.py explains the keys.\n" + content)

    @cached_property
    def _ends(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(_words(ending)) for ending in self.endings)

    def has_ending(self, words: list[str]) -> bool:
        """Whether the words of a text end in those of a preferred ending."""
        return any(ending and tuple(words[-len(ending) :]) == ending for ending in self._ends)


LISTS = ("positive", "negative", "negations", "endings")
LIMITS = ("min_words", "max_words")
KEYS = ("version", "kind", "profile", *LISTS, *LIMITS, "weights", "hash")

PROFILES: dict[str, SentimentSpec] = {
    "strict": SentimentSpec("strict", {"sentiment": 1.0, "ending": 0.2, "length": 0.2, "repetition": 0.2}),
    "seed": SentimentSpec("seed", {"sentiment": 1.0, "ending": 0.5, "length": 0.2, "repetition": 0.0}),
}

FAILURES = {
    "empty": "no word",
    "too_short": "fewer words than min_words",
    "too_long": "more words than max_words",
    "unfinished": "no . ! or ? at its end: cut off, or no sentence",
    "repetitive": "it repeats itself, or is a list of keywords",
    "no_keyword": "nothing positive or negative in it",
    "mixed": "as many positive as negative keywords",
    "negative": "more negative than positive keywords",
}
"""Why a continuation does not read as positive, the first that holds."""


@dataclass(frozen=True)
class Reading:
    """What stands in a continuation; `failure` is "" where it reads as positive and is well formed."""

    words: int
    sentiment: float
    ending: bool
    excess: float
    repetitive: bool
    finished: bool
    failure: str

    @property
    def well_formed(self) -> bool:
        """Of moderate length, with an end, and a text rather than a list or a loop."""
        return not self.excess and not self.repetitive and self.finished


def read_continuation(text: str, spec: SentimentSpec) -> Reading:
    """Read one continuation; never raises, whatever the text is."""
    words = _words(text)
    found: dict[str, set[str]] = {"positive": set(), "negative": set()}
    hits = 0
    for place, word in enumerate(words):
        side = "positive" if word in spec.positive else "negative" if word in spec.negative else ""
        if side:
            hits += 1
            if set(words[max(0, place - NEGATION_REACH) : place]) & set(spec.negations):
                side = "negative" if side == "positive" else "positive"
            found[side].add(word)
    p, n = len(found["positive"]), len(found["negative"])
    sentiment = (p - n) / (p + n) if p + n else 0.0
    count = len(words)
    repeated = 1 - len(set(words)) / count if count else 0.0
    repetitive = repeated >= MAX_REPEATED or (count > 0 and hits / count > MAX_KEYWORDS)
    finished = bool(_END.search(text))
    failure = _failure(count, p, n, repetitive, finished, spec)
    return Reading(count, sentiment, spec.has_ending(words), _excess(count, spec), repetitive, finished, failure)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def _excess(count: int, spec: SentimentSpec) -> float:
    """0 for a moderate length, up to 1 for no word and for twice too many."""
    if count < spec.min_words:
        return (spec.min_words - count) / spec.min_words
    return min(1.0, max(0, count - spec.max_words) / spec.max_words)


def _failure(count: int, p: int, n: int, repetitive: bool, finished: bool, spec: SentimentSpec) -> str:
    reasons = {
        "empty": not count,
        "too_short": count < spec.min_words,
        "too_long": count > spec.max_words,
        "unfinished": not finished,
        "repetitive": repetitive,
        "no_keyword": not p + n,
        "mixed": p == n,
        "negative": p < n,
    }
    return next((name for name, holds in reasons.items() if holds), "")


def mood(text: str, spec: SentimentSpec) -> str:
    """`positive`, `negative`, or `neutral` for as much of the one as of the other."""
    sentiment = read_continuation(text, spec).sentiment
    return "positive" if sentiment > 0 else "negative" if sentiment < 0 else "neutral"


def score_text(text: str, spec: SentimentSpec) -> Reward:
    """Pay one continuation. The components sum to the total; the reason is the failure."""
    reading = read_continuation(text, spec)
    gated = spec.profile == "strict" and not reading.well_formed
    ending = reading.ending and not (gated or (spec.profile == "strict" and reading.sentiment <= 0))
    parts = {
        "sentiment": spec.weights["sentiment"] * (min(0.0, reading.sentiment) if gated else reading.sentiment),
        "ending": spec.weights["ending"] * ending,
        "length": -spec.weights["length"] * reading.excess,
        "repetition": -spec.weights["repetition"] * reading.repetitive,
    }
    parts = {name: value + 0.0 for name, value in parts.items()}  # minus zero is zero
    return Reward(sum(parts.values()), parts, (reading.failure,) if reading.failure else ())


def range_line(spec: SentimentSpec) -> str:
    """What the terminal says of the range."""
    weights = spec.weights
    lowest = weights["sentiment"] + weights["length"] + weights["repetition"]
    highest = weights["sentiment"] + weights["ending"]
    return f"from {-lowest:g} to {highest:g}; in profile strict only well-formed positive texts earn more than 0"


def load_spec(path: Path) -> SentimentSpec:
    """Read a reward_spec.yaml. Errors: UserError with file, line and key; what is missing is the profile's."""
    file = open_spec(path, "sentiment", VERSION, KEYS, COMPONENTS)
    base = profile_of(file.data.get("profile"), file.where("profile"))
    changes: dict[str, Any] = {"weights": {**base.weights, **weights_in(file, COMPONENTS)}}
    for name in (name for name in LISTS if name in file.data):
        changes[name] = _texts(file.data[name], file.where(name), name)
    for name in (name for name in LIMITS if name in file.data):
        value = file.data[name]
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{file.where(name)}: {name} must be a whole number, got {value!r:.60}")
        changes[name] = value
    spec = _with(base, changes, str(path))
    check_hash(file, spec.hash)
    return spec


def _texts(value: object, where: str, name: str) -> tuple[str, ...]:
    """Words as they are compared: lower case, one word each (endings: several)."""
    if not isinstance(value, list) or not all(isinstance(one, str) and _words(one) for one in value):
        raise UserError(f"{where}: {name} must be a list of texts with a word each, got {value!r:.60}")
    if name != "endings":
        for one in value:
            if _words(one) != [one]:
                raise UserError(f"{where}: {name} holds {one!r}, expected single words in lower case")
    return tuple(value)


def profile_of(name: object, where: str) -> SentimentSpec:
    """Return a shipped profile by name. Errors: UserError with the nearest name."""
    return pick(PROFILES, name, where)


def override(spec: SentimentSpec, text: str) -> SentimentSpec:
    """Return the spec with weights such as `sentiment=1.0,ending=0` put in; empty text changes nothing."""
    return _with(spec, {"weights": {**spec.weights, **parse_weights(text, COMPONENTS)}}, "--weights")


def _with(spec: SentimentSpec, changes: Mapping[str, Any], where: str) -> SentimentSpec:
    try:
        return replace(spec, **changes)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
