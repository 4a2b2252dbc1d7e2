"""FinQA's raw files for stages 00 and 01."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.finqa import checks
from utils.finqa.prompts import render_prompt
from utils.finqa.records import Record, format_records, read_records, record_to_dict
from utils.finqa.splits import disjoint_splits, few
from utils.settings import TaskSettings
from utils.tasks.finqa import ROW_SCHEMA, check_row
from utils.tasks.raw import Choices, CountTokens, Prepared, refuse_examples
from utils.tasks.sources import SPLITS


class FinQARaw:
    """Questions about report pages (`utils.tasks.raw.RawData`)."""

    schema: Mapping[str, Any] = ROW_SCHEMA
    files: Mapping[str, Sequence[str]] = SPLITS
    suffix = ".json"
    unit = "page"

    def generate(self, seed: int) -> dict[str, str]:
        """finqa_mini's files."""
        from utils.finqa.mini import generate

        return {f"{name}.json": format_records(records, f"{name}.json") for name, records in generate(seed).items()}

    def read(self, path: Path) -> list[Record]:
        """Every record of a file."""
        return read_records(path)

    def problems(self, records: Sequence[Record], file: str) -> list[dict[str, Any]]:
        """Malformed and repeated records."""
        return checks.find_problems(records, file)

    def shared(self, splits: Mapping[str, Sequence[Record]], files: Mapping[str, str]) -> list[dict[str, Any]]:
        """Pages that two splits share."""
        return checks.shared_page_problems(splits, files)

    def statistics(self, records: Sequence[Record]) -> dict[str, Any]:
        """Counts of one split."""
        return checks.statistics(records)

    def summary(self, counts: Mapping[str, Mapping[str, Any]], problems: Sequence[Mapping[str, Any]]) -> str:
        """The page that a person reads."""
        return checks.summary(counts, problems)

    def size_line(self, split: str, facts: Mapping[str, Any]) -> str:
        """What the terminal says of a split."""
        size = f"{split}: {facts['records']} records, {facts['missing']['program']} without program"
        return f"{size}, {facts['malformed']} malformed"

    def shown(self, record: Record) -> dict[str, Any]:
        """A record with the prompt of its whole page."""
        return {**record_to_dict(record), "prompt": render_prompt(record)}

    def refuse(self, task: TaskSettings, choices: Choices) -> None:
        """UserError for settings of prompts that show examples."""
        refuse_examples(task)

    def prepare(
        self, raw: Mapping[str, Sequence[Record]], task: TaskSettings, choices: Choices, count_tokens: CountTokens
    ) -> Prepared:
        """Prompts with their evidence, by a ranker that learns from the training records."""
        self.refuse(task, choices)
        from utils.finqa.ranker import train_ranker
        from utils.tasks.preparation import evidence_facts, evidence_line, gold_warning, make_rows, split_line

        splits = disjoint_splits(raw, choices.split_proportions, task.data_seed)
        usable = {name: [one for one in records if checks.defect(one) is None] for name, records in splits.items()}
        chosen = {name: few(r, choices.most[name]) for name, r in usable.items()} if choices.most else usable
        ranker = train_ranker(chosen["train"], choices.table_format)
        rows, counts, warnings = {}, {}, []
        for split, records in chosen.items():
            rows[split], figures = make_rows(records, task, ranker, count_tokens)
            if not rows[split]:
                raise UserError(
                    f"{split}: none of {len(splits[split])} records is usable; python 00_check_data.py says why"
                )
            figures |= {"malformed_dropped": len(splits[split]) - len(usable[split])}
            counts[split] = {"records": len(splits[split])} | figures
            counts[split] |= {"not_taken": len(usable[split]) - len(records)}
            warnings += dropped_warning(split, counts[split])
        facts = evidence_facts(task, ranker, chosen["val"])
        lines = [*(split_line(split, figures) for split, figures in counts.items()), evidence_line(facts)]
        if task.context == "gold":
            warnings.append(gold_warning(counts))
        files = {"retriever.json": ranker.to_dict()}
        return Prepared(rows, counts, files, {"evidence": facts}, lines, warnings)

    def check_row(self, row: Mapping[str, Any], place: str) -> None:
        """Hold one row to the schema."""
        check_row(row, place)


def dropped_warning(split: str, counts: Mapping[str, Any]) -> list[str]:
    """A warning where records were left out."""
    dropped = counts["malformed_dropped"] + counts["too_long_dropped"]
    if not dropped:
        return []
    too_long = f"{counts['too_long_dropped']} with a question longer than task.max_prompt_tokens"
    return [f"{split}: {dropped} records left out ({counts['malformed_dropped']} malformed, {too_long})"]
