"""Log-probabilities and entropies of completion tokens, flat over all samples of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch.utils.checkpoint import checkpoint

from utils.models.last_layer import exchanged, reading_only
from utils.models.sharding import in_shares
from utils.ranks import gather
from utils.rl.memory import CHUNK
from utils.rl.packing import PackedBatch

if TYPE_CHECKING:
    from utils.models.load import Model

_altered: WeakSet[Model] = WeakSet()
"""Models found to alter what their output layer says (soft caps, scales): their logits are computed whole."""


def completion_logprobs(
    model: Model, batch: PackedBatch, *, entropy_gradient: bool = False, owner: Model | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-prob, entropy) in nats, both fp32 [_N], of each completion token given what stands before it.

    Temperature 1, the whole vocabulary: the distribution that `utils.rl.sampling` draws from. The entropy carries a
    gradient only when asked for. Order and index tensors are the batch's (`batch.sample`, `batch.time`). Beyond CHUNK
    logits no more than so many exist at once, at completion tokens alone, unless the model alters its logits (a
    warning says so). `owner` has the output layer where `model` is only a forward pass.
    """
    owner = model if owner is None else owner
    width = batch.logits_to_keep
    place = batch.row * width + batch.source
    if _beyond(owner, batch) and owner not in _altered:
        with _without_output_layer(owner) as given:
            hidden = _forward(model, owner, batch)
        if _same(hidden, given[-1]):
            states = given[-1].flatten(0, 1).index_select(0, place)
            return _in_chunks(owner, states, batch.tokens, entropy_gradient)
        warnings.warn(f"{owner.config.model_type} alters its logits: they are not computed in chunks", stacklevel=2)
        _altered.add(owner)
    return token_logprobs(_forward(model, owner, batch).flatten(0, 1), place, batch.tokens, entropy_gradient)


def _forward(model: Model, owner: Model, batch: PackedBatch) -> torch.Tensor:
    """What the model gives as logits [rows, logits_to_keep, vocabulary]."""
    with reading_only(owner, slice(-batch.logits_to_keep, None)):
        logits: torch.Tensor = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=batch.logits_to_keep,
            use_cache=False,
        ).logits
    return logits


def _same(logits: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether a model handed on what its output layer was to say; accelerate's wrapper makes it fp32."""
    return logits is given or (logits.shape == given.shape and torch.equal(logits, given.to(logits.dtype)))


def _beyond(owner: Model, batch: PackedBatch) -> bool:
    """Whether a pass would give more than CHUNK logits. That of a model in shares is the same in all processes."""
    beyond = _kept_logits(owner, batch) > CHUNK
    return any(gather(beyond)) if in_shares(owner) else beyond


def _kept_logits(owner: Model, batch: PackedBatch) -> int:
    """How many logits the pass would give; 0 where there is no output layer to put off."""
    if not hasattr(owner, "get_output_embeddings"):
        return 0
    return len(batch.input_ids) * batch.logits_to_keep * int(owner.config.vocab_size)


@contextmanager
def _without_output_layer(model: Model) -> Iterator[list[torch.Tensor]]:
    """Passes inside give hidden states as logits, the very tensors that come in the list, if nothing alters them."""
    given: list[torch.Tensor] = []

    def hand_on(hidden: torch.Tensor) -> torch.Tensor:
        given.append(hidden)
        return hidden

    with exchanged(model.get_output_embeddings(), hand_on):
        yield given


def _in_chunks(
    owner: Model, states: torch.Tensor, tokens: torch.Tensor, entropy_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_logprobs` of states [_N, width]; the backward pass computes each chunk's logits anew."""
    layer, vocabulary = owner.get_output_embeddings(), int(owner.config.vocab_size)

    def chunk(states: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        place = torch.arange(len(tokens), device=tokens.device)
        return token_logprobs(layer(states), place, tokens, entropy_gradient)

    length = max(1, CHUNK // vocabulary)
    pieces = zip(states.split(length), tokens.split(length), strict=True)
    parts = [checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces]
    logp, entropy = zip(*parts, strict=True)
    return torch.cat(logp), torch.cat(entropy)


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
