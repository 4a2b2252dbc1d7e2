"""Stage 01: raw records become prompts and targets.

Every prompt is rendered once, fitted to `task.max_prompt_tokens` of the run's tokenizer, and taken verbatim by all
later stages. FinQA: a ranker, learned from the training records whose evidence (gold_inds) is known, orders each page's
sentences and rows by what they have to do with the question. `--context full` shows the whole page, less its least
relevant pieces where it is too long; `retrieved` shows the best `task.evidence_units`; `gold` the labelled evidence, an
upper bound. Records that stage 00 calls malformed are left out and counted. The splits are the files', unless
--split_proportions divides the pages anew.

Reads:  <data_root>/{train,dev,test}.json (generated: <data_root>/seed_<data_seed>/, written by stage 00)
Writes: outputs/run_XXX/01_preprocessing/{train,val,test}.jsonl, retriever.json, schema_used.json, manifest.json;
        a copy of the splits and their schema in datasets/<task>_processed/

    python 01_prepare_dataset.py
    python 01_prepare_dataset.py --context retrieved --evidence_units 6
    python 01_prepare_dataset.py --task finqa --split_proportions 0.8 0.1 0.1
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import setting
from utils.errors import UserError
from utils.files import new_folder, read_text, write_json, write_jsonl, write_text
from utils.finqa.prompts import TABLE_FORMATS
from utils.settings import ModelSettings, RunSettings, TaskSettings
from utils.stage import Stage, main
from utils.tasks.raw import Choices, raw_data
from utils.tasks.sources import data_folder, raw_files

QUICK_RECORDS = {"train": 320, "val": 64, "test": 128}


@dataclass(frozen=True)
class Inputs:
    """Flags of this stage."""

    split_proportions: tuple[float, ...] = setting(
        (), "divide all pages into train, val and test: three shares that add up to 1", minimum=0.0
    )
    table_format: str = setting("sentences", "how tables are written in prompts", choices=TABLE_FORMATS)

    def __post_init__(self) -> None:
        shares = self.split_proportions
        if shares and (len(shares) != 3 or abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0):
            raise ValueError(
                f"split_proportions must be three positive shares that add up to 1, got {' '.join(map(str, shares))}"
            )


@dataclass(frozen=True)
class Config:
    """Settings of stage 01.

    --quick_test keeps 320 train, 64 val and 128 test records in file order, at least half of them with a program where
    the file has so many.
    """

    run: RunSettings
    task: TaskSettings
    model: ModelSettings
    inputs: Inputs


def run(cfg: Config, stage: Stage) -> None:
    """Write the three splits."""
    from utils.models.tokens import count_prompts, encode_target, load_tokenizer

    raw = raw_data(cfg.task.kind)
    records = {split: raw.read(stage.input(path)) for split, path in raw_files(cfg.task, raw.files, raw.suffix).items()}
    tokenizer = load_tokenizer(cfg.model)
    choices = choices_of(cfg)
    made = raw.prepare(records, cfg.task, choices, lambda texts: count_prompts(tokenizer, texts))

    metrics: dict[str, Any] = {}
    for split, rows in made.rows.items():
        lengths = {row["id"]: len(encode_target(tokenizer, row["target_text"])) for row in rows if row["target_text"]}
        if empty := [name for name, length in lengths.items() if length < 2]:  # the last token is the end of turn
            raise UserError(
                f"{split}: {cfg.model.name} has no token for the target of {empty[0]}, expected one at least"
            )
        for index, row in enumerate(rows):
            raw.check_row(row, f"{split}.jsonl:{index + 1}")
        sizes = sorted(lengths.values()) or [0]
        metrics[split] = {**made.counts[split], "target_tokens_min": sizes[0], "target_tokens_max": sizes[-1]}
    for split, rows in made.rows.items():  # nothing is written before all splits are right
        write_jsonl(stage.path(f"{split}.jsonl"), rows)
    for name, content in {**made.files, "schema_used.json": raw.schema}.items():
        write = write_jsonl if name.endswith(".jsonl") else write_json
        write(stage.path(name), content)
    for line in made.lines:
        stage.terminal.say(line)
    for line in made.warnings:
        stage.warn(line)
    stage.report({**metrics, **made.facts})
    _copy(stage.dir, Path("datasets") / f"{cfg.task.name}_processed", made.files)


def _copy(folder: Path, target: Path, further: Collection[str]) -> None:
    """Refresh the copy that other programs read: the splits, their schema and what tasks read beside, all at once."""
    with new_folder(target) as fresh:
        beside = [name for name in further if name.endswith(".jsonl")]
        for name in (*(f"{split}.jsonl" for split in QUICK_RECORDS), *beside, "schema_used.json"):
            write_text(fresh / name, read_text(folder / name))


def choices_of(cfg: Config) -> Choices:
    """The flags that say how rows are made."""
    most = QUICK_RECORDS if cfg.run.quick_test else {}
    return Choices(cfg.inputs.split_proportions, cfg.inputs.table_format, most)


def plan(cfg: Config) -> list[str]:
    """What `--dry_run` says."""
    raw_data(cfg.task.kind).refuse(cfg.task, choices_of(cfg))
    size = " ".join(f"{name} {count}" for name, count in QUICK_RECORDS.items()) if cfg.run.quick_test else "all"
    budget = f"prompts of at most {cfg.task.max_prompt_tokens} tokens"
    if cfg.task.kind == "finqa":
        best = f"the {cfg.task.evidence_units} most relevant sentences and rows"
        shown = {"full": "the whole page where it fits", "retrieved": best}
        budget += f": {shown.get(cfg.task.context, 'the labelled evidence, an upper bound')}"
    anew = f", divided anew {cfg.inputs.split_proportions}" if cfg.inputs.split_proportions else ""
    return [f"records of {data_folder(cfg.task)}: {size}{anew}; {budget}"]


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__, plan=plan))
