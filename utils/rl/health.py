"""Numbers that say a run goes wrong: what is not finite stops it, what is out of range warns with the remedy."""

from __future__ import annotations

from collections.abc import Mapping

from utils.errors import UserError

REMEDIES: dict[str, tuple[float, str]] = {
    "frac_reward_zero_std": (
        0.8,
        "most groups have no variance in reward and teach nothing: raise --group_size or --prompts_per_step, "
        "or start from a checkpoint that is less sure of itself",
    ),
    "truncated": (
        0.2,
        "many completions are cut off and score as wrong: raise --max_new_tokens, or train 03 until its answers end",
    ),
    "kl": (1.0, "the policy leaves its start: raise --kl_coef or lower rl.learning_rate"),
    "clip_frac": (0.3, "updates leave the trust region: lower rl.learning_rate or the passes over a rollout"),
}
"""Highest healthy value of a training metric, and what to do above it."""

LOWEST_ENTROPY = 0.005
"""Nats per token below which sampling has all but stopped exploring."""


class NonFiniteError(UserError):
    """NaN or Inf in logits, loss or gradient: the run stops. `row` is the index of the prompt, when it is known."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def warnings(metrics: Mapping[str, float], step: int) -> dict[str, str]:
    """Metric name -> one line with value, limit and remedy, for each metric of a step that is out of its range."""
    lines = {
        name: f"step {step}: {name} is {metrics[name]:.3g}, above {limit:g}; {remedy}"
        for name, (limit, remedy) in REMEDIES.items()
        if metrics.get(name, 0.0) > limit
    }
    if metrics.get("entropy", 1.0) < LOWEST_ENTROPY:
        lines["entropy"] = (
            f"step {step}: entropy is {metrics['entropy']:.3g} nats per token, below {LOWEST_ENTROPY}; samples hardly "
            "differ: raise --kl_coef, lower rl.learning_rate, or start from an earlier SFT checkpoint"
        )
    return lines
