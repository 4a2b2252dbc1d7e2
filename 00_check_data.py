"""Stage 00: is the raw data what it should be?

Generated tasks (finqa_mini) are written first, where they are missing; then every record is read, checked and counted.
A record is malformed when it has no question, no table, or a program that does not execute to `exe_ans`; more than 1 %
of malformed records in a split end the stage. A missing program, answer, gold_inds or table_ori is counted only.

Reads:  <data_root>/{train,dev,test}.json (dev or val; generated: <data_root>/seed_<data_seed>/), SOURCE.json if there
Writes: outputs/run_XXX/00_data_validation/{summary.txt, problems.jsonl, examples/train_000.json ..., manifest.json}

    python 00_check_data.py
    python 00_check_data.py --task finqa --data_root datasets/finqa
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from utils.errors import UserError
from utils.files import read_json, write_json, write_jsonl, write_text
from utils.finqa.checks import MALFORMED_LIMIT, defect, pages_in_two_splits, repeated, statistics
from utils.finqa.prompts import render_prompt
from utils.finqa.records import Record, read_records, record_to_dict
from utils.finqa.sources import data_folder, raw_files, write_generated
from utils.settings import RunSettings, TaskSettings
from utils.stage import Stage, main

EXAMPLES_PER_SPLIT = 3


@dataclass(frozen=True)
class Config:
    """Settings of stage 00."""

    run: RunSettings
    task: TaskSettings


def run(cfg: Config, stage: Stage) -> None:
    """Check the raw files of the task."""
    if cfg.task.source == "generated":
        for path in write_generated(cfg.task):
            stage.terminal.say(f"generated {path}")
    files = {split: stage.input(path) for split, path in raw_files(cfg.task).items()}
    _report_source(cfg.task, stage)
    splits = {split: read_records(path) for split, path in files.items()}

    problems: list[dict[str, Any]] = []
    malformed: dict[str, int] = {}
    for split, records in splits.items():
        found = find_problems(records, files[split].name)
        malformed[split] = sum(problem["malformed"] for problem in found)
        problems += found
        for index, record in enumerate(records[:EXAMPLES_PER_SPLIT]):
            shown = {**record_to_dict(record), "prompt": render_prompt(record)}
            write_json(stage.path("examples", f"{split}_{index:03d}.json"), shown)
    shared = pages_in_two_splits(splits)
    counts = {split: statistics(records) for split, records in splits.items()}
    write_jsonl(stage.path("problems.jsonl"), problems)
    write_text(stage.path("summary.txt"), summary(cfg.task, counts, malformed, problems, shared))
    stage.report(
        {"splits": counts, "malformed": malformed, "problems": len(problems), "pages_in_two_splits": len(shared)}
    )

    for split, records in splits.items():
        size = f"{split}: {len(records)} records, {counts[split]['missing']['program']} without program"
        stage.terminal.say(f"{size}, {malformed[split]} malformed")
        if malformed[split] > MALFORMED_LIMIT * len(records):
            first = next(
                problem for problem in problems if problem["malformed"] and problem["file"] == files[split].name
            )
            raise UserError(
                f"{files[split]}: {malformed[split]} of {len(records)} records are malformed (at most {MALFORMED_LIMIT:.0%} "
                f"is accepted), the first is record {first['index']}, id {first['id']!r}: {first['reason']}; "
                f"all are in {stage.path('problems.jsonl')}"
            )
    if shared:
        page, one, other = shared[0]
        stage.warn(
            f"{len(shared)} pages lie in two splits, the first is {page} in {one} and {other}; 01 will refuse them"
        )


def find_problems(records: Sequence[Record], file: str) -> list[dict[str, Any]]:
    """Malformed records, and repeated ones (same page and question), as rows of problems.jsonl."""
    found = []
    for index, record in enumerate(records):
        if reason := defect(record):
            found.append({"file": file, "index": index, "id": record.id, "reason": reason, "malformed": True})
    for index, first, agree in repeated(records):
        verb = "repeats" if agree else "contradicts"
        reason = f"{verb} record {first}: same page and question{'' if agree else ', other exe_ans'}"
        found.append({"file": file, "index": index, "id": records[index].id, "reason": reason, "malformed": False})
    return sorted(found, key=lambda problem: problem["index"])


def summary(
    task: TaskSettings,
    counts: dict[str, dict[str, Any]],
    malformed: dict[str, int],
    problems: list[dict[str, Any]],
    shared: list[tuple[str, str, str]],
) -> str:
    """The page that a person reads."""
    lines = [f"task {task.name}, raw files in {data_folder(task)}", ""]
    for split, facts in counts.items():
        lines += [f"{split}: {facts['records']} records on {facts['pages']} pages, {malformed[split]} malformed"]
        for title in ("missing", "answer_types", "operations", "steps", "page_words"):
            lines.append(f"  {title}: " + ", ".join(f"{name} {count:g}" for name, count in facts[title].items()))
    reasons = sum("contradicts" in problem["reason"] for problem in problems)
    lines += [
        "",
        f"{len(problems)} lines in problems.jsonl, {reasons} of them contradictions",
        f"pages in two splits: {len(shared)}",
    ]
    return "\n".join(lines) + "\n"


def _report_source(task: TaskSettings, stage: Stage) -> None:
    """Take what download.sh noted about the files' origin into the manifest."""
    path = data_folder(task) / "SOURCE.json"
    if not path.is_file():
        return
    source = read_json(stage.input(path))
    stage.report({"source": source})
    if isinstance(source, dict) and source.get("warning"):
        stage.warn(str(source["warning"]))


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__))
