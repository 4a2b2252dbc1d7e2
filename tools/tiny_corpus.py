"""Documents that teach llama-tiny to read: copying, look-ups in tables and sentences, formulas, reviews, topics.

Every document is a list of (text, learned) pieces; the loss is taken on learned pieces only. finqa_mini's questions do
not occur. What a program looks like does, with numbers at random and no question: which program answers which
question is left to supervised fine-tuning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.finqa.answers import write_answer
from utils.finqa.mini import FACTS, LINE_ITEMS, OPENINGS
from utils.finqa.prompts import table_head, table_sentences

if TYPE_CHECKING:
    from numpy.random import Generator

Piece = tuple[str, bool]

WORDS = (
    "balance", "beginning", "end", "period", "year", "quarter", "segment", "europe", "asia", "north", "south",
    "america", "unit", "plan", "stock", "share", "price", "value", "fair", "market", "option", "award", "grant",
    "vested", "granted", "exercised", "outstanding", "weighted", "rate", "risk", "free", "expected", "life",
    "volatility", "dividend", "yield", "service", "cost", "benefit", "obligation", "asset", "contract", "swap",
    "forward", "currency", "credit", "facility", "term", "note", "senior", "bond", "coupon", "maturity",
    "principal", "payment", "lease", "rental", "minimum", "future", "total", "other", "net", "gross", "average",
    "current", "deferred", "federal", "state", "foreign", "tax", "provision", "allowance", "reserve", "claim",
    "loss", "premium", "policy", "written", "earned", "reinsurance", "oil", "gas", "coal", "power", "water",
    "steel", "paper", "glass", "plastic", "chemical", "drug", "device", "software", "cloud", "license", "media",
    "network", "cable", "phone", "store", "retail", "wholesale", "online", "hotel", "casino", "airline", "fuel",
    "freight", "rail", "truck", "ship", "engine", "parts",
)  # fmt: skip

LOOKUPS = (
    "{a} of {y}?", "what is the {a} of {y}?", "what was {a} in {y}?", "what is the {y} {a}?",
    "how much was {a} in {y}?", "what is {a} for {y}?",
    "in {y} , how much was {a}?", "for {y} , what was {a}?", "how large was {a} during {y}?",
    "find {a} for {y} .", "in the year {y} , what was {a}?", "what did {a} come to in {y}?",
)  # fmt: skip
PAIRS_OF_YEARS = (
    "list {a} for {y} and {z} .", "what were the amounts of {a} in {y} and {z}?", "from {y} to {z} , list {a} .",
    "give both {a} for {y} and {a} for {z} .", "show {a} between {y} and {z} .",
)  # fmt: skip
PAIRS_OF_ITEMS = (
    "list {a} and {b} for {y} .", "what were {a} and {b} in {y}?", "in {y} , show {a} and {b} .",
    "give {a} , then {b} , for {y} .", "for {y} , list {a} with {b} .",
)  # fmt: skip
FORMULAS = tuple(
    (wording, program)
    for program, wordings in {
        "subtract({az}, {ay})": (
            "write {a} of {z} less {a} of {y} .",
            "increase of {a} , {y} to {z} ?",
            "gain in {a} after {y} , by {z} ?",
            "difference of {a} , {z} against {y} ?",
            "{a} grew by which amount from {y} until {z} ?",
        ),
        "subtract({ay}, {by})": (
            "write {a} less {b} , both {y} .",
            "difference of {a} and {b} , {y} ?",
            "{a} exceeds {b} by which amount in {y} ?",
            "{a} after {b} is taken away , {y} ?",
        ),
        "divide({ay}, {by})": (
            "write {a} over {b} for {y} .",
            "share of {a} in {b} , {y} ?",
            "{a} in percent of {b} , {y} ?",
            "which portion of {b} is {a} , {y} ?",
            "percentage of {b} from {a} , {y} ?",
            "ratio , {a} to {b} , {y} ?",
            "{a} is which multiple of {b} , {y} ?",
        ),
        "divide({az}, {ay})": (
            "write {a} of {z} over {a} of {y} .",
            "ratio of {a} , {z} to {y} ?",
            "{a} in {z} as multiple of {y} ?",
            "factor of {a} from {y} until {z} ?",
        ),
        "add({ay}, {by})": (
            "write {a} with {b} for {y} .",
            "total of {a} plus {b} , {y} ?",
            "{a} and {b} combined , {y} ?",
            "sum , {a} and {b} , {y} ?",
        ),
        "add({ay}, {az})": (
            "write {a} of {y} with {a} of {z} .",
            "total of {a} , {y} plus {z} ?",
            "{a} for {y} and {z} combined ?",
            "sum of {a} over {y} , {z} ?",
        ),
        "add({ay}, {by}), add(#0, {cy})": (
            "write {a} , {b} and {c} of {y} as one .",
            "total of {a} plus {b} plus {c} , {y} ?",
            "{a} , {b} , {c} combined , {y} ?",
        ),
        "subtract({ay}, {by}), subtract(#0, {cy})": (
            "write {a} without {b} and {c} , {y} .",
            "{a} net of {b} , {c} , {y} ?",
        ),
        "subtract({az}, {ay}), divide(#0, {ay})": (
            "write the relative move of {a} from {y} to {z} .",
            "percentage growth of {a} , {y} to {z} ?",
            "percent increase , {a} , {y} to {z} ?",
            "growth rate of {a} , {y} until {z} ?",
            "rate at which {a} changed , {y} to {z} ?",
            "relative increase of {a} , {y} to {z} ?",
        ),
        "add({ay}, {az}), divide(#0, const_2)": (
            "write the middle of {a} for {y} and {z} .",
            "average of {a} , {y} and {z} ?",
            "mean {a} over {y} , {z} ?",
            "{a} on average , {y} with {z} ?",
        ),
        "add({ay}, {by}), divide(#0, const_2)": (
            "write the middle of {a} and {b} for {y} .",
            "average of {a} with {b} , {y} ?",
        ),
        "add({ay}, {by}), add(#0, {cy}), divide(#1, const_3)": ("average of {a} , {b} with {c} , {y} ?",),
        "multiply({ay}, const_1000)": (
            "write {a} of {y} a thousand times .",
            "{a} of {y} , in thousands ?",
        ),
        "subtract({az}, {ay}), multiply(#0, const_1000)": ("increase of {a} , {y} to {z} , in thousands ?",),
        "divide({ay}, {by}), multiply(#0, const_100)": ("{a} per hundred of {b} , {y} ?",),
        "subtract({az}, {ay}), divide(#0, {ay}), multiply(#1, const_100)": (
            "growth of {a} , {y} to {z} , per hundred ?",
        ),
        "divide({az}, {ay}), subtract(#0, const_1)": ("ratio of {a} , {z} to {y} , minus one ?",),
        "divide({az}, {bz}), divide({ay}, {by}), subtract(#0, #1)": (
            "write the move of {a} over {b} from {y} to {z} .",
            "change in the share of {a} in {b} , {y} to {z} ?",
        ),
        "subtract({az}, {ay}), divide(#0, {ay}), subtract({bz}, {by}), divide(#2, {by}), subtract(#1, #3)": (
            "growth rate of {a} less growth rate of {b} , {y} to {z} ?",
        ),
        "greater({ay}, {by})": (
            "{a} greater than {b} , {y} ?",
            "more {a} than {b} , {y} ?",
        ),
        "table_average({a}, none)": (
            "write the middle of the row {a} .",
            "average of all {a} ?",
        ),
        "table_max({a}, none)": (
            "write the top of the row {a} .",
            "highest of all {a} ?",
        ),
        "table_min({a}, none)": ("lowest of all {a} ?",),
        "table_sum({a}, none)": ("total of all {a} ?",),
    }.items()
    for wording in wordings
)
"""Wordings of their own, none of finqa_mini's, and no JSON around the answer."""

