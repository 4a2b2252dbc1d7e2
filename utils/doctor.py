"""`python 12_driver.py doctor`: versions, devices, disk, data, keys (their names alone), and what would run.

Takes the driver's flags, so that it answers for the course that those flags describe. Nothing is written.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from utils import manifest
from utils.boards import BOARDS, missing
from utils.config import LOCAL_FILE, ROOT, Resolved
from utils.disk import course_line
from utils.driver import Planned
from utils.files import read_json, read_text
from utils.pipeline import command_of
from utils.terminal import Terminal

OLDEST_PYTHON = (3, 11)
ENV_FILE = ROOT / ".env"
OK, NOTE, WRONG = "ok", "note", "wrong"


@dataclass(frozen=True)
class Finding:
    """One line: `ok`, `note` (works, but worth knowing) or `wrong` (with what to do)."""

    topic: str
    verdict: str
    words: str


def examine(planned: Planned) -> list[Finding]:
    """Everything that the course needs, checked."""
    chosen, resolved, run = planned.chosen, planned.resolved, planned.run
    first = next((found for found in resolved.values() if hasattr(found.config, "model")), None)
    task = next((found for found in resolved.values() if hasattr(found.config, "task")), None)
    findings = [*_versions(), *_devices(first)]
    words, enough = course_line([resolved[step.folder].config for step in chosen], run)
    findings.append(Finding("disk", OK if enough else WRONG, f"{words} in {manifest.shown(run.parent)}"))
    findings += _data(task.config.task) if task else []
    findings += _model(first.config.model) if first else []
    findings += [*_keys(), *_boards()]
    why = "; ".join(f"{level} {file} ({first.reasons[level]})" for level, file in first.files.items()) if first else ""
    local = " (written by download.sh; delete it for the embedded defaults)" if (ROOT / LOCAL_FILE).is_file() else ""
    findings.append(Finding("would run", OK, f"{len(chosen)} stages into {manifest.shown(run)}: {why}{local}"))
    return findings + [Finding("", OK, command_of(step, planned.arguments[step.folder])) for step in chosen]


def show(findings: Sequence[Finding], terminal: Terminal) -> int:
    """Print what was found; 0, or 1 when something is wrong."""
    for one in findings:
        mark = "" if one.verdict == OK else f"{one.verdict.upper()}: "
        terminal.say(f"{one.topic:<10} {mark}{one.words}".rstrip())
    wrong = [one.topic for one in findings if one.verdict == WRONG]
    terminal.say(f"doctor: {len(wrong)} to mend ({', '.join(wrong)})" if wrong else "doctor: all well")
    return 1 if wrong else 0


def _versions() -> list[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return [Finding("python", WRONG, f"{python}; 3.11 or newer is needed: ./setup.sh --restart")]
    found = [Finding("python", OK, f"{python} in {sys.prefix}")]
    other = []
    for name, wanted in pinned(ROOT / "requirements.txt").items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(Finding("library", WRONG, f"{name} is not installed (pinned: {wanted}): ./setup.sh"))
            continue
        if installed.partition("+")[0] != wanted:
            other.append(f"{name} {installed} (pinned: {wanted})")
    if other:
        found.append(Finding("library", NOTE, f"not the tested versions: {', '.join(other)}; ./setup.sh installs them"))
    shown = manifest.library_versions()
    names = ("torch", "transformers", "trl", "peft")
    return [*found, Finding("libraries", OK, ", ".join(f"{name} {shown[name]}" for name in names))]


def pinned(file: Path) -> dict[str, str]:
    """{package: version} of a requirements file."""
    lines = (line.strip() for line in read_text(file).splitlines())
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))


def _devices(first: Resolved[Any] | None) -> list[Finding]:
    facts = manifest.hardware()
    device = first.config.run.device if first else "auto"
    machine = f"{facts['cores']} cores, {facts['memory_gib']} GiB memory, GPUs: {', '.join(facts['gpus']) or 'none'}"
    found = [Finding("machine", OK, f"{machine}; {manifest.device_line(device)}")]
    if device == "cuda" and not facts["gpus"]:
        found.append(Finding("device", WRONG, "--device cuda, but there is no NVIDIA GPU; use --device auto"))
    elif facts["gpus"] and " cuda" not in manifest.device_line(device):
        found.append(Finding("device", NOTE, "a GPU is there but would not be used; ./setup.sh --cuda, see .env too"))
    return found


def _data(task: Any) -> list[Finding]:
    """Where the records come from, and what download.sh noted about them."""
    if task.source == "generated":
        return [Finding("data", OK, f"{task.name}: generated by stage 00 from data seed {task.data_seed}")]
    folder = Path(task.data_root)
    absent = [name for name in ("train", "dev", "test") if not _split_there(folder, name)]
    if absent:
        how = "bash download.sh --data_only, or bash download.sh --from DIR"
        return [Finding("data", WRONG, f"{task.name}: {folder} has no {', '.join(absent)} (.json): {how}")]
    source = read_json(folder / "SOURCE.json") if (folder / "SOURCE.json").is_file() else {}
    if source.get("warning"):
        return [Finding("data", NOTE, f"{task.name} in {folder}: {source['warning']}")]
    return [Finding("data", OK, f"{task.name} in {folder}")]


def _split_there(folder: Path, split: str) -> bool:
    names = ("dev", "val") if split == "dev" else (split,)
    return any((folder / f"{name}.json").is_file() for name in names)


def _model(model: Any) -> list[Finding]:
    """Whether the base model lies here: as a folder, or in the hub's cache."""
    for folder in (Path(model.name), ROOT / model.name):
        if folder.is_dir():
            return [Finding("model", OK, f"{model.name} (a folder)")]
    if model.name.count("/") != 1 or model.name.startswith((".", "/", "assets/", "outputs/")):
        return [Finding("model", WRONG, f"{model.name}: no such folder; expected a model folder or a hub id")]
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cached = home / "hub" / f"models--{model.name.replace('/', '--')}"
    if any(cached.glob("snapshots/*/config.json")):
        return [Finding("model", OK, f"{model.name} (in {cached})")]
    how = f"bash download.sh --model {model.name}"
    return [Finding("model", WRONG, f"{model.name}: not downloaded yet: {how}")]


