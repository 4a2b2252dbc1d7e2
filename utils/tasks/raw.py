"""What stages 00 and 01 ask of a kind of task: its raw files read, checked and counted, and made into rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from utils.errors import UserError
from utils.settings import TaskSettings

CountTokens = Callable[[list[str]], list[int]]


@dataclass(frozen=True)
class Choices:
    """Flags of stage 01 that say how rows are made."""

    split_proportions: tuple[float, ...]
    table_format: str
    most: Mapping[str, int]
    """Split -> most records to take (--quick_test); empty: all."""


@dataclass(frozen=True)
class Prepared:
    """What stage 01 writes: rows and figures of each split, further files, lines and warnings for the terminal."""

    rows: Mapping[str, list[dict[str, Any]]]
    counts: Mapping[str, dict[str, Any]]
    files: Mapping[str, Any] = field(default_factory=dict)
    """Name -> content: rows of a .jsonl, else JSON."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()


class RawData(Protocol):
    """Raw files of one kind of task. A record is of the kind's own class."""

    schema: Mapping[str, Any]
    """JSON schema of a row, written as schema_used.json."""
    files: Mapping[str, Sequence[str]]
    """Split of the raw data -> the names that its file may have, without `suffix`."""
    suffix: str
    unit: str
    """What may stand in one split alone: a page, a prompt."""

    def generate(self, seed: int) -> dict[str, str]:
        """Name -> the text of a generated file."""

    def read(self, path: Path) -> list[Any]:
        """Every record of a file; UserError for a file that is none."""

    def problems(self, records: Sequence[Any], file: str) -> list[dict[str, Any]]:
        """Rows of problems.jsonl of one split: `file`, `index`, `id`, `reason`, `malformed`."""

    def shared(self, splits: Mapping[str, Sequence[Any]], files: Mapping[str, str]) -> list[dict[str, Any]]:
        """Rows of problems.jsonl for what stands in two splits."""

    def statistics(self, records: Sequence[Any]) -> dict[str, Any]:
        """Counts of one split, `records` and `malformed` among them."""

    def summary(self, counts: Mapping[str, Mapping[str, Any]], problems: Sequence[Mapping[str, Any]]) -> str:
        """The page that a person reads."""

    def size_line(self, split: str, facts: Mapping[str, Any]) -> str:
        """What the terminal says of a split."""

    def shown(self, record: Any) -> dict[str, Any]:
        """An example for a person."""

    def refuse(self, task: TaskSettings, choices: Choices) -> None:
        """UserError for settings that have no effect on this kind."""

    def prepare(
        self, raw: Mapping[str, Sequence[Any]], task: TaskSettings, choices: Choices, count_tokens: CountTokens
    ) -> Prepared:
        """Rows of stage 01, none of a malformed record. UserError when nothing is left of a split."""

    def check_row(self, row: Mapping[str, Any], place: str) -> None:
        """Hold one row to the schema. UserError with place, id, key and what was expected."""


def refuse_pages(task: TaskSettings, choices: Choices) -> None:
    """UserError for settings that say how a page is shown, for a task whose prompts show none."""
    usual = TaskSettings()
    given = {"table_format": (choices.table_format, "sentences"), "context": (task.context, usual.context)}
    given["evidence_units"] = (str(task.evidence_units), str(usual.evidence_units))
    for name, (value, otherwise) in given.items():
        if value != otherwise:
            raise UserError(f"--{name} {value}: prompts of task {task.name} hold no page; leave the flag out")


def refuse_examples(task: TaskSettings) -> None:
    """UserError for settings that say which examples a prompt shows, for a task whose prompts show none."""
    for name in ("icl_examples", "icl_strategy"):
        if (value := getattr(task, name)) != getattr(TaskSettings(), name):
            raise UserError(f"--{name} {value}: prompts of task {task.name} show no examples; leave the flag out")


def raw_data(kind: str) -> RawData:
    """The raw data of a kind of task."""
    from utils.tasks.finqa_raw import FinQARaw
    from utils.tasks.genalign_raw import GenAlignRaw
    from utils.tasks.sentiment_raw import SentimentRaw

    kinds: dict[str, type[RawData]] = {"finqa": FinQARaw, "sentiment": SentimentRaw, "genalign": GenAlignRaw}
    return kinds[kind]()
