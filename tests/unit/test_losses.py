"""Losses worked by hand, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from utils.rl.losses import clipped_policy_loss, clipped_value_loss, k3_kl, token_weights


def test_ratio_and_clipping_by_hand() -> None:
    logp = torch.log(torch.tensor([0.5, 0.6, 0.9, 0.3, 0.9, 0.3])).requires_grad_()
    old = torch.log(torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.5]))
    advantage = torch.tensor([1.0, 2.0, 1.0, 1.0, -1.0, -1.0])
    loss, ratio, clipped = clipped_policy_loss(logp, old, advantage, clip_low=0.2, clip_high=0.3)
    assert torch.allclose(ratio, torch.tensor([1.0, 1.2, 1.8, 0.6, 1.8, 0.6]))
    # 1.8 and 0.6 are clipped to 1.3 and 0.8, but only where that lowers the objective
    assert torch.allclose(loss, torch.tensor([-1.0, -2.4, -1.3, -0.6, 1.8, 0.8]))
    assert clipped.tolist() == [False, False, True, False, False, True]
    loss.sum().backward()
    # d(-r A)/d logp = -r A, and 0 where clipped
    assert torch.allclose(logp.grad, torch.tensor([-1.0, -2.4, 0.0, -0.6, 1.8, 0.0]))


def test_k3_by_hand() -> None:
    logp = torch.log(torch.tensor([0.5, 0.25, 0.8])).requires_grad_()
    reference = torch.log(torch.tensor([0.5, 0.5, 0.4]))
    kl = k3_kl(logp, reference)
    assert torch.allclose(kl, torch.tensor([0.0, 2 - math.log(2) - 1, 0.5 + math.log(2) - 1]))
    kl.sum().backward()
    # d/d logp = 1 - reference / policy: it has a gradient, and pulls towards the reference
    assert torch.allclose(logp.grad, torch.tensor([0.0, -1.0, 0.5]))


def test_k3_is_an_unbiased_kl() -> None:
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (policy * (policy / reference).log()).sum()
    assert torch.allclose((policy * k3_kl(policy.log(), reference.log())).sum(), exact)


@pytest.mark.parametrize(
    ("loss_type", "expected"), [("grpo", [1 / 4, 1 / 12]), ("dapo", [1 / 8, 1 / 8]), ("dr_grpo", [1 / 20, 1 / 20])]
)
def test_token_weights_by_hand(loss_type: str, expected: list[float]) -> None:
    """Two samples of 2 and 6 tokens, at most 10 allowed."""
    weights = token_weights(torch.tensor([2, 6]), torch.tensor([True, True]), loss_type, max_new_tokens=10)
    assert torch.allclose(weights, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("loss_type", "expected"), [("grpo", [1 / 4, 0]), ("dapo", [1 / 2, 0]), ("dr_grpo", [1 / 20, 0])]
)
def test_masked_samples_weigh_nothing(loss_type: str, expected: list[float]) -> None:
    """The sample of 6 tokens is left out: of its tokens, and of their number, but not of the number of samples."""
    weights = token_weights(torch.tensor([2, 6]), torch.tensor([True, False]), loss_type, max_new_tokens=10)
    assert torch.allclose(weights, torch.tensor(expected, dtype=torch.float64))
    none = token_weights(torch.tensor([2, 6]), torch.tensor([False, False]), loss_type, max_new_tokens=10)
    assert none.tolist() == [0, 0]


def test_value_loss_and_clipping_by_hand() -> None:
    value = torch.tensor([1.0, 1.0, 1.0, -1.0, 0.1]).requires_grad_()
    old = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0])
    returns = torch.tensor([2.0, 0.5, 0.0, -2.0, 2.0])
    loss, clipped = clipped_value_loss(value, old, returns, 0.5)
    # clipped to 0.5, 0.5, 0.5, -0.5 and 0.1; the larger of both squares, halved
    assert torch.allclose(loss, torch.tensor([1.5**2, 0.5**2, 1.0**2, 1.5**2, 1.9**2]) / 2)
    assert clipped.tolist() == [True, False, False, True, False]
    loss.sum().backward()
    assert torch.allclose(value.grad, torch.tensor([0.0, 0.5, 1.0, 0.0, -1.9]))
    free, never = clipped_value_loss(value, old, returns, None)
    assert torch.allclose(free, torch.tensor([1.0, 0.25, 1.0, 1.0, 1.9**2]) / 2) and not never.any()


def test_an_unknown_loss_type_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected grpo, dapo or dr_grpo"):
        token_weights(torch.tensor([1]), torch.tensor([True]), "bnpo", 10)
