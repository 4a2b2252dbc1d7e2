"""What can be said of generated texts without a classifier: how far labels lie apart, who repeats whom, who copies.

Distances are of word rows of length 1 (`utils.genalign.classifier.features`), which no training moves, so that texts
cannot come nearer to each other but by their words. Shapes as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.genalign.classifier import words_of_text

Vector = NDArray[np.float64]

REPEATED = 0.7
"""Texts of one label that share so much of their three-word sequences (Jaccard) count as one."""
SAME_WORDS = 0.9
"""The same for their words in any order."""
COPIED = 0.5
"""A text with so large a share of its four-word sequences from the shown texts is a copy."""


def distances(x: Any, y: NDArray[np.int64]) -> tuple[Vector, Vector]:
    """(inter, intra) [_N]: mean cosine distance of each text to the other labels' centroids, and to its own.

    Its own centroid is that of the label's other texts; both are 0 where there are none, so that nothing is gained by
    being alone.
    """
    inter, intra = np.zeros(len(y)), np.zeros(len(y))
    labels = np.unique(y)
    sums = {label: np.asarray(x[y == label].sum(axis=0)).ravel() for label in labels}
    for label in labels:
        rows = np.flatnonzero(y == label)
        own = x[rows]
        others = [_cosine_distance(own, sums[other]) for other in labels if other != label]
        if others:
            inter[rows] = np.mean(others, axis=0)
        if len(rows) > 1:
            rest = sums[label][None, :] - own.toarray()
            intra[rows] = 1 - _rowwise(own, rest)
    return inter, intra


def _cosine_distance(rows: Any, centre: Vector) -> Vector:
    norm = np.linalg.norm(centre)
    product: Vector = np.asarray(rows @ centre).ravel()
    return 1 - product / norm if norm else np.ones(rows.shape[0])


def _rowwise(rows: Any, centres: Vector) -> Vector:
    norms = np.linalg.norm(centres, axis=1)
    products = np.asarray(rows.multiply(centres).sum(axis=1)).ravel()
    result: Vector = np.divide(products, norms, out=np.zeros(len(norms)), where=norms > 0)
    return result


def silhouette(x: Any, y: NDArray[np.int64], metric: str) -> float:
    """Mean silhouette (Rousseeuw 1987), -1 to 1, by `cosine` or `euclidean` distances; 0 where it is not defined."""
    from sklearn.metrics import silhouette_score

    if not 1 < len(np.unique(y)) < len(y):
        return 0.0
    return float(silhouette_score(x, y, metric=metric))


def repeats(texts: Sequence[str], y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a text says what an earlier one of its label has said [_N]: its sequences of words, or nearly all words.

    The first of them is none: taking all for repetitions would make one good text, said twice, worth less than noise.
    """
    grams = [_grams(text, 3) for text in texts]
    bags = [_grams(text, 1) for text in texts]
    found = np.zeros(len(texts), dtype=bool)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        for place, i in enumerate(rows):
            found[i] = any(
                _jaccard(grams[i], grams[j]) >= REPEATED or _jaccard(bags[i], bags[j]) >= SAME_WORDS
                for j in rows[:place]
            )
    return found


def copies(text: str, shown: Sequence[str]) -> bool:
    """Whether the text is a copy of one of those, or put together from them."""
    own = _grams(text, 4)
    theirs = set().union(*(_grams(other, 4) for other in shown))
    return bool(own) and len(own & theirs) / len(own) >= COPIED


def distinct(texts: Sequence[str], size: int) -> float:
    """Distinct-n (Li et al. 2016, arXiv:1510.03055): different sequences of `size` words per sequence."""
    every = [
        tuple(words[i : i + size]) for text in texts if (words := text.lower().split()) for i in _starts(words, size)
    ]
    return len(set(every)) / len(every) if every else 0.0


def balance(y: NDArray[np.int64], classes: int) -> float:
    """Entropy of the labels relative to that of equally many: 1 is balanced, 0 a single label."""
    shares = np.bincount(y, minlength=classes) / max(1, len(y))
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(classes)) + 0.0


def _starts(words: Sequence[str], size: int) -> range:
    return range(len(words) - size + 1)


def _grams(text: str, size: int) -> set[tuple[str, ...]]:
    """Sequences of `size` words; of a shorter text, the text itself."""
    words = words_of_text(text)
    return {tuple(words[i : i + size]) for i in _starts(words, size)} or ({tuple(words)} if words else set())


def _jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    both = len(one & other)
    return both / (len(one) + len(other) - both) if both else 0.0
