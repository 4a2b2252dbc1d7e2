"""A policy that answers examples: greedy for accuracy, sampled at temperature 1 for pass@k. Imports torch.

Answers are kept on the disk batch by batch (utils.evaluation.journal), so that an interrupted stage goes on where it
was, to the bytes of an uninterrupted one: batches are the same, and only whole ones are taken up again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils import manifest
from utils.base_model import digest_of
from utils.evaluation.journal import Journal
from utils.evaluation.outputs import hashed, unfinished
from utils.files import read_json
from utils.models.load import autocast, load_model, resolve_device
from utils.models.tokens import load_tokenizer
from utils.rl.backends import make_backend
from utils.rl.rollouts import Sampler
from utils.seeds import uniforms
from utils.settings import GenerationSettings, LoraSettings, ModelSettings
from utils.stage import Stage
from utils.tasks.base import Example, Rollout
from utils.terminal import Progress

RECORDS_PER_CALL = 128
"""Records that are answered between two writes; sampling makes its own batches inside."""


class Policy:
    """The policy of a checkpoint (an input of the stage), or the base model when there is none."""

    def __init__(
        self,
        stage: Stage,
        model: ModelSettings,
        lora: LoraSettings,
        generation: GenerationSettings,
        device_name: str,
        checkpoint: Path | None,
    ) -> None:
        device = resolve_device(device_name)
        self.stage = stage
        self.sampler = Sampler(
            load_model(model, lora, checkpoint=checkpoint, trainable=False, device=device),
            load_tokenizer(model, checkpoint),
            generation.max_new_tokens,
            generation.tokens_per_batch,
            lambda: autocast(model, device),
            backend=make_backend(generation),
            warn=stage.warn,
        )
        libraries = manifest.library_versions()
        self.origin: dict[str, dict[str, Any]] = {
            "policy": {**weights_read(stage, model, checkpoint), "device": str(device)},
            "model": asdict(model),
            "lora": asdict(lora),
            "generation": {
                name: asdict(generation)[name] for name in ("backend", "max_new_tokens", "tokens_per_batch")
            },
            "libraries": {name: libraries[name] for name in ("torch", "transformers")},
        }

    def greedy(self, examples: Sequence[Example]) -> list[Rollout]:
        """The likeliest answer, token by token, of each example."""
        return [group[0] for group in self._answers("greedy answers", "greedy", examples, 1, None)]

    def sampled(self, examples: Sequence[Example], samples: int) -> list[list[Rollout]]:
        """`samples` answers of each example at temperature 1; they follow from the stage's seed."""
        return self._answers(f"{samples} samples each", "pass_k", examples, samples, self.stage.seed)

    def _answers(
        self, label: str, name: str, examples: Sequence[Example], samples: int, seed: int | None
    ) -> list[list[Rollout]]:
        asked = json.dumps([(example.id, example.input_text) for example in examples])
        draw = {"prompts": hashlib.sha256(asked.encode()).hexdigest(), "samples": samples, "seed": seed}
        origin = {**self.origin, "answers": {**draw, "records_per_call": RECORDS_PER_CALL}}
        journal = Journal(unfinished(self.stage) / f"{name}.jsonl", origin, self.stage.warn)
        if journal.pieces:
            self.stage.terminal.say(
                f"{label}: {sum(map(len, journal.pieces))} of {len(examples)} are there from before"
            )
        with self.stage.terminal.progress(label, len(examples)) as progress:
            return answer(self.sampler, examples, journal, progress, samples=samples, seed=seed)


def answer(
    sampler: Sampler,
    examples: Sequence[Example],
    journal: Journal,
    progress: Progress,
    *,
    samples: int = 1,
    seed: int | None = None,
) -> list[list[Rollout]]:
    """`samples` completions of each example, [examples][samples], in the order given: greedy without `seed`.

    Records go by rising length, so that little padding is computed; a sample depends on (seed, id, sample) alone.
    A piece of the journal is one call's texts with their tokens, in that order.
    UserError, with the record's id, when logits are not finite.
    """
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].input_text))
    answers: list[list[Rollout]] = [[] for _ in examples]
    tokens = 0
    for call, start in enumerate(range(0, len(order), RECORDS_PER_CALL)):
        chosen = order[start : start + RECORDS_PER_CALL]
        if call == len(journal.pieces):
            part = [examples[index] for index in chosen]
            ids = [example.id for example in part]
            numbers = None if seed is None else uniforms(seed, 0, ids, samples, sampler.max_new_tokens)
            drawn = sampler.draw(part, samples, numbers).rollouts()
            rows = [[one.text, one.truncated, one.tokens] for one in drawn]
            journal.append([rows[place : place + samples] for place in range(0, len(rows), samples)])
        for index, group in zip(chosen, journal.pieces[call], strict=True):
            answers[index] = [Rollout(examples[index], number, *row) for number, row in enumerate(group)]
            tokens += sum(one.tokens for one in answers[index])
        done = start + len(chosen)
        progress.update(done, tokens_each=round(tokens / (done * samples), 1))
    return answers


def weights_read(stage: Stage, model: ModelSettings, checkpoint: Path | None) -> dict[str, str | None]:
    """What a policy is loaded from: digests of the checkpoint and of its base."""
    names = [model.name]
    if checkpoint is not None and (checkpoint / "adapter_config.json").is_file():
        names.append(str(read_json(checkpoint / "adapter_config.json").get("base_model_name_or_path")))
    return {
        "checkpoint": None if checkpoint is None else hashed(stage, checkpoint)["sha256"],
        "base": " ".join(map(digest_of, dict.fromkeys(names))),
    }
