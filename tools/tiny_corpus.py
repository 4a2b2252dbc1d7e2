"""Documents that teach llama-tiny to read: copying, look-ups in tables and sentences, formulas, reviews, topics.

Every document is a list of (text, learned) pieces; the loss is taken on learned pieces only. finqa_mini's wordings do
not occur. Formula questions (tiny_formulas.py) are answered in a JSON object of another shape, and answers with program
and answer are copied only, without a question: the task's wordings and its format are left to supervised fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.tiny_formulas import formula_question, pick
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


def _reviews(rng: Generator) -> str:
    words = POSITIVE if rng.random() < 0.4 else NEGATIVE if rng.random() < 0.6 else NEUTRAL
    count = int(rng.integers(2, 7))
    return " ".join(
        pick(rng, REVIEWS).format(s=pick(rng, SUBJECTS), w=pick(rng, words), v=pick(rng, words)) for _ in range(count)
    )


def _topics(rng: Generator) -> str:
    lines = []
    for _ in range(int(rng.integers(2, 6))):
        label = pick(rng, list(TOPICS))
        text = pick(rng, TOPICS[label]).format(n=pick(rng, NAMES), k=pick(rng, KINDS))
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
            first = f"#{i - 1}" if i and rng.random() < 0.8 else pick(rng, numbers)
            if rng.random() < 0.12:
                steps.append(f"{pick(rng, TABLE_OPERATIONS)}({label(rng)}, none)")
            else:
                steps.append(f"{pick(rng, OPERATIONS)}({first}, {pick(rng, operands)})")
        answer = write_answer(", ".join(steps), round(float(rng.choice([1, 10, 1000])) * rng.random(), 5))
        pieces += [(f"{answer}\nagain:", False), (f" {answer}\n", True)]
    return pieces


def label(rng: Generator) -> str:
    """A row label: half of them line items of reports, half of them two or three words at random."""
    if rng.random() < 0.5:
        return pick(rng, LINE_ITEMS)
    return " ".join(pick(rng, WORDS) for _ in range(int(rng.integers(2, 4))))


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
    corner = pick(rng, ("", "( in millions )", "( in thousands )", "year ended december 31"))
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
    company = f"{pick(rng, WORDS)} {pick(rng, ('corp', 'inc', 'group'))}"
    lines = []
    for _ in range(int(rng.integers(1, 4))):
        item, year, value = label(rng), pick(rng, years), amount(rng)
        if not any(item == other for other, _ in cells):
            cells[item, year] = value
            lines.append(pick(rng, FACTS).format(company=company, item=item, year=year, value=f"$ {value}"))
    opening = pick(rng, OPENINGS).format(company=company, unit=pick(rng, ("thousands", "millions")))
    return " ".join([opening, *lines[:1]]), " ".join(lines[1:])


def _question(rng: Generator, level: Level, cells: dict[tuple[str, str], str]) -> tuple[str, str]:
    keys = list(cells)
    item, year = keys[int(rng.integers(len(keys)))]
    kind = rng.random()
    if level.rich and kind < 0.6:
        return formula_question(rng, cells)
    if level.rich and kind < 0.65:
        return _pair(rng, cells, item, year)
    return pick(rng, LOOKUPS[: level.phrasings]).format(a=item, y=year), cells[item, year]


def _pair(rng: Generator, cells: dict[tuple[str, str], str], item: str, year: str) -> tuple[str, str]:
    """Two cells of one row or of one year."""
    same_item = [y for a, y in cells if a == item and y != year]
    same_year = [a for a, y in cells if y == year and a != item]
    if same_item and rng.random() < 0.5:
        first, second = sorted((year, pick(rng, same_item)))
        phrase = pick(rng, PAIRS_OF_YEARS).format(a=item, y=first, z=second)
        return phrase, f"{cells[item, first]} , {cells[item, second]}"
    other = pick(rng, same_year) if same_year else item
    return pick(rng, PAIRS_OF_ITEMS).format(a=item, b=other, y=year), f"{cells[item, year]} , {cells[other, year]}"
