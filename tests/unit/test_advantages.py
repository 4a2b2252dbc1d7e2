"""Advantages worked by hand."""

from __future__ import annotations

import pytest
import torch

from utils.rl.advantages import EPSILON, group_advantages, zero_variance_share

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
