"""Log-probs and entropies against a model whose logits are known."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

from tests.invariants.tiny import MODELS, VOCAB, tiny_completions, tiny_model, tiny_prompts
from utils.rl import logprobs
from utils.rl.logprobs import completion_logprobs, token_logprobs
from utils.rl.packing import pack


class NextToken:
    """Gives the next token id (modulo 4) three quarters of the probability, the other three ids a twelfth each."""

    def __call__(self, input_ids: torch.Tensor, logits_to_keep: int, **inputs: object) -> SimpleNamespace:
        following = (input_ids[:, -logits_to_keep:] + 1) % 4
        probs = torch.full((*following.shape, 4), 1 / 12).scatter(-1, following[..., None], 0.75)
        return SimpleNamespace(logits=probs.log() + 3.0)


def test_by_hand() -> None:
    batch = pack([[0, 1]], [[[2, 3], [3, 0, 0]]], pad_id=0)
    logp, entropy = completion_logprobs(NextToken(), batch)  # type: ignore[arg-type]
    # 1 -> 2 -> 3 is likely; 1 -> 3 is not, 3 -> 0 is, 0 -> 0 is not
    assert torch.allclose(logp.exp(), torch.tensor([0.75, 0.75, 1 / 12, 0.75, 1 / 12]))
    by_hand = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(1 / 12).log())
    assert torch.allclose(entropy, by_hand.expand(5))


@pytest.mark.parametrize("kind", MODELS)
def test_chunks_give_what_whole_logits_give(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model(kind), tiny_prompts(3)
    batch = pack(prompts, tiny_completions(prompts), pad_id=0)

    def found() -> list[torch.Tensor]:
        model.zero_grad()
        logp, entropy = completion_logprobs(model, batch, entropy_gradient=True)
        (logp * torch.linspace(-1, 1, len(logp)) + 0.1 * entropy).sum().backward()
        return [logp.detach(), entropy.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    whole = found()
    monkeypatch.setattr(logprobs, "CHUNK", 5 * VOCAB)  # five tokens at a time
    seen: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.numel() // VOCAB))
    chunks = found()
    handle.remove()
    assert 5 in seen and len(seen) > len(batch.tokens) // 5
    for one, other in zip(chunks, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("few", [1, 3 * VOCAB, 10**6])
def test_gradients_are_the_formulas(few: int, entropy_gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows that predict several tokens, one, and none, a few at a time and all at once."""
    monkeypatch.setattr(logprobs, "FEW", few)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, VOCAB, generator=generator).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    place, tokens = torch.tensor([0, 0, 2, 3, 0, 5, 5]), torch.randint(VOCAB, (7,), generator=generator)
    logp, entropy = token_logprobs(logits, place, tokens, entropy_gradient)
    log_p = exact[place].log_softmax(dim=-1)
    expected, disorder = log_p.gather(-1, tokens[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(dim=-1)
    torch.testing.assert_close(logp.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), disorder, atol=1e-5, rtol=0)
    assert entropy.requires_grad == entropy_gradient
    weight = torch.linspace(-1, 2, 7)
    (weight * (logp + 0.3 * entropy)).sum().backward()
    (weight * (expected + (0.3 * disorder if entropy_gradient else 0))).sum().backward()
    assert logits.grad is not None and exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-5, rtol=0)


def test_logits_in_bf16_have_gradients_in_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, VOCAB, generator=generator).bfloat16().requires_grad_()
    exact = logits.detach().double().requires_grad_()
    place, tokens = torch.tensor([0, 1, 1, 5]), torch.arange(4)
    found, _ = token_logprobs(logits, place, tokens)
    expected = exact[place].log_softmax(dim=-1).gather(-1, tokens[:, None]).squeeze(-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    found.sum().backward()
    expected.sum().backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16 and exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=0.01, rtol=0.01)


def test_a_wrapper_that_makes_outputs_fp32_alters_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate puts it around models that train in bf16."""
    model, prompts = tiny_model("llama").bfloat16(), tiny_prompts(3)
    batch = pack(prompts, tiny_completions(prompts), pad_id=0)
    monkeypatch.setattr(logprobs, "CHUNK", 5 * VOCAB)
    plain, _ = completion_logprobs(model, batch)
    own = model.forward
    model.forward = lambda **given: SimpleNamespace(logits=own(**given).logits.float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped, _ = completion_logprobs(model, batch)
    assert torch.equal(wrapped, plain) and model not in logprobs._altered
    model.forward = lambda **given: SimpleNamespace(logits=own(**given).logits.float() * 2)
    with pytest.warns(UserWarning, match="alters its logits"):
        completion_logprobs(model, batch)
