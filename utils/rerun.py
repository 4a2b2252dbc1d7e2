"""`python 12_driver.py rerun outputs/run_001`: repeats a run from its manifests and says whether the bytes agree.

Every stage is called again, in an order in which inputs come first, with the settings and the number of threads that
its manifest records: a settings file that has changed since does not matter. The new run is compared file by file with
the old one. Left out are the name of the run folder inside text files, clock times (`logs/timing.jsonl`, the column
`wall_seconds`), what TensorBoard and the like wrote, and `last_complete`, a digest of files that are compared anyway.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import manifest
from utils.boards import FOLDERS as BOARD_FOLDERS
from utils.config import ROOT, resolve, setting, to_dict
from utils.course import run_course
from utils.errors import UserError
from utils.files import read_json, read_text
from utils.folders import HANDLING, locked
from utils.keys import TIER_FLAGS, flags_of
from utils.pipeline import RUN_MANIFEST, Step, load_script
from utils.run_record import verify
from utils.runs import next_run
from utils.terminal import Terminal

CLOCK_COLUMN = "wall_seconds"
DIGEST_OF_OTHERS = "last_complete"
TEXT = (".json", ".jsonl", ".csv", ".md", ".txt", ".yaml")


@dataclass(frozen=True)
class Which:
    """The run that is repeated, and where."""

    runs: tuple[str, ...] = setting((), "folder of the run, say outputs/run_001", positional=True)
    run_id: str = setting("", "folder of the new run beside the old one (default: the next free number)")
    quiet: bool = setting(False, "print only warnings, errors and the result")

    def __post_init__(self) -> None:
        if len(self.runs) != 1:
            raise ValueError("expected one run folder, as in: python 12_driver.py rerun outputs/run_001")
        if self.run_id and (Path(self.run_id).name != self.run_id or self.run_id.startswith(".")):
            raise ValueError(f"--run_id {self.run_id}: a plain name is expected")


@dataclass(frozen=True)
class Config:
    """Flags of `rerun`."""

    rerun: Which


def rerun(argv: Sequence[str], result_of: Any) -> int:
    """Repeat a run. 0: the bytes agree, 1: they do not, else the exit code of the stage that failed."""
    which = resolve(Config, argv, doc=__doc__ or "", script="12_driver.py rerun").config.rerun
    old = Path(which.runs[0])
    line, intact = verify(old)
    if not intact:
        raise UserError(f"{line}; a run that is not as it was recorded has nothing to compare with")
    new = old.parent / which.run_id if which.run_id else next_run(old.parent)
    if new.resolve() == old.resolve():
        raise UserError(f"--run_id {which.run_id}: is the run that is repeated; name another folder, or leave it out")
    records = ordered({path.parent.name: manifest.read(path.parent) for path in old.glob(f"*/{manifest.NAME}")}, old)
    steps, arguments = [], {}
    for folder, record in records.items():
        script, words = command_of_record(record, old, new / folder)
        steps.append(Step(script, folder))
        arguments[folder] = [*words, "--output_dir", (new / folder).as_posix(), "--if_needed"]
    recorded = read_json(old / RUN_MANIFEST) if (old / RUN_MANIFEST).is_file() else {}
    head = {"method": recorded.get("method", ""), "settings": f"rerun of {manifest.shown(old)}"}
    head |= {"goal": f"Do the bytes of {manifest.shown(old)} come out again?", "facts": recorded.get("facts", {})}
    terminal = Terminal(quiet=which.quiet)
    terminal.say(f"rerun: {manifest.shown(old)} again, {len(steps)} stages → {manifest.shown(new)}")
    threads = {folder: record["hardware"].get("threads") or 0 for folder, record in records.items()}
    with locked(new):
        code = run_course(steps, steps, arguments, new, head, ["rerun", *argv], terminal, result_of, threads=threads)
    if code:
        return code
    verdict, agree = compare(old, new, list(records))
    print(verdict)
    return 0 if agree else 1


# --- which commands --------------------------------------------------------------------------------------------------


def ordered(records: Mapping[str, dict[str, Any]], old: Path) -> dict[str, dict[str, Any]]:
    """The stages by folder, each after those whose files it read, else by name. UserError when they go in a circle."""
    reads = {
        name: {other for other in records if other != name and _reads(record, other, old)}
        for name, record in records.items()
    }
    done: dict[str, dict[str, Any]] = {}
    while len(done) < len(records):
        ready = sorted(name for name in records if name not in done and reads[name] <= set(done))
        if not ready:
            raise UserError(f"{old}: {', '.join(sorted(set(records) - set(done)))} read each other's files")
        done[ready[0]] = records[ready[0]]
    return done


def _reads(record: Mapping[str, Any], other: str, old: Path) -> bool:
    places = [f"{prefix}/{other}" for prefix in _names_of(record, old)]
    return any(name == place or name.startswith(f"{place}/") for name in record["inputs"] for place in places)


def _names_of(record: Mapping[str, Any], old: Path) -> list[str]:
    """How a stage's records may name its run folder: as it is called now, and as it was called then."""
    then = record["config"]["run"]["output_dir"]
    return list(dict.fromkeys([old.as_posix(), manifest.shown(old), *([Path(then).parent.as_posix()] if then else [])]))


