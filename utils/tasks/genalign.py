"""The genalign task: write labelled texts from which a classifier learns (a reward that belongs to a set of texts).

One line of stage 01's files (a GenAlignExample), `input_text` shortened:

    {"id": "train-0", "input_text": "label: world\\ntext: the envoy ...\\nlabel: sports\\ntext:",
     "target_text": " the captain won the final match despite the cold", "label": "sports", "part": "train"}

All texts of a rollout batch train one classifier (`utils.rewards.genalign`), which is scored on golden texts: those of
golden_reward.jsonl in training, of golden_dev.jsonl in validation, of golden_test.jsonl in stage 10. No golden text is
in two of them or in the pool, which prompts and SFT take their texts from. A single text is judged by a classifier that
has learned from the pool: does it take the text for what was asked?
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import read_numbered_jsonl
from utils.genalign.classifier import UNDECIDED, Classifier, features, train, words_of_text
from utils.genalign.prompts import is_one_line, text_of
from utils.genalign.quality import balance, copies, distances, distinct, silhouette
from utils.rewards.genalign import FAILURES, GenAlignSpec, Labelled, Learned, form_of, learn, score_set
from utils.rewards.state import check_reward_state, reward_state
from utils.tasks.base import Evaluated, Example, Judgement, Reward, Rollout
from utils.tasks.rows import check_schema, read_examples, row_schema

GOLDEN_OF = {"train": "reward", "val": "dev", "test": "test"}
"""Split of a prompt -> the part of the golden texts that its classifier is scored on."""

SET_SIZE = 256
"""Texts that are paid together at most: 32 prompts of 8 texts."""

ROW_SCHEMA = row_schema(
    properties={
        "id": {"type": "string"},
        "input_text": {"type": "string", "description": "examples and the label that is asked for"},
        "target_text": {"type": ["string", "null"], "description": "a text of the pool with that label"},
        "label": {"type": "string"},
        "part": {"type": "string", "description": "train, val or test"},
    },
    required=["id", "input_text", "target_text", "label", "part"],
)
"""Written as schema_used.json; `check_row` holds every row to it when it is written and when it is read."""


@dataclass(frozen=True, kw_only=True)
class GenAlignExample(Example):
    """A prompt that asks for a text of a label."""

    label: str
    part: str

    @property
    def shown(self) -> tuple[str, ...]:
        """The texts in the prompt."""
        lines = (line.removeprefix("text: ") for line in self.input_text.splitlines() if line.startswith("text: "))
        return tuple(line for line in lines if line.strip())


def check_row(row: Mapping[str, Any], place: str) -> None:
    """Hold one row to ROW_SCHEMA. UserError with place, id, key and what was expected."""
    check_schema(row, ROW_SCHEMA, place)
    if row["part"] not in GOLDEN_OF:
        raise UserError(
            f"{place}, id {row['id']!r}, key 'part': expected {' or '.join(GOLDEN_OF)}, got {row['part'][:60]!r}"
        )


def _example(row: Mapping[str, Any], _: str) -> GenAlignExample:
    return GenAlignExample(**{key: row[key] for key in ROW_SCHEMA["properties"]})


def labelled(example: GenAlignExample, completion: str) -> Labelled:
    """What a completion says, with what was asked for."""
    return Labelled(text_of(completion), example.label, example.shown, is_one_line(completion))


def own(example: Example) -> GenAlignExample:
    """What a rollout of this task is of."""
    assert isinstance(example, GenAlignExample)
    return example


class GenAlignTask:
    """Texts that a classifier learns from (`utils.tasks.base.Task`)."""

    kind = "genalign"
    sampled = True

    def __init__(self, spec: GenAlignSpec) -> None:
        self.spec = spec
        self.golden: dict[str, list[tuple[str, Labelled]]] = {}
        self._last: tuple[tuple[Labelled, ...], str, Learned] | None = None

    def load(self, path: Path) -> list[GenAlignExample]:
        """Read one split of stage 01 and the golden texts beside it. UserError with file:line for what is none."""
        for part in ("pool", *GOLDEN_OF.values()):
            file = path.with_name(f"golden_{part}.jsonl")
            found = _read_golden(file)
            if self.golden.setdefault(part, found) != found:
                raise UserError(
                    f"{file}: differs from that beside other records of this stage; give files of one stage 01"
                )
            if other := [one.label for _, one in found if one.label not in self.labels]:
                raise UserError(f"{file}: label {other[0]!r} is none of the pool's; write it again with 01")
        examples = read_examples(path, check_row, _example)
        for example in examples:
            if example.label not in self.labels:
                raise UserError(f"{path}: record {example.id} asks for label {example.label!r}, which the pool has not")
        return examples

    @cached_property
    def labels(self) -> list[str]:
        """The labels of the pool, in order."""
        return sorted({one.label for _, one in self.golden["pool"]})

    @cached_property
    def judge_of_labels(self) -> Classifier:
        """A classifier that has learned from the pool."""
        pool = [one for _, one in self.golden["pool"]]
        y = np.array([self.labels.index(one.label) for one in pool])
        return train(features([one.text for one in pool]), y, len(self.labels))

    def prompt(self, example: GenAlignExample) -> str:
        """The prompt as stage 01 wrote it."""
        return example.input_text

    def target(self, example: GenAlignExample) -> str | None:
        """The text SFT learns, or None."""
        return example.target_text

    def score(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """The reward of each text, by what all of them are good for together; all must be of one split.

        Of more than SET_SIZE texts each so many make a set, so that 04's thousands are paid as a step's are.
        """
        rewards: list[Reward] = []
        for start in range(0, len(rollouts), SET_SIZE):
            rewards += score_set(self._learned(rollouts[start : start + SET_SIZE]), self.judge_of_labels, self.spec)
        return rewards

    def judge(self, example: GenAlignExample, text: str) -> Judgement:
        """Whether one text is one of its label; `failure` is one of utils.rewards.genalign.FAILURES.

        `reward` is not that of the text, which depends on the others, but 1 or 0.
        """
        one = labelled(example, text)
        taken_for = self._named(int(self.judge_of_labels.predict(features([one.text]))[0]))
        form = form_of(one)
        meaning = "copy" if copies(one.text, one.shown) else "" if taken_for == example.label else "wrong_label"
        failure, right = form or meaning, not (form or meaning)
        return Judgement(
            id=example.id, correct=right, format_valid=not form, failure=failure, reward=float(right), result=taken_for
        )

    def figures(self, rollouts: Sequence[Rollout], verdicts: Sequence[Judgement]) -> dict[str, float]:
        """Accuracy on golden texts of the split, its loss, and how many texts are of their label."""
        learned = self._learned(rollouts)
        return {
            "accuracy": float((learned.predicted == learned.right).mean()),
            "golden_loss": learned.loss,
            "label_fidelity": sum(one.correct for one in verdicts) / len(verdicts),
            "distinct_2": distinct([one.text for one in learned.texts], 2),
        }

    def evaluate(self, answers: Sequence[Rollout], *, constant: bool) -> Evaluated:
        """A judgement of each golden text, by the classifier that has learned from the answers."""
        learned = self._learned(answers)
        verdicts = [self.judge(own(one.example), one.text) for one in answers]
        names = [name for name, _ in self.golden[GOLDEN_OF[own(answers[0].example).part]]]
        judged, groups = [], []
        for name, predicted, right in zip(names, learned.predicted, learned.right, strict=True):
            label, taken_for = self.labels[right], self._named(int(predicted))
            failure = "" if predicted == right else f"taken_for_{taken_for}"
            correct = not failure
            judged.append(
                Judgement(
                    id=name,
                    correct=correct,
                    format_valid=True,
                    failure=failure,
                    reward=float(correct),
                    result=taken_for,
                )
            )
            groups.append({"label": label})
        return Evaluated(verdicts, judged, [{} for _ in judged], groups, self._quality(learned, verdicts))

    def _quality(self, learned: Learned, verdicts: Sequence[Judgement]) -> dict[str, float]:
        """What the set of texts is like; shares are in percent."""
        texts = [one.text for one in learned.texts]
        inter, intra = distances(learned.x, learned.y)
        copied = [copies(one.text, one.shown) for one in learned.texts]
        return {
            "golden_loss": learned.loss,
            "label_fidelity": 100 * sum(one.correct for one in verdicts) / len(verdicts),
            "inter": float(inter.mean()),
            "intra": float(intra.mean()),
            "silhouette_cosine": silhouette(learned.x, learned.y, "cosine"),
            "silhouette_euclidean": silhouette(learned.x, learned.y, "euclidean"),
            "distinct_1": distinct(texts, 1),
            "distinct_2": distinct(texts, 2),
            "repeated": 100 * float(learned.repeated.mean()),
            "copied": 100 * sum(copied) / len(copied),
            "balance": balance(learned.y, len(self.labels)),
            "words": sum(len(words_of_text(text)) for text in texts) / len(texts),
            **{f"{name}_texts": float(sum(one.failure == name for one in verdicts)) for name in FAILURES},
        }

    def _named(self, predicted: int) -> str:
        return "none" if predicted == UNDECIDED else self.labels[predicted]

    def describe(self, example: GenAlignExample) -> dict[str, str]:
        """The label that was asked for."""
        return {"label": example.label}

    def gold(self, example: GenAlignExample) -> list[str]:
        """The label that is asked for, and the golden texts that decide what its text was good for."""
        golden = [(name, one.text, one.label) for name, one in self.golden[GOLDEN_OF[example.part]]]
        return [example.label, hashlib.sha256(json.dumps(golden).encode()).hexdigest()]

    def parsed(self, text: str) -> str | None:
        """The text, None where it has fewer than three words or something behind its line."""
        found = Labelled(text_of(text), "", (), is_one_line(text))
        return None if form_of(found) else found.text

    def majority(self, train_examples: Sequence[GenAlignExample]) -> str:
        """The most frequent text of the training records, of equally frequent ones the first."""
        texts = [example.target_text for example in train_examples if example.target_text is not None]
        if not texts:
            raise UserError("no training record has a text, so there is no most frequent one")
        return Counter(texts).most_common(1)[0][0]

    def state_dict(self) -> dict[str, Any]:
        """The reward's hash; its scales are fixed, so there is nothing else to remember."""
        return reward_state(self.spec)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """UserError when the state was saved under another reward."""
        check_reward_state(self.spec, state)

    def _learned(self, rollouts: Sequence[Rollout]) -> Learned:
        """The classifier of these texts; that of the last ones is kept, since they are scored and described in turn."""
        examples = [own(one.example) for one in rollouts]
        texts = tuple(
            replace(labelled(example, one.text), whole=is_one_line(one.text) and not one.truncated)
            for one, example in zip(rollouts, examples, strict=True)
        )
        parts = {example.part for example in examples}
        if len(parts) != 1:
            raise ValueError(f"texts of several splits cannot be scored together: {sorted(parts)}")
        part = GOLDEN_OF[parts.pop()]
        if self._last is None or self._last[:2] != (texts, part):
            self._last = (texts, part, learn(texts, [one for _, one in self.golden[part]], self.labels))
        return self._last[2]


def _read_golden(path: Path) -> list[tuple[str, Labelled]]:
    """(id, text with its label) of golden_<part>.jsonl. UserError where it is missing or a line is no such object."""
    if not path.is_file():
        raise UserError(f"{path}: not there; it belongs beside the records: write both with 01_prepare_dataset.py")
    found = []
    for line, row in read_numbered_jsonl(path):
        for key in ("id", "text", "label"):
            if not isinstance(row.get(key), str):
                raise UserError(f"{path}:{line}, key {key!r}: expected text, got {str(row.get(key))[:60]!r}")
        found.append((row["id"], Labelled(row["text"], row["label"])))
    if not found:
        raise UserError(f"{path}: no texts; write it again with python 01_prepare_dataset.py")
    return found
