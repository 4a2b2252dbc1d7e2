"""Made-up texts of four topics: the embedded golden data of the genalign task.

    text,label
    the young keeper saved a penalty in front of a large crowd,sports

Somebody, what they did, and a circumstance that any topic may have. Some words stand in several topics (`report`,
`record`, `lead`, `market`), so that single words do not give every label away.
"""

from __future__ import annotations

import csv
import io
import itertools

from utils.seeds import generator

TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sports": (
        (
            "the northern team",
            "a young player",
            "the home club",
            "the coach of the city side",
            "the fastest runner",
            "a rare champion",
            "the royal rowing crew",
            "the goal keeper",
            "an early favourite",
            "the captain",
        ),
        (
            "won the final match",
            "scored a late goal",
            "lost the lead in the last race",
            "broke the season record",
            "trained hard for the cup",
            "missed a penalty",
            "beat an old rival by two points",
            "left the league",
            "ran the relay in the rain",
            "signed for a foreign club",
        ),
    ),
    "business": (
        (
            "the central bank",
            "a local company",
            "shares of the maker",
            "the owner of the store",
            "an early investor",
            "the united airline",
            "a rare buyer",
            "the pacific trading house",
            "the chief of sales",
            "a public fund",
        ),
        (
            "reported higher profit",
            "sold stock as prices fell",
            "cut costs in every market",
            "paid a new dividend",
            "raised the price of fuel",
            "took a large loan",
            "opened a second factory",
            "lost customers to a rival",
            "led the merger talks",
            "set a sales record",
        ),
    ),
    "science": (
        (
            "researchers at the institute",
            "a grand telescope",
            "scientists in the laboratory",
            "the young biologist",
            "an early fossil",
            "the national space probe",
            "a public study",
            "the team of doctors",
            "a rare cell",
            "the quantum sensor",
        ),
        (
            "found a new planet",
            "tested a vaccine",
            "measured light from a star",
            "showed how the gene works",
            "mapped the ocean floor",
            "grew crystals in a vacuum",
            "sent a report from orbit",
            "explained the virus",
            "led to a better battery",
            "proved an old theory",
        ),
    ),
    "world": (
        (
            "the foreign minister",
            "voters in the country",
            "the eastern government",
            "a public protest",
            "the early peace talks",
            "the western army",
            "a major court",
            "the president",
            "local rebels",
            "the envoy",
        ),
        (
            "signed the treaty",
            "elected a new leader",
            "sent aid after the flood",
            "closed the border",
            "asked for a fair trial",
            "met the king in secret",
            "called off the strike",
            "freed the prisoners",
            "led the vote on war",
            "crossed the market square",
        ),
    ),
}
"""Label -> who, and what they did."""
CIRCUMSTANCES = (
    "after a long week", "in front of a large crowd", "for the first time this year", "as a report said on monday",
    "despite the cold", "before the end of june", "and nobody was surprised", "in the old capital",
)  # fmt: skip
PER_LABEL = 300


def generate(seed: int) -> list[dict[str, str]]:
    """`text` and `label` of PER_LABEL texts of each topic, shuffled, none twice; equal seeds give equal texts."""
    rng = generator(seed, "genalign texts")
    rows = []
    for label, (who, what) in TOPICS.items():
        every = [f"{a} {b} {c}" for a, b, c in itertools.product(who, what, CIRCUMSTANCES)]
        rows += [{"text": every[i], "label": label} for i in rng.permutation(len(every))[:PER_LABEL]]
    return [rows[i] for i in rng.permutation(len(rows))]


def write_csv(rows: list[dict[str, str]]) -> str:
    """The text of a golden.csv."""
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, ["text", "label"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return buffer.getvalue()
