"""What stage 01 makes of a split: rows with their evidence, and the lines and figures that say how it went."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.finqa.ranker import Ranker, chosen_evidence, recall
from utils.finqa.records import Record
from utils.settings import TaskSettings
from utils.tasks.finqa import fit_examples


def make_rows(
    records: Sequence[Record], task: TaskSettings, ranker: Ranker, count_tokens: Callable[[list[str]], list[int]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of a split's file and the counts of `fit_examples`.

    The evidence is chosen here, once: its names stand in each row beside the prompt that holds it, which every later
    stage reads as it is. `gold_unknown` counts records that context `gold` serves like `retrieved`.
    """
    evidence = [chosen_evidence(record, task.context, ranker, task.evidence_units) for record in records]
    examples, counts = fit_examples(
        records, task.max_prompt_tokens, count_tokens, ranker.table_format, evidence, ranker.scores
    )
    rows = [example.to_dict() | {"evidence": list(fitted.kept)} for example, fitted in examples]
    return rows, counts | {"gold_unknown": sum(not ranker.gold(record) for record in records)}


def split_line(split: str, counts: Mapping[str, Any]) -> str:
    """What the terminal says of a split."""
    dropped, programs = counts["malformed_dropped"] + counts["too_long_dropped"], max(1, counts["with_program"])
    in_prompt, on_page = counts["numbers_in_prompt"] / programs, counts["numbers_on_page"] / programs
    return (
        f"{split}: {counts['examples']} examples, {counts['with_program']} with program; prompt tokens median "
        f"{counts['prompt_tokens_median']}, max {counts['prompt_tokens_max']}; shortened {counts['shortened']}, "
        f"dropped {dropped}; all numbers of the program in the prompt: "
        f"{counts['numbers_in_prompt']} ({in_prompt:.1%} of programs; on the whole page {on_page:.1%})"
    )


def evidence_facts(task: TaskSettings, ranker: Ranker, val: Sequence[Record]) -> dict[str, Any]:
    """For the manifest: the context, what the ranker learned from, and its recall on validation records."""
    facts = {"context": task.context, "ranker": ranker.kind, "train_records": ranker.records}
    return facts | {"val": recall(val, ranker)}


def evidence_line(facts: Mapping[str, Any]) -> str:
    """What the terminal says of the ranker."""
    who = f"evidence: {facts['ranker']} ranker, {facts['train_records']} training records with known evidence"
    found = facts["val"]
    if not found["records"]:
        return f"{who}; no val record names its evidence"
    return (
        f"{who}; recall on {found['records']} val records at 3 {found['at_3']:.1%}, at 5 {found['at_5']:.1%} "
        f"(of all their evidence together {found['units_at_3']:.1%} and {found['units_at_5']:.1%})"
    )


def gold_warning(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Context `gold` looks at labels: nobody may take its figures for results."""
    rest = ", ".join(f"{split} {counts['gold_unknown']}" for split, counts in metrics.items())
    return (
        "CONTEXT GOLD: prompts hold the evidence that the LABELS name, in val and test too. Accuracies measured on "
        f"them are upper bounds, not results. Records that name none take the retriever's choice: {rest}"
    )