OPERATIONS = ("add", "subtract", "subtract", "multiply", "divide", "divide", "greater")
TABLE_OPERATIONS = ("table_average", "table_max", "table_min", "table_sum")

SUBJECTS = (
    "the movie",
    "the film",
    "the story",
    "the service",
    "the food",
    "the product",
    "the hotel",
    "this book",
    "the show",
    "the trip",
)
POSITIVE = ("good", "great", "wonderful", "excellent", "amazing", "happy", "best", "love", "fantastic", "enjoyable")
NEGATIVE = ("bad", "terrible", "awful", "boring", "sad", "worst", "poor", "hate", "horrible", "disappointing")
NEUTRAL = ("long", "new", "short", "quiet", "simple", "usual", "large", "early", "late", "plain")
REVIEWS = (
    "{s} was {w} .", "i think {s} is {w} and {v} .", "we found {s} really {w} .", "{s} turned out to be {w} .",
    "overall {s} was {w} , even {v} .", "my friends said {s} seemed {w} .", "it was a {w} day and {s} was {v} .",
)  # fmt: skip
TOPICS = {
    "sports": (
        "the {n} team won the {k} match after a late goal",
        "a {k} player scored in the final game of the {n} season",
        "fans of the {n} club cheered the coach",
    ),
    "business": (
        "shares of the {n} company rose after strong {k} sales",
        "the {n} bank reported higher profit on {k} loans",
        "investors sold {n} stock as {k} prices fell",
    ),
    "science": (
        "researchers at the {n} institute found a new {k} cell",
        "a {n} telescope observed the {k} planet",
        "scientists tested a {k} vaccine in the {n} laboratory",
    ),
    "world": (
        "the {n} minister met leaders to discuss the {k} treaty",
        "voters in the {n} country elected a {k} president",
        "the {n} government sent aid after the {k} flood",
    ),
}
NAMES = ("northern", "united", "central", "royal", "pacific", "eastern", "grand", "city", "national", "western")
KINDS = ("young", "major", "local", "rare", "public", "early", "second", "foreign", "large", "final")


