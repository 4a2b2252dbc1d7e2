"""Documents that teach llama-tiny to read: copying, look-ups in tables and sentences, formulas, reviews, topics.

Every document is a list of (text, learned) pieces; the loss is taken on learned pieces only. finqa_mini's questions do
not occur. What a program looks like does, with numbers at random and no question: which program answers which
question is left to supervised fine-tuning.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.finqa.answers import write_answer
from utils.finqa.mini import FACTS, LINE_ITEMS, OPENINGS, families
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


@dataclass(frozen=True)
class Formula:
    """A program over the cells of items a, b, c in years y < z, and how it is asked for.

    `nouns` stand in NOUN_FRAMES and `clauses` in CLAUSE_FRAMES; the frames add the time: one year, a span of years, or
    nothing, where the words name their years themselves.
    """

    program: str
    weight: float
    time: str
    nouns: tuple[str, ...]
    clauses: tuple[str, ...] = ()


TIMES = {
    "year": ((" in {y}", " for {y}", " during {y}"), ("in {y} , ", "for {y} , ", "for the year {y} , ")),
    "span": (
        (" from {y} to {z}", " between {y} and {z}", " from {y} until {z}"),
        ("from {y} to {z} , ", "between {y} and {z} , ", "comparing {y} with {z} , "),
    ),
    "none": (("",), ("",)),
}
"""By kind of time, what stands behind a question and what stands before it."""

NOUN_FRAMES = (
    "what was {noun}{behind}?", "what is {noun}{behind}?", "{before}what was {noun}?", "{before}what is {noun}?",
    "compute {noun}{behind} .", "find {noun}{behind} .", "{before}give {noun} .", "how large was {noun}{behind}?",
    "{noun}{behind}?", "{before}how high was {noun}?", "please state {noun}{behind} .", "{before}show {noun} .",
)  # fmt: skip
CLAUSE_FRAMES = ("{clause}{behind}?", "{before}{clause}?")

FORMULAS = (
    Formula(
        "subtract({az}, {ay})", 3, "span",
        ("the difference in {a}", "the rise in {a}", "the amount of growth in {a}", "the dollar increase of {a}",
         "the absolute change of {a}", "the gain in {a}", "the movement of {a}", "the decline in {a}"),
        ("how much did {a} rise", "by what amount did {a} change", "how many dollars did {a} gain",
         "by how much did {a} go up", "how much has {a} grown"),
    ),
    Formula(
        "subtract({az}, {ay})", 1, "none",
        ("{a} of {z} less {a} of {y}", "{a} in {z} minus {a} in {y}", "how much higher {a} was in {z} than in {y}",
         "the difference between {a} in {z} and {a} in {y}", "the excess of {a} in {z} over {y}"),
    ),
    Formula(
        "subtract({ay}, {by})", 3, "year",
        ("the difference of {a} and {b}", "{a} minus {b}", "{a} less {b}", "the excess of {a} over {b}",
         "what remains of {a} after {b}", "the distance between {a} and {b}", "{a} net of {b}"),
        ("how much larger was {a} than {b}", "by what amount did {a} exceed {b}", "how far was {a} above {b}",
         "how many dollars more was {a} than {b}"),
    ),
    Formula(
        "divide({ay}, {by})", 6, "year",
        ("{a} as a percentage of {b}", "the percentage of {b} that is {a}", "the share of {a} in {b}",
         "the percent of {b} from {a}", "the portion of {b} from {a}", "the fraction of {b} in {a}",
         "the part of {b} that came from {a}", "the proportion of {b} in {a}", "{a} in percent of {b}"),
        ("which percent of {b} is {a}", "what share of {b} came from {a}", "how much of {b} was {a} , in percent",
         "what portion of {b} is made up by {a}", "{a} makes up what percentage of {b}",
         "{a} is related to what percent of {b}"),
    ),
    Formula(
        "divide({ay}, {by})", 2, "year",
        ("the ratio of {a} over {b}", "{a} divided by {b}", "the quotient of {a} by {b}", "{a} as a multiple of {b}",
         "the number of times {b} goes into {a}", "{a} per dollar of {b}"),
        ("how many times as large as {b} was {a}", "{a} is which multiple of {b}"),
    ),
    Formula(
        "divide({az}, {ay})", 2, "none",
        ("{a} of {z} over {a} of {y}", "the ratio of {a} , {z} to {y}", "{a} in {z} as a multiple of {y}",
         "{a} in {z} relative to {a} in {y}", "the factor from {a} of {y} to {a} of {z}",
         "the number of times {a} of {y} goes into {a} of {z}"),
    ),
    Formula(
        "divide({az}, {ay})", 1, "span",
        ("the factor of growth in {a}", "the multiple by which {a} grew"),
        ("by which factor did {a} grow",),
    ),
    Formula(
        "add({ay}, {by})", 2, "year",
        ("the total of {a} and {b}", "{a} and {b} combined", "the sum of {a} with {b}", "{a} plus {b}",
         "{a} together with {b}", "the combined {a} and {b}"),
        ("how much do {a} and {b} add up to", "how much were {a} and {b} in all"),
    ),
    Formula(
        "add({ay}, {az})", 2, "none",
        ("{a} in {y} and {z} combined", "the total {a} over {y} and {z}", "the sum of {a} for {y} and {z}",
         "{a} of {y} plus {a} of {z}", "{a} across the two years {y} and {z}", "the total of {a} , {y} and {z}"),
    ),
    Formula(
        "add({ay}, {by}), add(#0, {cy})", 1, "year",
        ("the total of {a} , {b} and {c}", "{a} , {b} and {c} combined", "the sum of {a} , {b} , {c}",
         "{a} plus {b} plus {c}"),
        ("how much do {a} , {b} and {c} add up to",),
    ),
    Formula(
        "subtract({ay}, {by}), subtract(#0, {cy})", 1, "year",
        ("{a} without {b} and {c}", "what remains of {a} after {b} and {c}", "{a} less {b} less {c}"),
    ),
    Formula(
        "subtract({az}, {ay}), divide(#0, {ay})", 6, "span",
        ("the percentage growth in {a}", "the percent increase of {a}", "the rate of growth of {a}",
         "the rate of change of {a}", "the relative increase in {a}", "the percentage rise in {a}",
         "the percentage decline in {a}", "the percent change of {a}", "the growth of {a} in percent",
         "the relative change of {a}"),
        ("by which percentage did {a} rise", "how many percent did {a} grow", "what percent did {a} change",
         "at which rate did {a} grow", "how fast did {a} grow , in percent"),
    ),
    Formula(
        "add({ay}, {az}), divide(#0, const_2)", 2, "none",
        ("the average {a} of {y} and {z}", "the mean of {a} for {y} and {z}", "the average of {a} , {y} and {z}",
         "{a} on average over {y} and {z}", "the average for the years {y} and {z} of {a}"),
    ),
    Formula(
        "add({ay}, {by}), divide(#0, const_2)", 1, "year",
        ("the average of {a} and {b}", "the mean of {a} with {b}", "{a} and {b} on average"),
    ),
    Formula(
        "add({ay}, {by}), add(#0, {cy}), divide(#1, const_3)", 1, "year",
        ("the average of {a} , {b} and {c}", "the mean of {a} , {b} , {c}", "{a} , {b} and {c} on average"),
    ),
    Formula("multiply({ay}, const_1000)", 1, "year", ("{a} in thousands", "{a} a thousand times")),
    Formula(
        "subtract({az}, {ay}), multiply(#0, const_1000)", 0.5, "span",
        ("the rise in {a} , in thousands ,", "a thousand times the gain in {a}"),
    ),
    Formula(
        "divide({ay}, {by}), multiply(#0, const_100)", 1, "year",
        ("{a} per hundred of {b}", "a hundred times the ratio of {a} over {b}"),
    ),
    Formula(
        "subtract({az}, {ay}), divide(#0, {ay}), multiply(#1, const_100)", 1, "span",
        ("the growth of {a} per hundred", "a hundred times the relative increase in {a}"),
    ),
    Formula(
        "divide({az}, {ay}), subtract(#0, const_1)", 0.5, "none",
        ("the ratio of {a} , {z} to {y} , minus one", "{a} of {z} over {a} of {y} , less 1"),
    ),
    Formula(
        "divide({az}, {bz}), divide({ay}, {by}), subtract(#0, #1)", 1, "span",
        ("the gain of {a} in percent of {b}", "the rise in the ratio of {a} over {b}",
         "the change in {a} as a percentage of {b}"),
    ),
    Formula(
        "subtract({az}, {ay}), divide(#0, {ay}), subtract({bz}, {by}), divide(#2, {by}), subtract(#1, #3)", 1, "span",
        ("the growth rate of {a} less the growth rate of {b}",
         "the distance between the percentage rise in {a} and in {b}"),
    ),
    Formula(
        "greater({ay}, {by})", 1, "year", (),
        ("is {a} greater than {b}", "was {a} larger than {b}", "did {a} go beyond {b}"),
    ),
    Formula("table_average({a}, none)", 0.5, "none", ("the average of the row {a}", "the middle of all {a}")),
    Formula("table_max({a}, none)", 0.5, "none", ("the top of the row {a}", "the highest of all {a}")),
    Formula("table_min({a}, none)", 0.5, "none", ("the bottom of the row {a}", "the lowest of all {a}")),
    Formula("table_sum({a}, none)", 0.5, "none", ("the total of the row {a}", "all of {a} in one")),
)  # fmt: skip
"""Formulas in wordings of their own. finqa_mini asks otherwise, and wants a program and an answer."""

FINQA_MINI = frozenset(phrasing for family in families() for phrasing in family.phrasings)
"""Wordings that are never drawn: a dozen of the 3,158 that could be."""

INSTRUCTION = "answer the questions about the report with a json formula .\n"

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
    wide: float = 0.0

    def size(self, rng: Generator) -> tuple[int, int]:
        """Rows and years of a table; a share `wide` of them has few rows and many years."""
        if rng.random() < self.wide:
            return int(rng.integers(2, 4)), int(rng.integers(4, 7))
        return int(rng.integers(self.rows[0], self.rows[1] + 1)), int(rng.integers(self.years[0], self.years[1] + 1))


LEVELS = (
    Level((2, 2), (2, 2), phrasings=1, copies=0.3),
    Level((2, 3), (2, 3), phrasings=3, copies=0.2),
    Level((3, 4), (2, 3), phrasings=12, copies=0.1),
    Level((4, 6), (2, 4), phrasings=12, copies=0.04, rich=True, wide=0.25),
)
"""From tables of four cells, asked in their own words, to whole pages; one is learned before the next begins."""


def document(rng: Generator, level: Level) -> list[Piece]:
    """One training document of a level."""
    kind = rng.random()
    if kind < 0.03:
        return [(_reviews(rng), True)]
    if kind < 0.06:
        return [(_topics(rng), True)]
    if kind < 0.10:
        return _programs(rng)
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


def _programs(rng: Generator) -> list[Piece]:
    """Answers in FinQA's program language with random operations and numbers, each copied once; the copy is learned."""
    pieces: list[Piece] = []
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
        pieces += [(f"{answer}\nagain:", False), (f" {answer}\n", True)]
    return pieces


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
    if level.rich and rng.random() < 0.5:
        text = INSTRUCTION + text
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
    usable = [formula for formula in FORMULAS if _slots(formula) <= {name for name, value in known.items() if value}]
    weights = np.cumsum([formula.weight for formula in usable])
    formula = usable[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]
    question = _wording(rng, formula).format(**known)
    return question, json.dumps({"formula": formula.program.format(**known)})


def _wording(rng: Generator, formula: Formula) -> str:
    """One way of asking for a formula, with places for items and years."""
    while True:
        phrase = _pick(rng, formula.nouns + formula.clauses)
        wording = _pick(rng, NOUN_FRAMES if phrase in formula.nouns else CLAUSE_FRAMES)
        behind, before = (_pick(rng, options) for options in TIMES[formula.time])
        for place, text in (("noun", phrase), ("clause", phrase), ("behind", behind), ("before", before)):
            wording = wording.replace(f"{{{place}}}", text)
        if wording not in FINQA_MINI:
            return wording


def _slots(formula: Formula) -> set[str]:
    """Names that any wording of the formula needs."""
    words = [
        formula.program,
        *formula.nouns,
        *formula.clauses,
        *(text for part in TIMES[formula.time] for text in part),
    ]
    return set(re.findall(r"{(\w+)}", " ".join(words)))
