"""The genalign task's golden data for stages 00 and 01."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.genalign import records, texts
from utils.genalign.prompts import make_rows
from utils.genalign.records import PARTS, SHARES, Golden
from utils.seeds import generator
from utils.settings import TaskSettings
from utils.tasks.genalign import ROW_SCHEMA, check_row
from utils.tasks.raw import Choices, CountTokens, Prepared, refuse_pages

PROMPTS = {"train": 600, "val": 240, "test": 480}
"""Prompts of each split; every one has its own examples."""


class GenAlignRaw:
    """Real texts with their labels (`utils.tasks.raw.RawData`)."""

    schema: Mapping[str, Any] = ROW_SCHEMA
    files: Mapping[str, Sequence[str]] = {"golden": ("golden",)}
    suffix = ".csv"
    unit = "text"

    def generate(self, seed: int) -> dict[str, str]:
        """Texts of four topics."""
        return {"golden.csv": texts.write_csv(texts.generate(seed))}

    def read(self, path: Path) -> list[Golden]:
        """Every line of a CSV file."""
        return records.read_golden(path)

    def problems(self, split: Sequence[Golden], file: str) -> list[dict[str, Any]]:
        """Lines without text or label, repeated and contradictory ones."""
        return records.find_problems(split, file)

    def shared(self, splits: Mapping[str, Sequence[Golden]], files: Mapping[str, str]) -> list[dict[str, Any]]:
        """Nothing: one file holds all."""
        return []

    def statistics(self, split: Sequence[Golden]) -> dict[str, Any]:
        """Counts."""
        return records.statistics(split)

    def summary(self, counts: Mapping[str, Mapping[str, Any]], problems: Sequence[Mapping[str, Any]]) -> str:
        """The page that a person reads."""
        return records.summary(counts, problems)

    def size_line(self, split: str, facts: Mapping[str, Any]) -> str:
        """What the terminal says."""
        return records.size_line(split, facts)

    def shown(self, record: Golden) -> dict[str, Any]:
        """A line as it is."""
        return records.to_row(record)

    def refuse(self, task: TaskSettings, choices: Choices) -> None:
        """UserError for settings of prompts that show pages."""
        refuse_pages(task, choices)

    def prepare(
        self, raw: Mapping[str, Sequence[Golden]], task: TaskSettings, choices: Choices, count_tokens: CountTokens
    ) -> Prepared:
        """Golden texts in four parts, and prompts that show texts of the pool."""
        self.refuse(task, choices)
        good = records.usable(raw["golden"])
        parts = records.divide(good, _shares(choices.split_proportions), task.data_seed)
        labels = sorted({one.label for one in good})
        rows: dict[str, list[dict[str, Any]]] = {}
        counts: dict[str, dict[str, Any]] = {}
        lines, warnings = [], []
        for split, number in PROMPTS.items():
            rng = generator(task.data_seed, "genalign prompts", split)
            count = min(number, choices.most.get(split, number))
            made = make_rows(split, count, parts["pool"], labels, task.icl_examples, task.icl_strategy, rng)
            lengths = count_tokens([row["input_text"] for row in made])
            rows[split] = [row for row, n in zip(made, lengths, strict=True) if n <= task.max_prompt_tokens]
            if not rows[split]:
                raise UserError(
                    f"{split}: no prompt has at most {task.max_prompt_tokens} tokens, the shortest has {min(lengths)}; "
                    "raise --max_prompt_tokens or lower --icl_examples"
                )
            sizes = sorted(n for n in lengths if n <= task.max_prompt_tokens)
            dropped = len(made) - len(rows[split])
            counts[split] = {"examples": len(rows[split]), "too_long_dropped": dropped}
            counts[split] |= {"prompt_tokens_median": sizes[len(sizes) // 2], "prompt_tokens_max": sizes[-1]}
            lines.append(
                f"{split}: {len(rows[split])} prompts with {task.icl_examples} examples ({task.icl_strategy}); prompt "
                f"tokens median {counts[split]['prompt_tokens_median']}, max {counts[split]['prompt_tokens_max']}"
            )
            if dropped:
                warnings.append(f"{split}: {dropped} prompts longer than task.max_prompt_tokens left out")
        if left_out := len(raw["golden"]) - len(good):
            warnings.append(f"{left_out} golden texts left out (00 says which: without text or label, or there twice)")
        sizes_of_parts = ", ".join(f"{part} {len(parts[part])}" for part in PARTS)
        lines.append(f"golden texts of {len(labels)} labels: {sizes_of_parts}")
        files = {f"golden_{part}.jsonl": [records.to_row(one) for one in parts[part]] for part in PARTS}
        facts = {"golden": {part: len(parts[part]) for part in PARTS}, "labels": labels}
        return Prepared(rows, counts, files, facts, lines, warnings)

    def check_row(self, row: Mapping[str, Any], place: str) -> None:
        """Hold one row to the schema."""
        check_row(row, place)


def _shares(proportions: Sequence[float]) -> Sequence[float]:
    """Shares of PARTS: the usual ones, or those of train (half pool, half reward), val (dev) and test."""
    if not proportions:
        return SHARES
    training, dev, test = proportions
    return training / 2, training / 2, dev, test
