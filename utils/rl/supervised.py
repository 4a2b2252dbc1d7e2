"""Supervised fine-tuning through TRL's SFTTrainer: our token ids in, our validation, stopping rule and checkpoints out.

The trainer gets ready token ids and labels (prompt masked), so that it reads what sampling and evaluation read.
`utils.rl.trainer_run` has what it shares with preference training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trl import SFTConfig

from utils.errors import UserError
from utils.models.tokens import encode_prompt, encode_target
from utils.rl.sft_trainer import TargetTrainer
from utils.rl.trainer_run import TrainerRun, Validation, on_one_device, order_of_records, trainer_arguments
from utils.settings import ModelSettings, TrainingSettings, ValidationSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from utils.models.load import Model

IGNORED = -100
LOGGED = ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy")
"""What of the trainer's figures goes to train.jsonl: everything that holds no clock."""


@dataclass(frozen=True)
class Tokenised:
    """One training record: `input_ids` = prompt + target, `labels` the same with the prompt masked."""

    input_ids: list[int]
    labels: list[int]
    id: str = field(default="", compare=False)


def tokenise(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str, str]], max_length: int
) -> list[Tokenised]:
    """(id, prompt, target) to ids and labels. UserError for a record longer than `max_length`: none is ever cut."""
    rows = []
    for name, prompt, target in pairs:
        start, end = encode_prompt(tokenizer, prompt), encode_target(tokenizer, target)
        length = len(start) + len(end)
        if length > max_length:
            raise UserError(
                f"record {name}: prompt + target have {length} tokens, training.max_length is {max_length}; "
                "raise it, or lower task.max_prompt_tokens and run 01 again"
            )
        rows.append(Tokenised(start + end, [IGNORED] * len(start) + end, name))
    return rows


def steps_for(token_passes: float, rows: Sequence[Tokenised], records_per_step: int) -> int:
    """Optimiser steps that cost `token_passes`, a token's forward being 1 and its forward + backward 3 (at least 1)."""
    mean = sum(len(row.input_ids) for row in rows) / len(rows)
    return max(1, math.ceil(token_passes / (3 * mean * records_per_step)))


class Supervised(TrainerRun):
    """One supervised run in `folder` (ckpt_sft, logs, valid_samples): at most `steps` optimiser steps.

    `validate` returns (figures with `val_accuracy`, rows for valid_samples); see TrainerRun.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        rows: Sequence[Tokenised],
        *,
        settings: ModelSettings,
        training: TrainingSettings,
        validation: ValidationSettings,
        seed: int,
        steps: int,
        validate: Validation | None,
        device: torch.device,
        report_to: str,
        first: bool,
    ) -> None:
        from datasets import Dataset

        super().__init__(
            model,
            tokenizer,
            folder,
            method="sft",
            samples="valid_samples",
            logged={name: name for name in LOGGED},
            patience=training.patience,
            validation=validation,
            validate=validate,
            report_to=report_to,
            first=first,
        )
        self.training = training
        lengths = [len(row.input_ids) for row in rows]
        order = order_of_records(lengths, steps, training.batch_size * training.gradient_accumulation_steps, seed)
        self.tokens = [lengths[i] for i in order]
        arguments = SFTConfig(
            output_dir=str(self.checkpoints),
            per_device_train_batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            learning_rate=training.learning_rate,
            warmup_steps=training.warmup_steps,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            dataset_kwargs={"skip_prepare_dataset": True},
            **trainer_arguments(settings, validation, seed=seed, steps=steps, on_cpu=device.type == "cpu"),
        )
        data = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]).select(order)
        trainer = TargetTrainer(model, args=on_one_device(arguments), train_dataset=data, processing_class=tokenizer)
        trainer.names = [rows[i].id for i in order]
        self.attach(trainer)

    def spent(self) -> dict[str, int]:
        """Tokens passed forward and backward so far, padding left out."""
        records = self.training.batch_size * self.training.gradient_accumulation_steps
        return {"gradient_tokens": sum(self.tokens[: self.last_step * records])}
