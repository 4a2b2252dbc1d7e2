"""Who draws the completions: `generation.backend` names it, and every stage that generates asks here.

A back end is called as `utils.rl.sampling.sample` is, whatever it does inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from utils.rl.completions import Completion
from utils.rl.sampling import sample
from utils.settings import GenerationSettings

if TYPE_CHECKING:
    from utils.models.load import Model


class Backend(Protocol):
    """See `utils.rl.sampling.sample`. `uniforms` [prompts, group_size, tokens] are all the randomness there is."""

    def __call__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        pad_id: int,
        uniforms: np.ndarray[Any, Any] | None,
        temperature: float,
        top_p: float,
        tokens_per_batch: int,
    ) -> list[list[Completion]]: ...


def make_backend(generation: GenerationSettings) -> Backend:
    """The back end of the settings. UserError where it cannot work."""
    if generation.backend == "transformers":
        from utils.rl.transformers_backend import generate

        return generate
    if generation.backend == "vllm":
        from utils.rl.vllm_backend import Vllm

        return Vllm(generation)
    return sample
