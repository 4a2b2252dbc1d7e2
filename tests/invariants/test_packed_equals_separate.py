"""Packed groups compute what separate rows compute: log-probs, entropies and gradients within 1e-5 in fp32."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.invariants.tiny import MODELS, tiny_completions, tiny_model, tiny_prompts
from utils.models.load import trainable_parameters
from utils.rl.logprobs import completion_logprobs
from utils.rl.packing import PackedBatch, lay_out, pack, separate


def results(model, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs, entropies and the gradients of a loss that weighs every token differently."""
    model.zero_grad()
    logp, entropy = completion_logprobs(model, batch, entropy_gradient=True)
    weights = torch.linspace(-1, 1, len(logp))
    (weights * logp + 0.1 * weights.flip(0) * entropy).sum().backward()
    return logp.detach(), entropy.detach(), {name: p.grad.clone() for name, p in trainable_parameters(model).items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", MODELS)
def test_packed_rows_equal_separate_rows(kind: str, seed: int) -> None:
    model, prompts = tiny_model(kind, seed), tiny_prompts(5, seed)
    completions = tiny_completions(prompts, seed)
    packed, apart = pack(prompts, completions, pad_id=0), separate(prompts, completions, pad_id=0)
    assert packed.computed_tokens < apart.computed_tokens
    for name in ("tokens", "sample", "time"):
        assert torch.equal(getattr(packed, name), getattr(apart, name))
    logp, entropy, gradients = results(model, packed)
    logp_apart, entropy_apart, gradients_apart = results(model, apart)
    torch.testing.assert_close(logp, logp_apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, entropy_apart, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        scale = gradients_apart[name].abs().max()
        assert scale > 0, name
        torch.testing.assert_close(gradient / scale, gradients_apart[name] / scale, atol=1e-5, rtol=1e-5)


class GivenLogits(torch.nn.Module):
    """A model whose logits are its weights."""

    def __init__(self, batch: PackedBatch, vocabulary: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (len(batch.input_ids), batch.logits_to_keep, vocabulary)
        self.logits = torch.nn.Parameter(torch.randn(shape, generator=generator))

    def forward(self, **inputs: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


def test_gradients_do_not_depend_on_how_threads_are_scheduled() -> None:
    """The samples of a group share the logits after the prompt; their gradients must be added in one order."""
    batch = pack([[3]], [[[5, 6]] * 300], pad_id=0)
    model = GivenLogits(batch, vocabulary=2000)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        first, *others = [results(model, batch)[2]["logits"] for _ in range(6)]
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
