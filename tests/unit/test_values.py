"""The critic: what a value may know, what its loss moves, and that it learns returns that are known."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.invariants.tiny import VOCAB, tiny_completions, tiny_model, tiny_prompts
from utils.errors import UserError
from utils.models.value_head import ValueHead
from utils.rl.advantages import explained_variance
from utils.rl.logprobs import completion_logprobs
from utils.rl.losses import clipped_value_loss
from utils.rl.micro_batch import MicroBatch
from utils.rl.packing import PackedBatch, pack, separate
from utils.rl.values import Critic, estimate_advantages

KINDS = {"head": "llama", "trunk": "gpt2", "adapter": "llama-lora"}


def batch_of(prompts: int, seed: int = 0) -> tuple[list[list[int]], list[list[list[int]]], PackedBatch]:
    asked = tiny_prompts(prompts, seed)
    answers = tiny_completions(asked, seed, largest_group=3)
    return asked, answers, pack(asked, answers, pad_id=0)


def with_random_head(critic: Critic) -> Critic:
    torch.nn.init.normal_(critic.head.linear.weight, generator=torch.Generator().manual_seed(1))
    return critic


def values_of(critic: Critic, packed: PackedBatch) -> torch.Tensor:
    return critic.forward(packed, nullcontext)[2]


def test_a_fresh_head_says_0() -> None:
    assert ValueHead(4)(torch.randn(3, 4, dtype=torch.bfloat16)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_values_come_beside_the_same_logprobs_in_any_layout(kind: str) -> None:
    model = tiny_model(KINDS[kind])
    asked, answers, packed = batch_of(4)
    critic = with_random_head(Critic(model, kind))
    logp, entropy, values = critic.forward(packed, nullcontext)
    plain_logp, plain_entropy = completion_logprobs(model, packed)
    assert torch.equal(logp, plain_logp) and torch.equal(entropy, plain_entropy)
    apart = values_of(critic, separate(asked, answers, pad_id=0))
    torch.testing.assert_close(apart, values, atol=2e-5, rtol=2e-5)
    assert values.std() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_same_when_logits_come_in_chunks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    critic, (_, _, packed) = with_random_head(Critic(tiny_model(KINDS[kind]), kind)), batch_of(3)
    values = values_of(critic, packed)
    monkeypatch.setattr("utils.rl.logprobs.CHUNK", 5 * VOCAB)
    torch.testing.assert_close(values_of(critic, packed), values, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_does_not_know_its_own_token(kind: str) -> None:
    critic = with_random_head(Critic(tiny_model(KINDS[kind]), kind))
    values = [values_of(critic, pack([[5, 6, 7]], [[[8, 9, last], [11]]], pad_id=0)) for last in (10, 20)]
    assert torch.equal(*values)
    others = values_of(critic, pack([[5, 6, 7]], [[[8, 30, 10], [11]]], pad_id=0))
    # the second token is first known to the third's value; the first two and the other sample stay
    assert (others == values[0]).tolist() == [True, True, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_whom_the_value_loss_moves(kind: str) -> None:
    model = tiny_model(KINDS[kind])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    critic = with_random_head(Critic(model, kind))
    values_of(critic, batch_of(2)[2]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in critic.parameters.values())
    moved = {name for name, p in trained.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert bool(moved) == (kind == "trunk")
    assert all(p.requires_grad for p in trained.values())
    if kind == "adapter":
        assert len(critic.parameters) == 2 + len(trained) and critic.passes == 2


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_a_known_return(kind: str) -> None:
    """The return of a token is the parity of the token before it: 0 where it is even, 1 where it is odd."""
    model = tiny_model(KINDS[kind])
    asked, answers, packed = batch_of(2, seed=3)
    pairs = [(prompt, answer) for prompt, group in zip(asked, answers, strict=True) for answer in group]
    before = [token for prompt, answer in pairs for token in [prompt[-1], *answer[:-1]]]
    returns = torch.tensor([float(token % 2) for token in before])
    assert 10 < len(returns) < 32, "a frozen trunk of width 32 can tell so many states apart"
    critic = Critic(model, kind)
    trunk = [*model.parameters()] if kind == "trunk" else []
    groups = [{"params": list(critic.parameters.values()), "lr": 3e-2}, {"params": trunk, "lr": 3e-3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for _ in range(200):
        values = values_of(critic, packed)
        loss, _ = clipped_value_loss(values, values.detach(), returns, 0.2)
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert explained_variance(values_of(critic, packed).detach(), returns) > 0.9


def test_state_comes_back() -> None:
    first, second = (with_random_head(Critic(tiny_model("llama-lora"), "adapter")) for _ in range(2))
    for parameter in first.parameters.values():
        parameter.data += 0.1
    second.load_state_dict(first.state_dict())
    packed = batch_of(2)[2]
    assert torch.equal(values_of(first, packed), values_of(second, packed))


def test_an_advantage_beyond_fp32_is_named() -> None:
    """Rewards and values are finite, their difference is not; whitening would spread it over the rollout."""
    packed = pack([[5, 6]], [[[7, 8], [9]]], pad_id=0)
    zero = torch.zeros(3)
    micro = MicroBatch(
        packed, ["a", "b"], torch.tensor([[1.0, 3e38]]), zero, zero, zero,
        old_logp=zero, old_value=torch.tensor([0.0, 0.0, -3e38]), step=7,
    )  # fmt: skip
    with pytest.raises(UserError, match="step 7: record b: the advantage is inf at token 1; train with a lower"):
        estimate_advantages([[micro]], 0.5, 1.0, 0.5, True)


def test_an_adapter_needs_an_adapter() -> None:
    with pytest.raises(UserError, match="lora.use_lora: true"):
        Critic(tiny_model("llama"), "adapter")


def test_advantages_of_a_rollout_by_hand() -> None:
    """Two samples of 2 and 1 tokens paid 1 and 0; KL coefficient 1/2, gamma 1, lambda 1/2; not whitened."""
    packed = pack([[5, 6]], [[[7, 8], [9]]], pad_id=0)
    reference = torch.tensor([-1.0, -2.0, -3.0])
    micro = MicroBatch(
        packed, ["a", "b"], torch.tensor([[1.0, 0.0]]), torch.empty(0), torch.empty(0), reference,
        old_logp=reference + torch.tensor([0.2, -0.4, 1.0]), old_value=torch.tensor([0.5, 1.0, -1.0]),
    )  # fmt: skip
    found: dict[str, Any] = estimate_advantages([[micro]], 0.5, 1.0, 0.5, False)
    # rewards -0.1, 0.2 + 1 and -0.5; errors -0.1 + 1 - 0.5 = 0.4, 1.2 - 1 = 0.2 and -0.5 + 1 = 0.5
    torch.testing.assert_close(micro.advantage, torch.tensor([0.5, 0.2, 0.5]))
    torch.testing.assert_close(micro.returns, torch.tensor([1.0, 1.2, -0.5]))
    # KL -0.2 and 1.0 per completion
    assert found["kl_completion"] == pytest.approx(0.4) and found["kl_k1"] == pytest.approx(0.8 / 3)
    assert found["value_mean"] == pytest.approx(0.5 / 3) and found["return_mean"] == pytest.approx(1.7 / 3)
    to_come = torch.tensor([1.1, 1.2, -0.5])
    assert found["explained_variance"] == pytest.approx(explained_variance(micro.old_value, to_come))
    estimate_advantages([[micro]], 0.5, 1.0, 0.5, True)
    assert micro.advantage.mean().abs() < 1e-6 and micro.advantage.std(correction=0) == pytest.approx(1.0)
