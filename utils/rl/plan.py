"""What an online RL run computes and needs, estimated from the settings alone (--dry_run). No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.disk import disk_line

if TYPE_CHECKING:
    from utils.rl.session import Config

ACTIVATIONS_PER_LAYER = 20
"""Floats kept for the backward pass per token and layer, in units of the hidden size: a Llama block keeps about eight
vectors of width 1 (norms, queries, keys, values, attention, residuals) and four of the MLP's width 2.7 to 4."""
LOGIT_COPIES = 4
"""Logits, their softmax and the gradients of both."""


def describe(cfg: Config, *, steps: int, group_size: int, updates: int, passes: int) -> list[str]:
    """Lines for --dry_run: tokens, updates, memory; upper bounds, with prompts and answers at full length."""
    prompts, rl = cfg.rollout.prompts_per_step, cfg.rl
    samples = prompts * group_size
    prompt_tokens = prompts * cfg.task.max_prompt_tokens
    new_tokens = samples * cfg.generation.max_new_tokens
    packed, separate = prompt_tokens + new_tokens, samples * cfg.task.max_prompt_tokens + new_tokens
    per_update = packed * passes * steps // updates
    return [
        "plan:",
        f"  {steps} steps of {prompts} prompts x {group_size} samples: "
        f"{steps * samples} completions, {updates} updates",
        f"  a step computes at most {packed} tokens per pass ({prompt_tokens} prompt, {new_tokens} completion); "
        f"one row per sample would make it {separate}",
        f"  passes per step: sampling, reference, {passes} with gradient; at most {per_update} tokens per update, "
        f"in micro-batches of {rl.micro_batch_tokens}",
        _memory(cfg, group_size),
        f"  {disk_line(cfg)}",
    ]


def _memory(cfg: Config, group_size: int) -> str:
    model, lora = cfg.model, cfg.lora
    if not (model.hidden_size and model.num_layers and model.vocab_size):
        return "  memory: not estimated (the model file gives no hidden_size, num_layers and vocab_size)"
    blocks = 12 * model.num_layers * model.hidden_size**2
    parameters = blocks + model.vocab_size * model.hidden_size
    adapters = 2 * model.num_layers * len(lora.target_modules) * model.hidden_size * lora.r if lora.use_lora else 0
    weight_bytes = 2 if lora.use_lora and model.precision == "bf16" else 4
    # weights (twice when the reference is a copy) and 12 bytes of gradient and Adam moments per trained one
    fixed = parameters * weight_bytes + 16 * adapters if lora.use_lora else parameters * (4 + 4 + 12)
    width = 2 if model.precision == "bf16" else 4
    tokens = max(cfg.rl.micro_batch_tokens, cfg.task.max_prompt_tokens + group_size * cfg.generation.max_new_tokens)
    completion_share = (
        group_size
        * cfg.generation.max_new_tokens
        / (cfg.task.max_prompt_tokens + group_size * cfg.generation.max_new_tokens)
    )
    activations = tokens * model.num_layers * model.hidden_size * ACTIVATIONS_PER_LAYER * width
    logits = tokens * completion_share * model.vocab_size * 4 * LOGIT_COPIES
    total = fixed + activations + logits
    return (
        f"  memory: about {_gigabytes(total)} (weights, gradients and optimiser {_gigabytes(fixed)}, activations "
        f"{_gigabytes(activations)}, logits {_gigabytes(logits)}); lower rl.micro_batch_tokens to lower the last two"
    )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2g} GB"
