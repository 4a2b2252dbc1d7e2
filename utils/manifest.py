"""manifest.json: what a stage was, with which code, settings, inputs and machine, and what came out."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from utils import base_model
from utils.config import ROOT, Resolved, to_dict
from utils.errors import UserError
from utils.files import digest_of_files, is_temporary, read_json, sha256
from utils.machine import cores, gpus_hidden
from utils.runs import STAGES

NAME = "manifest.json"
LOCK = ".lock"
SCHEMA = 1
_NOT_HASHED = (NAME, LOCK, "logs/timing.jsonl")
_LIBRARIES = ("accelerate", "bitsandbytes", "datasets", "numpy", "peft", "PyYAML", "scikit-learn", "scipy") + (
    ("tokenizers", "torch", "transformers", "trl")
)


def begin(
    resolved: Resolved[Any], script: str, arguments: Sequence[str], before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The manifest of a stage that starts now; figures of the interrupted part stay when it is continued."""
    kept: Mapping[str, Any] = before or {}
    stem = Path(script).stem
    config: Any = resolved.config
    return {
        "schema": SCHEMA,
        "stage": STAGES.get(stem, stem),
        "status": "running",
        "command": shlex.join(["python", Path(script).name, *arguments]),
        "config": to_dict(config),
        "sources": resolved.sources,
        "files": resolved.files,
        "seed": config.run.seed,
        "code": code_version(),
        "libraries": library_versions(),
        "hardware": hardware(),
        "inputs": {},
        "parents": [],
        "outputs": {},
        "metrics": dict(kept.get("metrics", {})),
        "spent": dict(kept.get("spent", {})),
        "seconds": float(kept.get("seconds", 0.0)),
        "warnings": list(kept.get("warnings", [])),
        "error": None,
    }


def read(folder: Path) -> dict[str, Any]:
    """A stage's manifest. UserError when it is missing, broken or of another schema."""
    found = read_json(folder / NAME)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise UserError(f"{folder / NAME}: expected a manifest of schema {SCHEMA}")
    return found


def stage_above(path: Path) -> Path | None:
    """The stage folder (one with a manifest of ours) that a path lies in."""
    return next((folder for folder in [path, *path.parents] if _has_manifest(folder)), None)


def _has_manifest(folder: Path) -> bool:
    """Also one that is broken, as will be said; not another program's file of that name."""
    path = folder / NAME
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else []
    except ValueError:
        return True
    return isinstance(found, dict) and not found.keys().isdisjoint(("schema", "stage"))


def shown(path: Path) -> str:
    """A path as the manifest names it: relative to the working folder where it lies below it."""
    absolute = Path(os.path.abspath(path))
    return absolute.relative_to(Path.cwd()).as_posix() if absolute.is_relative_to(Path.cwd()) else absolute.as_posix()


def output_files(folder: Path) -> dict[str, Path]:
    """Every file a stage wrote, by relative name; not the manifest, the lock, times and leftovers."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files if not is_temporary(path.relative_to(folder))}
    return {name: path for name, path in names.items() if name not in _NOT_HASHED}


def hash_outputs(folder: Path) -> dict[str, str]:
    """sha256 of every file a stage wrote, by relative name."""
    return {name: sha256(path) for name, path in output_files(folder).items()}


def wrote(record: Mapping[str, Any], digests: Mapping[str, str]) -> bool:
    """Whether one of these files and folders (name -> `files.sha256`) is a stage's output, by its manifest alone."""
    return any(digest and _output_digest(record["outputs"], name) == digest for name, digest in digests.items())


def _output_digest(outputs: Mapping[str, str], name: str) -> str | None:
    """Of a file, or of a folder from the digests of its files."""
    inside = {file.removeprefix(f"{name}/"): digest for file, digest in outputs.items() if file.startswith(f"{name}/")}
    return digest_of_files(inside) if inside else outputs.get(name)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], ignored: Collection[str]) -> str:
    """The first setting that differs, in words; empty when none does. `ignored` are names like `run.quiet`."""
    for section in [*new, *(name for name in old if name not in new)]:
        was, now = old.get(section, {}), new.get(section, {})
        for name in [*now, *(name for name in was if name not in now)]:
            if f"{section}.{name}" in ignored:
                continue
            if was.get(name) != now.get(name):
                return f"{section}.{name} was {was.get(name)} and is now {now.get(name)}"
    return ""


def changed_file(record: Mapping[str, Any], folder: Path) -> str:
    """The first input or output of a finished stage that is gone or differs, in words; empty when none does."""
    return changed_input(record) or _changed("output", folder, record["outputs"])


def changed_input(record: Mapping[str, Any]) -> str:
    """The first input of a stage that is gone or differs, in words; empty when none does."""
    return _changed("input", Path(), record["inputs"])


def _changed(kind: str, base: Path, names: Mapping[str, str]) -> str:
    for name, digest in names.items():
        if name.startswith(base_model.HUB):
            if base_model.changed(name.removeprefix(base_model.HUB), digest):
                return f"{kind} {name} has changed since"
            continue
        path = base / name
        if not path.exists():
            return f"{kind} {name} is gone"
        if (base_model.sampled if digest.startswith(base_model.SAMPLED) else sha256)(path) != digest:
            return f"{kind} {name} has changed since"
    return ""


def code_version() -> dict[str, str | None]:
    """The commit, and a hash of what differs from it (None: nothing does); both None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    changes = (_git("status", "--porcelain") or "") + (_git("diff", "HEAD") or "")
    dirty = hashlib.sha256(changes.encode()).hexdigest() if changes.strip() else None
    return {"commit": commit.strip(), "dirty": dirty}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def library_versions() -> dict[str, str]:
    """Installed versions, read without importing anything."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, GPUs; no names of machine or user.

    `threads`: with how many it was told to compute (None: as many as torch likes), on which the bytes depend.
    """
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": cores(),
        "threads": int(os.environ["OMP_NUM_THREADS"]) if os.environ.get("OMP_NUM_THREADS", "").isdecimal() else None,
        "memory_gib": round(int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    """Names of NVIDIA GPUs, from the driver's files."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [_field(str(file), "Model") or "NVIDIA GPU" for file in files]


def _field(path: str, name: str) -> str | None:
    """The value of the first `name : value` line of a /proc file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(name)), None)
    except OSError:
        return None


def device_line(device: str) -> str:
    """`device cpu (auto: no GPU here)`; foretold without importing torch."""
    if device != "auto":
        return f"device {device} (--device)"
    found = gpus()
    if not found:
        return "device cpu (auto: no GPU here)"
    hidden = gpus_hidden()
    return f"device cpu (auto: {hidden})" if hidden else f"device cuda (auto: {found[0]})"
