"""Log-probabilities and entropies of completion tokens, flat over all samples of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from utils.models.last_layer import exchanged, reading_only
from utils.models.sharding import in_shares
from utils.ranks import gather
from utils.rl.memory import CHUNK, FEW, FEW_ON_GPU
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
    """(log-prob, entropy) in nats, both fp32 [_N], of `tokens` [_N], predicted at the rows `place` [_N] of logits.

    Nothing of the logits' size is kept for the backward pass but the logits themselves.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return _TokenLogprobs.apply(logits, place, tokens, entropy_gradient)  # type: ignore[no-untyped-call, no-any-return]


class _TokenLogprobs(torch.autograd.Function):
    """`token_logprobs`, a few rows at a time: all that is made of them is made while the processor's cache has them."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, place: torch.Tensor, tokens: torch.Tensor, entropy_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for at, token in _few(logits, place, tokens):
            predicted = logits.index_select(0, at).float()
            log_total = predicted.logsumexp(dim=-1)
            logp = predicted.gather(-1, token[:, None]).squeeze(-1) - log_total
            # H = log Z - E[logit]
            entropy = log_total - predicted.softmax(dim=-1).mul_(predicted).sum(dim=-1)
            found.append((logp, entropy, log_total))
        logp, entropy, log_total = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(logits, place, tokens, log_total, entropy)
        ctx.entropy_gradient = entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, *of_tokens = ctx.saved_tensors
        of_logits = torch.zeros_like(logits)
        for at, token, log_total, entropy, of_logp, of_entropy in _few(logits, *of_tokens, *gradients):
            log_p = logits.index_select(0, at).float().sub_(log_total[:, None])
            factor = of_logp[:, None]
            if ctx.entropy_gradient:  # dH = -sum of p (log p + H) dlogit
                factor = (log_p + entropy[:, None]).mul_(of_entropy[:, None]).add_(factor)
            found = log_p.exp_().mul_(-factor).scatter_add_(-1, token[:, None], of_logp[:, None])
            # not of_logits[at] += found: a prompt's last row predicts the first token of all its samples
            of_logits.index_add_(0, at, found.to(logits.dtype))
        return of_logits, None, None, None


def _few(logits: torch.Tensor, *of_tokens: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors [_N] in pieces, for each of which there are FEW logits, but a row for each thread."""
    few = FEW if logits.device.type == "cpu" else FEW_ON_GPU
    length = max(torch.get_num_threads(), few // logits.shape[-1])
    return zip(*(states.split(length) for states in of_tokens), strict=True)
