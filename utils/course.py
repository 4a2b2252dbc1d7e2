"""The driver's loop: stage after stage, and at every moment a run_manifest.json that says how far the run is."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils import manifest
from utils.files import read_json
from utils.jobs import Job, needs_of, side_by_side
from utils.pipeline import RUN_MANIFEST, Step, run_step
from utils.process import Terminated, signals_ignored, signals_raise
from utils.run_record import stage_entries, write_readme, write_run_manifest
from utils.terminal import Terminal

Table = tuple[list[str], list[list[str]]]


def run_course(
    chosen: Sequence[Step],
    plan: Sequence[Step],
    arguments: Mapping[str, Sequence[str]],
    run: Path,
    head: Mapping[str, Any],
    argv: Sequence[str],
    terminal: Terminal,
    result_of: Callable[[Path], Table | None],
    jobs: int = 1,
    threads: Mapping[str, int] = MappingProxyType({}),
) -> int:
    """Do the chosen steps of a plan, up to `jobs` at a time; the exit code of the one that failed, or 0.

    `result_of` reads the comparison. `threads`: folder -> how many a step computes with, where it is given.
    """
    record = {**head, "commands": _commands(run, argv), "code": manifest.code_version()}
    record |= {"libraries": manifest.library_versions(), "hardware": manifest.hardware()}

    def save(status: str) -> list[dict[str, Any]]:
        entries = write_run_manifest(run, record, plan, status)
        write_readme(run, record, entries, _markdown(result_of(run)))
        return entries

    _say_what_is_there(save("running"), terminal)
    before = _comparison(run)
    together = jobs > 1 and len(chosen) > 1
    if together:
        work = _together(chosen, plan, arguments, run, jobs, terminal)
    else:
        work = _in_turn(chosen, arguments, threads, terminal)
    failure, code = "", 0
    try:
        with signals_raise(), closing(work) as ended:
            for step, code in ended:
                if code:
                    log = f", see {manifest.shown(log_of(run, step))}" if together else ""
                    failure = f"error: stage {step.folder} ended with exit code {code}{log}"
                    break
                save("running")
    except (KeyboardInterrupt, Terminated) as error:
        with signals_ignored():
            save("interrupted")
        number = error.number if isinstance(error, Terminated) else signal.SIGINT
        return _stopped("interrupted", run, argv, 128 + number)
    if failure:
        save("failed")
        return _stopped(failure, run, argv, code)
    done = all(entry["status"] == "completed" for entry in stage_entries(run, plan))
    save("completed" if done else "partial")
    _show_result(run, result_of(run), terminal, fresh=_comparison(run) != before)
    return 0


def _in_turn(
    chosen: Sequence[Step], arguments: Mapping[str, Sequence[str]], threads: Mapping[str, int], terminal: Terminal
) -> Generator[tuple[Step, int]]:
    """Each step and its exit code."""
    for number, step in enumerate(chosen, start=1):
        terminal.say(f"[{number}/{len(chosen)}] {step.folder}")
        yield step, run_step(step, arguments[step.folder], threads.get(step.folder, 0))


def _together(
    chosen: Sequence[Step],
    plan: Sequence[Step],
    arguments: Mapping[str, Sequence[str]],
    run: Path,
    jobs: int,
    terminal: Terminal,
) -> Generator[tuple[Step, int]]:
    """The same, several steps at a time, as they end."""
    steps = {step.folder: step for step in chosen}
    needs = {folder: needed & set(steps) for folder, needed in needs_of(plan).items()}
    programs = {name: Job(step, arguments[name], log_of(run, step), needs[name]) for name, step in steps.items()}
    terminal.say(f"up to {jobs} stages at a time, which print into {manifest.shown(run)}/STAGE.log")
    with closing(side_by_side(programs, jobs)) as ended:
        for number, (name, code) in enumerate(ended, start=1):
            if not code:
                terminal.say(f"[{number}/{len(chosen)}] {name} is done")
            yield steps[name], code


def log_of(run: Path, step: Step) -> Path:
    """What a step prints, when several are at work."""
    return run / f"{step.folder}.log"


def _commands(run: Path, argv: Sequence[str]) -> list[str]:
    """Every command that worked on this run, in order; this one last."""
    path = run / RUN_MANIFEST
    earlier = list(read_json(path)["commands"]) if path.is_file() else []
    command = shlex.join(["python", "12_driver.py", *argv])
    return [*(one for one in earlier if one != command), command]


def _say_what_is_there(entries: Sequence[Mapping[str, Any]], terminal: Terminal) -> None:
    """What a run that is continued already holds."""
    finished = [entry["folder"] for entry in entries if entry["status"] == "completed"]
    begun = [entry["folder"] for entry in entries if entry["status"] not in ("completed", "not run")]
    if finished:
        terminal.say(f"keeps what is finished and unchanged: {' '.join(finished)}")
    if begun:
        terminal.say(f"continues: {' '.join(begun)}")


def _stopped(what: str, run: Path, argv: Sequence[str], code: int) -> int:
    """Say how to go on; the exit code."""
    words = list(argv)
    for flag in ("--run_id", "--from_stage"):
        for index in reversed([i for i, word in enumerate(words) if word == flag or word.startswith(f"{flag}=")]):
            del words[index : index + (2 if words[index] == flag else 1)]
    command = shlex.join(["python", "12_driver.py", *words, "--run_id", run.name])
    print(f"{what}; continue with: {command}", file=sys.stderr)
    return code


def _comparison(run: Path) -> object:
    """Identifies the comparison that lies in the run."""
    path = run / "11_comparison" / manifest.NAME
    return path.stat().st_mtime_ns if path.is_file() else None


def _show_result(run: Path, result: Table | None, terminal: Terminal, fresh: bool) -> None:
    """The last lines: the table (unless stage 11 has just printed it) and where the report is."""
    if result is None:
        return
    if not fresh:
        terminal.table("result", *result)
    print(f"report: {manifest.shown(run / '11_comparison' / 'report.md')}, run: {manifest.shown(run / 'README.md')}")


def _markdown(table: Table | None) -> str:
    if table is None:
        return ""
    columns, rows = table
    lines = [columns, [":--", *("--:" for _ in columns[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
