"""Log-probabilities and entropies of completion tokens, flat over all samples of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from utils.rl.packing import PackedBatch

if TYPE_CHECKING:
    from utils.models.load import Model


def completion_logprobs(
    model: Model, batch: PackedBatch, *, entropy_gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-prob, entropy) in nats, both fp32 [_N], of each completion token given what stands before it.

    Temperature 1, the whole vocabulary: the distribution that `utils.rl.sampling` draws from. The entropy carries a
    gradient only when asked for. Order and index tensors are the batch's (`batch.sample`, `batch.time`).
    """
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=batch.logits_to_keep,
        use_cache=False,
    ).logits
    place = batch.row * logits.shape[1] + batch.source
    return token_logprobs(logits.flatten(0, 1), place, batch.tokens, entropy_gradient)


def token_logprobs(
    logits: torch.Tensor, place: torch.Tensor, tokens: torch.Tensor, entropy_gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-prob, entropy) in nats, both fp32 [_N], of `tokens` [_N], predicted at the rows `place` [_N] of logits."""
    # index_select, since the backward pass of logits[place] adds in an order that depends on the threads
    predicted = logits.index_select(0, place).float()
    log_total = predicted.logsumexp(dim=-1)
    logp = predicted.gather(-1, tokens[:, None]).squeeze(-1) - log_total
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        # H = log Z - E[logit]
        entropy = log_total - (torch.softmax(predicted, dim=-1) * predicted).sum(dim=-1)
    return logp, entropy
