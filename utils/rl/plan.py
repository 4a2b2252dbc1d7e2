"""What an online RL run computes and needs, estimated from the settings alone (--dry_run). No torch."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from utils.disk import BYTES_PER_WEIGHT, critic_of, critic_parameters, disk_line, weight_shapes
from utils.models.memory import TRAINED_BYTES, adapter_parameters, weight_bytes
from utils.settings import LoraSettings, ModelSettings

if TYPE_CHECKING:
    from utils.rl.session import Config

ACTIVATIONS_PER_LAYER = 20
"""Floats kept for the backward pass per token and layer, in units of the hidden size: a Llama block keeps about eight
vectors of width 1 (norms, queries, keys, values, attention, residuals) and four of the MLP's width 2.7 to 4."""
LOGIT_COPIES = 4
"""Logits, their softmax and the gradients of both."""
NOT_QUANTISED = {"embed_tokens", "lm_head", "wte", "wpe"}
"""Matrices that no linear layer inside the model is, by what Llama and GPT-2 call them."""


def describe(cfg: Config, *, steps: int, group_size: int, updates: int, passes: int) -> list[str]:
    """Lines for --dry_run: tokens, updates, memory; upper bounds, with prompts and answers at full length."""
    prompts, rl, critic = cfg.rollout.prompts_per_step, cfg.rl, critic_of(cfg)
    samples = prompts * group_size
    prompt_tokens = prompts * cfg.task.max_prompt_tokens
    new_tokens = samples * cfg.generation.max_new_tokens
    packed, separate = prompt_tokens + new_tokens, samples * cfg.task.max_prompt_tokens + new_tokens
    without, learned = passes_per_step(critic, updates // (steps * passes), passes)
    spent = tokens_spent(prompt_tokens, new_tokens, samples, without, learned)
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
        _memory(cfg, group_size),
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


def tokens_spent(prompts: int, completions: int, samples: int, without: int, learned: int) -> dict[str, int]:
    """What the manifest counts of a rollout of so many tokens, in `samples` completions; see `passes_per_step`.

    Sampling computes each prompt once, and every token of a completion but its last.
    """
    packed = prompts + completions
    return {"forward_tokens": packed * (1 + without) - samples, "gradient_tokens": packed * learned}


def _memory(cfg: Config, group_size: int) -> str:
    model = cfg.model
    if not (model.hidden_size and model.num_layers and model.vocab_size):
        return "  memory: not estimated (the model file gives no hidden_size, num_layers and vocab_size)"
    fixed = resident_bytes(cfg)
    width = 2 if model.precision == "bf16" else 4
    tokens = max(cfg.rl.micro_batch_tokens, cfg.task.max_prompt_tokens + group_size * cfg.generation.max_new_tokens)
    completion_share = (
        group_size
        * cfg.generation.max_new_tokens
        / (cfg.task.max_prompt_tokens + group_size * cfg.generation.max_new_tokens)
    )
    activations = tokens * model.num_layers * model.hidden_size * ACTIVATIONS_PER_LAYER * width
    activations *= _networks(critic_of(cfg))
    logits = tokens * completion_share * model.vocab_size * 4 * LOGIT_COPIES
    total = fixed + activations + logits
    return (
        f"  memory: about {_gigabytes(total)} (weights, gradients and optimiser {_gigabytes(fixed)}, activations "
        f"{_gigabytes(activations)}, logits {_gigabytes(logits)}); lower rl.micro_batch_tokens to lower the last two"
    )


def resident_bytes(cfg: Config) -> int:
    """Bytes that stay from step to step, with those of a critic, of which there is no reference."""
    return weights_and_optimizer(cfg.model, cfg.lora) + TRAINED_BYTES * critic_parameters(cfg)


def weights_and_optimizer(model: ModelSettings, lora: LoraSettings) -> int:
    """Bytes of base or policy, what trains with its gradient and moments, the reference.

    The reference is a frozen fp32 copy of what trains: of the adapter, or of the whole policy.
    """
    shapes = weight_shapes(model)
    if not lora.use_lora:
        return (TRAINED_BYTES + BYTES_PER_WEIGHT) * sum(map(prod, shapes.values()))
    layers = {name: (shape[1], shape[0]) for name, shape in shapes.items() if _is_linear(name, shape)}
    others = sum(map(prod, shapes.values())) - sum(map(prod, layers.values()))
    stored = "4-bit" if model.load_in_4bit else "8-bit" if model.load_in_8bit else model.precision
    base = weight_bytes(layers.values(), others, stored)
    if model.precision == "fp32" and stored != "fp32":
        base += 2 * others  # weight_bytes takes bf16 for what is not quantised
    endings = tuple(f".{name}.weight" for name in lora.target_modules)
    adapted = [shape for name, shape in layers.items() if name.endswith(endings)]
    if not adapted:  # another family than the guessed Llama: square layers
        adapted = [(model.hidden_size, model.hidden_size)] * model.num_layers * len(lora.target_modules)
    return base + (TRAINED_BYTES + BYTES_PER_WEIGHT) * adapter_parameters(adapted, lora.r)


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a linear layer's that is quantised: a matrix, but for embeddings, positions and head."""
    return len(shape) == 2 and not set(name.split(".")) & NOT_QUANTISED


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2g} GB"
