"""What speaks for a sentence or table row as evidence for a question: the numbers that the ranker weighs.

Everything follows from the page and the question: no label, no program, no other page. Terms weigh by their rarity on
the page (the idf of `utils.finqa.retrieval.PageIndex`); where a feature is a share, it is one of the question's or of
the label's weight. A row's label (its first cell) is compared for itself, because questions name rows, and what the
best unit leaves open of a question is looked up in the others, because a program mostly needs two amounts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from utils.finqa.prompts import page_units
from utils.finqa.records import Record
from utils.finqa.retrieval import DIGIT, PageIndex, terms

Floats = NDArray[np.float64]

YEAR = re.compile(r"(?:19|20)\d\d")
WORD = re.compile(r"[a-z]+")
GRAM = 4

PAGE_FEATURES = (
    "row", "after_table", "number", "numbers", "dollar", "percent", "year", "total_label", "position", "first", "last",
    "near_table", "rows",
)  # fmt: skip
"""Of the unit alone: kind, figures, place within the text before the table, the table, or the text after it."""

QUESTION_FEATURES = (
    "bm25", "bm25_rank", "bm25_rank_in_kind", "coverage", "precision", "word_pairs", "grams", "label_precision",
    "label_recall", "label_whole", "label_rank", "years_shared", "numbers_shared", "previous", "next", "best_row",
    "best_text", "rest", "rest_rank", "label_rest", "label_likeness",
)  # fmt: skip
"""Of unit and question together; `previous` to `best_text` are other units' BM25, `rest*` what the best leaves open."""

ASKED = {
    "change": "change changed increase decrease growth grow grew decline fluctuate rise rose reduce reduction",
    "percent": "percent percentage portion share proportion rate",
    "average": "average mean",
    "total": "total sum combined aggregate overall",
    "ratio": "ratio relation compared divided",
    "extreme": "range highest maximum minimum lowest largest smallest",
    "condition": "assuming assume expected hypothetical",
}
"""Words of questions, by what they ask for."""

CROSSED = ("row", "bm25", "total_label", "percent")
"""Features that weigh differently by what is asked."""

_BASE = (*PAGE_FEATURES, *QUESTION_FEATURES)
FEATURES = (
    *_BASE,
    *(f"{name} in row" for name in _BASE if name != "row"),
    *(f"{name} for {kind}" for kind in ASKED for name in CROSSED),
)
"""Columns of `PageFeatures.matrix`. Each base feature has a second weight for table rows."""

_ASKED_STEMS = {kind: frozenset(terms(words)) for kind, words in ASKED.items()}


