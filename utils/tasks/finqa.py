"""The FinQA task: from records to the examples of stage 01, and from completions to rewards and verdicts.

One line of stage 01's files (an FinQAExample), `input_text` shortened:

    {"id": "ETR/2016/page_23.pdf-2", "input_text": "answer the question ... question: ...\\nanswer:",
     "target_answer": "94", "target_program": "subtract(5829, 5735)", "question": "what is the net change ...",
     "exe_ans": 94.0, "target_text": "{\\"program\\": \\"subtract(5829, 5735)\\", \\"answer\\": \\"94\\"}", ...}

Gold is `exe_ans`. The scored answer is the executed program's value; the typed answer is judged beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.finqa.answers import format_answer, parse_answer, read_answer, write_answer
from utils.finqa.examples import FinQAExample, FinQAJudgement
from utils.finqa.failures import by_value
from utils.finqa.grounding import numbers, ungrounded
from utils.finqa.groups import groups_of
from utils.finqa.program import parse, same_answer
from utils.finqa.prompts import FittedPrompt, fit_prompts, render_prompt
from utils.finqa.published import official
from utils.finqa.records import Record
from utils.rewards.scoring import judge, score_text, within
from utils.rewards.spec import RewardSpec
from utils.rewards.state import check_reward_state, reward_state
from utils.tasks.base import Example, Judgement, Reward, Rollout
from utils.tasks.per_answer import PerAnswer
from utils.tasks.rows import check_schema, read_examples, row_schema

ROW_SCHEMA = row_schema(
    properties={
        "id": {"type": "string"},
        "input_text": {"type": "string", "description": "the prompt, verbatim, within task.max_prompt_tokens"},
        "target_answer": {"type": "string", "description": "exe_ans as text"},
        "target_program": {"type": ["string", "null"], "description": "gold program, null where none is known"},
        "question": {"type": "string"},
        "exe_ans": {"type": ["number", "string"], "description": "gold: a number, yes or no"},
        "target_text": {
            "type": ["string", "null"],
            "description": "what SFT learns to write; an `answer` object as text",
        },
        "page": {"type": "string"},
        "table": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
        "gold_inds": {"type": "object", "additionalProperties": {"type": "string"}},
        "answer": {"type": "string", "description": "the annotator's display string, never a target"},
        "evidence": {
            "type": "array",
            "items": {"type": "string"},
            "description": "sentences and table rows in the prompt, named as in gold_inds",
        },
    },
    required=[
        "id",
        "input_text",
        "target_answer",
        "target_program",
        "question",
        "exe_ans",
        "target_text",
        "page",
        "table",
    ],
)
ROW_SCHEMA |= {
    "$defs": {
        "answer": {
            "type": "object",
            "properties": {"program": {"type": "string"}, "answer": {"type": "string"}},
            "required": ["program", "answer"],
            "additionalProperties": False,
        }
    }
}
"""Written as schema_used.json; `check_row` holds every row to it when it is written and when it is read."""


def check_row(row: Mapping[str, Any], place: str) -> None:
    """Hold one row to ROW_SCHEMA. UserError with place, id, key and what was expected."""
    check_schema(row, ROW_SCHEMA, place)
    if isinstance(row["exe_ans"], str) and row["exe_ans"] not in ("yes", "no"):
        who = f"{place}, id {row.get('id')!r}"
        raise UserError(f"{who}, key 'exe_ans': expected a number, yes or no, got {row['exe_ans'][:60]!r}")


def make_examples(
    records: Sequence[Record],
    budget: int,
    count_tokens: Callable[[list[str]], list[int]],
    table_format: str = "sentences",
) -> tuple[list[FinQAExample], dict[str, Any]]:
    """The examples and counts of `fit_examples` for whole pages, shortened by lexical relevance."""
    rows, counts = fit_examples(records, budget, count_tokens, table_format)
    return [example for example, _ in rows], counts


def fit_examples(
    records: Sequence[Record],
    budget: int,
    count_tokens: Callable[[list[str]], list[int]],
    table_format: str = "sentences",
    evidence: Sequence[Collection[str] | None] | None = None,
    relevance: Callable[[Record], Sequence[float]] | None = None,
) -> tuple[list[tuple[FinQAExample, FittedPrompt]], dict[str, Any]]:
    """Render, fit and convert records.

    Args:
        records: usable ones (no `utils.finqa.checks.defect`).
        budget: most tokens of a prompt; a record whose question alone is longer is dropped.
        count_tokens: tokens of each prompt text.
        table_format, evidence, relevance: see `utils.finqa.prompts.fit_prompts`.

    Returns:
        the examples in the records' order, each with its prompt's account of units kept and dropped, and counts:
        shortened prompts, dropped records, units dropped, programs whose numbers all stand in the prompt and on the
        page, and the prompts' lengths in tokens.
    """
    rows, lengths = [], []
    counts = {"too_long_dropped": 0, "shortened": 0, "units_dropped": 0, "with_program": 0}
    counts |= {"numbers_in_prompt": 0, "numbers_on_page": 0}
    fitted_prompts = fit_prompts(records, budget, count_tokens, table_format, evidence, relevance)
    for record, fitted in zip(records, fitted_prompts, strict=True):
        if fitted.tokens > budget:
            counts["too_long_dropped"] += 1
            continue
        counts["shortened"] += bool(fitted.dropped)
        counts["units_dropped"] += len(fitted.dropped)
        if record.program is not None:
            counts["with_program"] += 1
            steps = parse(record.program)
            shown = not ungrounded(steps, numbers(fitted.text))
            counts["numbers_in_prompt"] += shown
            counts["numbers_on_page"] += shown or not ungrounded(
                steps, numbers(render_prompt(record, table_format=table_format))
            )
        lengths.append(fitted.tokens)
        rows.append((_example(record, fitted.text), fitted))
    lengths.sort()
    median, most = (lengths[len(lengths) // 2], lengths[-1]) if lengths else (0, 0)
    return rows, {"examples": len(rows), **counts, "prompt_tokens_median": median, "prompt_tokens_max": most}


def _example(record: Record, prompt: str) -> FinQAExample:
    return FinQAExample(
        id=record.id,
        input_text=prompt,
        target_answer=format_answer(record.exe_ans),
        target_program=record.program,
        question=record.question,
        exe_ans=record.exe_ans,
        target_text=None if record.program is None else write_answer(record.program, record.exe_ans),
        page=record.filename,
        table=record.table,
        gold_inds=record.gold_inds,
        answer=record.answer,
    )


def own(example: Example) -> FinQAExample:
    """What a rollout of this task is of."""
    assert isinstance(example, FinQAExample)
    return example


class FinQATask(PerAnswer):
    """Questions about report pages, answered by programs (`utils.tasks.base.Task`)."""

    kind = "finqa"

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec

    def load(self, path: Path) -> list[FinQAExample]:
        """Read one split of stage 01. UserError with file:line for a row off the schema, a repeated id, no rows."""
        return read_examples(path, check_row, FinQAExample.from_dict)

    def prompt(self, example: FinQAExample) -> str:
        """The prompt as stage 01 fitted it."""
        return example.input_text

    def target(self, example: FinQAExample) -> str | None:
        """The completion SFT learns, or None where no program is known."""
        return example.target_text

    def score(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """The reward of each completion; no completion's depends on another's."""
        return [score_text(rollout.text, own(rollout.example), self.spec) for rollout in rollouts]

    def judge(self, example: FinQAExample, text: str) -> FinQAJudgement:
        """The verdict on one completion."""
        return judge(text, example, self.spec)

    def assess(self, answer: Rollout, judgement: Judgement) -> dict[str, bool]:
        """The published evaluator's verdicts; right but for a factor of 100; right by a number that is nowhere."""
        published = official(own(answer.example), answer.text, judgement)
        ungrounded_program = isinstance(judgement, FinQAJudgement) and judgement.ungrounded
        return {
            "official_correct": published.correct,
            "official_program_correct": published.program_correct,
            "percent_scale": judgement.failure == "scale_100",
            "ungrounded_correct": judgement.correct and ungrounded_program,
        }

    def groups(self, example: FinQAExample) -> dict[str, str]:
        """Its group by the gold program, the gold evidence and the kind of answer."""
        return groups_of(example)

    def describe(self, example: FinQAExample) -> dict[str, str | None]:
        """Question and gold, for predictions.jsonl."""
        gold = {"target_program": example.target_program, "target_answer": example.target_answer}
        return {"question": example.question} | gold

    def gold(self, example: FinQAExample) -> float | str:
        """`exe_ans`."""
        return example.exe_ans

    def parsed(self, text: str) -> dict[str, str | None] | None:
        """Program and answer, None where the JSON is invalid."""
        answer = read_answer(text)
        return None if answer.problem else {"program": answer.program, "answer": answer.answer}

    def majority(self, train: Sequence[FinQAExample]) -> str:
        """The most frequent `exe_ans`, of equally frequent ones the first, as a typed answer without a program."""
        value = Counter(example.exe_ans for example in train).most_common(1)[0][0]
        return f'{{"answer": "{format_answer(value)}"}}'

    def judge_constant(self, answer: Rollout) -> FinQAJudgement:
        """The verdict on an answer without a program: its typed answer, as if a program had produced it."""
        example = own(answer.example)
        judgement, gold = self.judge(example, answer.text), example.exe_ans
        value = parse_answer(str(read_answer(answer.text).answer))
        if value is None:
            return judgement
        correct = same_answer(value, gold)
        return replace(
            judgement,
            correct=correct,
            exact_match=correct,
            numeric_1pct=within(value, gold, 0.01),
            failure="" if correct else by_value(value, gold) or "wrong_value",
            result=format_answer(value),
        )

    def state_dict(self) -> dict[str, Any]:
        """The reward's hash: a run continues under the reward it began with."""
        return reward_state(self.spec)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """UserError when the state was saved under another reward."""
        check_reward_state(self.spec, state)
