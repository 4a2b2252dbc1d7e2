"""Log-probs and entropies against a model whose logits are known."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from utils.rl.logprobs import completion_logprobs
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
