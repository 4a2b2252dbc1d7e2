"""How much faster is a GRPO update on packed groups than TRL's GRPOTrainer's and PrefixGrouper's on the same batch?

An update is forward, loss (clipped, with a KL term to given reference log-probs), backward and the optimiser's step.
Ways: the project; the project with one row per sample, which shows what sharing the prompts brings; TRL's
`compute_loss`; on a CPU also TRL with its output layer on completions only, which its release does on GPUs alone; the
`prefix_grouper` package, where it is installed (pip install prefix_grouper==0.0.1.post1). Each takes the micro-batch
and the attention (SDPA or eager) that are fastest for it, found in a first round. No activation checkpointing, no
dropout, no padding, fp32 weights and torch's plain AdamW everywhere.

    python -m benchmarks.update --model 5M --dtype fp32
    python -m benchmarks.update --model 60M --dtype bf16 --repeats 3 --json benchmarks/results/update-60M-bf16.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from benchmarks import arithmetic, rollouts
from benchmarks.measure import Figures, alternate, command, compared
from benchmarks.rollouts import Work, title, wanted
from benchmarks.updates import OWN, updates


def run(flags: argparse.Namespace) -> Figures:
    """Measure."""
    rollouts.check(flags)
    work = Work.of(flags)
    ways = {name: make() for name, make in wanted(flags, updates(flags, work)).items()}
    chosen = {name: way.tune() for name, way in ways.items()}
    calls = {name: partial(way, chosen[name]["micro_batch"]) for name, way in ways.items()}
    figures = compared(alternate(calls, flags.repeats))
    notes = [f"fastest settings (micro-batches in prompts where they are shared, else in samples): {chosen}"]
    facts: Figures = {"chosen": chosen}
    if OWN in ways:
        needed = arithmetic.of_an_update(flags)
        facts["share_of_peak"] = arithmetic.share_of_peak(flags, needed, figures["median"][OWN])
        notes.append(arithmetic.line(flags, facts["share_of_peak"]))
    model = next(iter(ways.values())).model
    return {"title": title("update", flags, model), **figures, **facts, "notes": notes}


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    libraries = ("torch", "transformers", "trl")
    return command("benchmarks.update", __doc__, argv, rollouts.add_flags, run, libraries)


if __name__ == "__main__":
    raise SystemExit(main())
