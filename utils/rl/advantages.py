"""From rewards to advantages, without gradients."""

from __future__ import annotations

import torch

EPSILON = 1e-4
"""Added to the standard deviation, as TRL does: a group of equal rewards gets advantages 0, not NaN."""


def group_advantages(rewards: torch.Tensor, use_batch_bonus: bool) -> torch.Tensor:
    """GRPO's advantages [_B, _G] of rewards [_B, _G]: A = (r - mean of the group) / (std + 1e-4).

    The standard deviation (sample: divided by n - 1) is the group's (Shao et al. 2024, arXiv:2402.03300, eq. 4.1.2), or
    with `use_batch_bonus` that of all rewards of the batch, which does not blow up groups that are nearly unanimous
    (Hu et al. 2025, arXiv:2501.03262; `scale_rewards="batch"` of TRL 1.16, whose numbers these are).
    """
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"group_advantages: rewards have shape {tuple(rewards.shape)}, expected [_B, _G] with _G >= 2")
    deviation = rewards.std() if use_batch_bonus else rewards.std(dim=1, keepdim=True)
    return (rewards - rewards.mean(dim=1, keepdim=True)) / (deviation + EPSILON)


def zero_variance_share(rewards: torch.Tensor) -> float:
    """Share of the _B groups of [_B, _G] whose rewards are all equal: they teach nothing."""
    return float((rewards == rewards[:, :1]).all(dim=1).float().mean())
