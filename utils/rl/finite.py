"""NaN and infinity stop a run before anything is learned from them or written: what is checked says where they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from utils.errors import UserError
from utils.models.sharding import together

if TYPE_CHECKING:
    from utils.tasks.base import Reward, Rollout

REMEDY = "train with a lower --learning_rate, or with --precision fp32"


class NonFiniteError(UserError):
    """A number that a run computes is NaN or infinite. `row` is the index of the prompt in its batch, when known."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


@contextmanager
def named(place: str) -> Iterator[None]:
    """Put `place` before what a NonFiniteError says."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{place}: {error}", error.row) from error


def check_figures(place: str, figures: Mapping[str, Any]) -> None:
    """NonFiniteError names the first figure that is not finite."""
    for name, value in figures.items():
        if isinstance(value, (float, torch.Tensor)) and not math.isfinite(value):
            raise NonFiniteError(f"{place}: {name} is {float(value):g}; {REMEDY}")


def check_tokens(name: str, values: torch.Tensor, sample: torch.Tensor, time: torch.Tensor) -> None:
    """NonFiniteError names the first of `values` [_N] that is not finite by its `time` [_N], `row` is its `sample`."""
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        first = int(bad[0, 0])
        value = float(values[first].detach())
        raise NonFiniteError(f"{name} is {value:g} at token {int(time[first]) + 1}", int(sample[first]))


def check_rewards(place: str, rollouts: Sequence[Rollout], rewards: Sequence[Reward]) -> None:
    """NonFiniteError names record, sample and component of the first reward that fp32 does not hold."""
    finite = torch.tensor([reward.total for reward in rewards], dtype=torch.float32).isfinite().tolist()
    for rollout, reward, held in zip(rollouts, rewards, finite, strict=True):
        if not held:
            worst = max(reward.components, key=lambda name: _size(reward.components[name]), default="total")
            raise NonFiniteError(
                f"{place}: the reward of record {rollout.example.id} (sample {rollout.sample}) is {reward.total:g}, "
                f"component {worst}; correct the task's score"
            )


def gradient_norm(place: str, parameters: Mapping[str, torch.nn.Parameter]) -> torch.Tensor:
    """Norm of all gradients together. NonFiniteError names the first parameter whose gradient is not finite.

    Of parameters in shares it is a tensor in shares, too (`utils.models.sharding.together`).
    """
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    if not torch.isfinite(together(norm)):
        bad = (name for name, gradient in gradients.items() if not together(gradient).isfinite().all())
        raise NonFiniteError(f"{place}: the gradient of {next(bad, 'all parameters')} is not finite; {REMEDY}")
    return norm


def _size(value: float) -> float:
    return math.inf if math.isnan(value) else abs(value)
