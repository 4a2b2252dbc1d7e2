"""Who draws the completions: `generation.backend` names it, and every stage that generates asks here.

A back end is given a model and a `Request`, whatever it does inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from utils.rl.completions import Completion, Request
from utils.rl.sampling import copies, sample
from utils.settings import GenerationSettings

if TYPE_CHECKING:
    from utils.models.load import Model


class Backend(Protocol):
    """`utils.rl.sampling.sample`, or what stands in its place."""

    def __call__(self, model: Model, request: Request) -> list[list[Completion]]: ...


def make_backend(generation: GenerationSettings) -> Backend:
    """The back end of the settings. UserError where it cannot work."""
    if generation.backend == "transformers":
        from utils.rl.transformers_backend import generate

        return generate
    if generation.backend == "vllm":
        from utils.rl.vllm_backend import Vllm

        return Vllm(generation)
    return sample


def prompt_copies(backend: Backend, model: Model, samples: int, greedy: bool) -> int:
    """How often a back end computes a prompt of which it draws so many samples; vLLM keeps a prompt's prefix."""
    if backend is sample:
        return copies(model, samples)
    from utils.rl.transformers_backend import generate

    return samples if backend is generate and not greedy else 1
