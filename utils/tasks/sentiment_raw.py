"""The sentiment task's raw files for stages 00 and 01."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.seeds import generator
from utils.sentiment import records, texts
from utils.sentiment.records import TextRecord
from utils.settings import TaskSettings
from utils.tasks.raw import Choices, CountTokens, Prepared, refuse_examples, refuse_pages
from utils.tasks.sentiment import ROW_SCHEMA, UNKNOWN, check_row
from utils.tasks.sources import SPLITS


class SentimentRaw:
    """Prompts and texts that go on from them (`utils.tasks.raw.RawData`)."""

    schema: Mapping[str, Any] = ROW_SCHEMA
    files: Mapping[str, Sequence[str]] = SPLITS
    suffix = ".json"
    unit = "prompt"

    def generate(self, seed: int) -> dict[str, str]:
        """Openings of made-up reviews."""
        return {f"{name}.json": records.format_records(rows) for name, rows in texts.generate(seed).items()}

    def read(self, path: Path) -> list[TextRecord]:
        """Every record of a file."""
        return records.read_records(path)

    def problems(self, split: Sequence[TextRecord], file: str) -> list[dict[str, Any]]:
        """Records without a prompt and repeated prompts."""
        return records.find_problems(split, file)

    def shared(self, splits: Mapping[str, Sequence[TextRecord]], files: Mapping[str, str]) -> list[dict[str, Any]]:
        """Prompts that stand in two splits."""
        return records.shared_problems(splits, files)

    def statistics(self, split: Sequence[TextRecord]) -> dict[str, Any]:
        """Counts of one split."""
        return records.statistics(split)

    def summary(self, counts: Mapping[str, Mapping[str, Any]], problems: Sequence[Mapping[str, Any]]) -> str:
        """The page that a person reads."""
        return records.summary(counts, problems)

    def size_line(self, split: str, facts: Mapping[str, Any]) -> str:
        """What the terminal says of a split."""
        return records.size_line(split, facts)

    def shown(self, record: TextRecord) -> dict[str, Any]:
        """A record as it is."""
        return records.shown(record)

    def refuse(self, task: TaskSettings, choices: Choices) -> None:
        """UserError for settings of prompts that show pages or examples."""
        refuse_pages(task, choices)
        refuse_examples(task)

    def prepare(
        self, raw: Mapping[str, Sequence[TextRecord]], task: TaskSettings, choices: Choices, count_tokens: CountTokens
    ) -> Prepared:
        """A row for each prompt that fits."""
        self.refuse(task, choices)
        splits = self._splits(raw, choices.split_proportions, task.data_seed)
        left_out = sum(map(len, raw.values())) - sum(map(len, splits.values()))
        subjects = {record.subject for record in splits["train"] if record.subject}
        rows: dict[str, list[dict[str, Any]]] = {}
        counts: dict[str, dict[str, Any]] = {}
        lines, warnings = [], [f"{left_out} records with the prompt of another left out"] if left_out else []
        for split, found in splits.items():
            usable = [record for record in found if records.defect(record) is None]
            taken = usable[: choices.most.get(split)]
            lengths = count_tokens([record.prompt for record in taken])
            fits = [(one, n) for one, n in zip(taken, lengths, strict=True) if n <= task.max_prompt_tokens]
            if not fits:
                raise UserError(
                    f"{split}: none of {len(found)} records is usable; python 00_check_data.py says why, and "
                    "--max_prompt_tokens how long a prompt may be"
                )
            rows[split] = [_row(record, subjects) for record, _ in fits]
            sizes = sorted(n for _, n in fits)
            dropped = {"malformed_dropped": len(found) - len(usable), "too_long_dropped": len(taken) - len(fits)}
            counts[split] = {"records": len(found), "examples": len(fits), **dropped}
            counts[split] |= {"with_text": sum(bool(record.text) for record, _ in fits)}
            counts[split] |= {"not_taken": len(usable) - len(taken)}
            counts[split] |= {"prompt_tokens_median": sizes[len(sizes) // 2], "prompt_tokens_max": sizes[-1]}
            lines.append(
                f"{split}: {len(fits)} prompts, {counts[split]['with_text']} with a text to learn; prompt tokens "
                f"median {counts[split]['prompt_tokens_median']}, max {counts[split]['prompt_tokens_max']}"
            )
            if sum(dropped.values()):
                warnings.append(
                    f"{split}: {sum(dropped.values())} records left out ({dropped['malformed_dropped']} without a "
                    f"prompt, {dropped['too_long_dropped']} with one longer than task.max_prompt_tokens)"
                )
        return Prepared(rows, counts, lines=lines, warnings=warnings)

    def check_row(self, row: Mapping[str, Any], place: str) -> None:
        """Hold one row to the schema."""
        check_row(row, place)

    def _splits(
        self, raw: Mapping[str, Sequence[TextRecord]], proportions: Sequence[float], seed: int
    ) -> Mapping[str, Sequence[TextRecord]]:
        """The files', which share no prompt, or all records shuffled and divided anew."""
        if not proportions:
            if shared := records.shared_problems(raw, {split: split for split in raw}):
                raise UserError(
                    f"record {shared[0]['id']} of {shared[0]['file']} {shared[0]['reason']}; "
                    "--split_proportions 0.8 0.1 0.1 divides the prompts anew"
                )
            return raw
        every = [record for split in raw.values() for record in split]
        name, count = Counter(record.id for record in every).most_common(1)[0]
        if count > 1:
            raise UserError(
                f"--split_proportions: id {name!r} occurs in {count} files; every record needs one of its own"
            )
        pool = records.each_prompt_once(every)
        order = [pool[i] for i in generator(seed, "divide_prompts").permutation(len(pool))]
        ends = [round(len(order) * share) for share in (0, proportions[0], proportions[0] + proportions[1], 1)]
        parts = {split: order[ends[i] : ends[i + 1]] for i, split in enumerate(raw)}
        if empty := [split for split, part in parts.items() if not part]:
            raise UserError(
                f"--split_proportions: {len(order)} prompts leave none for {empty[0]}; give it a larger share"
            )
        return parts


def _row(record: TextRecord, subjects: set[str]) -> dict[str, Any]:
    seen = UNKNOWN if not record.subject else "in training" if record.subject in subjects else "not in training"
    return {
        "id": record.id,
        "input_text": record.prompt,
        "target_text": f" {record.text}" if record.text else None,
        "opening": record.opening or UNKNOWN,
        "subject_kind": record.subject_kind or UNKNOWN,
        "seen": seen,
    }
