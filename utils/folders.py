"""The folder a stage writes: which one, who holds it, and what becomes of what lies in it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils import manifest
from utils.config import to_dict
from utils.errors import UserError
from utils.files import is_temporary, temporary_name
from utils.process import has_living_driver, signals_ignored
from utils.runs import STAGES, newest_run, run_number

HANDLING = (
    "output_dir", "output_root", "overwrite", "resume", "if_needed", "dry_run", "quiet", "report_to", "max_minutes",
)  # fmt: skip
"""Keys of section `run` that do not change what a stage computes, but for how far it goes."""
ROUNDING = ("run.num_processes", "run.fsdp", "rl.micro_batch_tokens", "rl.auto_batch")
"""Settings that change no more than the rounding of sums: a stage may be continued with another value."""
NOT_COMPARED = (*(f"run.{name}" for name in HANDLING), *ROUNDING)

_LOCK_SECONDS = 2.0


def choose_folder(config: Any, stem: str) -> Path:
    """--output_dir, or this stage's folder in the newest run (run_001 when there is none)."""
    if config.run.output_dir:
        return Path(config.run.output_dir)
    outputs = Path(config.run.output_root)
    return (newest_run(outputs) or outputs / "run_001") / STAGES.get(stem, stem)


def run_of(folder: Path, outputs: Path) -> Path:
    """The run a stage folder belongs to; for a folder elsewhere, the newest run below `outputs`."""
    parent = folder.absolute().parent
    siblings = (parent / name for name in STAGES.values() if name != folder.name)
    if run_number(parent) is not None or any(sibling.is_dir() for sibling in siblings):
        return folder.parent
    return newest_run(outputs) or folder.parent


def decide(config: Any, stem: str, folder: Path, before: dict[str, Any] | None) -> str:
    """`new`, `replace`, `continue` or `keep`; UserError where the user has to choose.

    A finished stage is never written over unless asked, and an unfinished one only when nothing is lost.
    """
    shown = manifest.shown(folder)
    if before is None:
        if contents(folder):
            raise UserError(f"{shown}: holds files but no {manifest.NAME}, is no stage's folder; name another one")
        return "new"
    if before["stage"] != STAGES.get(stem, stem):
        raise UserError(f"{shown}: belongs to stage {before['stage']}, not to {stem}; name another --output_dir")
    changed = manifest.difference(before["config"], to_dict(config), NOT_COMPARED)
    if before["status"] == "completed":
        return _decide_finished(config.run, shown, changed or manifest.changed_file(before, folder))
    if not contents(folder) or (config.run.overwrite and not config.run.if_needed):
        return "replace"
    if not (config.run.resume or config.run.if_needed):
        was = "was killed" if before["status"] == "running" else before["status"]
        raise UserError(f"{shown}: is unfinished ({was}); --resume continues it, --overwrite starts again")
    if not changed and any(folder.glob("ckpt_*")):  # what has learned; 04 and 10 look at each answer's origin
        changed = manifest.changed_input(before)
    if changed and not config.run.overwrite:
        raise UserError(f"{shown}: cannot be continued, because {changed}; --overwrite starts again")
    return "replace" if changed else "continue"


def _decide_finished(flags: Any, shown: str, changed: str) -> str:
    if not changed and (flags.if_needed or (flags.resume and not flags.overwrite)):
        return "keep"
    if flags.overwrite:
        return "replace"
    if changed and (flags.if_needed or flags.resume):
        raise UserError(f"{shown}: is finished, but {changed}; --overwrite replaces it")
    raise UserError(f"{shown}: is finished; --overwrite replaces it, --resume keeps it and continues unfinished work")


def contents(folder: Path) -> list[Path]:
    """What a stage has written beside its manifest."""
    ours = (manifest.NAME, manifest.LOCK)
    return [path for path in folder.iterdir() if path.name not in ours and not is_temporary(Path(path.name))]


@contextmanager
def replaced(folder: Path) -> Iterator[None]:
    """Inside, what a stage had written is out of the way; the lock stays.

    It comes back when the new stage ends, however that is, before it has finished or written anything beside its
    manifest: a mistake in the new command costs nothing. Else it is removed, by `remove_temporaries` at the latest. The
    driver, whose records name a failed stage's error, keeps the new manifest.
    """
    aside = temporary_name(folder / "replaced")
    aside.mkdir()
    _move(folder, aside)
    try:
        yield
    finally:
        with signals_ignored():
            new = folder / manifest.NAME
            done = new.is_file() and manifest.read(folder)["status"] == "completed"
            if not (done or contents(folder) or has_living_driver()):
                new.unlink(missing_ok=True)
                _move(aside, folder)
            _remove(aside)


def _move(source: Path, target: Path) -> None:
    """A stage's contents, the manifest last: as long as it stands there the folder is known for what it is."""
    for path in [*contents(source), source / manifest.NAME]:
        if path.exists() or path.is_symlink():
            path.rename(target / path.name)


def remove_temporaries(folder: Path) -> None:
    """Remove what interrupted writes left."""
    for path in [path for path in folder.rglob(".*") if is_temporary(Path(path.name))]:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_held(folder: Path) -> bool:
    """Whether a living process writes this stage."""
    import fcntl

    try:
        handle = os.open(folder / manifest.LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which goes with the process however that ends. UserError when another holds it.

    A user's mistake that shows before anything was written leaves no folder behind. A stage that the driver runs
    keeps its manifest all the same: the driver's records name the error.
    """
    import fcntl

    try:
        made = [path for path in [folder, *folder.parents] if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / manifest.LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another --output_dir") from None
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    owner = os.pread(handle, 32, 0).decode() or "unknown"
                    raise UserError(f"{folder}: process {owner} is writing it; wait, or name another folder") from None
                time.sleep(0.05)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        try:
            yield
        except UserError:
            if folder in made and not contents(folder) and not has_living_driver():
                _remove(folder)
                for parent in made[1:]:
                    if not any(parent.iterdir()):
                        parent.rmdir()
            raise
    finally:
        os.close(handle)
