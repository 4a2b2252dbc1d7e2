"""How much faster is a GRPO update on packed groups than TRL's GRPOTrainer's on the same batch?

An update is forward, loss (clipped, with a KL term to given reference log-probs), backward and the optimiser's step.
Ways: the project; the project with one row per sample, which shows what sharing the prompts brings; TRL's
`compute_loss` on the same tokens, advantages and log-probs. Each way takes the micro-batch that is fastest for it,
found in a first round. No activation checkpointing, no dropout, fp32 weights and AdamW everywhere.

    python -m benchmarks.update --model 5M --dtype fp32
    python -m benchmarks.update --model 60M --dtype bf16 --repeats 3 --json update.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import rollouts
from benchmarks.measure import Figures, alternate, command, compared, described, machine, row
from benchmarks.rollouts import Work, build, context, title
from utils.models.attention import attention_in_blocks
from utils.rl.logprobs import completion_logprobs
from utils.rl.losses import clipped_policy_loss, k3_kl
from utils.rl.packing import pack, separate

ROOT = Path(__file__).resolve().parents[1]
KL, CLIP, RATE = 0.02, 0.2, 1e-6
PROMPTS_AT_ONCE = (1, 2, 4)
"""Micro-batches that each way may choose from, in prompts with all their samples."""

Update = Callable[[int], None]
"""One update in micro-batches of so many prompts."""


def run(flags: argparse.Namespace) -> Figures:
    """Measure and print."""
    rollouts.check(flags)
    work = Work.of(flags)
    own, unshared = build(flags.model, attention_in_blocks()), build(flags.model, attention_in_blocks())
    updates = {
        "project": of_project(own, work, flags, pack),
        "project, a row per sample": of_project(unshared, work, flags, separate),
        "TRL": of_trl(work, flags),
    }
    chosen = {name: fastest(update, flags.prompts) for name, update in updates.items()}
    ways = {name: (lambda update=update, size=chosen[name]: update(size)) for name, update in updates.items()}
    figures = {**compared(alternate(ways, flags.repeats), "project"), "prompts_at_once": chosen}
    figures["machine"] = machine("torch", "transformers", "trl")
    print(described(figures["machine"]))
    print("prompts per micro-batch: " + ", ".join(f"{name} {size}" for name, size in chosen.items()))
    print(row(title("update", flags, own), figures))
    return figures


def fastest(update: Update, prompts: int) -> int:
    """The micro-batch with the shortest second run."""
    seconds = {}
    for size in sorted({min(size, prompts) for size in PROMPTS_AT_ONCE}):
        update(size)
        start = time.perf_counter()
        update(size)
        seconds[size] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)


def of_project(model: Any, work: Work, flags: argparse.Namespace, layout: Callable[..., Any]) -> Update:
    """The update as 06 does it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    samples = work.advantages.numel()

    def update(size: int) -> None:
        for start in range(0, flags.prompts, size):
            chosen = slice(start, start + size)
            batch = layout(work.prompts[chosen], work.completions[chosen], rollouts.PAD)
            with context(flags):
                logp, _ = completion_logprobs(model, batch)
            advantage = work.advantages[chosen].flatten()[batch.sample]
            loss, _, _ = clipped_policy_loss(logp, logp.detach(), advantage, CLIP, CLIP)
            loss = loss + KL * k3_kl(logp, logp.detach() - 0.1)
            (loss.sum() / (samples * flags.completion)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def of_trl(work: Work, flags: argparse.Namespace) -> Update:
    """The same through GRPOTrainer.compute_loss, a row per sample."""
    trainer = trl_trainer(flags)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=RATE)
    prompts = torch.tensor(work.prompts).repeat_interleave(flags.group, dim=0)
    completions = torch.tensor(work.completions).flatten(0, 1)
    with torch.no_grad():
        reference = torch.full(completions.shape, -8.0)
    inputs = {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": completions,
        "completion_mask": torch.ones_like(completions), "advantages": work.advantages.flatten(),
        "ref_per_token_logps": reference,
    }  # fmt: skip

    def update(size: int) -> None:
        rows = size * flags.group
        for start in range(0, len(prompts), rows):
            part = {name: value[start : start + rows] for name, value in inputs.items()}
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(
                    trainer.model, {**part, "num_items_in_batch": part["completion_mask"].sum()}
                )
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def trl_trainer(flags: argparse.Namespace) -> Any:
    """A GRPOTrainer that is never asked to train."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=flags.prompts * flags.group, num_generations=flags.group,
        max_completion_length=flags.completion, beta=KL, epsilon=CLIP, loss_type="grpo", use_bias_correction_kl=False,
        activation_checkpointing=False, bf16=flags.dtype == "bf16", use_cpu=True, report_to="none",
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": "a"}] * flags.prompts)
    start = tempfile.mkdtemp()
    build(flags.model, "sdpa").save_pretrained(start)
    trainer = GRPOTrainer(
        start, [lambda completions, **_: [0.0] * len(completions)], arguments, train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(ROOT / "assets" / "llama-tiny"),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command(__doc__ or "", argv, rollouts.add_flags, run)


if __name__ == "__main__":
    raise SystemExit(main())
