"""One stage of the pipeline as a program: its folder, its manifest, and how it ends.

`main` resolves the settings, chooses and locks the folder, writes manifest.json as `running`, calls the script's
`run(cfg, stage)` and records how it ended: `completed`, `failed` or `interrupted`. After a kill -9 the manifest still
says `running`, but nobody holds the lock, so the next call knows that it may continue or replace.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from utils import base_model, manifest, ranks
from utils.config import Resolved, resolve, to_dict
from utils.errors import UserError, not_installed
from utils.files import sha256, write_json
from utils.folders import ROUNDING, choose_folder, decide, locked, remove_temporaries, replaced, run_of
from utils.machine import (
    OUT_OF_MEMORY,
    is_out_of_memory,
    keep_few_kernels,
    keep_freed_memory,
    matrix_units,
    slow_in_bf16,
)
from utils.process import Terminated, die_with_parent, signals_ignored, signals_raise
from utils.runs import STAGES
from utils.terminal import Terminal, clock

C = TypeVar("C")


class Stage:
    """What a script's `run` gets beside its Config: folders, inputs, and the manifest's contents."""

    def __init__(self, folder: Path, script: str, terminal: Terminal, resuming: bool, record: dict[str, Any]) -> None:
        self.dir = folder
        self.run_dir = run_of(folder, Path(record["config"]["run"]["output_root"]))
        self.script = script
        self.seed = int(record["seed"])
        self.terminal = terminal
        self.resuming = resuming
        self._record = record
        self._start, self._seconds_before = time.monotonic(), float(record["seconds"])

    def input(self, path: str | Path, digest: Callable[[Path], str] = sha256) -> Path:
        """Note an existing file or folder as input, with its digest and its stage. UserError if missing."""
        path = Path(path)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; {self.script} reads it")
        self._record["inputs"][manifest.shown(path)] = digest(path)
        parent = manifest.stage_above(path)
        if parent and parent.resolve() != self.dir.resolve():
            self._note_parent(path, parent)
        self.save()
        return path

    def base_model(self, name: str) -> None:
        """Note the base model as input once it is loaded: then a hub's model lies in the cache."""
        folder = base_model.find_folder(name)
        if folder:
            self.input(folder, base_model.sampled)
            return
        self._record["inputs"][base_model.HUB + name] = base_model.digest_of(name)
        self.save()

    def _note_parent(self, path: Path, parent: Path) -> None:
        facts = manifest.read(parent)
        entry = {"path": manifest.shown(parent), "stage": facts["stage"], "status": facts["status"]}
        if entry in self._record["parents"]:
            return
        self._record["parents"].append(entry)
        if facts["status"] != "completed":
            self.warn(f"{path} comes from a stage that has not finished (its manifest says {facts['status']})")

    def previous(self, script: str, *names: str) -> Path:
        """A file of an earlier stage of this run, noted as input. UserError names the command that makes it."""
        folder = self.run_dir / STAGES[script]
        path = folder.joinpath(*names)
        command = f"python {script}.py --output_dir {manifest.shown(folder)}"
        if not path.exists():
            raise UserError(f"{manifest.shown(path)}: not there yet; run first: {command}")
        status = manifest.read(folder)["status"] if (folder / manifest.NAME).is_file() else "completed"
        if status != "completed":
            raise UserError(f"{manifest.shown(folder)}: has not finished ({status}); run first: {command} --resume")
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
        """Set totals of the whole stage, continued parts included: generated_tokens=, completions=, …"""
        self._record["spent"].update(counts)
        self.save()

    def warn(self, line: str) -> None:
        """Show a warning and keep it in the manifest, once: a part that is computed again repeats its warnings."""
        self.terminal.warn(line)
        if line not in self._record["warnings"]:
            self._record["warnings"].append(line)
        self.save()

    def save(self) -> None:
        """Write the manifest as it stands; `seconds` count the interrupted parts too."""
        self._record["seconds"] = round(self._seconds_before + time.monotonic() - self._start, 3)
        write_json(self.dir / manifest.NAME, self._record)


