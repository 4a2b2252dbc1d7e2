"""What every back end of generation takes and gives: a request in, completions cut at their stop token out."""

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


@dataclass(frozen=True)
class Request:
    """`group_size` completions of each prompt, in the order of the prompts.

    `uniforms` [prompts, group_size, >= max_new_tokens] float64 in [0, 1) are all the randomness there is; None, or
    temperature 0, is greedy. At most `tokens_per_batch` cached tokens are to stand at once (one prompt always goes).
    Raises ValueError for an empty prompt or uniforms of another shape.
    """

    prompts: Sequence[Sequence[int]]
    group_size: int
    max_new_tokens: int
    stop_ids: Sequence[int]
    pad_id: int
    uniforms: np.ndarray[Any, Any] | None
    temperature: float = 1.0
    top_p: float = 1.0
    tokens_per_batch: int = 32768

    def __post_init__(self) -> None:
        if not all(map(len, self.prompts)):
            raise ValueError("sample: an empty prompt")
        if self.uniforms is not None:
            shape, expected = self.uniforms.shape, (len(self.prompts), self.group_size)
            if shape[:2] != expected or shape[2] < self.max_new_tokens:
                raise ValueError(f"sample: uniforms have shape {shape}, expected {expected} x {self.max_new_tokens}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time, which makes all samples of a prompt equal."""
        return self.uniforms is None or self.temperature == 0.0

    @property
    def different(self) -> int:
        """Samples of a prompt that can differ."""
        return 1 if self.greedy else self.group_size

    def check(self, model: Model) -> None:
        """UserError for prompts beyond the model's positions."""
        longest = max(map(len, self.prompts), default=1)
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and longest + self.max_new_tokens > positions:
            raise UserError(
                f"the longest prompt has {longest} tokens and max_new_tokens is {self.max_new_tokens}: the model has "
                f"only {positions} positions; lower task.max_prompt_tokens (and run 01 again) or "
                "generation.max_new_tokens"
            )


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