@dataclass(frozen=True)
class Level:
    """A step of the curriculum: table size (inclusive), how many of LOOKUPS are asked, how often a table is copied.

    `rich` documents also have amounts in sentences, and ask for two cells or a formula.
    """

    rows: tuple[int, int]
    years: tuple[int, int]
    phrasings: int
    copies: float
    rich: bool = False

    def size(self, rng: Generator) -> tuple[int, int]:
        """Rows and years of a table."""
        return int(rng.integers(self.rows[0], self.rows[1] + 1)), int(rng.integers(self.years[0], self.years[1] + 1))


LEVELS = (
    Level((2, 2), (2, 2), phrasings=1, copies=0.3),
    Level((2, 3), (2, 3), phrasings=3, copies=0.2),
    Level((3, 4), (2, 3), phrasings=12, copies=0.1),
    Level((4, 6), (2, 4), phrasings=12, copies=0.08, rich=True),
)
"""From tables of four cells, asked in their own words, to whole pages; one is learned before the next begins."""


def document(rng: Generator, level: Level) -> list[Piece]:
    """One training document of a level."""
    kind = rng.random()
    if kind < 0.05:
        return [(_reviews(rng), True)]
    if kind < 0.10:
        return [(_topics(rng), True)]
    if kind < 0.18:
        return [(_programs(rng), True)]
    return _report(rng, level)


