"""Stage 12: the whole course, from raw data to a comparison, each stage as a program of its own.

What is finished with the same settings and inputs is kept; what was cut off continues. The controls of the comparison
belong to the course: SFT continued for the RL method's compute, and one round of rejection sampling with its number of
completions. Without --run_id a new run begins, unless the newest one is unfinished and has the same settings.
A flag that several stages know is written with its stage: --sft.learning_rate 3e-4 --grpo.kl_coef 0.05.

Reads:  the stage scripts 00-11 and what they read
Writes: outputs/run_XXX/{all stage folders, run_manifest.json, README.md}

    python 12_driver.py --method grpo
    python 12_driver.py --method grpo --run_id run_001 --from_stage 06 --to_stage 10 --dry_run
    python 12_driver.py verify outputs/run_001
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import manifest
from utils.boards import BOARDS
from utils.config import setting
from utils.course import run_course
from utils.errors import UserError
from utils.flags import add_flags, make_parser, parse_flags
from utils.folders import locked
from utils.keys import coerce, flags_of
from utils.pipeline import Step, arguments_of, choose_run, fingerprint, print_plan, resolve_step, select, split_flags
from utils.run_record import describe, verify
from utils.runs import STAGES
from utils.terminal import Terminal

METHODS = ("grpo", "ppo", "rloo", "dpo")
TRAINERS = {"grpo": "06_train_grpo"}


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


def plan_of(method: str) -> list[Step]:
    """The course of a method; `{run}` stands for the run's folder. SFT is finished before anything builds on it."""
    trainer = TRAINERS[method]
    rl, sft = f"{{run}}/{STAGES[trainer]}", "{run}/03_sft"
    policies = {"sft": sft, "sft_more": "{run}/03_sft_more", "sft_rejection": "{run}/03_sft_rejection"}
    controls = ("base", "majority", "gold")
    names = [*(f"10_evaluation_{name}" for name in (*controls, *policies)), "10_evaluation"]
    start = ("--init_from", sft)
    return [
        Step("00_check_data", "00_data_validation"),
        Step("01_prepare_dataset", "01_preprocessing"),
        Step("02_build_rewards", "02_rewards"),
        Step("03_sft_train", "03_sft"),
        Step(trainer, STAGES[trainer], ("--policy_ckpt", sft)),
        Step("03_sft_train", "03_sft_more", (*start, "--match_compute", f"{rl}/manifest.json")),
        Step(
            "04_generate_candidates",
            "04_candidates",
            ("--policy_ckpt", sft, "--split", "train", "--match_samples", f"{rl}/manifest.json"),
        ),
        Step("03_sft_train", "03_sft_rejection", (*start, "--accepted", "{run}/04_candidates")),
        *(Step("10_evaluate", f"10_evaluation_{name}", ("--baseline", name)) for name in controls),
        *(Step("10_evaluate", f"10_evaluation_{name}", ("--policy_ckpt", path)) for name, path in policies.items()),
        Step("10_evaluate", "10_evaluation", ("--policy_ckpt", rl)),
        Step("11_compare_runs", "11_comparison", tuple(f"{{run}}/{name}/metrics.json" for name in names)),
    ]


def main(argv: Sequence[str]) -> int:
    """Run the driver; the exit code of the stage that failed, or 0."""
    try:
        if argv[:1] == ["verify"]:
            if len(argv) != 2:
                raise UserError("verify: expected one run folder: python 12_driver.py verify outputs/run_001")
            line, intact = verify(Path(argv[1]))
            print(line)
            return 0 if intact else 1
        return drive(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def drive(argv: Sequence[str]) -> int:
    """Plan, choose the run, do the stages. Every stage's settings are resolved before the first one starts."""
    flags = flags_of(Config)
    method = method_in(argv)
    plan = plan_of(method)
    own, scoped = split_flags(argv, set(flags), plan)
    parser = make_parser(__doc__ or "", __file__)
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
    terminal.say(f"12_driver: {method}, {len(chosen)} of {len(plan)} stages → {manifest.shown(run)} ({why})")
    if course.dry_run:
        print_plan(chosen, arguments, resolved)
        return 0
    if course.overwrite:
        arguments = {folder: [*words, "--overwrite"] for folder, words in arguments.items()}
    head = {"method": method, "settings": settings} | describe(method, resolved, STAGES[TRAINERS[method]])
    with locked(run):
        return run_course(chosen, plan, arguments, run, head, argv, terminal, result_of)


def method_in(argv: Sequence[str]) -> str:
    """The value of --method, which decides what other flags there are."""
    method = "grpo"
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        if word.partition("=")[0] == "--method":
            method = word.partition("=")[2] or after
    coerce(method, flags_of(Config)["method"], "--method")
    if method not in TRAINERS:
        raise UserError(f"--method {method}: comes in a later version; {', '.join(TRAINERS)} is ready")
    return method


def result_of(run: Path) -> tuple[list[str], list[list[str]]] | None:
    """Columns and rows of the comparison, once there is one."""
    from utils.reporting.tables import read_table, result_table

    path = run / "11_comparison" / "summary.csv"
    return result_table(read_table(path)) if path.is_file() else None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
