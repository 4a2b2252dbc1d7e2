"""The memory that --dry_run foretells for a pass and for sampling, beside the exact peak of torch's allocator."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peaks import allocated_peak
from tests.invariants.tiny import letter_tokenizer
from utils.models.load import autocast, load_model, trainable_parameters
from utils.rl.completions import Request
from utils.rl.learner import Learner, _recompute_activations
from utils.rl.logprobs import completion_logprobs
from utils.rl.memory import Shape, pass_bytes, resident_bytes, sampling_bytes
from utils.rl.packing import pack
from utils.rl.sampling import sample
from utils.rl.values import Critic
from utils.settings import (
    GenerationSettings,
    GRPOSettings,
    LoraSettings,
    ModelSettings,
    OnlineRunSettings,
    PPOSettings,
    RLSettings,
    RolloutSettings,
    TaskSettings,
    ValidationSettings,
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
    "grouped queries": ((128, 4, 64), "fp32", False, NONE, ""),
    "grouped queries, bf16": ((128, 4, 64), "bf16", False, NONE, ""),
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
        num_key_value_heads=1 if case.startswith("grouped") else 4, vocab_size=vocabulary, tie_word_embeddings=True,
        max_position_embeddings=512,
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


SAMPLING = {
    "fp32": ("fp32", {}),
    "bf16": ("bf16", {}),
    "deep": ("bf16", {"num_hidden_layers": 8}),
    "wide": ("fp32", {"hidden_size": 256, "intermediate_size": 1024}),
    "wide, bf16": ("bf16", {"hidden_size": 256, "intermediate_size": 1024}),
    "grouped queries": ("fp32", {"num_key_value_heads": 1}),
    "grouped queries, bf16, deep": ("bf16", {"num_key_value_heads": 1, "num_hidden_layers": 8}),
    "wide vocabulary": ("bf16", {"vocab_size": 65536}),
}
"""Precision, and what differs from a Llama of two layers of width 128."""


@pytest.mark.parametrize("case", SAMPLING)
def test_the_estimate_of_sampling_is_near_the_peak(case: str, tmp_path: Path) -> None:
    """Twelve prompts at once, four samples of each."""
    precision, different = SAMPLING[case]
    sizes = {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 64, **different,
    }  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).save_pretrained(tmp_path)
    settings = ModelSettings(
        name=str(tmp_path), hidden_size=sizes["hidden_size"], num_layers=sizes["num_hidden_layers"],
        vocab_size=sizes["vocab_size"], precision=precision,
    )  # fmt: skip
    cpu, prompts = torch.device("cpu"), 12
    policy = load_model(settings, NONE, checkpoint=None, trainable=True, device=cpu)
    numbers = np.random.default_rng(0).random((prompts, GROUP, NEW))
    request = Request([[5] * PROMPT] * prompts, GROUP, NEW, [], 0, numbers)

    def call() -> None:
        with autocast(settings, cpu):
            sample(policy, request)

    call()
    cfg: Any = SimpleNamespace(
        run=OnlineRunSettings(device="cpu"), model=settings, lora=NONE, task=TaskSettings(max_prompt_tokens=PROMPT),
        generation=GenerationSettings(max_new_tokens=NEW), rollout=RolloutSettings(prompts_per_step=prompts),
        validation=ValidationSettings(eval_records=1),
    )  # fmt: skip
    shape = Shape.of(cfg, GROUP)
    assert shape is not None
    found = sampling_bytes(cfg, shape, GROUP) / allocated_peak(call, "cpu")
    print(f"sampling, {case}: {found:.2f}")
    assert LOWEST < found < HIGHEST


@pytest.mark.parametrize(("lora", "critic"), [(NONE, ""), (LORA, ""), (NONE, "head")])
def test_what_stays_is_what_there_is(lora: LoraSettings, critic: str, tmp_path: Path) -> None:
    """Weights, reference, gradients and moments of a learner, by the sizes of its tensors."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(tmp_path)
    letter_tokenizer().save_pretrained(tmp_path)
    settings = ModelSettings(name=str(tmp_path), hidden_size=64, num_layers=2, vocab_size=64, precision="fp32")
    learner = Learner(settings, lora, RLSettings(), start=tmp_path, device="cpu", seed=0, critic=critic)
    for group in learner.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()
    trained = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    moments = [state[name] for state in learner.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    with learner.reference.model() as reference:
        tensors = [*learner.policy.parameters(), *reference.parameters(), *trained, *moments]
        tensors += [parameter.grad for parameter in trained if parameter.grad is not None]
    held = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    cfg: Any = SimpleNamespace(
        run=OnlineRunSettings(), model=settings, lora=lora,
        algorithm=PPOSettings(critic=critic) if critic else GRPOSettings(),
    )  # fmt: skip
    assert resident_bytes(cfg) == pytest.approx(sum(held.values()), rel=0.01)
