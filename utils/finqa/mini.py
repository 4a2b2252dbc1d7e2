"""finqa_mini: seeded reports, questions and programs in FinQA's schema, for machines without the real data.

One page per record: a table of 4 or 5 line items over 2 to 4 years, two or three sentences with further amounts, and
one question of a family of `mini_families.yaml`, drawn with FinQA's frequencies of operations and steps. Companies of
the three splits are disjoint; every fifth phrasing is used in dev and test only. 400 of the 2,000 training records
carry their program, the others the answer alone: supervised training sees the 400, reinforcement learning all 2,000.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from utils.finqa.program import execute
from utils.finqa.prompts import table_sentences
from utils.finqa.records import Record
from utils.seeds import generator

if TYPE_CHECKING:
    from numpy.random import Generator

SIZES = {"train": 2000, "dev": 300, "test": 2000}
TRAIN_PROGRAMS = 400
UNSEEN_EVERY = 5
"""Phrasings number 4, 9, 14 ... of a family are never asked in training."""

LINE_ITEMS = (
    "net revenue", "net income", "cost of goods sold", "operating income", "gross profit",
    "research and development", "interest expense", "interest income", "income tax expense", "total assets",
    "total liabilities", "accounts payable", "accounts receivable", "inventories", "goodwill",
    "cash and equivalents", "short term investments", "long term debt", "capital expenditures", "depreciation",
    "amortization", "stock compensation", "selling expenses", "marketing costs", "administrative expenses",
    "rent expense", "pension cost", "restructuring charges", "impairment losses", "dividends paid",
    "share repurchases", "retained earnings", "deferred taxes", "other assets", "other liabilities",
    "product sales", "service revenue", "license fees", "royalty income", "lease obligations",
    "purchase commitments", "fuel costs", "salaries and wages", "employee benefits", "insurance premiums",
    "loan losses", "customer deposits", "mortgage loans", "commercial loans", "trading assets",
    "available for sale securities", "property and equipment", "land and buildings", "foreign sales",
    "domestic sales", "export revenue", "maintenance costs", "legal settlements", "acquisition costs",
    "intangible assets", "prepaid expenses", "accrued expenses", "notes payable", "working capital",
)  # fmt: skip
SYLLABLES = ("al", "bar", "cor", "den", "el", "fin", "gar", "hal", "in", "jor", "kel", "lum", "mar", "nor", "ol", "pen")
ENDINGS = ("corp", "inc", "group", "holdings", "industries", "partners", "energy", "financial")
OPENINGS = (
    "{company} and its subsidiaries report in {unit} of dollars .",
    "the following table shows selected financial data of {company} in {unit} .",
    "the amounts of {company} below are stated in {unit} of dollars .",
    "management of {company} reviews these results each quarter .",
)
FACTS = (
    "as of december 31 , {year} , {item} was {value} .",
    "during {year} , {company} recorded {item} of {value} .",
    "in {year} , {item} amounted to {value} .",
    "{item} for the year {year} was {value} .",
)


@dataclass(frozen=True)
class Family:
    """A kind of question: its share in percent, its program template and its phrasings."""

    name: str
    percent: float
    program: str
    phrasings: tuple[str, ...]
    smaller: str = ""

    def slots(self) -> list[tuple[str, str]]:
        """(item, year) of every cell in the program, in order of appearance; a whole row has year ''."""
        found = re.findall(r"\[([abcd])(?: ([xyz]))?\]", self.program)
        return list(dict.fromkeys(found))

    def asked(self, split: str) -> tuple[str, ...]:
        """The phrasings that may be asked in `split`: in training all but every fifth."""
        if split != "train":
            return self.phrasings
        return tuple(text for i, text in enumerate(self.phrasings) if i % UNSEEN_EVERY != UNSEEN_EVERY - 1)


@dataclass(frozen=True)
class Page:
    """A report page: `cells[item, year]` is the text of an amount; `facts` are items that stand in sentences only."""

    company: str
    items: tuple[str, ...]
    years: tuple[int, ...]
    cells: dict[tuple[str, int], str]
    facts: dict[str, int]
    pre_text: tuple[str, ...]
    post_text: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]


@cache
def families() -> tuple[Family, ...]:
    """The question families of `mini_families.yaml`."""
    raw = yaml.safe_load((Path(__file__).parent / "mini_families.yaml").read_text(encoding="utf-8"))
    return tuple(Family(name=name, **{**entry, "phrasings": tuple(entry["phrasings"])}) for name, entry in raw.items())


def generate(seed: int) -> dict[str, list[Record]]:
    """All records of the data seed: `train` (2,000, 400 of them with a program), `dev` (300) and `test` (2,000)."""
    companies = _companies(generator(seed, "finqa_mini", "companies"))
    splits = {}
    for index, split in enumerate(SIZES):
        rng = generator(seed, "finqa_mini", split)
        splits[split] = [_record(rng, split, i, companies[index::3]) for i in range(SIZES[split])]
    splits["train"] = _hide_programs(generator(seed, "finqa_mini", "programs"), splits["train"])
    return splits


def _hide_programs(rng: Generator, records: list[Record]) -> list[Record]:
    """Keep the program of TRAIN_PROGRAMS records; the others have the answer alone."""
    keep = set(rng.permutation(len(records))[:TRAIN_PROGRAMS].tolist())
    return [r if i in keep else replace(r, program=None, gold_inds={}) for i, r in enumerate(records)]


def _companies(rng: Generator) -> list[str]:
    names = [
        f"{first}{second} {end}" for first in SYLLABLES for second in SYLLABLES if first != second for end in ENDINGS
    ]
    return [names[i] for i in rng.permutation(len(names))]


def _record(rng: Generator, split: str, index: int, companies: list[str]) -> Record:
    """One page with one question; draws again when the drawn page cannot answer the drawn question."""
    weights = [family.percent for family in families()]
    family = families()[_draw(rng, weights)]
    company = companies[int(rng.integers(len(companies)))]
    while True:
        page = _page(rng, company)
        slots = _fill(rng, family, page)
        if slots is not None:
            break
    question, program, evidence = _ask(rng, family, split, page, slots)
    exe_ans = execute(program, page.table)
    filename = f"{company.replace(' ', '_').upper()}/{max(page.years)}/page_{index + 1}.pdf"
    return Record(
        id=f"{filename}-1", filename=filename, question=question, pre_text=page.pre_text, post_text=page.post_text,
        table=page.table, program=program, exe_ans=exe_ans, answer=_display(exe_ans, family), gold_inds=evidence,
    )  # fmt: skip


def _draw(rng: Generator, weights: list[float]) -> int:
    """A place in `weights`, drawn with these weights; the last takes what rounding leaves."""
    total, mark = 0.0, rng.random() * sum(weights)
    for index, weight in enumerate(weights[:-1]):
        total += weight
        if mark < total:
            return index
    return len(weights) - 1


def _amount(rng: Generator, digits: int, decimal: bool) -> str:
    whole = int(rng.integers(10 ** (digits - 1), 10**digits))
    return f"{whole}.{int(rng.integers(1, 10))}" if decimal else str(whole)


def _page(rng: Generator, company: str) -> Page:
    """A table of 4-5 items x 2-4 years and two or three further amounts in sentences."""
    first = int(rng.integers(2001, 2016))
    years = tuple(range(first, first + int(rng.choice([2, 2, 3, 3, 4]))))
    count = int(rng.integers(4, 6))
    facts_count = int(rng.integers(2, 4))
    names = [LINE_ITEMS[i] for i in rng.permutation(len(LINE_ITEMS))[: count + facts_count]]
    items, outside = tuple(names[:count]), names[count:]
    digits, decimal, dollar = int(rng.integers(2, 5)), bool(rng.random() < 0.3), bool(rng.random() < 0.3)
    columns = years if rng.random() < 0.5 else years[::-1]
    cells = {(item, year): _amount(rng, digits, decimal) for item in items for year in years}
    facts = {item: int(rng.choice(years)) for item in outside}
    cells.update({(item, year): _amount(rng, digits, decimal) for item, year in facts.items()})
    unit = str(rng.choice(["thousands", "millions"]))
    sentences = [
        str(rng.choice(FACTS)).format(company=company, item=item, year=year, value="$ " + cells[item, year])
        for item, year in facts.items()
    ]
    header = (f"( in {unit} )", *map(str, columns))
    rows = [
        (item, *(("$ " if dollar and number == 0 else "") + cells[item, year] for year in columns))
        for number, item in enumerate(items)
    ]
    opening = str(rng.choice(OPENINGS)).format(company=company, unit=unit)
    return Page(company, items, years, cells, facts, (opening, *sentences[:1]), tuple(sentences[1:]), (header, *rows))


def _fill(rng: Generator, family: Family, page: Page) -> dict[str, str] | None:
    """Items and years for the family's slots, or None when this page does not have them."""
    letters = sorted({item for item, _ in family.slots()})
    needed = sum(year in family.program for year in ("y]", "z]", "x]"))
    if needed > len(page.years) or len(letters) > len(page.items):
        return None
    start = int(rng.integers(len(page.years) - max(needed, 1) + 1))
    slots = {name: str(year) for name, year in zip("yzx", page.years[start:], strict=False)}
    chosen = [page.items[i] for i in rng.permutation(len(page.items))[: len(letters)]]
    if needed == 1 and rng.random() < 0.15:  # one amount is found in a sentence
        item = list(page.facts)[int(rng.integers(len(page.facts)))]
        chosen[int(rng.integers(len(chosen)))], slots["y"] = item, str(page.facts[item])
    slots.update(zip(letters, chosen, strict=True))
    if family.smaller and float(_value(page, slots, "a", "y")) > float(_value(page, slots, "b", "y")):
        slots["a"], slots["b"] = slots["b"], slots["a"]
    values = [_value(page, slots, item, year) for item, year in family.slots() if year]
    return slots if len(set(values)) == len(values) else None


