"""Advantages worked by hand."""

from __future__ import annotations

import pytest
import torch

from utils.rl.advantages import (
    EPSILON,
    adapted_kl_coef,
    explained_variance,
    generalized_advantages,
    group_advantages,
    leave_one_out,
    whiten,
    zero_variance_share,
)

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])


def test_group_normalised() -> None:
    # mean 1/2; squared deviations 4 x 1/4 over n - 1 = 3
    deviation = (1 / 3) ** 0.5
    expected = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.0] * 4]) / torch.tensor([[deviation + EPSILON], [EPSILON]])
    assert torch.allclose(group_advantages(REWARDS, use_batch_bonus=False), expected)


def test_divided_by_the_deviation_of_the_batch() -> None:
    # mean of all eight 1.25; squares 2 x 0.0625 + 2 x 1.5625 + 4 x 0.5625 = 5.5, over 7
    expected = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.0] * 4]) / ((5.5 / 7) ** 0.5 + EPSILON)
    assert torch.allclose(group_advantages(REWARDS, use_batch_bonus=True), expected)


@pytest.mark.parametrize("use_batch_bonus", [True, False])
def test_equal_rewards_teach_nothing(use_batch_bonus: bool) -> None:
    assert torch.equal(group_advantages(torch.full((3, 4), 0.7), use_batch_bonus), torch.zeros(3, 4))


def test_zero_variance_share() -> None:
    assert zero_variance_share(REWARDS) == 0.5


def test_a_group_of_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="_G >= 2"):
        group_advantages(torch.ones(4, 1), use_batch_bonus=True)


def test_leave_one_out_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5], [2.0, 2.0, 2.0]])
    advantages, baselines = leave_one_out(rewards, "loo")
    assert torch.allclose(baselines, torch.tensor([[0.25, 0.75, 0.5], [2.0, 2.0, 2.0]]))
    assert torch.allclose(advantages, torch.tensor([[0.75, -0.75, 0.0], [0.0, 0.0, 0.0]]))
    of_mean, means = leave_one_out(rewards, "mean")
    assert torch.allclose(means, torch.tensor([[0.5] * 3, [2.0] * 3]))
    assert torch.allclose(of_mean, advantages * 2 / 3)
    plain, zero = leave_one_out(rewards, "none")
    assert torch.equal(plain, rewards) and not zero.any()


def test_leave_one_out_needs_another_one() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(torch.ones(4, 1), "loo")
    with pytest.raises(ValueError, match="'median'"):
        leave_one_out(torch.ones(4, 3), "median")


def test_gae_by_hand() -> None:
    """Two completions, of 3 tokens and of 1, padded; gamma 1/2, lambda 1/2."""
    rewards = torch.tensor([[0.0, -1.0, 2.0], [3.0, 0.0, 0.0]])
    values = torch.tensor([[1.0, 2.0, 4.0], [1.0, 0.0, 0.0]])
    # d = r + V'/2 - V: 0 + 1 - 1 = 0; -1 + 2 - 2 = -1; 2 - 4 = -2. A = d + A'/4: -2; -1.5; -0.375
    expected = torch.tensor([[-0.375, -1.5, -2.0], [2.0, 0.0, 0.0]])
    assert torch.equal(generalized_advantages(rewards, values, 0.5, 0.5), expected)


def test_gae_between_its_ends() -> None:
    """lambda 1 is the discounted rewards to come minus the value, lambda 0 the one-step error."""
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 0.25, 8.0]])
    assert torch.equal(generalized_advantages(rewards, values, 0.5, 1.0), torch.tensor([[2.5, 3.75, -4.0]]))
    assert torch.equal(generalized_advantages(rewards, values, 0.5, 0.0), torch.tensor([[0.625, 5.75, -4.0]]))


def test_whitening_by_hand() -> None:
    # mean 2, squared deviations 4 + 0 + 4 over 3
    values = torch.tensor([0.0, 2.0, 4.0])
    assert torch.allclose(whiten(values, values), torch.tensor([-1.5, 0.0, 1.5]) * (2 / 3) ** 0.5)
    assert torch.allclose(whiten(values[2:], values), torch.tensor([1.5]) * (2 / 3) ** 0.5)
    assert torch.equal(whiten(torch.full((4,), 0.7), torch.full((4,), 0.7)), torch.zeros(4))
    assert torch.equal(whiten(torch.tensor([0.7]), torch.tensor([0.7])), torch.zeros(1))


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([0.0, 2.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.tensor([5.0, 5.0]), returns) == 0
    assert explained_variance(torch.tensor([2.0, 0.0]), returns) == -3
    assert explained_variance(returns, torch.ones(2)) == 0


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (5.4, 0.99), (0.0, 0.98)])
def test_kl_controller_by_hand(kl: float, factor: float) -> None:
    assert adapted_kl_coef(0.5, kl, target=6.0, gain=0.1) == pytest.approx(0.5 * factor)
    assert adapted_kl_coef(0.5, kl, target=None, gain=0.1) == 0.5
