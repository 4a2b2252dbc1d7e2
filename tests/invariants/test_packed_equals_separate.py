"""Packed groups compute what separate rows compute: log-probs, entropies, values, gradients; within 1e-5 in fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.invariants.tiny import MODELS, VOCAB, tiny_completions, tiny_model, tiny_prompts
from utils.models.load import trainable_parameters
from utils.models.packed_rows import PackedRows
from utils.models.pieces import attend
from utils.rl.learner import _recompute_activations
from utils.rl.logprobs import completion_logprobs
from utils.rl.packing import PackedBatch, lay_out, pack, separate
from utils.rl.values import Critic

GROUPS = (1, 2, 3, 5, 8, 13, 16)
"""Sizes of the groups; three prompts go into a micro-batch, and one is left over."""


def prompts_and_groups(seed: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Seven prompts and as many groups, of sizes in random order; all lengths are random."""
    rng, prompts = np.random.default_rng(seed), tiny_prompts(len(GROUPS), seed)
    lengths = [rng.integers(1, 13, size=size) for size in rng.permutation(GROUPS)]
    return prompts, [[rng.integers(3, VOCAB - 1, size=length).tolist() for length in group] for group in lengths]


def results(
    critic: Critic, batches: Sequence[PackedBatch], context: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What every token gets, and the gradients of a loss that weighs each differently, over some micro-batches."""
    trained = trainable_parameters(critic.policy) | critic.parameters
    critic.policy.zero_grad()
    critic.head.zero_grad()
    count, parts = sum(len(batch.tokens) for batch in batches), []
    weights = torch.linspace(-1, 1, count).split([len(batch.tokens) for batch in batches])
    for batch, weight in zip(batches, weights, strict=True):
        logp, entropy, values = critic.forward(batch, context, entropy_gradient=True)
        (weight * logp + 0.1 * weight.abs() * entropy + 0.3 * (1 - weight) * values).sum().backward()
        parts.append((logp.detach(), entropy.detach(), values.detach()))
    names = ("log-probs", "entropies", "values")
    of_tokens = {name: torch.cat(found).float() for name, found in zip(names, zip(*parts, strict=True), strict=True)}
    return of_tokens, {name: torch.as_tensor(one.grad).float().clone() for name, one in trained.items()}


def critic_on(model: Any) -> Critic:
    critic = Critic(model, "trunk")
    torch.nn.init.normal_(critic.head.linear.weight, generator=torch.Generator().manual_seed(1))
    return critic


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_every_layer_knows_the_packed_rows(kind: str, recomputed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their mask reaches the attention as it was made, through adapters and recomputed layers."""
    calls: list[PackedRows] = []

    def noted(rows: PackedRows, *given: Any) -> torch.Tensor:
        calls.append(rows)
        return attend(rows, *given)

    monkeypatch.setattr("utils.models.attention.attend", noted)
    model, (prompts, groups) = tiny_model(kind), prompts_and_groups(0)
    if recomputed:
        _recompute_activations(model)
        model.train()
    batch = pack(prompts[:3], groups[:3], pad_id=0).to(torch.device("cpu"))
    completion_logprobs(model, batch)[0].sum().backward()
    assert len(calls) == model.config.num_hidden_layers * (2 if recomputed else 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", MODELS)
def test_packed_rows_equal_separate_rows(kind: str, seed: int) -> None:
    """Three packed micro-batches, the last of a single prompt, and one pass over a row for each sample."""
    critic, (prompts, groups) = critic_on(tiny_model(kind, seed)), prompts_and_groups(seed)
    packed = [pack(prompts[i : i + 3], groups[i : i + 3], pad_id=0) for i in range(0, len(prompts), 3)]
    apart = separate(prompts, groups, pad_id=0)
    assert [len(batch.input_ids) for batch in packed] == [3, 3, 1]
    assert sum(batch.computed_tokens for batch in packed) < apart.computed_tokens
    assert torch.equal(torch.cat([batch.tokens for batch in packed]), apart.tokens)
    of_tokens, gradients = results(critic, packed)
    of_tokens_apart, gradients_apart = results(critic, [apart])
    for name, found in of_tokens.items():
        assert found.std() > 0.1, name
        torch.testing.assert_close(found, of_tokens_apart[name], atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        scale = gradients_apart[name].abs().max()
        assert scale > 0, name
        torch.testing.assert_close(gradient / scale, gradients_apart[name] / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_bf16_is_as_far_from_fp32_in_either_layout(kind: str) -> None:
    """The error's norm beside that of fp32's result: packed rows make no more than separate ones (docs/LOG.md).

    As stages compute: autocast over fp32 weights, or over a base in bf16 with an adapter in fp32.
    """
    (prompts, groups), errors = prompts_and_groups(0), {}
    batches = {"packed": pack(prompts, groups, pad_id=0), "separate": separate(prompts, groups, pad_id=0)}
    exact = results(critic_on(tiny_model(kind, scale=0.1)), [batches["separate"]])
    for layout, batch in batches.items():
        model = tiny_model(kind, scale=0.1)
        if "lora" in kind:
            for name, parameter in model.named_parameters():
                parameter.data = parameter.data.to(torch.float32 if "lora_" in name else torch.bfloat16)
        found = results(critic_on(model), [batch], partial(torch.autocast, "cpu", torch.bfloat16))
        for one, other in zip(found, exact, strict=True):
            for name, value in one.items():
                errors[layout, name] = float((value - other[name]).norm() / other[name].norm())
    for name in (*exact[0], *exact[1]):
        print(f"{kind} {name}: packed {errors['packed', name]:.4f}, separate {errors['separate', name]:.4f}")
        assert errors["packed", name] < max(1.5 * errors["separate", name], 0.01), name
    assert max(errors.values()) > 1e-3, "this was not bf16"


class GivenLogits(torch.nn.Module):
    """A model whose logits are its weights."""

    def __init__(self, batch: PackedBatch, vocabulary: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (len(batch.input_ids), batch.logits_to_keep, vocabulary)
        self.logits = torch.nn.Parameter(torch.randn(shape, generator=generator))

    def forward(self, **inputs: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


def gradient_of_logits(model: GivenLogits, batch: PackedBatch) -> torch.Tensor:
    logp, _ = completion_logprobs(model, batch)
    (gradient,) = torch.autograd.grad((torch.linspace(-1, 1, len(logp)) * logp).sum(), model.logits)
    return gradient


def test_gradients_do_not_depend_on_how_threads_are_scheduled() -> None:
    """The samples of a group share the logits after the prompt; their gradients must be added in one order."""
    batch = pack([[3]], [[[5, 6]] * 300], pad_id=0)
    model = GivenLogits(batch, vocabulary=2000)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        first, *others = [gradient_of_logits(model, batch) for _ in range(6)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first, other) for other in others)


def test_a_completion_sees_neither_its_neighbours_nor_the_padding() -> None:
    model, [prompt, other] = tiny_model("llama"), tiny_prompts(2, seed=5)
    alone, _ = completion_logprobs(model, pack([prompt], [[[7, 8, 9]]], pad_id=0))
    crowd = pack([other, prompt], [[[3, 4]], [[9, 9, 5, 6], [7, 8, 9], [11]]], pad_id=0)
    together, _ = completion_logprobs(model, crowd)
    torch.testing.assert_close(together[crowd.sample == 2], alone, atol=1e-5, rtol=1e-5)


def test_models_whose_attention_a_mask_cannot_say_get_separate_rows() -> None:
    model, prompts = tiny_model("mistral"), tiny_prompts(3)
    completions = tiny_completions(prompts)
    batch = lay_out(model, prompts, completions, pad_id=0)
    assert len(batch.input_ids) == sum(map(len, completions)) and batch.attention_mask.dim() == 2
    # the packed layout would be wrong for it: the sliding window would not be applied
    wrong, _ = completion_logprobs(model, pack(prompts, completions, pad_id=0))
    right, _ = completion_logprobs(model, batch)
    assert (wrong - right).abs().max() > 1e-3
