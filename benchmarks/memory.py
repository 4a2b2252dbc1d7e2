"""How much memory do the activations of an update need, beside TRL's with 8 rows per micro-batch and with 1 row?

Activations are the peak of a forward and backward pass less weights, gradients and optimiser, all of which are there
before it. One micro-batch: a prompt with --group completions in one row for the project and for prefix_grouper, so
many rows for TRL and for the project without sharing. SDPA for the opponents; no activation checkpointing. Every
measurement is a fresh process. The figure is the exact peak of torch's allocator (see benchmarks/peaks.py); beside it
stands the peak of resident memory, which must tell the same story.

    python -m benchmarks.memory --model 5M --dtype fp32
    python -m benchmarks.memory --model 60M --dtype bf16 --json benchmarks/results/memory-60M-bf16.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import rollouts
from benchmarks.measure import Figures, command, compared, shown
from benchmarks.peaks import allocated_peak, resident_peak
from benchmarks.rollouts import Work, title, wanted
from benchmarks.updates import COMPLETIONS_ONLY, GROUPED, OWN, TRL, UNSHARED, updates
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
LLAMA_VOCABULARY = 128256
SIZES = ("model", "dtype", "device", "vocabulary", "prompt", "completion", "prompts", "group")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The work is one prompt's; a vocabulary of Llama 3's size."""
    rollouts.add_flags(parser)
    parser.set_defaults(prompts=1, vocabulary=LLAMA_VOCABULARY)


def micro_batches(flags: argparse.Namespace) -> dict[str, tuple[str, int]]:
    """The way of an update and its units in the micro-batch (prompts or rows), by the name in the row."""
    rows = flags.group
    found = {OWN: (OWN, 1)}
    for way in (TRL, COMPLETIONS_ONLY):
        found |= {f"{way}, {rows} rows": (way, rows), f"{way}, 1 row": (way, 1)}
    found |= {GROUPED: (GROUPED, 1), f"{UNSHARED}, {rows} rows": (UNSHARED, rows)}
    there = updates(flags, Work.of(flags))
    return {name: (way, units) for name, (way, units) in found.items() if way in there}


def run(flags: argparse.Namespace) -> Figures:
    """Measure each way in processes of its own, in turn."""
    rollouts.check(flags)
    found: dict[str, list[Figures]] = {name: [] for name in wanted(flags, micro_batches(flags))}
    for _ in range(flags.repeats):
        for name, results in found.items():
            results.append(in_a_process(name, flags))

    def of(kind: str) -> Figures:
        return compared({name: [one[kind] for one in results] for name, results in found.items()}, "bytes")

    resident, first = of("resident"), next(iter(found.values()))[0]
    highest = ", ".join(f"{name} {shown(value, 'bytes')}" for name, value in resident["median"].items())
    notes = [f"weights, gradients and optimiser: {shown(first['fixed'], 'bytes')}"]
    notes += [f"peak of resident memory, for comparison: {highest}"] if flags.device == "cpu" else []
    return {"title": first["title"], **of("allocated"), "resident": resident, "notes": notes}


def in_a_process(name: str, flags: argparse.Namespace) -> Figures:
    """`once` in a fresh process. UserError with its last line when it fails."""
    sizes = [f"--{size}={getattr(flags, size)}" for size in SIZES]
    program = "import sys; from benchmarks import memory; memory.once(*sys.argv[1:])"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # prefix_grouper may lie there
    done = subprocess.run(
        [sys.executable, "-c", program, name, *sizes], env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"{name}: {(done.stderr.strip().splitlines() or ['the measuring process ended'])[-1]}")
    result: Figures = json.loads(done.stdout.splitlines()[-1])
    return result


def once(name: str, *argv: str) -> None:
    """Measure one way here and print what was found as JSON."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = parser.parse_args(argv)
    rollouts.check(flags)
    way, units = micro_batches(flags)[name]
    update = updates(flags, Work.of(flags))[way]()
    update(units)  # makes the optimiser's state and every kernel that is kept
    for parameter in update.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    call = partial(update.backward, slice(0, units))
    # both of the same call, the one that looks from outside first
    resident = resident_peak(call) if flags.device == "cpu" else 0
    result = {"resident": resident, "allocated": allocated_peak(call, flags.device), "fixed": fixed(update.model)}
    print(json.dumps(result | {"title": title("activations of an update", flags, update.model)}))


def fixed(model: Any) -> int:
    """Bytes of weights, gradients and AdamW's two moments."""
    return 4 * sum(int(parameter.nbytes) for parameter in model.parameters())


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command("benchmarks.memory", __doc__, argv, add_flags, run, ("torch", "transformers", "trl"))


if __name__ == "__main__":
    raise SystemExit(main())
