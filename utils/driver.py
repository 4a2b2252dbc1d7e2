"""The driver's flags, and how they become a plan: which stages, in which run, with which settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils import manifest
from utils.boards import BOARDS
from utils.config import Resolved, build, setting
from utils.course import Table, run_course
from utils.disk import course_line
from utils.errors import UserError
from utils.flags import add_flags, make_parser, parse_flags
from utils.folders import locked
from utils.keys import coerce, flags_of, nearest
from utils.pipeline import (
    Step,
    Variant,
    arguments_of,
    choose_run,
    fingerprint,
    print_plan,
    resolve_step,
    select,
    split_flags,
)
from utils.run_record import describe, learning_rate
from utils.terminal import Terminal

METHODS = ("ppo", "grpo", "rloo", "dpo")
ALL = "all"
Variants = Mapping[str, Sequence[Variant]]
"""Method -> ways of training it."""
NO_VARIANTS: Variants = MappingProxyType({})


@dataclass(frozen=True)
class Course:
    """What the driver does."""

    method: str = setting("grpo", "which method is trained and compared", choices=(*METHODS, ALL))
    seeds: tuple[int, ...] = setting((), "a run for each of these seeds, and a joint comparison", minimum=0)
    trials: tuple[float, ...] = setting(
        (), "factors of each method's learning rate; the best on validation (of the first seed) is taken", minimum=0.0
    )
    sweep: str = setting("", "FLAG=VALUE,VALUE,...: each method that knows the flag once more for each value")
    jobs: int = setting(
        1, "stages at a time (or runs, where --seeds divide into as many), each with its share of the cores", minimum=1
    )
    run_id: str = setting("", "folder of the run below output_root (default: see above)")
    from_stage: str = setting("", "first stage: number, folder or name (default: the first)")
    to_stage: str = setting("", "last stage (default: the last)")
    output_root: str = setting("outputs", "folder of the runs")
    dry_run: bool = setting(False, "print every command and what it would do, then stop")
    overwrite: bool = setting(False, "do stages again whose settings or inputs have changed")

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds {' '.join(map(str, self.seeds))}: a seed twice would count as two")
        if len(self.trials) == 1:
            raise ValueError("--trials with one factor leaves nothing to choose; give several, or the rate itself")
        if len(set(self.trials)) < len(self.trials):
            raise ValueError(f"--trials {' '.join(map(str, self.trials))}: a factor twice would count as two choices")
        if self.trials and self.sweep and self.seeds:
            raise ValueError("--trials and --sweep with --seeds would compare values at different rates; choose two")
        for flag in ("run_id", "from_stage", "to_stage"):
            if self.seeds and getattr(self, flag):
                raise ValueError(f"--{flag} is of one run, and --seeds makes several; continue one with --seed")

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are trained."""
        return METHODS if self.method == ALL else (self.method,)


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


def plan_course(
    argv: Sequence[str], trainers: Mapping[str, str], plan_of: Callable[..., list[Step]], doc: str
) -> Planned:
    """Read the flags, choose the run and resolve every stage's settings. UserError for every mistake in them.

    `trainers`: the script that trains each method. `plan_of(methods, trials, sweep)`: the course.
    """
    flags = flags_of(Config)
    methods = methods_in(argv)
    own, scoped = split_flags(argv, set(flags), plan_of(methods))
    parser = make_parser(doc, "12_driver.py")
    add_flags(parser, flags.values(), {"course": Course.__doc__ or "", "shared": Shared.__doc__ or ""})
    given = parse_flags(parser, flags, own)
    course = build(Course, "driver", {name: value for name, value in given.items() if flags[name].section == "course"})
    shared = {name: value for name, value in given.items() if flags[name].section == "shared"}
    if course.seeds:
        if "seed" in shared:
            raise UserError("--seed and --seeds: give one of them")
        shared["seed"] = course.seeds[0]
    varied = methods if course.trials or course.sweep else ()
    steps = {method: Step(trainers[method], "") for method in varied}
    usual = {method: resolve_step(step, arguments_of(step, shared, scoped, Path())) for method, step in steps.items()}
    trials = {method: trials_of(usual[method].config, course.trials) for method in varied if course.trials}
    plan = plan_of(methods, trials, sweep_of(course.sweep, usual) if course.sweep else NO_VARIANTS)
    chosen = select(plan, course.from_stage, course.to_stage)
    settings = fingerprint(plan, shared, scoped)
    run, why = choose_run(Path(course.output_root), course.run_id, settings, bool(course.from_stage))
    arguments = {step.folder: arguments_of(step, shared, scoped, run) for step in plan}
    resolved = {step.folder: resolve_step(step, arguments[step.folder]) for step in plan}
    terminal = Terminal(quiet=bool(shared.get("quiet")))
    return Planned(course, plan, chosen, run, why, settings, arguments, resolved, terminal)


