"""The reference stays where the policy started, whatever the policy does."""

from __future__ import annotations

import pytest
import torch

from tests.invariants.tiny import MODELS, tiny_completions, tiny_model, tiny_prompts
from utils.models.load import trainable_parameters
from utils.models.reference import Reference
from utils.rl.logprobs import completion_logprobs
from utils.rl.losses import k3_kl
from utils.rl.packing import pack


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_kl_is_exactly_zero_at_the_start_and_the_reference_does_not_move(kind: str, bf16: bool) -> None:
    policy, prompts = tiny_model(kind), tiny_prompts(3)
    batch = pack(prompts, tiny_completions(prompts), pad_id=0)
    names = list(trainable_parameters(policy))
    reference = Reference(policy)
    assert list(trainable_parameters(policy)) == names

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with reference.model() as frozen, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            frozen_logp, _ = completion_logprobs(frozen, batch)
        assert not frozen_logp.requires_grad
        assert list(trainable_parameters(policy)) == names
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return completion_logprobs(policy, batch)[0], frozen_logp

    logp, start = both()
    assert logp.requires_grad and torch.equal(logp, start)
    assert float(k3_kl(logp, start).detach().abs().max()) == 0.0
    optimizer = torch.optim.SGD(trainable_parameters(policy).values(), lr=0.5)
    logp.sum().backward()
    optimizer.step()
    moved, later = both()
    assert torch.equal(later, start)
    assert float(k3_kl(moved, later).detach().mean()) > 0


def test_a_fresh_adapters_reference_is_the_base() -> None:
    from peft import LoraConfig, get_peft_model

    base, prompts = tiny_model("llama"), tiny_prompts(3)
    batch = pack(prompts, tiny_completions(prompts), pad_id=0)
    expected, _ = completion_logprobs(base, batch)
    policy = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    with Reference(policy).model() as frozen:
        logp, _ = completion_logprobs(frozen, batch)
    assert torch.equal(logp, expected)
