"""What says where a number is not finite, on its own."""

from __future__ import annotations

import pytest
import torch

from utils.rl.finite import NonFiniteError, check_figures, check_rewards, check_tokens, gradient_norm, named
from utils.tasks.base import Example, Reward, Rollout

NAN, INF = float("nan"), float("inf")


def parameters(*gradients: list[float] | None) -> dict[str, torch.nn.Parameter]:
    made = {}
    for name, gradient in zip("abc", gradients, strict=False):
        made[name] = torch.nn.Parameter(torch.zeros(2))
        made[name].grad = None if gradient is None else torch.tensor(gradient)
    return made


def test_the_norm_is_of_all_gradients_and_changes_none() -> None:
    given = parameters([3.0, 0.0], None, [0.0, 4.0])
    assert float(gradient_norm("", given)) == 5.0
    assert given["a"].grad is not None and given["a"].grad.tolist() == [3.0, 0.0]
    assert float(gradient_norm("", {})) == 0.0


@pytest.mark.parametrize("bad", [NAN, -INF])
def test_the_parameter_that_is_at_fault_is_named(bad: float) -> None:
    """Not the first: clipping by a norm that is NaN would have made all of them NaN."""
    with pytest.raises(NonFiniteError, match="step 3: the gradient of b is not finite; train with a lower"):
        gradient_norm("step 3", parameters([1.0, 1.0], [0.0, bad], [1.0, 1.0]))
    with pytest.raises(NonFiniteError, match="the gradient of all parameters is not finite"):
        gradient_norm("", parameters([3e38, 3e38]))  # its norm is beyond fp32


def test_a_token_is_named_by_its_place_in_its_sample() -> None:
    sample, time = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    check_tokens("it", torch.tensor([0.0, -3e38, 1.0, 2.0]), sample, time)
    with pytest.raises(NonFiniteError, match="^it is -inf at token 2$") as caught:
        check_tokens("it", torch.tensor([0.0, 1.0, 2.0, -INF]), sample, time)
    assert caught.value.row == 1


def test_figures_and_rewards() -> None:
    check_figures("", {"phase": "train", "steps": 3, "kl": 0.1, "loss": torch.tensor(2.0)})
    with pytest.raises(NonFiniteError, match="step 2: loss is inf"):
        check_figures("step 2", {"kl": 0.1, "loss": torch.tensor(INF)})
    rollouts = [
        Rollout(
            Example(id=name, input_text=""),
            1,
            "",
            False,
            1,
        )
        for name in "xy"
    ]
    paid = [Reward(1.0, {"exact": 1.0}), Reward(NAN, {"exact": 1.0, "style": NAN})]
    check_rewards("", rollouts, [paid[0], paid[0]])
    with pytest.raises(NonFiniteError, match=r"step 2: the reward of record y \(sample 1\) is nan, component style"):
        check_rewards("step 2", rollouts, paid)


def test_a_place_is_put_in_front() -> None:
    with pytest.raises(NonFiniteError, match="^step 1: it is nan$") as caught, named("step 1"):
        raise NonFiniteError("it is nan", row=4)
    assert caught.value.row == 4