class Follower(Stage):
    """The stage in a process beside the first one: it reads the same files, and keeps no record of its own."""

    def __init__(self, folder: Path, script: str, resuming: bool, config: Any) -> None:
        record: dict[str, Any] = {name: {} for name in ("inputs", "metrics", "spent")}
        record |= {"seed": config.run.seed, "seconds": 0.0, "parents": [], "config": to_dict(config)}
        super().__init__(folder, script, Terminal(quiet=True), resuming, record)

    def input(self, path: str | Path, digest: Callable[[Path], str] = sha256) -> Path:
        """The path, if it exists: the first process takes its digest."""
        return super().input(path, lambda _: "")

    def warn(self, line: str) -> None:
        """The first process warns."""

    def save(self) -> None:
        """The first process writes."""


def main(
    config_class: type[C],
    run: Callable[[C, Stage], None],
    doc: str | None,
    script: str,
    *,
    plan: Callable[[C], list[str]] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a stage script and return its exit code.

    0: done or kept; 2: a user's mistake, said in one line; 128 + n: ended by signal n. A bug keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    die_with_parent()
    keep_freed_memory()
    keep_few_kernels()
    _quiet_libraries()
    rank, started = ranks.started()
    try:
        resolved = ranks.counted(resolve(config_class, arguments, doc=doc or "", script=script), started)
        processes = ranks.processes_of(resolved)
        run_settings: Any = resolved.config.run  # type: ignore[attr-defined]
        if not run_settings.quick_test:  # which makes steps smaller
            ranks.check_division(resolved.config, processes, more_may_start=run_settings.dry_run)
        if run_settings.dry_run:
            if rank == 0:
                _print_plan(resolved, [*(plan(resolved.config) if plan else []), *_slow_arithmetic(resolved)])
            return 0
        if started < processes:
            words = sys.orig_argv[1:] if argv is None else [script, *arguments]
            return ranks.launch(processes, [sys.executable, *words])
        with ranks.joined(run_settings.device):
            ranks.check_settings_agree(resolved)
            begin = _follow if rank else _run_stage
            return begin(resolved, run, script, arguments)
    except UserError as error:
        if rank == 0:  # what another process said, or would say too
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the stage began
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:  # of files beside the stage's own work: a full disk, a name too long, a missing right
        print(f"error: {_said(error)}", file=sys.stderr)
        return 2


def _quiet_libraries() -> None:
    """No telemetry, no bars and notices of libraries between our lines; set before any of them is imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|torch)\b")


def _follow(resolved: Resolved[C], run: Callable[[C, Stage], None], script: str, arguments: list[str]) -> int:
    """What a process beside the first one does of a stage: its share of the work."""
    config: Any = resolved.config
    folder, decision = ranks.from_first(lambda: (Path(), ""))
    if decision == "keep":
        return 0
    try:
        with signals_raise():
            run(resolved.config, Follower(folder, Path(script).name, decision == "continue", config))
    except Terminated as error:
        return 128 + error.number
    except ModuleNotFoundError as error:
        raise UserError(not_installed(str(error.name))) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise UserError(OUT_OF_MEMORY) from error
        raise
    return 0


def _run_stage(resolved: Resolved[C], run: Callable[[C, Stage], None], script: str, arguments: list[str]) -> int:
    config: Any = resolved.config
    terminal = Terminal(quiet=config.run.quiet)
    stem = Path(script).stem
    folder = choose_folder(config, stem)
    with locked(folder):
        before = manifest.read(folder) if (folder / manifest.NAME).is_file() else None
        decision = decide(config, stem, folder, before)
        ranks.from_first(lambda: (folder, decision))
        if decision == "keep":
            terminal.say(f"{stem}: kept {manifest.shown(folder)} (finished, same settings, same inputs)")
            return 0
        remove_temporaries(folder)
        terminal.say(_first_line(resolved, stem, folder))
        if decision == "continue":
            terminal.say(f"{stem}: continues what was begun in {manifest.shown(folder)}")
        with replaced(folder) if decision == "replace" else nullcontext():
            record = manifest.begin(resolved, script, arguments, before if decision == "continue" else None)
            stage = Stage(folder, Path(script).name, terminal, decision == "continue", record)

            def begun() -> None:
                stage.save()
                if before and decision == "continue":
                    _note_other_rounding(stage, resolved, before)
                for line in _slow_arithmetic(resolved):
                    stage.warn(line)
                run(resolved.config, stage)

            return _run_recorded(begun, stage, record)


def _note_other_rounding(stage: Stage, resolved: Resolved[Any], before: Mapping[str, Any]) -> None:
    """The bytes of a run depend on how its work is divided, if only by rounding: say when that changes."""
    config = to_dict(resolved.config)
    unread = "rl.micro_batch_tokens" if config.get("rl", {}).get("auto_batch") else ""
    for section, name in (key.split(".") for key in ROUNDING if key != unread):
        was, now = (settings.get(section, {}).get(name) for settings in (before["config"], config))
        if was is not None and was != now:
            stage.warn(f"goes on with --{name} {now}, was {was}: the same mathematics, other rounding")


def _slow_arithmetic(resolved: Resolved[Any]) -> list[str]:
    """A line where a stage that computes with a model was told to do it the slow way."""
    config, asked = to_dict(resolved.config), "model.precision"
    computes = "model" in config and "lora" in config
    if not computes or config["model"]["precision"] != "bf16" or not slow_in_bf16(config["run"]["device"]):
        return []
    return [
        f"{asked}: bf16 ({resolved.sources[asked]}) is slower than fp32 on this processor ({matrix_units()}); "
        "--precision auto takes the faster one"
    ]


def _run_recorded(run: Callable[[], None], stage: Stage, record: dict[str, Any]) -> int:
    """Call `run`, in which the manifest is written first, and record how it ended.

    In it, so that a signal never finds a manifest that says `running` and nobody to correct it.
    """

    def finish(status: str, error: str | None) -> None:
        with signals_ignored():
            record.update(status=status, error=error, outputs=manifest.hash_outputs(stage.dir))
            stage.save()

    try:
        with signals_raise():
            ranks.heeding_others(run)
    except UserError as error:
        finish("failed", str(error))
        raise
    except (KeyboardInterrupt, Terminated) as error:
        number = error.number if isinstance(error, Terminated) else signal.SIGINT
        finish("interrupted", signal.Signals(number).name)
        print(f"interrupted: {manifest.shown(stage.dir)}; the same command with --resume continues", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:
        finish("failed", "the reader of what it prints has gone")
        raise
    except OSError as error:
        _finish_on_bad_disk(finish, error)
    except ModuleNotFoundError as error:  # not the Python of venv/
        line = not_installed(str(error.name))
        finish("failed", line)
        raise UserError(line) from error
    except BaseException as error:
        finish("failed", f"{type(error).__name__}: {error}")
        if is_out_of_memory(error):
            raise UserError(OUT_OF_MEMORY) from error
        raise
    finish("completed", None)
    stage.terminal.say(f"{Path(stage.script).stem}: done in {clock(record['seconds'])} → {manifest.shown(stage.dir)}")
    return 0


def _finish_on_bad_disk(finish: Callable[[str, str | None], None], error: OSError) -> NoReturn:
    """A full disk, a missing right or a vanished file: one line, even if the manifest cannot be written any more."""
    line = _said(error)
    try:
        finish("failed", line)
    except OSError as second:
        line += f" (and the manifest could not be written: {second.strerror})"
    raise UserError(line) from error


def _said(error: OSError) -> str:
    return f"{error.filename or type(error).__name__}: {error.strerror or error}"


def _first_line(resolved: Resolved[Any], stem: str, folder: Path) -> str:
    """What runs, on what, why, and where it goes."""
    config = resolved.config
    facts = []
    for name in ("model", "task"):
        if hasattr(config, name):
            why = f" ({resolved.files[name]}, {resolved.reasons[name]})" if name in resolved.files else ""
            facts.append(f"{name} {getattr(config, name).name}{why}")
    if hasattr(config, "model"):
        facts.append(manifest.device_line(config.run.device))
    if ranks.processes_of(resolved) > 1:
        facts.append(f"{ranks.processes_of(resolved)} processes")
    facts.append(f"seed {config.run.seed}")
    return f"{stem}: {' · '.join(facts)} → {manifest.shown(folder)}"


def _print_plan(resolved: Resolved[Any], lines: list[str]) -> None:
    for section, values in to_dict(resolved.config).items():
        print(f"{section}:")
        for name, value in values.items():
            print(f"  {name}: {value}  # {resolved.sources[f'{section}.{name}']}")
    for line in lines:
        print(line)
