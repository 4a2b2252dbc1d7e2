"""Stage 12: the whole course, from raw data to a comparison, each stage as a program of its own.

What is finished with the same settings and inputs is kept; what was cut off continues. The controls of the comparison
belong to the course: SFT continued for the method's compute, and one round of rejection sampling with its number of
completions and its compute. Without --run_id a new run begins, unless the newest one is unfinished and has the same
settings.
A flag that several stages know is written with its stage: --sft.learning_rate 3e-4 --grpo.kl_coef 0.05.

Beside the course there are four commands (`rerun --help` and `export --help` list their flags):
  doctor   what this machine has, what is missing, and what the same flags would run
  verify   hash a run again and name the first thing that differs from its manifests
  rerun    repeat a run from its manifests and say whether the bytes agree
  export   a trained policy as a folder that others can load, with a model card

Reads:  the stage scripts 00-11 and what they read
Writes: outputs/run_XXX/{all stage folders, run_manifest.json, README.md}

    python 12_driver.py --method grpo
    python 12_driver.py --method grpo --run_id run_001 --from_stage 06 --to_stage 10 --dry_run
    python 12_driver.py doctor --task finqa --config llama-3.2-1b
    python 12_driver.py verify outputs/run_001
    python 12_driver.py rerun outputs/run_001
    python 12_driver.py export outputs/run_001 --form merged --to exports/finqa_grpo
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils.driver import Planned, drive, plan_course
from utils.errors import UserError
from utils.pipeline import Step
from utils.runs import STAGES

TRAINERS = {
    "grpo": "06_train_grpo",
    "ppo": "05_train_ppo",
    "rloo": "07_train_rloo",
    "dpo": "09_train_dpo",
}


def plan_of(method: str) -> list[Step]:
    """The course of a method; `{run}` stands for the run's folder. SFT is finished before anything builds on it."""
    trainer = TRAINERS[method]
    trained, sft, candidates = f"{{run}}/{STAGES[trainer]}", "{run}/03_sft", "{run}/04_candidates"
    policies = {"sft": sft, "sft_more": "{run}/03_sft_more", "sft_rejection": "{run}/03_sft_rejection"}
    controls = ("base", "majority", "gold")
    names = [*(f"10_evaluation_{name}" for name in (*controls, *policies)), "10_evaluation"]
    training = Step(trainer, STAGES[trainer], ("--policy_ckpt", sft))
    sampling = Step("04_generate_candidates", "04_candidates", ("--policy_ckpt", sft, "--split", "train"))
    spent: tuple[str, ...] = (f"{trained}/manifest.json",)
    if method == "dpo":  # samples nothing itself: its completions, and what they cost, are those of 04
        pairs = Step("08_build_prefs", "08_preferences", ("--candidates", f"{candidates}/candidates.jsonl"))
        method_steps, later = [sampling, pairs, training], []
        spent = (f"{candidates}/manifest.json", *spent)
    else:
        matched = (*sampling.arguments, "--match_samples", f"{trained}/manifest.json")
        method_steps, later = [training], [Step(sampling.script, sampling.folder, matched)]
    more = ("--init_from", sft, "--match_compute", *spent)
    return [
        Step("00_check_data", "00_data_validation"),
        Step("01_prepare_dataset", "01_preprocessing"),
        Step("02_build_rewards", "02_rewards"),
        Step("03_sft_train", "03_sft"),
        *method_steps,
        Step("03_sft_train", "03_sft_more", more),
        *later,
        Step("03_sft_train", "03_sft_rejection", (*more, "--accepted", candidates)),
        *(Step("10_evaluate", f"10_evaluation_{name}", ("--baseline", name)) for name in controls),
        *(Step("10_evaluate", f"10_evaluation_{name}", ("--policy_ckpt", path)) for name, path in policies.items()),
        Step("10_evaluate", "10_evaluation", ("--policy_ckpt", trained)),
        Step("11_compare_runs", "11_comparison", tuple(f"{{run}}/{name}/metrics.json" for name in names)),
    ]


def main(argv: Sequence[str]) -> int:
    """Run the driver or one of its commands; the exit code of the stage that failed, or 0."""
    commands = {"doctor": doctor, "verify": verify, "rerun": rerun, "export": export}
    try:
        if argv[:1] and argv[0] in commands:
            return commands[argv[0]](argv[1:])
        planned = planned_from(argv)
        return drive(planned, TRAINERS[planned.course.method], argv, result_of)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def planned_from(argv: Sequence[str]) -> Planned:
    """The course that these flags describe."""
    return plan_course(argv, plan_of, __doc__ or "")


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
    """Columns and rows of the comparison, once there is one."""
    from utils.reporting.tables import read_table, result_table

    path = run / "11_comparison" / "summary.csv"
    return result_table(read_table(path)) if path.is_file() else None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
