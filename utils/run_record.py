"""What a run folder says about itself: run_manifest.json and README.md; and whether its files are still those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils import manifest
from utils.config import Resolved
from utils.errors import UserError
from utils.files import read_json, read_text, sha256, write_json, write_text
from utils.pipeline import RUN_MANIFEST, Step
from utils.terminal import clock

NOTES_BEGIN = "<!-- notes: what you write below this line stays when the file is written anew -->"
NOTES_END = "<!-- end of notes -->"
_PLACEHOLDER = "Nothing noted yet."


def stage_entries(run: Path, plan: Sequence[Step]) -> list[dict[str, Any]]:
    """One pointer per step of the plan: folder, script, status, and its manifest's hash once there is one."""
    entries = []
    for step in plan:
        path = run / step.folder / manifest.NAME
        entry: dict[str, Any] = {"folder": step.folder, "script": step.script, "status": "not run"}
        if path.is_file():
            facts = manifest.read(path.parent)
            entry |= {"status": facts["status"], "manifest": f"{step.folder}/{manifest.NAME}", "sha256": sha256(path)}
            entry |= {"seconds": facts["seconds"], "error": facts["error"]}
        entries.append(entry)
    return entries


def write_run_manifest(run: Path, head: Mapping[str, Any], plan: Sequence[Step], status: str) -> list[dict[str, Any]]:
    """Write run_manifest.json: the head, how the run stands, and the pointers to every stage's manifest."""
    entries = stage_entries(run, plan)
    write_json(run / RUN_MANIFEST, {"schema": manifest.SCHEMA, "status": status, **head, "stages": entries})
    return entries


def describe(methods: Sequence[str], resolved: Mapping[str, Resolved[Any]]) -> dict[str, Any]:
    """The question a run answers, and what a reader of its README wants to know first."""
    sft = resolved["03_sft"].config
    lora = f"rank {sft.lora.r}, alpha {sft.lora.alpha}" if sft.lora.use_lora else "none, all weights train"
    size = f"{sft.training.batch_size} × {sft.training.gradient_accumulation_steps}"
    facts = {
        "model": f"{sft.model.name}; LoRA: {lora}",
        "task": f"{sft.task.name}, data seed {sft.task.data_seed}, reward profile {sft.task.reward_profile}",
        "seed": f"{sft.run.seed}{', quick test' if sft.run.quick_test else ''}",
        "03_sft": f"batch {size}, learning rate {sft.training.learning_rate:g}, at most {sft.training.epochs} epochs",
    }
    for folder, one in resolved.items():
        if hasattr(one.config, "algorithm"):
            facts[folder] = f"learning rate {learning_rate(one.config):g}, {_words(one.config.algorithm)}"
    names = ", ".join(method.upper() for method in methods)
    question = f"Does {names} beat" if len(methods) == 1 else f"Which of {names} beats"
    beaten = "a finished SFT, the same SFT given as much more compute, and rejection sampling"
    return {"goal": f"{question} {beaten}?", "facts": facts}


def learning_rate(config: Any) -> float:
    """The rate at which a stage trains its policy."""
    section = next(getattr(config, name) for name in ("rl", "preference", "training") if hasattr(config, name))
    return float(section.learning_rate)


def _words(settings: Any) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in asdict(settings).items() if value is not None)


def write_readme(run: Path, head: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], result: str) -> None:
    """Write the run's README.md: goal, config, results, stages, notes. `result` is a Markdown table or empty."""
    path = run / "README.md"
    lines = [
        f"# {run.name}",
        "",
        "Written by `12_driver.py`; your own words go below Notes.",
        "",
        "## Goal",
        "",
        f"{head['goal']}",
        "",
        "## Config",
        "",
        *(f"    {command}" for command in head["commands"]),
        "",
        *(f"* {name}: {value}" for name, value in head["facts"].items()),
        "",
        "## Results",
        "",
        result or "No comparison yet.",
        "",
        *_figures(run, entries),
        "",
        "| stage | status | time |",
        "| :-- | :-- | --: |",
        *(f"| {one['folder']} | {one['status']} | {clock(one.get('seconds', 0))} |" for one in entries),
        "",
        "## Notes",
        "",
        NOTES_BEGIN,
        _notes(path),
        NOTES_END,
    ]
    write_text(path, "\n".join(lines) + "\n")


def _figures(run: Path, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per finished training or sampling stage with the figures in its manifest."""
    lines = []
    for one in entries:
        if one["folder"][:2] in ("03", "04", "05", "06", "07", "09") and one["status"] == "completed":
            metrics = manifest.read(run / one["folder"])["metrics"]
            plain = {name: value for name, value in metrics.items() if isinstance(value, (int, float, str))}
            shown = ", ".join(f"{name} {_short(value)}" for name, value in plain.items())
            lines.append(f"* {one['folder']}: {shown or 'no figures'}")
    return lines


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _notes(path: Path) -> str:
    """What a person wrote between the markers; everything, should the markers be gone."""
    if not path.is_file():
        return _PLACEHOLDER
    text = read_text(path)
    _, begin, after = text.partition(NOTES_BEGIN + "\n")
    if not begin:
        return text.strip("\n")
    return after.rpartition(NOTES_END)[0].strip("\n") if NOTES_END in after else after.strip("\n")


def verify(run: Path) -> tuple[str, bool]:
    """Hash everything that a run recorded again: a line that names the first difference, and whether all is well."""
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; expected a run, for instance outputs/run_001")
    folders = sorted(path.parent for path in run.glob(f"*/{manifest.NAME}"))
    if not folders:
        raise UserError(f"{run}: holds no stage with a {manifest.NAME}")
    recorded = read_json(run / RUN_MANIFEST)["stages"] if (run / RUN_MANIFEST).is_file() else []
    for entry in (entry for entry in recorded if "sha256" in entry):
        path = run / entry["manifest"]
        if not path.is_file():
            return f"{path}: is gone", False
        if sha256(path) != entry["sha256"]:
            return f"{path}: differs from what {RUN_MANIFEST} recorded", False
    files = 0
    for folder in folders:
        record = manifest.read(folder)
        if record["status"] != "completed":
            return f"{folder}: has not finished ({record['status']})", False
        if difference := manifest.changed_file(record, folder) or _unrecorded(record, folder):
            return f"{folder}: {difference}", False
        files += len(record["outputs"])
    return f"{run}: {len(folders)} stages with {files} files are as recorded", True


def _unrecorded(record: Mapping[str, Any], folder: Path) -> str:
    extra = sorted(set(manifest.output_files(folder)) - set(record["outputs"]))
    return f"file {extra[0]} is not in the manifest" if extra else ""
