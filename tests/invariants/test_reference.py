"""The reference stays where the policy started, whatever the policy does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariants.tiny import (
    MODELS,
    letter_tokenizer,
    save_letter_model,
    tiny_completions,
    tiny_model,
    tiny_prompts,
)
from utils.models.load import autocast, load_model, save_model, trainable_parameters
from utils.models.reference import Reference
from utils.rl.logprobs import completion_logprobs
from utils.rl.losses import k3_kl
from utils.rl.packing import pack
from utils.settings import LoraSettings, ModelSettings


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


def test_an_adapter_on_embeddings_is_copied_too() -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "embed_tokens"]
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    policy, prompts = get_peft_model(tiny_model("llama"), config).eval(), tiny_prompts(3)
    batch = pack(prompts, tiny_completions(prompts), pad_id=0)
    logp, _ = completion_logprobs(policy, batch)
    reference = Reference(policy)
    with torch.no_grad():
        for weight in trainable_parameters(policy).values():
            weight += 0.1
    with reference.model() as frozen:
        assert torch.equal(completion_logprobs(frozen, batch)[0], logp)
    assert not torch.equal(completion_logprobs(policy, batch)[0], logp)


def test_a_fresh_adapters_reference_is_the_base() -> None:
    from peft import LoraConfig, get_peft_model

    base, prompts = tiny_model("llama"), tiny_prompts(3)
    batch = pack(prompts, tiny_completions(prompts), pad_id=0)
    expected, _ = completion_logprobs(base, batch)
    policy = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    with Reference(policy).model() as frozen:
        logp, _ = completion_logprobs(frozen, batch)
    assert torch.equal(logp, expected)


PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "4bit": {"load_in_4bit": True},
    "4bit in bf16": {"load_in_4bit": True, "precision": "bf16"},
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_switched_reference_is_a_separate_copy(precision: str, tmp_path: Path) -> None:
    """Whatever the policy becomes: the adapter switched on its base gives what a second model of the start gives."""
    save_letter_model(tmp_path / "base")
    settings = ModelSettings(name=str(tmp_path / "base"), **PRECISIONS[precision])
    lora = LoraSettings(use_lora=True, r=4, target_modules=("q_proj", "v_proj", "down_proj"))
    cpu = torch.device("cpu")
    policy = load_model(settings, lora, checkpoint=None, trainable=True, device=cpu)
    for parameter in trainable_parameters(policy).values():
        torch.nn.init.normal_(parameter, std=0.3)
    save_model(policy, letter_tokenizer(), tmp_path / "start")
    separate = load_model(settings, lora, checkpoint=tmp_path / "start", trainable=False, device=cpu)
    reference = Reference(policy)
    prompts = [[1, 4, 5], [1, 6, 7, 4, 5], [1, 8]]
    batch = pack(prompts, [[[9, 2], [10, 11, 2]], [[4, 5, 6, 2]], [[2], [8, 8, 2]]], pad_id=0)
    with torch.no_grad(), autocast(settings, cpu):
        expected, _ = completion_logprobs(separate, batch)
    for _ in range(2):
        with reference.model() as frozen, autocast(settings, cpu):
            assert torch.equal(completion_logprobs(frozen, batch)[0], expected)
        with autocast(settings, cpu):
            logp, _ = completion_logprobs(policy, batch)
        logp.sum().backward()
        torch.optim.SGD(trainable_parameters(policy).values(), lr=0.5).step()
    with torch.no_grad(), autocast(settings, cpu):
        assert not torch.equal(completion_logprobs(policy, batch)[0], expected)