def _pick(rng: Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _reviews(rng: Generator) -> str:
    words = POSITIVE if rng.random() < 0.4 else NEGATIVE if rng.random() < 0.6 else NEUTRAL
    count = int(rng.integers(2, 7))
    return " ".join(
        _pick(rng, REVIEWS).format(s=_pick(rng, SUBJECTS), w=_pick(rng, words), v=_pick(rng, words))
        for _ in range(count)
    )


def _topics(rng: Generator) -> str:
    lines = []
    for _ in range(int(rng.integers(2, 6))):
        label = _pick(rng, list(TOPICS))
        text = _pick(rng, TOPICS[label]).format(n=_pick(rng, NAMES), k=_pick(rng, KINDS))
        lines.append(f"label: {label}\ntext: {text} .")
    return "\n".join(lines)


def _programs(rng: Generator) -> str:
    """Answers in FinQA's program language with random operations and numbers, each written twice."""
    lines = []
    for _ in range(int(rng.integers(3, 7))):
        numbers = [amount(rng) for _ in range(3)]
        operands = [*numbers, *numbers, "const_2", "const_100", "const_1000", "const_1", "const_3"]
        steps = []
        for i in range(int(rng.integers(1, 4))):
            first = f"#{i - 1}" if i and rng.random() < 0.8 else _pick(rng, numbers)
            if rng.random() < 0.12:
                steps.append(f"{_pick(rng, TABLE_OPERATIONS)}({label(rng)}, none)")
            else:
                steps.append(f"{_pick(rng, OPERATIONS)}({first}, {_pick(rng, operands)})")
        answer = write_answer(", ".join(steps), round(float(rng.choice([1, 10, 1000])) * rng.random(), 5))
        lines.append(f"{answer}\nagain: {answer}")
    return "\n".join(lines)


def label(rng: Generator) -> str:
    """A row label: half of them line items of reports, half of them two or three words at random."""
    if rng.random() < 0.5:
        return _pick(rng, LINE_ITEMS)
    return " ".join(_pick(rng, WORDS) for _ in range(int(rng.integers(2, 4))))


def amount(rng: Generator) -> str:
    """1 to 6 digits, a third of them with one or two decimals."""
    digits = int(rng.choice([1, 2, 3, 3, 4, 4, 5, 6]))
    whole = str(int(rng.integers(10 ** (digits - 1), 10**digits)))
    return f"{whole}.{int(rng.integers(1, 100))}" if rng.random() < 0.33 and digits < 5 else whole


def table(rng: Generator, rows: int, years: int) -> tuple[list[list[str]], dict[tuple[str, str], str]]:
    """A table with distinct labels and its cells by (label, year)."""
    labels: list[str] = []
    while len(labels) < rows:
        new = label(rng)
        if new not in labels:
            labels.append(new)
    first = int(rng.integers(1995, 2020))
    header = [str(first + i) for i in range(years)]
    if rng.random() < 0.5:
        header.reverse()
    corner = _pick(rng, ("", "( in millions )", "( in thousands )", "year ended december 31"))
    dollar = "$ " if rng.random() < 0.3 else ""
    cells = {(item, year): amount(rng) for item in labels for year in header}
    body = [[item, *(("" if n else dollar) + cells[item, year] for year in header)] for n, item in enumerate(labels)]
    return [[corner, *header], *body], cells


def _report(rng: Generator, level: Level) -> list[Piece]:
    rows, cells = table(rng, *level.size(rng))
    sentences = " ".join(table_sentences(rows))
    before, after = _facts(rng, level, cells, rows[0][1:])
    pieces: list[Piece] = []
    text = "\n".join(part for part in (before, f"{table_head(rows)} {sentences}".strip(), after) if part)
    if rng.random() < level.copies:
        parts = sentences.removesuffix(" ;").split(" ; ")
        order = [f" {parts[i]} ;" for i in rng.permutation(len(parts))]
        pieces += [(f"{text}\nagain:", False), ("".join(order) + "\n", True)]
    else:
        pieces.append((f"{text}\n", False))
    for _ in range(int(rng.integers(8, 14))):
        question, answer = _question(rng, level, cells)
        pieces += [(f"question: {question}\nanswer:", False), (f" {answer}\n", True)]
    return pieces


def _facts(rng: Generator, level: Level, cells: dict[tuple[str, str], str], years: list[str]) -> tuple[str, str]:
    """Sentences before and after the table; amounts in them are added to `cells`."""
    if not level.rich or rng.random() < 0.4:
        return "", ""
    company = f"{_pick(rng, WORDS)} {_pick(rng, ('corp', 'inc', 'group'))}"
    lines = []
    for _ in range(int(rng.integers(1, 4))):
        item, year, value = label(rng), _pick(rng, years), amount(rng)
        if not any(item == other for other, _ in cells):
            cells[item, year] = value
            lines.append(_pick(rng, FACTS).format(company=company, item=item, year=year, value=f"$ {value}"))
    opening = _pick(rng, OPENINGS).format(company=company, unit=_pick(rng, ("thousands", "millions")))
    return " ".join([opening, *lines[:1]]), " ".join(lines[1:])


def _question(rng: Generator, level: Level, cells: dict[tuple[str, str], str]) -> tuple[str, str]:
    keys = list(cells)
    item, year = keys[int(rng.integers(len(keys)))]
    kind = rng.random()
    if level.rich and kind < 0.6:
        return _formula(rng, cells)
    if level.rich and kind < 0.65:
        return _pair(rng, cells, item, year)
    return _pick(rng, LOOKUPS[: level.phrasings]).format(a=item, y=year), cells[item, year]


def _pair(rng: Generator, cells: dict[tuple[str, str], str], item: str, year: str) -> tuple[str, str]:
    """Two cells of one row or of one year."""
    same_item = [y for a, y in cells if a == item and y != year]
    same_year = [a for a, y in cells if y == year and a != item]
    if same_item and rng.random() < 0.5:
        first, second = sorted((year, _pick(rng, same_item)))
        phrase = _pick(rng, PAIRS_OF_YEARS).format(a=item, y=first, z=second)
        return phrase, f"{cells[item, first]} , {cells[item, second]}"
    other = _pick(rng, same_year) if same_year else item
    return _pick(rng, PAIRS_OF_ITEMS).format(a=item, b=other, y=year), f"{cells[item, year]} , {cells[other, year]}"


def _formula(rng: Generator, cells: dict[tuple[str, str], str]) -> tuple[str, str]:
    """A program over cells of up to three items and two years; now and then an amount stands in a sentence."""
    years = sorted({year for _, year in cells})
    rows = list(dict.fromkeys(item for item, _ in cells if (item, years[0]) in cells and (item, years[-1]) in cells))
    start = int(rng.integers(len(years) - 1))
    names = dict(zip("abc", [rows[i] for i in rng.permutation(len(rows))], strict=False)) | {
        "y": years[start],
        "z": years[int(rng.integers(start + 1, len(years)))],
    }
    outside = [(item, year) for item, year in cells if item not in rows]
    if outside and rng.random() < 0.15:
        names["b"], names["y"] = outside[int(rng.integers(len(outside)))]
        names["z"] = ""
    values = {i + y: cells[names[i], names[y]] for i in "abc" for y in "yz" if (names.get(i), names[y]) in cells}
    known = {**names, **values}
    usable = [pair for pair in FORMULAS if _slots(pair) <= {name for name, value in known.items() if value}]
    question, answer = usable[int(rng.integers(len(usable)))]
    return question.format(**known), answer.format(**known)


def _slots(pair: tuple[str, str]) -> set[str]:
    return set(re.findall(r"{(\w+)}", " ".join(pair)))
