"""Stage 00: is the raw data what it should be?

Generated tasks (finqa_mini, sentiment) are written first, where they are missing; then every record is read, checked
and counted. FinQA's is malformed when it has no question, no table, or a program that does not execute to `exe_ans`; a
missing program, answer, gold_inds or table_ori is counted only; repeated and contradictory questions and pages in two
splits are listed. The sentiment task's is malformed without a prompt; repeated prompts are listed. More than 1 % of
malformed records in a split end the stage.

Reads:  <data_root>/{train,dev,test}.json (dev or val; generated: <data_root>/seed_<data_seed>/), SOURCE.json if there
Writes: outputs/run_XXX/00_data_validation/{summary.txt, problems.jsonl, examples/train_000.json ..., manifest.json}

    python 00_check_data.py
    python 00_check_data.py --task finqa --data_root datasets/finqa
    python 00_check_data.py --task sentiment
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from utils.errors import UserError
from utils.files import read_json, write_json, write_jsonl, write_text
from utils.settings import RunSettings, TaskSettings
from utils.stage import Stage, main
from utils.tasks.raw import raw_data
from utils.tasks.sources import data_folder, raw_files, write_generated

EXAMPLES_PER_SPLIT = 3
MALFORMED_LIMIT = 0.01
"""Largest share of malformed records that is accepted."""


@dataclass(frozen=True)
class Config:
    """Settings of stage 00."""

    run: RunSettings
    task: TaskSettings


def run(cfg: Config, stage: Stage) -> None:
    """Check the raw files of the task."""
    raw = raw_data(cfg.task.kind)
    if cfg.task.source == "generated":
        for path in write_generated(cfg.task, raw.generate(cfg.task.data_seed)):
            stage.terminal.say(f"generated {path}")
    files = {split: stage.input(path) for split, path in raw_files(cfg.task, raw.files, raw.suffix).items()}
    _report_source(cfg.task, stage)
    splits = {split: raw.read(path) for split, path in files.items()}

    problems: list[dict[str, Any]] = []
    for split, records in splits.items():
        problems += raw.problems(records, files[split].name)
        for index, record in enumerate(records[:EXAMPLES_PER_SPLIT]):
            write_json(stage.path("examples", f"{split}_{index:03d}.json"), raw.shown(record))
    counts = {split: raw.statistics(records) for split, records in splits.items()}
    shared = raw.shared(splits, {split: path.name for split, path in files.items()})
    problems += shared
    title = f"task {cfg.task.name}, raw files in {data_folder(cfg.task)}"
    write_jsonl(stage.path("problems.jsonl"), problems)
    write_text(stage.path("summary.txt"), f"{title}\n\n{raw.summary(counts, problems)}")
    stage.report({"splits": counts, "problems": len(problems), "in_two_splits": len(shared)})

    for split, facts in counts.items():
        stage.terminal.say(raw.size_line(split, facts))
        if facts["malformed"] > MALFORMED_LIMIT * facts["records"]:
            name = files[split].name
            first = next(problem for problem in problems if problem["malformed"] and problem["file"] == name)
            raise UserError(
                f"{files[split]}: {facts['malformed']} of {facts['records']} records are malformed (at most "
                f"{MALFORMED_LIMIT:.0%} is accepted), the first is record {first['index']}, id {first['id']!r}: "
                f"{first['reason']}; all are in {stage.path('problems.jsonl')}"
            )
    if shared:
        first = shared[0]
        stage.warn(
            f"{len(shared)} {raw.unit}s lie in two splits, the first: record {first['id']} in {first['file']} "
            f"{first['reason']}; 01 refuses them"
        )


def _report_source(task: TaskSettings, stage: Stage) -> None:
    """Take what download.sh noted about the files' origin into the manifest."""
    path = data_folder(task) / "SOURCE.json"
    if not path.is_file():
        return
    source = read_json(stage.input(path))
    stage.report({"source": source})
    if isinstance(source, dict) and source.get("warning"):
        stage.warn(str(source["warning"]))


def plan(cfg: Config) -> list[str]:
    """What `--dry_run` says."""
    made = "generated where they are missing, " if cfg.task.source == "generated" else ""
    return [f"files of {data_folder(cfg.task)}: {made}read, checked and counted; no model is needed"]


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__, plan=plan))
