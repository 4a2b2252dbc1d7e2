"""The sentiment task: go on from the opening of a review so that it reads as positive. The small RLHF loop.

One line of stage 01's files (a SentimentExample):

    {"id": "train-0", "input_text": "the soup by the river was", "target_text": " good and the room was lovely .",
     "opening": "… was", "subject_kind": "food", "seen": "in training"}

SFT learns to go on as the texts do, whatever their mood; only the reward (`utils.rewards.sentiment`) wants them
positive. No record has a right answer, so what is judged is the text alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.rewards.sentiment import SentimentSpec, read_continuation, score_text
from utils.rewards.state import check_reward_state, reward_state
from utils.tasks.base import Example, Judgement, Reward, Rollout
from utils.tasks.per_answer import PerAnswer
from utils.tasks.rows import check_schema, read_examples, row_schema

UNKNOWN = "unknown"
"""Group of a record whose file does not say it."""

ROW_SCHEMA = row_schema(
    properties={
        "id": {"type": "string"},
        "input_text": {"type": "string", "description": "the prompt, verbatim, within task.max_prompt_tokens"},
        "target_text": {"type": ["string", "null"], "description": "a text that goes on from it, which SFT learns"},
        "opening": {"type": "string", "description": "the prompt without its subject"},
        "subject_kind": {"type": "string"},
        "seen": {"type": "string", "description": "whether the subject stands in the training records"},
    },
    required=["id", "input_text", "target_text"],
)
"""Written as schema_used.json; `check_row` holds every row to it when it is written and when it is read."""


@dataclass(frozen=True, kw_only=True)
class SentimentExample(Example):
    """A prompt, and the groups that evaluations count it in."""

    opening: str = UNKNOWN
    subject_kind: str = UNKNOWN
    seen: str = UNKNOWN


@dataclass(frozen=True, kw_only=True)
class SentimentJudgement(Judgement):
    """`correct` when it reads as positive and is well formed; `format_valid`: of moderate length; `result`: -1 to 1."""

    negative: bool
    preferred_ending: bool
    repetitive: bool


def check_row(row: Mapping[str, Any], place: str) -> None:
    """Hold one row to ROW_SCHEMA. UserError with place, id, key and what was expected."""
    check_schema(row, ROW_SCHEMA, place)


def _example(row: Mapping[str, Any], _: str) -> SentimentExample:
    return SentimentExample(**{key: row[key] for key in ROW_SCHEMA["properties"] if key in row})


class SentimentTask(PerAnswer):
    """Positive continuations (`utils.tasks.base.Task`)."""

    kind = "sentiment"

    def __init__(self, spec: SentimentSpec) -> None:
        self.spec = spec

    def load(self, path: Path) -> list[SentimentExample]:
        """Read one split of stage 01. UserError with file:line for a row off the schema, a repeated id, no rows."""
        return read_examples(path, check_row, _example)

    def prompt(self, example: SentimentExample) -> str:
        """The prompt as stage 01 took it."""
        return example.input_text

    def target(self, example: SentimentExample) -> str | None:
        """The text SFT learns, of whatever mood, or None."""
        return example.target_text

    def score(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """The reward of each continuation; none depends on another."""
        return [score_text(rollout.text, self.spec) for rollout in rollouts]

    def judge(self, example: SentimentExample, text: str) -> SentimentJudgement:
        """The verdict on one continuation; `failure` is one of utils.rewards.sentiment.FAILURES."""
        reading = read_continuation(text, self.spec)
        return SentimentJudgement(
            id=example.id,
            correct=not reading.failure,
            format_valid=not reading.excess,
            failure=reading.failure,
            reward=score_text(text, self.spec).total,
            result=f"{reading.sentiment:+.2f}",
            negative=reading.sentiment < 0,
            preferred_ending=reading.ending,
            repetitive=reading.repetitive,
        )

    def assess(self, answer: Rollout, judgement: Judgement) -> dict[str, bool]:
        """The judgement says everything."""
        return {}

    def groups(self, example: SentimentExample) -> dict[str, str]:
        """Its opening and subject."""
        return {"opening": example.opening, "subject_kind": example.subject_kind, "seen": example.seen}

    def describe(self, example: SentimentExample) -> dict[str, str | None]:
        """Prompt and the record's own text, for predictions.jsonl."""
        return {"prompt": example.input_text, "target_text": example.target_text}

    def gold(self, example: SentimentExample) -> list[str]:
        """The prompt, and what judges whatever goes on from it: evaluations by other keywords are not comparable."""
        return [example.input_text, self.spec.judge_hash]

    def parsed(self, text: str) -> str | None:
        """The text, None where it is of immoderate length."""
        return None if read_continuation(text, self.spec).excess else text.strip()

    def majority(self, train: Sequence[SentimentExample]) -> str:
        """The most frequent of the texts that are judged right, else of all. UserError when no record has one."""
        texts = [example.target_text for example in train if example.target_text is not None]
        if not texts:
            raise UserError("no training record has a text, so there is no most frequent one")
        right = [text for text in texts if not read_continuation(text, self.spec).failure]
        return Counter(right or texts).most_common(1)[0][0]

    def judge_constant(self, answer: Rollout) -> SentimentJudgement:
        """The verdict on such a text."""
        example = answer.example
        assert isinstance(example, SentimentExample)
        return self.judge(example, answer.text)

    def state_dict(self) -> dict[str, Any]:
        """The reward's hash: a run continues under the reward it began with."""
        return reward_state(self.spec)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """UserError when the state was saved under another reward."""
        check_reward_state(self.spec, state)
