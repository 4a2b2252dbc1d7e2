"""Stage 12: the whole course, from raw data to a comparison, each stage as a program of its own.

`--method all` trains PPO, GRPO, RLOO and DPO from one SFT, with one reward and equally many completions (within 5 %).
`--seeds 0 1 2` does a course in a run folder of its own for each seed and compares them together in
outputs/compare_XXX. `--trials 0.5 1 2` tries each method's learning rate times these factors for the first seed; the
best on validation goes into the comparison, and all are listed. `--sweep group_size=4,16` trains and evaluates a method
once more for each value. `--jobs 2` does two stages at a time, each with half of the cores; they print into files.

What is finished with the same settings and inputs is kept; what was cut off continues. The controls of the comparison
belong to the course: SFT continued for the method's compute, and one round of rejection sampling with its number of
completions and, drawing them included, its compute. Without --run_id a new run begins, unless the newest one is
unfinished and has the same settings.
A flag that several stages know is written with its stage: --sft.learning_rate 3e-4 --grpo.kl_coef 0.05.

Beside the course there are four commands (`rerun --help` and `export --help` list their flags):
  doctor   what this machine has, what is missing, and what the same flags would run
  verify   hash a run again and name the first thing that differs from its manifests
  rerun    repeat a run from its manifests and say whether the bytes agree
  export   a trained policy as a folder that others can load, with a model card

Reads:  the stage scripts 00-11 and what they read
Writes: outputs/run_XXX/{all stage folders, run_manifest.json, README.md}; with --seeds also outputs/compare_XXX/
        {11_comparison, compare_manifest.json}

    python 12_driver.py --method grpo
    python 12_driver.py --method all --seeds 0 1 2
    python 12_driver.py --method grpo --run_id run_001 --from_stage 06 --to_stage 10 --dry_run
    python 12_driver.py doctor --task finqa --config llama-3.2-1b
    python 12_driver.py verify outputs/run_001
    python 12_driver.py rerun outputs/run_001
    python 12_driver.py export outputs/run_001 --form merged --to exports/finqa_grpo
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.driver import NO_VARIANTS, Planned, Variants, drive, plan_course
from utils.errors import UserError
from utils.pipeline import Step, Variant
from utils.process import die_with_parent
from utils.runs import STAGES
from utils.shootout import shoot_out

TRAINERS = {
    "ppo": "05_train_ppo",
    "grpo": "06_train_grpo",
    "rloo": "07_train_rloo",
    "dpo": "09_train_dpo",
}


SFT, CANDIDATES, PAIRS = "{run}/03_sft", "{run}/04_candidates", "{run}/08_preferences/pairs.jsonl"
"""What others build on; `{run}` stands for the run's."""


