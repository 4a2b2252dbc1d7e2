"""What an online RL run computes and needs, estimated from the settings alone (--dry_run). No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.disk import critic_of, disk_line, gigabytes
from utils.rl.memory import largest_micro_batch, memory_here, need_of, rows_per_update

if TYPE_CHECKING:
    from utils.rl.session import Config


def describe(cfg: Config, *, group_size: int, passes: int) -> list[str]:
    """Lines for --dry_run: tokens, updates, memory; upper bounds, with prompts and answers at full length."""
    prompts, rl, critic = cfg.rollout.prompts_per_step, cfg.rl, critic_of(cfg)
    samples, steps, mini_batches = prompts * group_size, cfg.algorithm.steps, cfg.algorithm.mini_batches
    updates = steps * passes * mini_batches
    prompt_tokens = prompts * cfg.task.max_prompt_tokens
    new_tokens = samples * cfg.generation.max_new_tokens
    packed, separate = prompt_tokens + new_tokens, samples * cfg.task.max_prompt_tokens + new_tokens
    without, learned = passes_per_step(critic, mini_batches, passes)
    copies = group_size if cfg.generation.backend == "transformers" else 1
    spent = tokens_spent(prompt_tokens, new_tokens, samples, without, learned, copies)
    before = "reference" + (", old policy" if without > 1 else "") + (" and values" if critic else "")
    return [
        "plan:",
        f"  {steps} steps of {prompts} prompts x {group_size} samples: "
        f"{steps * samples} completions, {updates} updates",
        f"  a step computes at most {packed} tokens per pass ({prompt_tokens} prompt, {new_tokens} completion); "
        f"one row per sample would make it {separate}",
        f"  passes per step: sampling, {without} without gradient ({before}), {learned} with; at most "
        f"{packed * learned * steps // updates} tokens per update, in micro-batches of {rl.micro_batch_tokens}",
        f"  in all at most {steps * spent['forward_tokens']} tokens without gradient, "
        f"{steps * spent['gradient_tokens']} with",
        *_memory(cfg, group_size),
        f"  {disk_line(cfg)}",
    ]


def passes_per_step(critic: str, mini_batches: int, epochs: int) -> tuple[int, int]:
    """Passes over the packed tokens of a rollout after sampling: (without, with gradient), as the learner makes them.

    The policy that sampled passes once more where a critic or a second mini-batch needs its numbers from before.
    """
    old = _networks(critic) if critic or mini_batches > 1 else 0
    return 1 + old, epochs * _networks(critic)


def _networks(critic: str) -> int:
    """What passes where the policy does: a critic on an adapter makes two."""
    return 2 if critic == "adapter" else 1


def tokens_spent(
    prompts: int, completions: int, samples: int, without: int, learned: int, copies: int = 1
) -> dict[str, int]:
    """What the manifest counts of a rollout of so many tokens, in `samples` completions; see `passes_per_step`.

    Sampling computes each prompt `copies` times, and every token of a completion but its last.
    """
    packed = prompts + completions
    sampled = copies * prompts + completions - samples
    return {"forward_tokens": sampled + packed * without, "gradient_tokens": packed * learned}


def _memory(cfg: Config, group_size: int) -> list[str]:
    """What the run needs, what this device has, and the largest micro-batch for it."""
    need, here = need_of(cfg, group_size), memory_here(cfg)
    if need is None:
        return ["  memory: not estimated (the model file gives no hidden_size, num_layers and vocab_size)"]
    held = "a share of weights, gradients and optimiser" if cfg.run.fsdp else "weights, gradients and optimiser"
    line = (
        f"  memory: about {gigabytes(need.total)} ({held} {gigabytes(need.fixed)}, "
        f"activations {gigabytes(need.activations)}, logits {gigabytes(need.logits)}; while it samples "
        f"{gigabytes(need.sampling)} in the place of the last two); lower rl.micro_batch_tokens to lower these two, "
        "generation.tokens_per_batch for sampling"
    )
    if here is None:
        return [line, "  this device: its memory is not known here"]
    each = " for each process" if cfg.run.num_processes > 1 else ""
    return [line, f"  this device: {here.line()}{each}; {_fitting(cfg, group_size, here.free)}"]


def _fitting(cfg: Config, group_size: int, free: int) -> str:
    tokens = largest_micro_batch(cfg, group_size, free, rows_per_update(cfg))
    if not tokens:
        remedy = "lower max_prompt_tokens or group_size, or use LoRA, or --fsdp without it"
        return f"not enough, even for micro-batches of one prompt: {remedy}"
    taken = "taken by --auto_batch" if cfg.rl.auto_batch else "--auto_batch takes it"
    return f"the largest micro_batch_tokens that fits is {tokens} ({taken})"
