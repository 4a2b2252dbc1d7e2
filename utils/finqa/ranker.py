"""Which sentences and table rows a question needs: a linear ranker, learned from the training split's gold_inds.

Every unit of every training page whose evidence is known is one example for a logistic regression over the features of
`utils.finqa.features`: is it evidence or not? Its weights rank the units of any page. Nothing is drawn at random, so
the same records give the same weights. Validation and test labels are never seen; training pages are ranked by the
ranker they trained (recall at 5 there: 91.0 % against 90.5 % for pages left out of training, five folds of published
records), so their prompts are hardly better than the others'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from utils.finqa.features import FEATURES, Floats, PageFeatures
from utils.finqa.records import Record

MIN_RECORDS = 50
"""Fewer training records with known evidence teach nothing; lexical relevance ranks then."""
REGULARISATION = 0.1
"""Inverse strength (scikit-learn's C), on standardised features; 0.01 and 1 changed recall at 5 by 0.2 points."""
DIGITS = 6
"""Decimals of the weights: they are found by iteration over thousands of units, and their last bits mean nothing."""
PAGES_AT_HAND = 64
"""Pages taken apart that are kept for their next question; questions of a page mostly stand close together."""


@dataclass(frozen=True)
class Ranker:
    """Relevance of a page's units to a question. Without weights it is lexical (`utils.finqa.retrieval`)."""

    weights: Mapping[str, float]  # by feature, in FEATURES
    records: int  # training records with known evidence
    table_format: str = "sentences"
    _pages: dict[object, PageFeatures] = field(default_factory=dict, repr=False, compare=False)

    @property
    def kind(self) -> str:
        """`linear` (learned) or `lexical`."""
        return "linear" if self.weights else "lexical"

    def scores(self, record: Record) -> list[float]:
        """Relevance of every unit of `page_units`, in document order; higher is better."""
        page = self._page(record)
        if not self.weights:
            return page.index.scores(record.question)
        # summed feature by feature: the same order, so the same bits, for pages of every size
        columns = page.matrix(record.question).T
        total = np.zeros(len(page.units))
        for name, column in zip(FEATURES, columns, strict=True):
            total += self.weights[name] * column
        return [float(score) for score in total]

    def ranked(self, record: Record) -> tuple[str, ...]:
        """Names of the page's units (`text_3`, `table_1`), the most relevant first, the earlier one among equals."""
        scores = self.scores(record)
        units = self._page(record).units
        return tuple(units[i].name for i in sorted(range(len(units)), key=lambda i: (-scores[i], i)))

    def labels(self, record: Record) -> list[bool]:
        """For every unit whether gold_inds names it."""
        return [unit.name in record.gold_inds for unit in self._page(record).units]

    def gold(self, record: Record) -> tuple[str, ...]:
        """The units that gold_inds names, in document order; () where it names none that the page has."""
        units = self._page(record).units
        return tuple(unit.name for unit, gold in zip(units, self.labels(record), strict=True) if gold)

    def matrix(self, record: Record) -> Floats:
        """[units, FEATURES] of the record's page and question."""
        return self._page(record).matrix(record.question)

    def to_dict(self) -> dict[str, Any]:
        """What is saved with the run as plain JSON."""
        return {
            "kind": self.kind,
            "table_format": self.table_format,
            "records": self.records,
            "weights": dict(self.weights),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Ranker:
        """The inverse of `to_dict`."""
        return cls(dict(saved["weights"]), saved["records"], saved["table_format"])

    def _page(self, record: Record) -> PageFeatures:
        key = (record.pre_text, record.table, record.post_text)
        if key not in self._pages:
            while len(self._pages) >= PAGES_AT_HAND:
                del self._pages[next(iter(self._pages))]
            self._pages[key] = PageFeatures(record, self.table_format)
        return self._pages[key]


def train_ranker(records: Sequence[Record], table_format: str = "sentences") -> Ranker:
    """Learn from the records whose gold_inds are known; lexical where these are fewer than MIN_RECORDS."""
    known = [record for record in records if record.gold_inds]
    lexical = Ranker({}, len(known), table_format)
    if len(known) < MIN_RECORDS:
        return lexical
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([lexical.matrix(record) for record in known])
    evidence = np.concatenate([lexical.labels(record) for record in known])
    if evidence.all() or not evidence.any():
        return lexical
    spread = features.std(axis=0)
    spread[spread == 0] = np.inf  # a feature that never differs gets weight 0
    model = LogisticRegression(C=REGULARISATION, max_iter=1000)
    model.fit((features - features.mean(axis=0)) / spread, evidence)
    weights = (model.coef_[0] / spread).tolist()
    return Ranker({name: round(w, DIGITS) for name, w in zip(FEATURES, weights, strict=True)}, len(known), table_format)


def recall(records: Sequence[Record], ranker: Ranker, cuts: Sequence[int] = (3, 5)) -> dict[str, float]:
    """Recall at each cut, over the records whose gold_inds are known.

    Returns:
        `records`; `at_3`: the mean over records of the share of a record's evidence among its first 3 units, as
        FinQA's retriever is scored (`retrieve_evaluate` in its code/retriever/utils.py); `units_at_3`: the share of all
        evidence, where records with much of it weigh more. Evidence that is no unit (a table's header) is missed.
    """
    known = [record for record in records if record.gold_inds]
    found = {cut: [len(record.gold_inds.keys() & set(ranker.ranked(record)[:cut])) for record in known] for cut in cuts}
    sizes = [len(record.gold_inds) for record in known]
    shares: dict[str, float] = {"records": len(known)}
    for cut in cuts if known else ():
        of_each = [hits / size for hits, size in zip(found[cut], sizes, strict=True)]
        shares[f"at_{cut}"] = round(sum(of_each) / len(known), 4)
        shares[f"units_at_{cut}"] = round(sum(found[cut]) / sum(sizes), 4)
    return shares


def chosen_evidence(record: Record, context: str, ranker: Ranker, count: int) -> tuple[str, ...] | None:
    """Names of the units that may stand in the record's prompt, in any order; None for the whole page.

    Args:
        record: its gold_inds are looked at in context `gold` alone.
        context: `full`, `retrieved` (the `count` most relevant units), or `gold` (the units in gold_inds, an upper
            bound that uses labels; a record without any on its page is served like `retrieved`).
        ranker: ranks the page.
        count: units of `retrieved`.
    """
    if context == "full":
        return None
    gold = ranker.gold(record) if context == "gold" else ()
    return gold or ranker.ranked(record)[:count]
