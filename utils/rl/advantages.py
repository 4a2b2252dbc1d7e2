"""From rewards to advantages, without gradients: groups (06, 07), generalised advantage estimation (05)."""

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


def leave_one_out(rewards: torch.Tensor, baseline_type: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, baselines) [_B, _G] each of rewards [_B, _G]: A = r - baseline.

    * `loo`: the mean of the group's other samples (Kool et al. 2019, eq. 8; Ahmadian et al. 2024, arXiv:2402.14740,
      section 2.3). A sample's baseline does not depend on it, so the gradient stays unbiased.
    * `mean`: the mean of the whole group; the advantages are those of `loo` times (_G - 1) / _G.
    * `none`: 0, which is plain REINFORCE (Williams 1992).
    """
    samples = rewards.shape[1]
    if baseline_type == "none":
        baselines = torch.zeros_like(rewards)
    elif baseline_type == "mean":
        baselines = rewards.mean(dim=1, keepdim=True).expand_as(rewards)
    elif baseline_type == "loo" and samples > 1:
        baselines = (rewards.sum(dim=1, keepdim=True) - rewards) / (samples - 1)
    else:
        raise ValueError(f"leave_one_out: baseline_type {baseline_type!r} with {samples} samples; expected loo (of at "
                         "least 2), mean or none")  # fmt: skip
    return rewards - baselines, baselines


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """GAE [_S, _T] (Schulman et al. 2016, arXiv:1506.02438, eq. 16) of rewards and values [_S, _T].

    A_t = sum over l of (gamma lambda)^l d_(t+l), d_t = r_t + gamma V_(t+1) - V_t. A completion ends with its last
    token, cut off or not: the value after it is 0. Shorter samples are padded with rewards and values of 0.
    """
    advantages = torch.zeros_like(values)
    later = following = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        later = rewards[:, t] + gamma * following - values[:, t] + gamma * gae_lambda * later
        advantages[:, t], following = later, values[:, t]
    return advantages


def whiten(values: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Values [_N] shifted and scaled as those `among` which they are get mean 0 and deviation 1 (divided by n).

    Equal ones become 0.
    """
    return (values - among.mean()) / (among.std(correction=0) + 1e-8)


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 a perfect critic, 0 one that knows nothing, below 0 a misleading one.

    0 where all returns are equal.
    """
    spread = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / spread) if spread > 0 else 0.0


def adapted_kl_coef(kl_coef: float, kl: float, target: float | None, gain: float) -> float:
    """The KL coefficient of the next step, from the KL of this one in nats per completion (Ziegler et al. 2019,
    arXiv:1909.08593, section 2.2): e = clip(kl / target - 1, -0.2, 0.2), coefficient x (1 + gain e). Without a target
    it stays."""
    if target is None:
        return kl_coef
    return kl_coef * (1 + gain * min(max(kl / target - 1, -0.2), 0.2))