def methods_in(argv: Sequence[str]) -> tuple[str, ...]:
    """The methods that --method names, which decide what other flags there are."""
    method = "grpo"
    for word, after in zip_longest(argv, argv[1:], fillvalue=""):
        if word.partition("=")[0] == "--method":
            method = word.partition("=")[2] or after
    return Course(method=coerce(method, flags_of(Config)["method"], "--method")).methods


def trials_of(config: Any, factors: Sequence[float]) -> list[Variant]:
    """A trial for each multiple of a method's learning rate."""
    rates = [f"{learning_rate(config) * factor:.6g}" for factor in factors]
    return [Variant(f"_learning_rate_{rate}", ("--learning_rate", rate)) for rate in rates]


def sweep_of(sweep: str, usual: Mapping[str, Resolved[Any]]) -> dict[str, list[Variant]]:
    """Variants of the methods that know a flag, for `flag=value,value`; the usual value is the method itself.

    UserError when no method knows the flag, or a value is none for it.
    """
    name, equals, listed = sweep.partition("=")
    if not equals or not listed:
        raise UserError(f"--sweep {sweep}: expected FLAG=VALUE,VALUE,... as in --sweep group_size=4,16")
    known = {method: flags_of(type(resolved.config)) for method, resolved in usual.items()}
    if not any(name in flags for flags in known.values()):
        everything = sorted({flag for flags in known.values() for flag in flags})
        raise UserError(f"--sweep {sweep}: no trained method knows --{name}{nearest(name, everything)}")
    found: dict[str, list[Variant]] = {}
    for method in (method for method in known if name in known[method]):
        key = known[method][name]
        now = getattr(getattr(usual[method].config, key.section), key.name)
        others = {coerce(value, key, "--sweep"): value for value in listed.split(",")}  # the same twice is one
        if odd := [value for value in others.values() if Path(value).name != value]:
            raise UserError(f"--sweep {sweep}: {odd[0]!r} would name a folder; values are names or numbers, no paths")
        others.pop(now, None)
        found[method] = [Variant(f"_{name}_{value}", (f"--{name}", value)) for value in others.values()]
    return found


def drive(planned: Planned, argv: Sequence[str], result_of: Callable[[Path], Table | None]) -> int:
    """Do the chosen stages (or print them, --dry_run); the exit code of the one that failed, or 0."""
    course, run, terminal = planned.course, planned.run, planned.terminal
    number = f"{len(planned.chosen)} of {len(planned.plan)} stages"
    terminal.say(f"12_driver: {course.method}, {number} → {manifest.shown(run)} ({planned.why})")
    if course.dry_run:
        print_course(planned)
        return 0
    if planned.chosen[0] != planned.plan[0] and not run.is_dir():
        first = f"it would begin with {planned.chosen[0].folder}"
        raise UserError(f"--from_stage {course.from_stage}: there is no {run} to continue, and {first}; leave it out")
    overwrite = ["--overwrite"] if course.overwrite else []
    arguments = {folder: [*words, *overwrite] for folder, words in planned.arguments.items()}
    head = {"method": course.method, "settings": planned.settings}
    head |= describe(course.methods, planned.resolved)
    with locked(run):
        return run_course(planned.chosen, planned.plan, arguments, run, head, argv, terminal, result_of, course.jobs)


def print_course(planned: Planned) -> None:
    """--dry_run: every command, what it would do, and the disk that it takes."""
    print_plan(planned.chosen, planned.arguments, planned.resolved)
    words, enough = course_line([planned.resolved[step.folder].config for step in planned.chosen], planned.run)
    print(f"disk: {words}")
    if not enough:
        planned.terminal.warn("there is too little free disk; name another --output_root")
