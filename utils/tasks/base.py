"""The vocabulary between data, policy and reward: what a task gives to the stages and what it gets back.

A task loads examples, says what the model reads (`prompt`) and should write (`target`), pays for what it wrote
(`score`, for a whole rollout batch at once) and explains one completion (`judge`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from utils.errors import UserError


@dataclass(frozen=True)
class Example:
    """One line of stage 01's JSONL files.

    `target_text` is what SFT learns to write (None: no program is known, the record serves RL only);
    `target_answer` is `exe_ans` as text; `answer` is the data set's display string, which is never a target.
    """

    id: str
    input_text: str
    target_answer: str
    target_program: str | None
    question: str
    exe_ans: float | str
    target_text: str | None = None
    page: str = ""
    table: tuple[tuple[str, ...], ...] = ()
    gold_inds: Mapping[str, str] | None = None
    answer: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of this example, keys in field order."""
        row = {field.name: getattr(self, field.name) for field in fields(self)}
        row["table"] = [list(cells) for cells in self.table]
        row["gold_inds"] = dict(self.gold_inds or {})
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], where: str) -> Example:
        """Read one JSON object; `where` (file:line) stands in the UserError of a missing or ill-typed key."""
        known = {field.name for field in fields(cls)}
        required = ("id", "input_text", "target_answer", "question", "exe_ans")
        missing = [key for key in required if key not in row]
        if missing:
            raise UserError(f"{where}: key {missing[0]!r} is missing; write this file again with 01_prepare_dataset.py")
        values = {key: value for key, value in row.items() if key in known}
        values.setdefault("target_program", None)
        values["table"] = tuple(tuple(cells) for cells in row.get("table") or ())
        exe_ans = values["exe_ans"]
        is_number = isinstance(exe_ans, (int, float)) and not isinstance(exe_ans, bool)
        if not is_number and exe_ans not in ("yes", "no"):
            raise UserError(f"{where}: exe_ans is {exe_ans!r}, expected a number, 'yes' or 'no'")
        return cls(**values)


@dataclass(frozen=True)
class Rollout:
    """One completion of one example: `sample` counts within the group, `tokens` is the completion's length."""

    example: Example
    sample: int
    text: str
    truncated: bool
    tokens: int


@dataclass(frozen=True)
class Reward:
    """What a completion is paid: named components that sum to `total`, and why.

    A total that is not finite is let through: who pays knows the record and stops (`utils.rl.finite`).
    """

    total: float
    components: Mapping[str, float]
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not math.isfinite(self.total):
            return
        if not math.isclose(self.total, math.fsum(self.components.values()), abs_tol=1e-9):
            raise ValueError(f"components {dict(self.components)} do not sum to {self.total}")


@dataclass(frozen=True)
class Judgement:
    """The verdict on one completion; `failure` is "" when execution is correct, `result` the executed value as text.

    `program_correct` is False whenever the example has no gold program to compare with. `ungrounded`: the program
    executes and uses a number that is not in the prompt.
    """

    id: str
    execution_correct: bool
    program_correct: bool
    exact_match: bool
    numeric_1pct: bool
    program_valid: bool
    format_valid: bool
    failure: str
    reward: float
    result: str
    ungrounded: bool = False


class Task(Protocol):
    """What every stage may ask of a task."""

    def load(self, path: Path) -> list[Example]:
        """Read one split that stage 01 wrote."""

    def prompt(self, example: Example) -> str:
        """Return the text the model reads, verbatim as stage 01 fitted it."""

    def target(self, example: Example) -> str | None:
        """Return the text SFT learns to write, or None."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """Pay a whole rollout batch (gathered over processes); same order, same length."""

    def judge(self, example: Example, text: str) -> Judgement:
        """Explain one completion."""

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a resume."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
