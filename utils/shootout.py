"""`12_driver.py --seeds 0 1 2`: a run for each seed, one after the other or side by side, and their joint comparison.

Each run is the driver itself as a subprocess with `--seed`, so that it can be continued alone. The comparison lies in
outputs/compare_XXX; compare_manifest.json there says which run belongs to which seed, and how far they are.
"""

from __future__ import annotations

import hashlib
import math
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from utils import manifest
from utils.driver import Planned, print_course
from utils.files import read_json, write_json
from utils.folders import is_held, locked
from utils.jobs import Job, side_by_side
from utils.pipeline import Step, run_step
from utils.process import Terminated, signals_ignored, signals_raise
from utils.runs import newest_run, next_run

MANIFEST = "compare_manifest.json"
COMPARISON = "11_comparison"
DRIVER = Step("12_driver", "")


def shoot_out(planned: Planned, argv: Sequence[str]) -> int:
    """Do every seed's run and compare them; the exit code of the first that failed, or 0."""
    course, terminal = planned.course, planned.terminal
    outputs = Path(course.output_root)
    settings = hashlib.sha256(f"{planned.settings} {course.seeds} {course.trials}".encode()).hexdigest()
    folder, why = choose_comparison(outputs, settings)
    terminal.say(f"12_driver: {course.method}, seeds {_words(course.seeds)} → {manifest.shown(folder)} ({why})")
    if course.dry_run:
        print_course(planned)
        terminal.say(f"… and the same for {len(course.seeds) - 1} seeds more, then their comparison")
        return 0
    with locked(folder), signals_raise():
        record = begun(folder, settings, course.seeds, argv)
        try:
            code = _seeds(planned, argv, folder, record)
            _save(folder, record, "failed" if code else "completed")
        except (KeyboardInterrupt, Terminated) as error:
            with signals_ignored():
                _save(folder, record, "interrupted")
            code = 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)
    if code:
        print(f"continue with: {shlex.join(['python', '12_driver.py', *argv])}", file=sys.stderr)
    else:
        print(f"report: {manifest.shown(folder / COMPARISON / 'report.md')}")
    return code


def choose_comparison(outputs: Path, settings: str) -> tuple[Path, str]:
    """The newest comparison when it is unfinished and has the same settings, else the next number."""
    newest = newest_run(outputs, "compare")
    if newest is not None and (newest / MANIFEST).is_file() and not is_held(newest):
        record = read_json(newest / MANIFEST)
        if record.get("settings") == settings and record.get("status") != "completed":
            return newest, "it is unfinished and has the same settings"
    return next_run(outputs, "compare"), "a new comparison"


def begun(folder: Path, settings: str, seeds: Sequence[int], argv: Sequence[str]) -> dict[str, Any]:
    """The comparison's record, with a run folder reserved for each seed."""
    if (folder / MANIFEST).is_file():
        record: dict[str, Any] = read_json(folder / MANIFEST)
    else:
        record = {"schema": manifest.SCHEMA, "status": "running", "settings": settings, "runs": {}}
        record |= {"command": shlex.join(["python", "12_driver.py", *argv]), "code": manifest.code_version()}
        for seed in seeds:
            run = next_run(folder.parent)
            run.mkdir(parents=True)
            record["runs"][str(seed)] = run.name
    _save(folder, record, "running")
    return record


def _seeds(planned: Planned, argv: Sequence[str], folder: Path, record: Mapping[str, Any]) -> int:
    """Every seed's run, then the comparison. Trials belong to the first seed, which therefore goes alone."""
    course, terminal = planned.course, planned.terminal
    runs = {int(seed): name for seed, name in record["runs"].items()}
    words = without(argv, "seeds", "jobs", "trials")
    waiting = list(course.seeds)
    chosen: list[str] = []
    if course.trials:
        first = waiting.pop(0)
        given = [*words, "--jobs", str(course.jobs), "--trials", *map(str, course.trials)]
        if code := run_step(DRIVER, _run_arguments(given, first, runs[first])):
            return code
        chosen = chosen_rates(folder.parent / runs[first])
        terminal.say(f"for the other seeds: {shlex.join(chosen)}")
    at_once = math.gcd(course.jobs, len(waiting))  # no run goes on alone while others are done
    words += [*chosen, "--jobs", str(course.jobs // at_once)]
    commands = {runs[seed]: _run_arguments(words, seed, runs[seed]) for seed in waiting}
    if code := _side_by_side(commands, at_once, folder) if at_once > 1 else _one_by_one(commands):
        return code
    compared = [(folder.parent / name).as_posix() for name in runs.values()]
    quiet = ["--quiet"] if terminal.quiet else []
    target = (folder / COMPARISON).as_posix()
    return run_step(Step("11_compare_runs", COMPARISON), [*compared, *quiet, "--output_dir", target, "--if_needed"])


def _run_arguments(words: Sequence[str], seed: int, run: str) -> list[str]:
    return [*words, "--seed", str(seed), "--run_id", run]


def chosen_rates(run: Path) -> list[str]:
    """`--ppo.learning_rate 0.0002 …`: what each method's trials in this run have chosen."""
    words: list[str] = []
    for path in sorted(run.glob("10_evaluation*/metrics.json")):
        for trial in read_json(path).get("trials", []):
            if trial["chosen"]:
                scope = Path(trial["folder"]).name.split("_")[1]
                words += [f"--{scope}.learning_rate", f"{trial['learning_rate']:g}"]
    return words


def without(argv: Sequence[str], *names: str) -> list[str]:
    """A command line without some flags and their values."""
    kept: list[str] = []
    dropping = False
    for word in argv:
        if word.startswith("--"):
            dropping = word[2:].partition("=")[0] in names
        if not dropping:
            kept.append(word)
    return kept


def _one_by_one(commands: Mapping[str, Sequence[str]]) -> int:
    return next((code for arguments in commands.values() if (code := run_step(DRIVER, arguments))), 0)


def _side_by_side(commands: Mapping[str, Sequence[str]], at_once: int, folder: Path) -> int:
    """The exit code of the first run that fails; the others are then asked to end."""
    jobs = {name: Job(DRIVER, arguments, folder / f"{name}.log") for name, arguments in commands.items()}
    print(f"{at_once} runs at a time, which print into {manifest.shown(folder)}/run_XXX.log", flush=True)
    with closing(side_by_side(jobs, at_once)) as ended:
        for name, code in ended:
            if code:
                print(f"error: {name} ended with exit code {code}, see {jobs[name].log}", file=sys.stderr)
                return code
            print(f"{name} is done", flush=True)
    return 0


def _save(folder: Path, record: Mapping[str, Any], status: str) -> None:
    write_json(folder / MANIFEST, {**record, "status": status})


def _words(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds))