def _value(page: Page, slots: dict[str, str], item: str, year: str) -> str:
    return page.cells[slots[item], int(slots[year])]


def _ask(
    rng: Generator, family: Family, split: str, page: Page, slots: dict[str, str]
) -> tuple[str, str, dict[str, str]]:
    """The question, the program with its numbers, and the table rows and sentences that hold them (gold_inds)."""
    percent = f"{int(rng.integers(2, 96))}%"
    phrasings = family.asked(split)
    question = phrasings[int(rng.integers(len(phrasings)))].format(n=percent, **slots)
    program = family.program.replace("[n%]", percent)
    evidence: dict[str, str] = {}
    for item, year in family.slots():
        cell = slots[item] if not year else _value(page, slots, item, year)
        program = program.replace(f"[{item} {year}]" if year else f"[{item}]", cell)
        evidence.update(_evidence(page, slots[item]))
    return question, program, evidence


def _evidence(page: Page, item: str) -> dict[str, str]:
    if item in page.items:
        row = page.items.index(item) + 1
        return {f"table_{row}": table_sentences(page.table)[row - 1]}
    sentences = (*page.pre_text, *page.post_text)
    return {
        f"text_{i}": text
        for i, text in enumerate(sentences)
        if item in text and page.cells[item, page.facts[item]] in text
    }


def _display(exe_ans: float | str, family: Family) -> str:
    """The answer as a report would print it: percents rounded, as in FinQA's noisy `answer`."""
    if isinstance(exe_ans, str):
        return exe_ans
    if "divide" in family.program and abs(exe_ans) < 10 and "const_100" not in family.program:
        return f"{100 * exe_ans:.1f}%"
    return f"{exe_ans:g}"
