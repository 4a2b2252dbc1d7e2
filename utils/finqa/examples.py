"""What FinQA adds to the vocabulary of tasks: its line of stage 01's files, and its verdict on a completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from utils.errors import UserError
from utils.tasks.base import Example, Judgement


@dataclass(frozen=True, kw_only=True)
class FinQAExample(Example):
    """A question about a page.

    `target_answer` is `exe_ans` as text; `answer` is the data set's display string, which is never a target.
    """

    target_answer: str
    target_program: str | None
    question: str
    exe_ans: float | str
    page: str = ""
    table: tuple[tuple[str, ...], ...] = ()
    gold_inds: Mapping[str, str] | None = None
    answer: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of this example, what the model learns to write behind what it is worked out from."""
        names = [field.name for field in fields(self) if field.name != "target_text"]
        names.insert(names.index("exe_ans") + 1, "target_text")
        row = {name: getattr(self, name) for name in names}
        row["table"] = [list(cells) for cells in self.table]
        row["gold_inds"] = dict(self.gold_inds or {})
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], where: str) -> FinQAExample:
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


@dataclass(frozen=True, kw_only=True)
class FinQAJudgement(Judgement):
    """`correct` when the executed program gives gold; `result` is the executed value.

    `program_correct` is False whenever the example has no gold program to compare with. `ungrounded`: the program
    executes and uses a number that is not in the prompt.
    """

    program_correct: bool
    exact_match: bool
    numeric_1pct: bool
    program_valid: bool
    ungrounded: bool = False
