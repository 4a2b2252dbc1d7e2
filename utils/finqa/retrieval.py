"""Which sentences and table rows of a page bear on a question: lexical relevance.

BM25 (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework", eq. 3.15) over the page's own units, with
words cut to their stems so that "declined" meets "decline". Units that hold a number, and table rows among them, are
preferred: nearly every FinQA program takes its arguments from figures, most of them from the table. The two bonuses
were set on published train and dev records with gold_inds. Recall at 5 on the dev records is 88.5 %; the ranker that
learns (`utils.finqa.ranker`) builds on this and reaches 91.6 %.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

TERM = re.compile(r"[a-z]+|\d+(?:[.,]\d+)*")
DIGIT = re.compile(r"\d")
STOP_TEXT = """a an and any are as at be been by did do does during for from had has have if in is it its many much of
on or that the their there these this those to was were what which who will with would s"""
STOP_WORDS = frozenset(STOP_TEXT.split())
K1 = 1.2  # saturation of repeated terms, the usual value
B = 0.75  # length normalisation, the usual value
NUMBER_BONUS = 3.0  # added for a unit with a figure, the weight of about one rare word
ROW_BONUS = 1.0  # added for a table row


def stem(word: str) -> str:
    """Cut the endings that separate a question's words from a report's: plural, tense, -ing."""
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


_STEMS: dict[str, str] = {}


def terms(text: str) -> list[str]:
    """Stems and numbers of a text, without words that carry no topic. Numbers lose their thousands commas."""
    found = []
    for word in TERM.findall(text.lower()):
        if word in STOP_WORDS:
            continue
        cut = _STEMS.get(word)
        if cut is None:
            cut = _STEMS[word] = stem(word) if word[0].isalpha() else word.replace(",", "")
        found.append(cut)
    return found


class PageIndex:
    """Term statistics of one page, made once and asked once per question."""

    def __init__(self, units: Sequence[str], is_row: Sequence[bool]) -> None:
        counts = [Counter(terms(unit)) for unit in units]
        lengths = [sum(count.values()) for count in counts]
        mean = max(1.0, sum(lengths) / max(1, len(lengths)))
        spread: Counter[str] = Counter()
        for count in counts:
            spread.update(count.keys())
        self.idf = {term: math.log(1 + (len(units) - n + 0.5) / (n + 0.5)) for term, n in spread.items()}
        self.counts = counts
        self.saturation = [K1 * (1 - B + B * length / mean) for length in lengths]
        self.bonus = [
            NUMBER_BONUS * bool(DIGIT.search(unit)) + ROW_BONUS * row for unit, row in zip(units, is_row, strict=True)
        ]

    def scores(self, question: str) -> list[float]:
        """BM25 and bonus of every unit, in the units' order; higher is better."""
        return [bm25 + bonus for bm25, bonus in zip(self.relevance(question), self.bonus, strict=True)]

    def relevance(self, question: str) -> list[float]:
        """BM25 of every unit alone."""
        wanted = [(term, self.idf[term]) for term in dict.fromkeys(terms(question)) if term in self.idf]
        scores = []
        for count, saturation in zip(self.counts, self.saturation, strict=True):
            total = 0.0
            for term, idf in wanted:
                n = count.get(term)
                if n:
                    total += idf * n * (K1 + 1) / (n + saturation)
            scores.append(total)
        return scores