def command_of_record(record: Mapping[str, Any], old: Path, new: Path) -> tuple[str, list[str]]:
    """(script, arguments) that give the recorded settings, with the new run's folder for the old one's.

    UserError when a recorded setting is none of this code's, or can only be set in a file that has changed.
    """
    script, *words = shlex.split(record["command"])[1:]
    stem = Path(script).stem
    if not (ROOT / f"{stem}.py").is_file():
        raise UserError(f"{old}: stage {record['stage']} was made by {script}, which is no script of this project")
    names = _names_of(record, old)
    words = [_moved(word, names, new.parent) for word in _without_handling(words)]
    config_class = load_script(stem).Config
    found = resolve(config_class, words, doc="", script=script)
    for level, file in record["files"].items():  # what configs/local.yaml chose then, it may not choose now
        if found.files.get(level) != file and Path(file).is_file():
            words += [f"--{TIER_FLAGS[level]}", file]
    found = resolve(config_class, words, doc="", script=script)
    now, flags = to_dict(found.config), flags_of(config_class)
    by_key = {key.dotted: flag for flag, key in flags.items() if not key.field.metadata.get("positional")}
    for section, values in record["config"].items():
        for name, was in values.items():
            if section == "run" and name in HANDLING:
                continue
            was = [_moved(one, names, new.parent) for one in was] if isinstance(was, list) else was
            was = _moved(was, names, new.parent) if isinstance(was, str) else was
            dotted = f"{section}.{name}"
            if dotted not in found.sources:
                raise UserError(
                    f"{record['stage']}: {dotted} is no setting of this code; it ran with {_commit(record)}"
                )
            if now[section][name] == was:
                continue
            if dotted not in by_key:
                source = found.sources[dotted]
                raise UserError(f"{record['stage']}: {dotted} was {was} and is now {now[section][name]} ({source})")
            values_of_flag = was if isinstance(was, list) else ["none" if was is None else str(was)]
            words += [f"--{by_key[dotted]}", *map(str, values_of_flag)]
    return stem, words


def _commit(record: Mapping[str, Any]) -> str:
    return f"commit {record['code']['commit']}" if record["code"]["commit"] else "code outside a repository"


TAKING_ONE = ("output_dir", "output_root", "report_to")
"""Flags among HANDLING with a value."""


def _without_handling(words: Sequence[str]) -> list[str]:
    """A command's words without the flags that say where and how a stage runs."""
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        if name.removeprefix("no_") not in HANDLING:
            kept.append(word)
        elif rest and not equals and (name in TAKING_ONE or rest[0].lower() in ("true", "false")):
            rest.pop(0)
    return kept


def _moved(word: str, names: Sequence[str], new: Path) -> str:
    """A path in the old run, also behind `--flag=`, as the same path in the new one."""
    flag, equals, path = word.partition("=") if word.startswith("--") else ("", "", word)
    for name in names:
        if path == name or path.startswith(f"{name}/"):
            return f"{flag}{equals}{new.as_posix()}{path[len(name) :]}"
    return word


# --- whether the bytes agree -----------------------------------------------------------------------------------------


def compare(old: Path, new: Path, folders: Sequence[str]) -> tuple[str, bool]:
    """One line: how many files agree, or which is the first that differs and what may have caused it."""
    files, different = 0, []
    for folder in folders:
        before, after = (manifest.read(run / folder)["outputs"] for run in (old, new))
        for name in sorted({*before, *after}):
            if name.split("/")[0] in BOARD_FOLDERS or Path(name).name == DIGEST_OF_OTHERS:
                continue
            files += 1
            if name not in before or name not in after:
                different.append(f"{folder}/{name} is only in {manifest.shown(old if name in before else new)}")
            elif before[name] != after[name] and not _agree_but_for_names(old, new, f"{folder}/{name}"):
                different.append(f"{folder}/{name} differs")
    if not different:
        return f"rerun: {len(folders)} stages, {files} files: the bytes of {manifest.shown(old)} came out again", True
    what = environment_difference(manifest.read(old / folders[0]), manifest.read(new / folders[0]))
    cause = f"; {what}" if what else "; code, libraries and processor are the same"
    return f"rerun: {len(different)} of {files} files do not agree, first {different[0]}{cause}", False


def _agree_but_for_names(old: Path, new: Path, name: str) -> bool:
    """Whether two text files agree once the run folder's name and clock times are made the same."""
    if not name.endswith(TEXT):
        return False
    before, after = read_text(old / name), read_text(new / name)
    for one, other in ((new.as_posix(), old.as_posix()), (manifest.shown(new), manifest.shown(old))):
        after = after.replace(one, other)
    if name.endswith(".csv"):
        before, after = _without_clock(before), _without_clock(after)
    return before == after


def _without_clock(table: str) -> str:
    """A CSV table without its column of clock times, which is the last."""
    lines = table.splitlines()
    if not lines or not lines[0].endswith(f",{CLOCK_COLUMN}"):
        return table
    return "\n".join(line.rpartition(",")[0] for line in lines)


def environment_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What of code, libraries and machine is not the same, in words; empty when all is."""
    found = []
    if before["code"] != after["code"]:
        found.append(f"code {_code(before)} → {_code(after)}")
    for name, version in before["libraries"].items():
        if after["libraries"].get(name) != version:
            found.append(f"{name} {version} → {after['libraries'].get(name)}")
    for name in ("processor", "cores", "gpus"):
        if before["hardware"].get(name) != after["hardware"].get(name):
            found.append(f"{name} {before['hardware'].get(name)} → {after['hardware'].get(name)}")
    return f"not the same: {', '.join(found)}" if found else ""


def _code(record: Mapping[str, Any]) -> str:
    commit = (record["code"]["commit"] or "unknown")[:8]
    return f"{commit}{' with changes' if record['code']['dirty'] else ''}"
