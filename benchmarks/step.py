"""How much faster is a whole step of 06 (or 05, 07) than TRL's trainer's on the same work?

A step samples --group completions of each of --prompts prompts, pays them by executing programs, asks the reference,
and makes one update. TRL samples with `generate`, in its faster cache, and takes the micro-batch and attention (SDPA
or eager) that are fastest for it; the project takes its fastest micro-batch. No activation checkpointing, no dropout,
no padding, the same KL. TRL has no PPO since 1.13, so 05 is measured alone.

    python -m benchmarks.step --model 5M --dtype fp32
    python -m benchmarks.step --model 60M --dtype bf16 --json benchmarks/results/step-60M-bf16.json

On a GPU a way that is measured alone (--only) gives its peak of memory, too; --memory_gb emulates a smaller card:

    python -m benchmarks.step --model 8B --dtype bf16 --lora --load_in_4bit --memory_gb 24 --only project --device cuda
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import arithmetic, rollouts
from benchmarks.measure import Figures, alternate, command, compared, shown
from benchmarks.rollouts import Work, title, wanted
from benchmarks.steps import SCRIPTS, ProjectStep, save_start, trl_step
from benchmarks.trl_trainer import scoring_completions_only
from benchmarks.updates import COMPLETIONS_ONLY, OWN, TRL
from utils.errors import UserError
from utils.rl.passes import free_cached

Made = tuple[Callable[[], None], dict[str, Any], Any]
"""A step, the settings that are fastest for it, its model."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Method, adapters, the card."""
    rollouts.add_flags(parser)
    parser.add_argument("--method", choices=tuple(SCRIPTS), default="grpo")
    parser.add_argument("--lora", action="store_true", help="train adapters of rank 32 on the attention's products")
    parser.add_argument("--load_in_4bit", action="store_true", help="the base in 4 bits; needs --lora")
    parser.add_argument("--memory_gb", type=float, help="use no more of the GPU's memory")


def check(flags: argparse.Namespace) -> None:
    """UserError for what does not go together."""
    rollouts.check(flags)
    if flags.load_in_4bit and not flags.lora:
        raise UserError("--load_in_4bit needs --lora: quantised weights cannot train")
    if flags.memory_gb is not None:
        if flags.device != "cuda":
            raise UserError("--memory_gb limits a GPU; without --device cuda there is none")
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, flags.memory_gb * 1e9 / total))


def run(flags: argparse.Namespace) -> Figures:
    """Measure."""
    check(flags)
    work = Work.of(flags)
    with tempfile.TemporaryDirectory() as folder:
        save_start(flags, Path(folder))
        made = {name: make() for name, make in wanted(flags, makers(flags, work, Path(folder))).items()}
        if flags.device == "cuda":
            free_cached()
            torch.cuda.reset_peak_memory_stats()  # of steps alone, not of what was tried to find the fastest
        figures = compared(alternate({name: step for name, (step, _, _) in made.items()}, flags.repeats))
    tokens = flags.prompts * flags.group * flags.completion
    rates = {name: round(tokens / taken, 1) for name, taken in figures["median"].items()}
    chosen = {name: settings for name, (_, settings, _) in made.items()}
    facts: Figures = {"chosen": chosen, "tokens_per_second": rates}
    notes = [f"fastest settings: {chosen}", f"completion tokens per second: {rates}"]
    if OWN in made:
        needed = arithmetic.of_a_step(flags)
        facts["share_of_peak"] = arithmetic.share_of_peak(flags, needed, figures["median"][OWN])
        notes.append(arithmetic.line(flags, facts["share_of_peak"]))
    if flags.device == "cuda" and len(made) == 1:
        facts |= {"peak_bytes": torch.cuda.max_memory_allocated()}
        facts |= {"also": f"peak of memory {shown(facts['peak_bytes'], 'bytes')}"}
    what = f"step of {flags.method.upper()}" + ", LoRA" * flags.lora + ", 4-bit" * flags.load_in_4bit
    model = next(iter(made.values()))[2]
    return {"title": title(what, flags, model), **figures, **facts, "notes": notes}


def makers(flags: argparse.Namespace, work: Work, folder: Path) -> dict[str, Callable[[], Made]]:
    """What makes and tunes each way."""

    def project() -> Made:
        step = ProjectStep(flags, work, folder)
        return step, step.tune(), step.policy

    def trl(completions_only: bool = False) -> Made:
        step, chosen = trl_step(flags, work, folder)
        return (_compact(step) if completions_only else step), chosen, step.model

    if flags.method == "ppo":
        return {OWN: project}
    ways: dict[str, Callable[[], Made]] = {OWN: project, TRL: trl}
    return ways | ({COMPLETIONS_ONLY: lambda: trl(completions_only=True)} if flags.device == "cpu" else {})


def _compact(step: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        with scoring_completions_only():
            step()

    return call


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command("benchmarks.step", __doc__, argv, add_flags, run, ("torch", "transformers", "trl"))


if __name__ == "__main__":
    raise SystemExit(main())