class PageFeatures:
    """The sentences and rows of one page, taken apart once and compared with each of its questions."""

    def __init__(self, record: Record, table_format: str = "sentences") -> None:
        self.units = page_units(record, table_format)
        texts = [unit.text for unit in self.units]
        self.index = PageIndex(texts, [unit.block == 1 for unit in self.units])
        self.is_row = np.array([unit.block == 1 for unit in self.units], dtype=bool)
        self.labels = [_label(record, unit.name) for unit in self.units]
        self.pairs = [set(pairwise(terms(text))) for text in texts]
        self.grams = [_grams(text) for text in texts]
        self.rarest = math.log(1 + (len(texts) + 0.5) / 0.5)  # idf of a term that the page does not have
        self.of_page = self._of_page(texts)

    def matrix(self, question: str) -> Floats:
        """[units, FEATURES], rows in the order of `page_units`."""
        if not self.units:
            return np.zeros((0, len(FEATURES)))
        columns = self.of_page | self._of_question(question)
        base = np.column_stack([columns[name] for name in _BASE])
        asked = set(terms(question))
        crossed = [columns[name] * bool(asked & stems) for stems in _ASKED_STEMS.values() for name in CROSSED]
        return np.column_stack([base, base[:, 1:] * columns["row"][:, None], *crossed])

    def _of_page(self, texts: Sequence[str]) -> dict[str, Floats]:
        blocks = np.array([unit.block for unit in self.units])
        position, first, last, near = np.zeros((4, len(texts)))
        for block in range(3):
            (inside,) = np.nonzero(blocks == block)
            if len(inside):
                place = np.arange(len(inside))
                position[inside] = place / max(1, len(inside) - 1)
                first[inside[0]] = last[inside[-1]] = 1.0
                if block != 1:
                    near[inside] = 1 / (1 + (place[::-1] if block == 0 else place))
        years = [sum(bool(YEAR.fullmatch(term)) for term in count) for count in self.index.counts]
        figures = [sum(bool(DIGIT.match(term)) for term in count) for count in self.index.counts]
        amounts = np.array(figures, dtype=float) - years
        return {
            "row": self.is_row.astype(float),
            "after_table": (blocks == 2).astype(float),
            "number": (amounts > 0).astype(float),
            "numbers": np.log1p(amounts),
            "dollar": np.array(["$" in text for text in texts], dtype=float),
            "percent": np.array(["%" in text for text in texts], dtype=float),
            "year": np.array(years, dtype=float).clip(max=1),
            "total_label": np.array(["total" in label for label in self.labels], dtype=float),
            "position": position,
            "first": first,
            "last": last,
            "near_table": near,
            "rows": self.is_row * math.log1p(self.is_row.sum()),
        }

    def _of_question(self, question: str) -> dict[str, Floats]:
        sequence = terms(question)
        words = {term for term in sequence if term[0].isalpha()}
        years = {term for term in sequence if YEAR.fullmatch(term)}
        numbers = {term for term in sequence if DIGIT.match(term)} - years
        bm25 = np.array(self.index.relevance(question))
        bm25 /= bm25.max() or 1.0
        pairs = set(pairwise(sequence))
        found = [self._weight(words & count.keys()) for count in self.index.counts]
        own = [self._weight(term for term in count if term[0].isalpha()) for count in self.index.counts]
        asked = self._weight(words) or 1.0
        return {
            "bm25": bm25,
            "bm25_rank": _reciprocal_rank(bm25),
            "bm25_rank_in_kind": self._rank_in_kind(bm25),
            "coverage": np.array(found) / asked,
            "precision": np.array([part / whole if part else 0.0 for part, whole in zip(found, own, strict=True)]),
            "word_pairs": np.log1p([len(pairs & have) for have in self.pairs]),
            "grams": self._gram_likeness(question),
            "years_shared": np.array([len(years & count.keys()) for count in self.index.counts]) / (len(years) or 1),
            "numbers_shared": np.array([float(len(numbers & count.keys())) for count in self.index.counts]),
            "previous": np.array([0.0, *bm25[:-1]]),
            "next": np.array([*bm25[1:], 0.0]),
            "best_row": ~self.is_row * bm25[self.is_row].max(initial=0.0),
            "best_text": self.is_row * bm25[~self.is_row].max(initial=0.0),
            **self._of_labels(words, set(sequence), asked),
            **self._of_rest(words, int(np.argmax(bm25))),
        }

    def _of_labels(self, words: set[str], sequence: set[str], asked: float) -> dict[str, Floats]:
        """How well a row's label and the question cover each other, and what the best label leaves to the others."""
        precision, recall, whole = np.zeros((3, len(self.units)))
        for i, label in enumerate(self.labels):
            compared = {term for term in label if term[0].isalpha()} or label
            if compared:
                hit = self._weight(compared & sequence)
                precision[i], recall[i] = hit / self._weight(compared), hit / asked
                whole[i] = compared <= sequence
        both = precision * recall
        best = self.labels[int(np.argmax(both))]
        rest = words - best
        return {
            "label_precision": precision,
            "label_recall": recall,
            "label_whole": whole,
            "label_rank": self.is_row * self._rank_in_kind(both),
            "label_rest": np.array([self._weight(rest & label) for label in self.labels]) / (self._weight(rest) or 1.0),
            "label_likeness": np.array([len(best & label) / max(1, len(best | label)) for label in self.labels]),
        }

    def _of_rest(self, words: set[str], best: int) -> dict[str, Floats]:
        """The question's words that the best unit does not have: which other unit has them?"""
        rest = words - self.index.counts[best].keys()
        share = np.array([self._weight(rest & count.keys()) for count in self.index.counts])
        share /= self._weight(rest) or 1.0
        return {"rest": share, "rest_rank": _reciprocal_rank(share) * (share > 0)}

    def _weight(self, found: Iterable[str]) -> float:
        return math.fsum(self.index.idf.get(term, self.rarest) for term in found)

    def _rank_in_kind(self, values: Floats) -> Floats:
        ranks = np.zeros(len(values))
        for kind in (self.is_row, ~self.is_row):
            ranks[kind] = _reciprocal_rank(values[kind])
        return ranks

    def _gram_likeness(self, question: str) -> Floats:
        """Shared letter sequences, so that "amortized" meets "amortization"; divided by the page's best."""
        asked = _grams(question)
        shared = np.array([len(asked & grams) / math.sqrt(1 + len(grams)) for grams in self.grams])
        return shared / (shared.max() or 1.0)


def _label(record: Record, name: str) -> frozenset[str]:
    """Terms of the first cell of a table row; nothing for a sentence."""
    kind, _, number = name.partition("_")
    row = record.table[int(number)] if kind == "table" else ()
    return frozenset(terms(row[0])) if row else frozenset()


def _grams(text: str) -> set[str]:
    spaced = f" {' '.join(WORD.findall(text.lower()))} "
    return {spaced[i : i + GRAM] for i in range(len(spaced) - GRAM + 1)}


def _reciprocal_rank(values: Floats) -> Floats:
    """1 for the largest, 1/2 for the second, ...; the earlier unit first among equals."""
    ranks = np.empty(len(values))
    ranks[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return 1 / (1 + ranks)
