"""RLOO's gradient: unbiased, and less noisy than REINFORCE's; exactly on a policy whose samples can all be listed."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from utils.rl.advantages import leave_one_out

REWARDS = torch.tensor([1.0, 0.2, 0.7, 0.9], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.5, 0.1, 0.8], dtype=torch.float64)


def estimates(baseline_type: str, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradients [groups, 4], probabilities [groups]) of every group of samples that can be drawn."""
    probabilities = LOGITS.softmax(0)
    # d log p(action) / d logits = one hot - p
    scores = torch.eye(4, dtype=torch.float64) - probabilities
    groups = torch.tensor(list(product(range(4), repeat=samples)))
    advantages, _ = leave_one_out(REWARDS[groups], baseline_type)
    return (advantages[..., None] * scores[groups]).mean(dim=1), probabilities[groups].prod(dim=1)


def exact() -> torch.Tensor:
    """The gradient of the expected reward."""
    logits = LOGITS.clone().requires_grad_()
    (logits.softmax(0) * REWARDS).sum().backward()
    assert logits.grad is not None
    return logits.grad


def variance(baseline_type: str, samples: int) -> float:
    """Trace of the estimator's covariance."""
    gradients, weights = estimates(baseline_type, samples)
    mean = (weights[:, None] * gradients).sum(0)
    return float((weights[:, None] * (gradients - mean).square()).sum())


@pytest.mark.parametrize(("baseline_type", "scale"), [("none", 1.0), ("loo", 1.0), ("mean", 3 / 4)])
def test_expected_gradient(baseline_type: str, scale: float) -> None:
    """Leave-one-out has no bias; the whole group's mean takes a sample's own share away with it."""
    gradients, weights = estimates(baseline_type, 4)
    torch.testing.assert_close((weights[:, None] * gradients).sum(0), scale * exact(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_lower_variance_than_reinforce(samples: int) -> None:
    plain, loo = variance("none", samples), variance("loo", samples)
    print(f"{samples} samples: variance of the gradient {plain:.4f} (REINFORCE), {loo:.4f} (leave one out)")
    assert loo < 0.5 * plain
