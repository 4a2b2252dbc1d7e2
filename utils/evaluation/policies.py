"""A policy that answers examples: greedy for accuracy, sampled at temperature 1 for pass@k. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.models.load import autocast, load_model, resolve_device
from utils.models.tokens import load_tokenizer
from utils.rl.rollouts import Sampler
from utils.seeds import uniforms
from utils.settings import GenerationSettings, LoraSettings, ModelSettings
from utils.tasks.base import Example, Rollout
from utils.terminal import Progress

RECORDS_PER_CALL = 128
"""Records between two signs of life; sampling makes its own batches inside."""


def load_policy(
    model: ModelSettings, lora: LoraSettings, generation: GenerationSettings, device_name: str, checkpoint: Path | None
) -> Sampler:
    """The policy of a checkpoint, or the base model when there is none, at temperature 1."""
    device = resolve_device(device_name)
    return Sampler(
        load_model(model, lora, checkpoint=checkpoint, trainable=False, device=device),
        load_tokenizer(model, checkpoint),
        generation.max_new_tokens,
        generation.tokens_per_batch,
        lambda: autocast(model, device),
    )


def answer(
    sampler: Sampler, examples: Sequence[Example], progress: Progress, *, samples: int = 1, seed: int | None = None
) -> list[list[Rollout]]:
    """`samples` completions of each example, [examples][samples], in the order given: greedy without `seed`.

    Records go by rising length, so that little padding is computed; a sample depends on (seed, id, sample) alone.
    UserError, with the record's id, when logits are not finite.
    """
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].input_text))
    answers: list[list[Rollout]] = [[] for _ in examples]
    tokens = 0
    for start in range(0, len(order), RECORDS_PER_CALL):
        chosen = order[start : start + RECORDS_PER_CALL]
        part = [examples[index] for index in chosen]
        ids = [example.id for example in part]
        numbers = None if seed is None else uniforms(seed, 0, ids, samples, sampler.max_new_tokens)
        rollouts = sampler.draw(part, samples, numbers).rollouts()
        for place, index in enumerate(chosen):
            answers[index] = rollouts[place * samples : (place + 1) * samples]
        tokens += sum(rollout.tokens for rollout in rollouts)
        done = start + len(chosen)
        progress.update(done, tokens_each=round(tokens / (done * samples), 1))
    return answers
