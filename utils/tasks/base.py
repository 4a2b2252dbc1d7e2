"""The vocabulary between data, policy and reward: what a task gives to the stages and what it gets back.

A task loads examples, says what the model reads (`prompt`) and should write (`target`), pays for what it wrote
(`score`, for a whole rollout batch at once) and explains one completion (`judge`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Example:
    """One line of stage 01's JSONL files, as far as every task has it; a task's own adds what it judges by.

    `target_text` is what SFT learns to write (None: nothing is known, the record serves RL only).
    """

    id: str
    input_text: str
    target_text: str | None = None


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


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict on one completion, as far as every task has it; a task's own adds further verdicts.

    `correct` decides comparisons and the choice of checkpoints; `failure` is "" where it is True. `result` is what was
    judged, as text.
    """

    id: str
    correct: bool
    format_valid: bool
    failure: str
    reward: float
    result: str


@dataclass(frozen=True)
class Evaluated:
    """What stage 10 writes: a line of breakdown.csv per judgement, with further columns and its groups.

    `judged` are the answers, or what the answers are good for: `figures` are then of the answers as a set. `verdicts`
    are of the answers in either case, for predictions.jsonl.
    """

    verdicts: Sequence[Judgement]
    judged: Sequence[Judgement]
    further: Sequence[Mapping[str, bool]]
    groups: Sequence[Mapping[str, str]]
    figures: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """What every stage from 03 on may ask of a task."""

    @property
    def kind(self) -> str:
        """Its name in `task.kind`, which finds its words (`utils.tasks.words`)."""

    @property
    def sampled(self) -> bool:
        """Whether validation and evaluation draw answers at temperature 1, as a set needs it, or take the likeliest."""

    def load(self, path: Path) -> list[Any]:
        """Read one split that stage 01 wrote: examples of the task's own class."""

    def prompt(self, example: Any) -> str:
        """Return the text the model reads, verbatim as stage 01 fitted it."""

    def target(self, example: Any) -> str | None:
        """Return the text SFT learns to write, or None."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """Pay a whole rollout batch (gathered over processes); same order, same length."""

    def judge(self, example: Any, text: str) -> Judgement:
        """Explain one completion."""

    def figures(self, rollouts: Sequence[Rollout], verdicts: Sequence[Judgement]) -> dict[str, float]:
        """What training logs of a batch and its verdicts: `accuracy`, which chooses checkpoints, and others."""

    def evaluate(self, answers: Sequence[Rollout], *, constant: bool) -> Evaluated:
        """What an evaluation says of all answers; `constant`: they are the control that answers all records alike."""

    def describe(self, example: Any) -> Mapping[str, Any]:
        """What stands of a record beside its answer in predictions.jsonl."""

    def gold(self, example: Any) -> Any:
        """What decides whether an answer is right, as JSON: two evaluations are compared only where it is the same."""

    def parsed(self, text: str) -> Any:
        """What was read of a completion, as JSON; None where its format is invalid."""

    def majority(self, train: Sequence[Any]) -> str:
        """The constant answer that is most often right in `train`."""

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a resume."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