def plan_of(methods: Sequence[str], trials: Variants = NO_VARIANTS, sweep: Variants = NO_VARIANTS) -> list[Step]:
    """The course of some methods, from raw data to the comparison. SFT is finished before anything builds on it.

    `trials`: ways of training a method, of which the best on validation is evaluated. `sweep`: further ways, each
    evaluated as a method of its own.
    """
    training = {method: [train(method, way) for way in trials.get(method, (Variant(),))] for method in methods}
    swept = {f"{method}{way.suffix}": train(method, way) for method in methods for way in sweep.get(method, ())}
    trained = [*(step for steps in training.values() for step in steps), *swept.values()]
    online = [step for step in trained if step.script != TRAINERS["dpo"]]
    preferring = [step for step in trained if step.script == TRAINERS["dpo"]]
    matched = ("--match_samples", f"{{run}}/{online[0].folder}/manifest.json") if online else ()
    pairs = Step("08_build_prefs", "08_preferences", ("--candidates", f"{CANDIDATES}/candidates.jsonl"))
    spent = [f"{{run}}/{step.folder}/manifest.json" for step in trained]
    more = ("--init_from", SFT, "--match_compute", *spent)
    evaluations = [
        *(evaluate(name, "--baseline", name) for name in ("base", "majority", "gold")),
        *(evaluate(name, "--policy_ckpt", f"{{run}}/03_{name}") for name in ("sft", "sft_more", "sft_rejection")),
        *(
            evaluate(method if len(methods) > 1 else "", "--policy_ckpt", *(f"{{run}}/{step.folder}" for step in steps))
            for method, steps in training.items()
        ),
        *(evaluate(name, "--policy_ckpt", f"{{run}}/{one.folder}", "--method", name) for name, one in swept.items()),
    ]
    return [
        Step("00_check_data", "00_data_validation"),
        Step("01_prepare_dataset", "01_preprocessing"),
        Step("02_build_rewards", "02_rewards"),
        Step("03_sft_train", "03_sft"),
        *online,
        Step("04_generate_candidates", "04_candidates", ("--policy_ckpt", SFT, "--split", "train", *matched)),
        *([pairs, *preferring] if preferring else []),
        Step("03_sft_train", "03_sft_more", more),
        Step("03_sft_train", "03_sft_rejection", (*more, "--accepted", CANDIDATES)),
        *evaluations,
        Step("11_compare_runs", "11_comparison", tuple(f"{{run}}/{one.folder}/metrics.json" for one in evaluations)),
    ]


def train(method: str, way: Variant) -> Step:
    """Training a method from SFT, in one way."""
    script = TRAINERS[method]
    pairs = ("--pairs", PAIRS) if method == "dpo" else ()
    return Step(script, f"{STAGES[script]}{way.suffix}", ("--policy_ckpt", SFT, *pairs, *way.arguments))


def evaluate(name: str, *arguments: str) -> Step:
    """An evaluation whose folder says of what (empty: of the run's one method)."""
    return Step("10_evaluate", f"10_evaluation_{name}" if name else "10_evaluation", arguments)


def main(argv: Sequence[str]) -> int:
    """Run the driver or one of its commands; the exit code of the stage that failed, or 0."""
    die_with_parent()  # a run of --seeds
    commands = {"doctor": doctor, "verify": verify, "rerun": rerun, "export": export}
    try:
        if argv[:1] and argv[0] in commands:
            return commands[argv[0]](argv[1:])
        planned = planned_from(argv)
        return shoot_out(planned, argv) if planned.course.seeds else drive(planned, argv, result_of)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # outside of a run, which ends in its own way
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error.filename or type(error).__name__}: {error.strerror or error}", file=sys.stderr)
        return 2


def planned_from(argv: Sequence[str]) -> Planned:
    """The course that these flags describe."""
    return plan_course(argv, TRAINERS, plan_of, __doc__ or "")


def doctor(argv: Sequence[str]) -> int:
    """Look at the machine; 1 when something is to be mended."""
    from utils.doctor import examine, show

    planned = planned_from(argv)
    return show(examine(planned), planned.terminal)


def verify(argv: Sequence[str]) -> int:
    """Hash a run again; 1 when something differs."""
    from utils.run_record import verify as verify_run

    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("verify: expected one run folder: python 12_driver.py verify outputs/run_001")
    line, intact = verify_run(Path(argv[0]))
    print(line)
    return 0 if intact else 1


def rerun(argv: Sequence[str]) -> int:
    """Repeat a run; 1 when the bytes differ."""
    from utils.rerun import rerun as rerun_run

    return rerun_run(argv, result_of)


def export(argv: Sequence[str]) -> int:
    """Write a policy for others."""
    from utils.evaluation.export import export as export_policy

    return export_policy(argv)


def result_of(run: Path) -> tuple[list[str], list[list[str]]] | None:
    """Columns and rows of the comparison, once there is one; None also for a table that another program has changed."""
    from utils.reporting.tables import read_table, result_table

    path = run / "11_comparison" / "summary.csv"
    try:
        return result_table(read_table(path)) if path.is_file() else None
    except (UserError, KeyError, ValueError):
        return None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
