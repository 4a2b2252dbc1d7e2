"""How much longer does a step take with twice the samples, and does memory grow from step to step?

    python -m benchmarks.growth --model 5M --dtype fp32 --json benchmarks/results/growth-5M-fp32.json

measures whole steps (see benchmarks/step.py) with --group and with twice as many samples per prompt, beside TRL's.

    python -m benchmarks.growth --steps 500 --json benchmarks/results/growth-500-steps.json

runs 06 itself on finqa_mini, from the embedded model, for so many steps, validations and checkpoints included, and
notes the highest memory of each: resident memory, or the GPU's. "Flat" compares the median of the last tenth of the
steps with that of the second tenth (the first one fills caches).
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import step
from benchmarks.measure import Figures, alternate, command, compared, shown
from benchmarks.peaks import forget_peak, resident
from benchmarks.rollouts import Work, title, wanted
from benchmarks.steps import save_start
from benchmarks.updates import OWN, TRL
from utils import stage
from utils.errors import UserError
from utils.rl.session import Session

ROOT = Path(__file__).resolve().parents[1]
PARTS = 10
"""Tenths of a run."""
LLAMA_TINY = ROOT / "configs" / "models" / "llama-tiny.yaml"
EVAL_RECORDS = 100
"""Validation records of each of the ten validations."""
PREPARATION = {
    "00_check_data": ["00_data_validation"],
    "01_prepare_dataset": ["01_preprocessing", "--config", str(LLAMA_TINY)],
    "02_build_rewards": ["02_rewards"],
}
"""The stages before 06: folder and flags of each."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those of a step, and those of the long run."""
    step.add_flags(parser)
    parser.add_argument("--steps", type=int, help="run 06 for so many steps and watch its memory instead")
    parser.add_argument("--prompts_per_step", type=int, default=32, help="prompts of each of them (default: 32)")


def run(flags: argparse.Namespace) -> Figures:
    """Measure one or the other."""
    step.check(flags)
    return of_groups(flags) if flags.steps is None else of_a_long_run(flags)


def of_groups(flags: argparse.Namespace) -> Figures:
    """Steps with --group and with twice as many samples, of both sides in turn."""
    sides = wanted(flags, {OWN: OWN} if flags.method == "ppo" else {OWN: OWN, TRL: TRL})
    made: dict[str, step.Made] = {}
    with tempfile.TemporaryDirectory() as root:
        for side in sides:
            for group in (flags.group, 2 * flags.group):
                sized = argparse.Namespace(**{**vars(flags), "group": group})
                folder = Path(root) / f"{side}_{group}"
                save_start(sized, folder)
                made[f"{side}, group {group}"] = step.makers(sized, Work.of(sized), folder)[side]()
        figures = compared(alternate({name: call for name, (call, _, _) in made.items()}, flags.repeats))
    chosen = {name: settings for name, (_, settings, _) in made.items()}
    medians = list(figures["median"].values())
    growth = {side: medians[2 * i + 1] / medians[2 * i] for i, side in enumerate(sides)}
    also = ", ".join(f"{side} grows by {factor:.2f} x" for side, factor in growth.items())
    name = title(f"{flags.method.upper()} step with twice the samples", flags, next(iter(made.values()))[2])
    notes = [f"fastest settings: {chosen}"]
    return {"title": name, **figures, "also": also, "growth": growth, "chosen": chosen, "notes": notes}


def of_a_long_run(flags: argparse.Namespace) -> Figures:
    """The highest memory of each step of 06; its second and its last tenth."""
    if flags.steps < 2 * PARTS:
        raise UserError(f"--steps must be {2 * PARTS} or more, got {flags.steps}: tenths of it are compared")
    highest: list[int] = []
    forget, peak = (forget_peak, lambda: resident("VmHWM")) if flags.device == "cpu" else _of_gpu()

    def noting(session: Session, *arguments: Any) -> None:
        record(session, *arguments)
        highest.append(peak())
        forget()

    record = Session.record
    with tempfile.TemporaryDirectory() as folder, patch.object(Session, "record", noting):
        code = train(flags, Path(folder))
    if code or len(highest) != flags.steps:
        raise UserError(f"06 ended with code {code} after {len(highest)} of {flags.steps} steps")
    part = flags.steps // PARTS
    figures = compared({"second tenth": highest[part : 2 * part], "last tenth": highest[-part:]}, "bytes")
    sizes = f"llama-tiny on finqa_mini, {flags.prompts_per_step} x {flags.group}, {flags.device}"
    also = f"changed by {figures['ratio']['last tenth'] - 1:+.1%}, highest {shown(max(highest), 'bytes')}"
    return {"title": f"memory of {flags.steps} steps of 06, {sizes}", **figures, "also": also, "by_step": highest}


def _of_gpu() -> tuple[Callable[[], object], Callable[[], int]]:
    return torch.cuda.reset_peak_memory_stats, torch.cuda.max_memory_allocated


def train(flags: argparse.Namespace, folder: Path) -> int:
    """Stages 00 to 02 as programs, then 06 in this process; its exit code."""
    run = folder / "outputs" / "run_001"
    for script, (place, *more) in PREPARATION.items():
        arguments = ["--task", "finqa_mini", "--output_dir", str(run / place), "--quiet", *more]
        done = subprocess.run([sys.executable, str(ROOT / f"{script}.py"), *arguments], cwd=folder)
        if done.returncode:
            raise UserError(f"{script} ended with code {done.returncode}; its message stands above")
    train_grpo = importlib.import_module("06_train_grpo")
    arguments = [
        "--config", str(LLAMA_TINY), "--algo_config", str(ROOT / "configs" / "algorithms" / "grpo.yaml"),
        "--task", "finqa_mini", "--policy_ckpt", str(ROOT / "assets" / "llama-tiny"), "--device", flags.device,
        "--output_dir", str(run / "06_grpo"), "--steps", str(flags.steps), "--eval_every", str(flags.steps // PARTS),
        "--eval_records", str(EVAL_RECORDS),
        "--prompts_per_step", str(flags.prompts_per_step), "--group_size", str(flags.group), "--quiet",
    ]  # fmt: skip
    return stage.main(train_grpo.Config, train_grpo.run, train_grpo.__doc__, str(train_grpo.__file__), argv=arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command("benchmarks.growth", __doc__, argv, add_flags, run, ("torch", "transformers", "trl"))


if __name__ == "__main__":
    raise SystemExit(main())
