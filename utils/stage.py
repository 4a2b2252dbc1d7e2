"""One stage of the pipeline as a program: its folder, its manifest, and how it ends.

`main` resolves the settings, chooses and locks the folder, writes manifest.json as `running`, calls the script's
`run(cfg, stage)` and records how it ended: `completed`, `failed` or `interrupted`. After a kill -9 the manifest still
says `running`, but nobody holds the lock, so the next call knows that it may continue or replace.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from utils import manifest
from utils.config import Resolved, resolve, to_dict
from utils.errors import UserError
from utils.files import is_temporary, read_json, sha256, write_json
from utils.runs import STAGES, newest_run, run_number
from utils.terminal import Terminal, clock

C = TypeVar("C")
PARENT_VARIABLE = "STAGE_DIES_WITH_PROCESS"
"""Set by the driver to its process id: a stage that it started ends when it ends."""

NOT_COMPARED = ("output_dir", "overwrite", "resume", "if_needed", "dry_run", "quiet", "report_to")
"""Keys of section `run` that do not change what a stage computes."""


class Stage:
    """What a script's `run` gets beside its Config: folders, inputs, and the manifest's contents."""

    def __init__(self, folder: Path, script: str, seed: int, terminal: Terminal, resuming: bool, record: dict[str, Any]):
        self.dir = folder
        self.run_dir = _run_of(folder)
        self.script = script
        self.seed = seed
        self.terminal = terminal
        self.resuming = resuming
        self._record = record

    def input(self, path: str | Path) -> Path:
        """Note an existing file or folder as input, with its sha256 and the stage it came from. UserError when missing."""
        path = Path(path)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; {self.script} reads it")
        self._record["inputs"][manifest.shown(path)] = sha256(path)
        parent = manifest.stage_above(path)
        if parent and parent.resolve() != self.dir.resolve():
            facts = manifest.read(parent)
            entry = {"path": manifest.shown(parent), "stage": facts["stage"], "status": facts["status"]}
            if entry not in self._record["parents"]:
                self._record["parents"].append(entry)
            if facts["status"] != "completed":
                self.warn(f"{path} comes from a stage that has not finished (its manifest says {facts['status']})")
        self.save()
        return path

    def previous(self, script: str, *names: str) -> Path:
        """A file of an earlier stage of this run, noted as input. UserError names the command that makes it."""
        folder = self.run_dir / STAGES[script]
        path = folder.joinpath(*names)
        command = f"python {script}.py --output_dir {manifest.shown(folder)}"
        if not path.exists():
            raise UserError(f"{manifest.shown(path)}: not there yet; run first: {command}")
        facts = manifest.read(folder) if (folder / manifest.NAME).is_file() else None
        if facts and facts["status"] != "completed":
            raise UserError(f"{manifest.shown(folder)}: has not finished ({facts['status']}); run first: {command} --resume")
        return self.input(path)

    def path(self, *names: str) -> Path:
        """A path inside this stage's folder; the folders above it are made."""
        path = self.dir.joinpath(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def report(self, metrics: dict[str, Any]) -> None:
        """Put figures into the manifest's `metrics`; a repeated name takes the new value."""
        self._record["metrics"].update(metrics)
        self.save()

    def spent(self, **counts: int) -> None:
        """Set totals of the whole stage, continued parts included: generated_tokens=, gradient_tokens=, completions=, …"""
        self._record["spent"].update(counts)
        self.save()

    def warn(self, line: str) -> None:
        """Show a warning and keep it in the manifest."""
        self.terminal.warn(line)
        self._record["warnings"].append(line)
        self.save()

    def save(self) -> None:
        """Write the manifest as it stands."""
        write_json(self.dir / manifest.NAME, self._record)


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(
    config_class: type[C],
    run: Callable[[C, Stage], None],
    doc: str | None,
    script: str,
    *,
    plan: Callable[[C], list[str]] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a stage script; the exit code: 0 done or kept, 1 a bug (with its traceback), 2 a user's mistake, 128+n signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _die_with_parent()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        resolved = resolve(config_class, arguments, doc=doc or "", script=script)
        return _run_stage(resolved, run, script, plan, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run_stage(
    resolved: Resolved[C],
    run: Callable[[C, Stage], None],
    script: str,
    plan: Callable[[C], list[str]] | None,
    arguments: list[str],
) -> int:
    config: Any = resolved.config
    terminal = Terminal(quiet=config.run.quiet)
    stem = Path(script).stem
    if config.run.dry_run:
        _print_plan(resolved, plan(resolved.config) if plan else [])
        return 0
    folder = choose_folder(config, stem)
    with _locked(folder):
        before = manifest.read(folder) if (folder / manifest.NAME).is_file() else None
        decision = _decide(config, stem, folder, before)
        if decision == "keep":
            terminal.say(f"{stem}: kept {manifest.shown(folder)} (finished, same settings, same inputs)")
            return 0
        if decision == "replace":
            _empty(folder)
        terminal.say(_first_line(resolved, stem, folder))
        if decision == "continue":
            terminal.say(f"{stem}: continues {manifest.shown(folder)}")
        _remove_temporaries(folder)
        record = manifest.begin(resolved, folder, script, arguments, before if decision == "continue" else None)
        stage = Stage(folder, Path(script).name, config.run.seed, terminal, decision == "continue", record)
        stage.save()
        return _run_recorded(lambda: run(resolved.config, stage), stage, record)


def _run_recorded(run: Callable[[], None], stage: Stage, record: dict[str, Any]) -> int:
    """Call `run` and record how it ended."""
    start, before = time.monotonic(), float(record["seconds"])

    def finish(status: str, error: str | None) -> None:
        record.update(status=status, error=error, seconds=round(before + time.monotonic() - start, 3))
        record["outputs"] = manifest.hash_outputs(stage.dir)
        stage.save()

    try:
        with _signals_raise():
            run()
    except UserError as error:
        finish("failed", str(error))
        raise
    except (KeyboardInterrupt, _Terminated) as error:
        number = error.number if isinstance(error, _Terminated) else signal.SIGINT
        finish("interrupted", signal.Signals(number).name)
        print(f"interrupted; continue with the same command and --resume ({manifest.shown(stage.dir)})", file=sys.stderr)
        return 128 + number
    except OSError as error:
        _finish_on_bad_disk(finish, error)
    except BaseException as error:
        finish("failed", f"{type(error).__name__}: {error}")
        raise
    finish("completed", None)
    stage.terminal.say(f"{Path(stage.script).stem}: done in {clock(record['seconds'])} → {manifest.shown(stage.dir)}")
    return 0


def _finish_on_bad_disk(finish: Callable[[str, str | None], None], error: OSError) -> NoReturn:
    """A full disk, a missing right or a vanished file: one line, even if the manifest cannot be written any more."""
    line = f"{error.filename or 'disk'}: {error.strerror or error}"
    try:
        finish("failed", line)
    except OSError as second:
        line += f" (and the manifest could not be written: {second.strerror})"
    raise UserError(line) from error


# --- folder ----------------------------------------------------------------------------------------------------------


def choose_folder(config: Any, stem: str) -> Path:
    """--output_dir, or this stage's folder in the newest run (run_001 when there is none)."""
    if config.run.output_dir:
        return Path(config.run.output_dir)
    outputs = Path(config.paths.output_root if hasattr(config, "paths") else "outputs")
    return (newest_run(outputs) or outputs / "run_001") / STAGES.get(stem, stem)


def _run_of(folder: Path) -> Path:
    """The run a stage folder belongs to; for a folder elsewhere, the newest run beside the program."""
    parent = folder.absolute().parent
    if run_number(parent) is not None or any((parent / name).is_dir() for name in STAGES.values() if name != folder.name):
        return folder.parent
    return newest_run(Path("outputs")) or folder.parent


def _decide(config: Any, stem: str, folder: Path, before: dict[str, Any] | None) -> str:
    """`new`, `replace`, `continue` or `keep`; UserError where the user has to choose."""
    flags = config.run
    shown = manifest.shown(folder)
    if before is None:
        if _contents(folder):
            raise UserError(f"{shown}: holds files but no {manifest.NAME}, so it is no stage's folder; name another --output_dir")
        return "new"
    if before["stage"] != STAGES.get(stem, stem):
        raise UserError(f"{shown}: belongs to stage {before['stage']}, not to {stem}; name another --output_dir")
    changed = manifest.difference(before["config"], to_dict(config), NOT_COMPARED)
    if before["status"] == "completed":
        changed = changed or manifest.changed_file(before, folder)
        if flags.if_needed and not changed:
            return "keep"
        if flags.overwrite:
            return "replace"
        if flags.resume and not changed:
            return "keep"
        why = f"finished, but {changed}" if (flags.if_needed or flags.resume) and changed else "is finished"
        raise UserError(f"{shown}: {why}; --overwrite replaces it, --resume keeps what is finished and continues the rest")
    if flags.overwrite and not flags.if_needed:
        return "replace"
    if not _contents(folder):
        return "replace"
    if not (flags.resume or flags.if_needed):
        was = "was killed" if before["status"] == "running" else before["status"]
        raise UserError(f"{shown}: is unfinished ({was}); --resume continues it, --overwrite starts again")
    if changed and flags.overwrite:
        return "replace"
    if changed:
        raise UserError(f"{shown}: cannot be continued, because {changed}; --overwrite starts again")
    return "continue"


def _contents(folder: Path) -> list[Path]:
    """What a stage has written beside its manifest."""
    return [path for path in folder.iterdir() if path.name not in (manifest.NAME, manifest.LOCK) and not is_temporary(path)]


def _empty(folder: Path) -> None:
    """Remove a stage's contents; the lock stays."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != manifest.LOCK:
            path.unlink()


def _remove_temporaries(folder: Path) -> None:
    for path in [p for p in folder.rglob("*") if p.name.startswith(".") and is_temporary(Path(p.name))]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Any:
    """Hold the folder's lock; it goes with the process, however that ends."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / manifest.LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another --output_dir") from None
    try:
        for attempt in range(20):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 19:
                    owner = os.pread(handle, 32, 0).decode() or "another process"
                    raise UserError(f"{folder}: process {owner} is writing it; wait, or name another --output_dir") from None
                time.sleep(0.1)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


# --- process ---------------------------------------------------------------------------------------------------------


@contextmanager
def _signals_raise() -> Any:
    """SIGTERM and SIGHUP become exceptions, so that `finally` blocks run and the manifest is written."""

    def on_signal(number: int, _frame: object) -> None:
        raise _Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the driver that started it dies, by whatever signal."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent != str(os.getppid()) or not sys.platform.startswith("linux"):
        return
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != int(parent):
        raise SystemExit(1)


def _first_line(resolved: Resolved[Any], stem: str, folder: Path) -> str:
    """What runs, on what, why, and where it goes."""
    config = resolved.config
    facts = []
    for level, name in (("model", "model"), ("task", "task")):
        if hasattr(config, name):
            value = getattr(config, name).name
            file = resolved.files.get(level)
            facts.append(f"{name} {value} ({file}, {resolved.reasons[level]})" if file else f"{name} {value}")
    if hasattr(config, "model"):
        facts.append(manifest.device_line(config.run.device))
    facts.append(f"seed {config.run.seed}")
    return f"{stem}: {' · '.join(facts)} → {manifest.shown(folder)}"


def _print_plan(resolved: Resolved[Any], lines: list[str]) -> None:
    for section, values in to_dict(resolved.config).items():
        print(f"{section}:")
        for name, value in values.items():
            print(f"  {name}: {value}  # {resolved.sources[f'{section}.{name}']}")
    for line in lines:
        print(line)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a stage folder. UserError when it is missing or broken."""
    found = read_json(Path(folder) / manifest.NAME)
    if not isinstance(found, dict):
        raise UserError(f"{Path(folder) / manifest.NAME}: expected a JSON object")
    return found
