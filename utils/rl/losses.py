"""Losses of online RL as functions of log-probs, one value per completion token: [_N], all samples laid end to end.

A loss is a weighted sum over tokens. `token_weights` gives the weights of a whole batch, so that the losses of its
micro-batches add up to the batch's loss, whatever their sizes.
"""

from __future__ import annotations

import torch


def clipped_policy_loss(
    logp: torch.Tensor, old_logp: torch.Tensor, advantage: torch.Tensor, clip_low: float, clip_high: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, ratio, clipped) [_N] each: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logp - old_logp).

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7; a higher upper bound is DAPO's (Yu et al. 2025, arXiv:2503.14476).
    `old_logp` and `advantage` carry no gradient. `clipped` is True where the clip cuts the gradient off.
    """
    ratio = torch.exp(logp - old_logp)
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    clipped = (ratio < 1 - clip_low) & (advantage < 0) | (ratio > 1 + clip_high) & (advantage > 0)
    return loss, ratio.detach(), clipped


def k3_kl(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """KL(policy || reference) per token [_N]: exp(d) - d - 1, d = reference - policy; never negative.

    The k3 estimator of Schulman (joschu.net/blog/kl-approx.html), Shao et al. 2024 (arXiv:2402.03300), eq. 4. Its
    gradient is taken as it stands, without the importance weight that TRL's `use_bias_correction_kl` puts on it.
    """
    difference = reference_logp - logp
    return torch.exp(difference) - difference - 1


def clipped_value_loss(
    value: torch.Tensor, old_value: torch.Tensor, returns: torch.Tensor, clip_range: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, clipped) [_N] each: max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, with None (V - R)^2 / 2.

    The pessimistic clipping of Schulman's implementation (openai/baselines, ppo2); it is not in the paper. `clipped` is
    True where the clip cuts the gradient off.
    """
    loss = (value - returns).square() / 2
    if clip_range is None:
        return loss, torch.zeros_like(loss, dtype=torch.bool)
    near = old_value + (value - old_value).clamp(-clip_range, clip_range)
    near_loss = (near - returns).square() / 2
    clipped = ((value - old_value).abs() > clip_range) & (near_loss > loss)
    return torch.maximum(loss, near_loss), clipped.detach()


def token_weights(lengths: torch.Tensor, kept: torch.Tensor, loss_type: str, max_new_tokens: int) -> torch.Tensor:
    """Weight [_S] of each token of a sample, from the lengths [_S] of all samples of one optimiser step.

    Samples that are not `kept` (bool [_S]; completions that were cut off, Yu et al. 2025, section 3.4) weigh 0.

    * `grpo`: mean over samples of their means over tokens (Shao et al. 2024, eq. 3): 1 / (_S length)
    * `dapo`: mean over all kept tokens (Yu et al. 2025, arXiv:2503.14476, eq. 8): 1 / sum of lengths
    * `dr_grpo`: sum over a constant (Liu et al. 2025, arXiv:2503.20783): 1 / (_S max_new_tokens)
    """
    samples, lengths, kept = len(lengths), lengths.double(), kept.double()
    if loss_type == "grpo":
        return kept / (samples * lengths)
    if loss_type == "dapo":
        return kept / (kept * lengths).sum().clamp(min=1)
    if loss_type == "dr_grpo":
        return kept / (samples * max_new_tokens)
    raise ValueError(f"token_weights: loss_type is {loss_type!r}, expected grpo, dapo or dr_grpo")
