"""The one prompt renderer of training, sampling and evaluation, and the fitting of a page into a token budget.

A prompt is the page (text before the table, table, text after it), the question, and one line that asks for the answer.
Tables are written as sentences, as FinQA's own systems do (Chen et al. 2021, `table_row_to_text`), or as markdown.
A page that is too long loses the sentences and rows that bear least on the question; nothing is ever cut in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from utils.finqa.records import Record
from utils.finqa.retrieval import PageIndex

TEMPLATE = (
    "answer the question about the report with a json program and answer .\n{evidence}\nquestion: {question}\nanswer:"
)
"""The prompt. `{evidence}` is up to three lines: text before the table, table, text after it."""

TABLE_FORMATS = ("sentences", "markdown")


@dataclass(frozen=True)
class Unit:
    """One piece of a page that is kept or dropped as a whole."""

    name: (
        str  # as in gold_inds: text_3 counts pre_text and post_text through, table_1 is the first row below the header
    )
    block: int  # 0 before the table, 1 table, 2 after it
    text: str


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt within its budget."""

    text: str
    tokens: int
    kept: tuple[str, ...]  # names of the units in the prompt, in document order
    dropped: tuple[str, ...]  # names of the units left out for want of tokens, in document order


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _row_sentence(header: Sequence[str], row: Sequence[str]) -> str:
    """`the {row} of {column} is {cell} ;` for each cell; what is missing in the table is missing in the sentence."""
    label = _one_line(row[0]) if row else ""
    parts = []
    for column, cell in zip_longest(header[1:], row[1:], fillvalue=""):  # a title above the table is a short header
        column, cell = _one_line(column), _one_line(cell)
        if cell:
            subject = f"the {label} of {column}" if label and column else f"the {label or column or 'value'}"
            parts.append(f"{subject} is {cell} ;")
    if not parts and label:
        parts.append(f"{label} ;")  # a heading between rows
    return " ".join(parts)


def table_sentences(table: Sequence[Sequence[str]]) -> list[str]:
    """One string per row below the header: `the net revenue of 2008 is 731 ; the net revenue of 2007 is 702 ;`.

    Item i is FinQA's gold_inds name `table_{i + 1}`. The corner cell (often the unit) is not repeated in every row as
    FinQA does; the renderer writes it once before the rows. Empty cells give no sentence; a row of empty cells gives
    its label alone.
    """
    return [_row_sentence(table[0], row) for row in table[1:]]


def table_markdown(table: Sequence[Sequence[str]]) -> list[str]:
    """One markdown line per row below the header; item i is `table_{i + 1}`."""
    return [_markdown_row(row) for row in table[1:]]


def _markdown_row(row: Sequence[str]) -> str:
    return "| " + " | ".join(_one_line(cell).replace("|", "/") for cell in row) + " |"


def table_head(table: Sequence[Sequence[str]], table_format: str = "sentences") -> str:
    """What stands before the rows and is never dropped: the corner cell, or markdown's header and rule.

    A table of one row has no header: all its cells stand here.
    """
    if not table or not table[0]:
        return ""
    if table_format == "sentences":
        return _one_line(" ; ".join(table[0] if len(table) == 1 else table[0][:1]))
    return _markdown_row(table[0]) + "\n|" + " --- |" * len(table[0])


def page_units(record: Record, table_format: str = "sentences") -> list[Unit]:
    """The sentences and table rows of the record's page in document order; empty ones are left out."""
    rows = table_sentences(record.table) if table_format == "sentences" else table_markdown(record.table)
    before = len(record.pre_text)
    units = [Unit(f"text_{i}", 0, _one_line(text)) for i, text in enumerate(record.pre_text)]
    units += [Unit(f"table_{i}", 1, text) for i, text in enumerate(rows, start=1)]
    units += [Unit(f"text_{before + i}", 2, _one_line(text)) for i, text in enumerate(record.post_text)]
    return [unit for unit in units if unit.text]


def render_prompt(record: Record, evidence: Collection[str] | None = None, table_format: str = "sentences") -> str:
    """The prompt with the named units (`text_3`, `table_1`), or with the whole page when `evidence` is None."""
    units = page_units(record, table_format)
    return _render(record, [unit for unit in units if evidence is None or unit.name in evidence], table_format)


def _render(record: Record, units: Sequence[Unit], table_format: str) -> str:
    blocks = []
    for block in range(3):
        texts = [unit.text for unit in units if unit.block == block]
        head = table_head(record.table, table_format) if block == 1 else ""
        joint = "\n" if block == 1 and table_format == "markdown" else " "
        blocks.append(joint.join([head, *texts] if head else texts))
    evidence = "\n".join(block for block in blocks if block)
    return TEMPLATE.format(evidence=evidence, question=_one_line(record.question))


