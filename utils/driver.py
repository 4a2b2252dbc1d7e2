"""The driver's flags, and how they become a plan: which stages, in which run, with which settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from utils import manifest
from utils.boards import BOARDS
from utils.config import Resolved, setting
from utils.course import Table, run_course
from utils.disk import course_line
from utils.errors import UserError
from utils.flags import add_flags, make_parser, parse_flags
from utils.folders import locked
from utils.keys import coerce, flags_of
from utils.pipeline import Step, arguments_of, choose_run, fingerprint, print_plan, resolve_step, select, split_flags
from utils.run_record import describe
from utils.runs import STAGES
from utils.terminal import Terminal

METHODS = ("grpo", "ppo", "rloo", "dpo")


@dataclass(frozen=True)
class Course:
    """What the driver does."""

    method: str = setting("grpo", "which method is trained and compared", choices=METHODS)
    run_id: str = setting("", "folder of the run below output_root (default: see above)")
    from_stage: str = setting("", "first stage: number, folder or name (default: the first)")
    to_stage: str = setting("", "last stage (default: the last)")
    output_root: str = setting("outputs", "folder of the runs")
    dry_run: bool = setting(False, "print every command and what it would do, then stop")
    overwrite: bool = setting(False, "do stages again whose settings or inputs have changed")


@dataclass(frozen=True)
class Shared:
    """Handed to every stage that knows them."""

    seed: int = setting(0, "seed of every random stream", minimum=0)
    data_seed: int = setting(0, "seed of the generated data", minimum=0)
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    task: str = setting("", "task file, or its name in configs/tasks")
    config: str = setting("", "model file, or its name in configs/models")
    algo_config: str = setting("", "algorithm file, or its name in configs/algorithms")
    quick_test: bool = setting(False, "few records and steps: does everything run?")
    quiet: bool = setting(False, "print only warnings, errors and the result")
    report_to: str = setting("none", "where curves go beside logs/train.jsonl", choices=BOARDS)


@dataclass(frozen=True)
class Config:
    """Flags of the driver."""

    course: Course
    shared: Shared


@dataclass(frozen=True)
class Planned:
    """A course that is ready to run. `arguments` and `resolved`: command line and settings by the steps' folders."""

    course: Course
    plan: Sequence[Step]
    chosen: Sequence[Step]
    run: Path
    why: str
    settings: str
    arguments: Mapping[str, list[str]]
    resolved: Mapping[str, Resolved[Any]]
    terminal: Terminal


def plan_course(argv: Sequence[str], plan_of: Callable[[str], list[Step]], doc: str) -> Planned:
    """Read the flags, choose the run and resolve every stage's settings. UserError for every mistake in them."""
    flags = flags_of(Config)
    plan = plan_of(method_in(argv))
    own, scoped = split_flags(argv, set(flags), plan)
    parser = make_parser(doc, "12_driver.py")
    add_flags(parser, flags.values(), {"course": Course.__doc__ or "", "shared": Shared.__doc__ or ""})
    given = parse_flags(parser, flags, own)
    course = Course(**{name: value for name, value in given.items() if flags[name].section == "course"})
    shared = {name: value for name, value in given.items() if flags[name].section == "shared"}
    chosen = select(plan, course.from_stage, course.to_stage)
    settings = fingerprint(plan, shared, scoped)
    run, why = choose_run(Path(course.output_root), course.run_id, settings, bool(course.from_stage))
    arguments = {step.folder: arguments_of(step, shared, scoped, run) for step in plan}
    resolved = {step.folder: resolve_step(step, arguments[step.folder]) for step in plan}
    terminal = Terminal(quiet=bool(shared.get("quiet")))
    return Planned(course, plan, chosen, run, why, settings, arguments, resolved, terminal)


def method_in(argv: Sequence[str]) -> str:
    """The value of --method, which decides what other flags there are."""
    method = "grpo"
    for word, after in zip_longest(argv, argv[1:], fillvalue=""):
        if word.partition("=")[0] == "--method":
            method = word.partition("=")[2] or after
    coerce(method, flags_of(Config)["method"], "--method")
    return method


def drive(planned: Planned, trained: str, argv: Sequence[str], result_of: Callable[[Path], Table | None]) -> int:
    """Do the chosen stages (or print them, --dry_run); the exit code of the one that failed, or 0.

    `trained` is the script that trains the method.
    """
    course, run, terminal = planned.course, planned.run, planned.terminal
    number = f"{len(planned.chosen)} of {len(planned.plan)} stages"
    terminal.say(f"12_driver: {course.method}, {number} → {manifest.shown(run)} ({planned.why})")
    if course.dry_run:
        print_plan(planned.chosen, planned.arguments, planned.resolved)
        words, enough = course_line([planned.resolved[step.folder].config for step in planned.chosen], run)
        print(f"disk: {words}")
        if not enough:
            terminal.warn("there is too little free disk; name another --output_root")
        return 0
    if planned.chosen[0] != planned.plan[0] and not run.is_dir():
        first = f"it would begin with {planned.chosen[0].folder}"
        raise UserError(f"--from_stage {course.from_stage}: there is no {run} to continue, and {first}; leave it out")
    overwrite = ["--overwrite"] if course.overwrite else []
    arguments = {folder: [*words, *overwrite] for folder, words in planned.arguments.items()}
    head = {"method": course.method, "settings": planned.settings}
    head |= describe(course.method, planned.resolved, STAGES[trained])
    with locked(run):
        return run_course(planned.chosen, planned.plan, arguments, run, head, argv, terminal, result_of)
