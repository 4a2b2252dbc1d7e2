"""What every back end of generation takes and gives: prompts by length in, completions cut at their stop token out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import UserError

if TYPE_CHECKING:
    from utils.models.load import Model


@dataclass(frozen=True)
class Completion:
    """One sampled answer: its tokens, the stop token included; `truncated` when no stop token came in time.

    `logprobs`: nats of each token under what the back end drew it from, where these are not the learner's numbers.
    """

    tokens: list[int]
    truncated: bool
    logprobs: list[float] | None = None


def cut(ids: Sequence[int], stop_ids: Sequence[int], logprobs: Sequence[float] | None = None) -> Completion:
    """The completion that ends with the first stop token among `ids`; what follows it is padding."""
    end = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), 0)
    length = end or len(ids)
    return Completion(list(ids[:length]), not end, None if logprobs is None else list(logprobs[:length]))


def seed_of(uniforms: np.ndarray[Any, Any]) -> int:
    """63 bits for another generator, from numbers that follow from (seed, step, record, sample)."""
    digest = hashlib.sha256(np.ascontiguousarray(uniforms).tobytes()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def batches_by_length(lengths: Sequence[int], groups: int, new_tokens: int, budget: int) -> Iterator[list[int]]:
    """Indices by rising length (ties in input order); a batch's cache, padding included, stays within the budget."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * (lengths[i] + groups * new_tokens) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def check_request(
    model: Model,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    max_new_tokens: int,
    uniforms: np.ndarray[Any, Any] | None,
) -> None:
    """UserError for prompts beyond the model's positions, ValueError for empty ones or uniforms of another shape."""
    longest = max((len(prompt) for prompt in prompts), default=1)
    if min((len(prompt) for prompt in prompts), default=1) == 0:
        raise ValueError("sample: an empty prompt")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and longest + max_new_tokens > positions:
        raise UserError(
            f"the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}: the model has only "
            f"{positions} positions; lower task.max_prompt_tokens (and run 01 again) or generation.max_new_tokens"
        )
    if uniforms is not None:
        expected = (len(prompts), group_size)
        if uniforms.shape[:2] != expected or uniforms.shape[2] < max_new_tokens:
            raise ValueError(f"sample: uniforms have shape {uniforms.shape}, expected {expected} x {max_new_tokens}")