def fit_prompts(
    records: Sequence[Record],
    budget: int,
    count_tokens: Callable[[list[str]], list[int]],
    table_format: str = "sentences",
    evidence: Sequence[Collection[str] | None] | None = None,
    relevance: Callable[[Record], Sequence[float]] | None = None,
) -> list[FittedPrompt]:
    """Render every record within `budget` tokens.

    A page that fits stays whole. From one that does not, units are taken by relevance to the question while
    they fit, and stand in document order. Question, instruction and the table's head are always whole: where they
    alone exceed the budget, `tokens > budget` says so and nothing else is in the prompt.

    Args:
        records: what to render.
        budget: most tokens of a prompt, as `count_tokens` counts them.
        count_tokens: tokens of each text; called on prompts and on single units, many at a time.
        table_format: one of TABLE_FORMATS.
        evidence: names of the units that may stand in each prompt; None in its place, or at all, for the whole page.
        relevance: scores of the units of a record's page, asked where it does not fit; lexical by default.
    """
    pages: dict[object, _Page] = {}
    drafts = []
    for record, names in zip(records, evidence or [None] * len(records), strict=True):
        key = (record.pre_text, record.table, record.post_text)
        page = pages.get(key) or pages.setdefault(key, _Page(record, table_format))
        allowed = [names is None or unit.name in names for unit in page.units]
        drafts.append(_Draft(record, page, allowed, list(allowed), relevance or page.lexical))
    _weigh(pages.values(), count_tokens)
    bare = count_tokens([_render(draft.record, [], table_format) for draft in drafts])
    for draft, base in zip(drafts, bare, strict=True):
        # sums are off by a token per joint at most: a page far beyond the budget need not be measured whole
        if base + draft.cost() > budget + len(draft.page.costs):
            draft.choose(budget - base)
    _measure(drafts, count_tokens, table_format)
    for draft, base in zip(drafts, bare, strict=True):
        if draft.tokens > budget and draft.chosen is None:
            draft.choose(budget - base)
    long = [draft for draft in drafts if draft.tokens > budget]
    while long:
        _measure(long, count_tokens, table_format)
        long = [draft for draft in long if draft.tokens > budget and draft.drop_last()]
    return [draft.result() for draft in drafts]


class _Page:
    """Units of a page with their token counts and term statistics, shared by its questions."""

    def __init__(self, record: Record, table_format: str) -> None:
        self.units = page_units(record, table_format)
        self.costs: list[int] = []

    @cached_property
    def index(self) -> PageIndex:
        """Made for pages that do not fit, once."""
        return PageIndex([unit.text for unit in self.units], [unit.block == 1 for unit in self.units])

    def lexical(self, record: Record) -> list[float]:
        return self.index.scores(record.question)


@dataclass
class _Draft:
    """A prompt on its way: which units are in, and the order in which they would leave again."""

    record: Record
    page: _Page
    allowed: list[bool]  # the units that may stand in the prompt
    kept: list[bool]
    relevance: Callable[[Record], Sequence[float]]
    text: str = ""
    tokens: int = 0
    chosen: list[int] | None = None  # unit indices, the most relevant first

    def cost(self) -> int:
        """Tokens of all allowed units, but for a token per joint."""
        return sum(cost for cost, allowed in zip(self.page.costs, self.allowed, strict=True) if allowed)

    def choose(self, room: int) -> None:
        """Take the most relevant of the allowed units while they fit into `room` tokens."""
        scores = self.relevance(self.record)
        self.chosen = []
        for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
            if self.allowed[i] and self.page.costs[i] <= room:
                room -= self.page.costs[i]
                self.chosen.append(i)
        self._mark()

    def drop_last(self) -> bool:
        """Leave out the least relevant unit; False when none is left."""
        if not self.chosen:
            return False
        self.chosen.pop()
        self._mark()
        return True

    def _mark(self) -> None:
        inside = set(self.chosen or ())
        self.kept = [i in inside for i in range(len(self.page.units))]

    def result(self) -> FittedPrompt:
        names: dict[bool, list[str]] = {True: [], False: []}
        for unit, allowed, kept in zip(self.page.units, self.allowed, self.kept, strict=True):
            if allowed:
                names[kept].append(unit.name)
        return FittedPrompt(self.text, self.tokens, tuple(names[True]), tuple(names[False]))


def _measure(drafts: Sequence[_Draft], count_tokens: Callable[[list[str]], list[int]], table_format: str) -> None:
    for draft in drafts:
        units = [unit for unit, kept in zip(draft.page.units, draft.kept, strict=True) if kept]
        draft.text = _render(draft.record, units, table_format)
    for draft, tokens in zip(drafts, count_tokens([draft.text for draft in drafts]), strict=True):
        draft.tokens = tokens


def _weigh(pages: Iterable[_Page], count_tokens: Callable[[list[str]], list[int]]) -> None:
    """Count each unit of the pages once, in one call, without what the counter adds to any text (bos)."""
    pages = list(pages)
    texts = ["", *(" " + unit.text for page in pages for unit in page.units)]
    empty, *rest = count_tokens(texts)
    costs = iter(rest)
    for page in pages:
        page.costs = [next(costs) - empty for _ in page.units]
