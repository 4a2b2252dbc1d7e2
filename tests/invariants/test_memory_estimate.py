"""The memory that --dry_run foretells for a pass, beside the exact peak of torch's allocator."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peaks import allocated_peak
from utils.models.load import autocast, load_model, trainable_parameters
from utils.rl.learner import _recompute_activations
from utils.rl.logprobs import completion_logprobs
from utils.rl.memory import Shape, pass_bytes
from utils.rl.packing import pack
from utils.rl.values import Critic
from utils.settings import (
    GenerationSettings,
    GRPOSettings,
    LoraSettings,
    ModelSettings,
    OnlineRunSettings,
    PPOSettings,
    TaskSettings,
)

PROMPT, GROUP, NEW, ROWS = 224, 4, 24, 2
LORA = LoraSettings(use_lora=True, r=4, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
NONE = LoraSettings()
CASES: dict[str, tuple[tuple[int, int, int], str, bool, LoraSettings, str]] = {
    "fp32": ((128, 4, 64), "fp32", False, NONE, ""),
    "bf16": ((128, 4, 64), "bf16", False, NONE, ""),
    "fp32, recomputed": ((128, 4, 64), "fp32", True, NONE, ""),
    "bf16, recomputed": ((128, 4, 64), "bf16", True, NONE, ""),
    "wide vocabulary": ((64, 2, 16384), "fp32", False, NONE, ""),
    "wide vocabulary, bf16, recomputed": ((64, 2, 16384), "bf16", True, NONE, ""),
    "logits in chunks": ((64, 2, 131072), "fp32", False, NONE, ""),
    "logits in chunks, bf16": ((64, 2, 131072), "bf16", False, NONE, ""),
    "lora": ((128, 4, 64), "fp32", False, LORA, ""),
    "lora, bf16": ((128, 4, 64), "bf16", False, LORA, ""),
    "critic's head": ((128, 4, 64), "fp32", False, NONE, "head"),
    "critic's adapter": ((128, 4, 64), "fp32", False, LORA, "adapter"),
}
"""(width, layers, vocabulary), precision, activation_checkpointing, adapters, critic"""
LOWEST, HIGHEST = 0.7, 1.5
"""Estimate over peak."""


def ratio(folder: Path, case: str) -> float:
    """Estimate over peak of one pass forward and backward, gradients being there before it."""
    (width, layers, vocabulary), precision, recomputed, lora, critic_kind = CASES[case]
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=width, intermediate_size=width * 3, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    settings = ModelSettings(
        name=str(folder), hidden_size=width, num_layers=layers, vocab_size=vocabulary, precision=precision,
        activation_checkpointing=recomputed,
    )  # fmt: skip
    cpu = torch.device("cpu")
    policy = load_model(settings, lora, checkpoint=None, trainable=True, device=cpu)
    critic = Critic(policy, critic_kind) if critic_kind else None
    if recomputed:
        _recompute_activations(policy)
        policy.train()
    for parameter in [*trainable_parameters(policy).values(), *(critic.parameters.values() if critic else ())]:
        parameter.grad = torch.zeros_like(parameter)
    packed = pack([[5] * PROMPT] * ROWS, [[[6] * NEW] * GROUP] * ROWS, pad_id=0)
    context = partial(autocast, settings, cpu)

    def call() -> None:
        if critic is None:
            with context():
                logp, _ = completion_logprobs(policy, packed)
            logp.mean().backward()
        else:
            logp, _, value = critic.forward(packed, context)
            (logp + value).mean().backward()

    call()  # what is made once is there
    cfg: Any = SimpleNamespace(
        run=OnlineRunSettings(device="cpu"), model=settings, lora=lora, task=TaskSettings(max_prompt_tokens=PROMPT),
        generation=GenerationSettings(max_new_tokens=NEW),
        algorithm=PPOSettings(critic=critic_kind) if critic else GRPOSettings(),
    )  # fmt: skip
    found = Shape.of(cfg, GROUP)
    assert found is not None
    return sum(pass_bytes(cfg, found, ROWS)) / allocated_peak(call, "cpu")


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_near_the_peak(case: str, tmp_path: Path) -> None:
    found = ratio(tmp_path, case)
    print(f"{case}: {found:.2f}")
    assert LOWEST < found < HIGHEST