def _keys() -> list[Finding]:
    """Which of the template's variables are set; never their values."""
    names = re.findall(r"^#?([A-Z][A-Z_]+)=", read_text(ROOT / ".env.template"), flags=re.MULTILINE)
    present = [name for name in names if os.environ.get(name)]
    absent = [name for name in names if name not in os.environ]
    empty = [name for name in names if os.environ.get(name) == ""]
    where = ".env is there" if ENV_FILE.is_file() else "no .env; .env.template is its pattern"
    words = f"set: {', '.join(present) or 'none'}; not set: {', '.join(absent) or 'none'} ({where})"
    found = [Finding("keys", OK, words)]
    written = (
        re.findall(r"^(?:export )?([A-Z][A-Z_]+)=\S", read_text(ENV_FILE), re.MULTILINE) if ENV_FILE.is_file() else []
    )
    if lost := [name for name in written if name not in os.environ]:
        found.append(Finding("keys", NOTE, f"in .env, but not in this shell: {', '.join(lost)}: source activate.sh"))
    if "CUDA_VISIBLE_DEVICES" in empty and manifest.gpus():
        found.append(Finding("keys", NOTE, "CUDA_VISIBLE_DEVICES is set to nothing, which hides every GPU"))
    return found


def _boards() -> list[Finding]:
    there = [name for name in BOARDS if name != "none" and not missing(name)]
    absent = [name for name in BOARDS if missing(name)]
    extras = f"; not installed: {', '.join(absent)} (./setup.sh --extras NAME)" if absent else ""
    return [Finding("report_to", OK, f"{', '.join(there)}{extras}")]
