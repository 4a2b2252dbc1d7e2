"""Supervised fine-tuning through TRL's SFTTrainer: our token ids in, our validation, stopping rule and checkpoints out.

The trainer gets ready token ids and labels (prompt masked), so that it reads what sampling and evaluation read. Its
checkpoints become `ckpt_sft/step_N` by a rename after they are whole: the newest such folder is always complete.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from utils.errors import UserError
from utils.files import read_json, write_json
from utils.logs import TrainLog
from utils.models.load import save_model
from utils.models.tokens import encode_prompt, encode_target
from utils.rl.checkpoints import drop_old, step_number, steps_in
from utils.seeds import generator
from utils.settings import ModelSettings, TrainingSettings, ValidationSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from utils.models.load import Model
    from utils.terminal import Progress

IGNORED = -100
LOGGED = ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy")
"""What of the trainer's figures goes to train.jsonl: everything that holds no clock."""


@dataclass(frozen=True)
class Tokenised:
    """One training record: `input_ids` = prompt + target, `labels` the same with the prompt masked."""

    input_ids: list[int]
    labels: list[int]


@dataclass
class Selection:
    """The best validation so far and how long ago it was; kept in every checkpoint."""

    best: float = -1.0
    best_step: int = -1
    evaluations_since: int = 0

    def note(self, step: int, accuracy: float) -> bool:
        """Take in one evaluation; whether it is the best (the first of equals counts).

        Waiting begins with the first correct answer: until the format is learned, accuracy is 0 and cannot rise.
        """
        if accuracy > self.best:
            self.best, self.best_step, self.evaluations_since = accuracy, step, 0
            return True
        self.evaluations_since += self.best > 0
        return False


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
        rows.append(Tokenised(start + end, [IGNORED] * len(start) + end))
    return rows


def order_of_records(lengths: Sequence[int], batches: int, batch_size: int, seed: int) -> list[int]:
    """Record numbers of `batches` micro-batches: seeded permutations end to end, records of like length together.

    Eight batches at a time are sorted by length and then shuffled, so that little padding is computed. A batch depends
    on (seed, its number) alone: a resumed run reads on where it stopped.
    """
    records, shuffling = generator(seed, "supervised order"), generator(seed, "supervised batches")
    stream: list[int] = []
    while len(stream) < (batches + 8) * batch_size:
        stream += records.permutation(len(lengths)).tolist()
    order: list[int] = []
    for start in range(0, batches * batch_size, 8 * batch_size):
        chunk = sorted(stream[start : start + 8 * batch_size], key=lambda i: lengths[i])
        parts = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        order += [i for part in shuffling.permutation(len(parts)) for i in parts[part]]
    return order[: batches * batch_size]


def steps_for(token_passes: float, rows: Sequence[Tokenised], records_per_step: int) -> int:
    """Optimiser steps that cost `token_passes`, a token's forward being 1 and its forward + backward 3 (at least 1)."""
    mean = sum(len(row.input_ids) for row in rows) / len(rows)
    return max(1, math.ceil(token_passes / (3 * mean * records_per_step)))


class Supervised:
    """One supervised run in `folder` (ckpt_sft, logs, valid_samples).

    `steps` optimiser steps at most. `validate` returns (figures with `val_execution_accuracy`, rows for valid_samples);
    None switches validation, and with it early stopping, off. `first`: validate the start itself, as step 0.
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
        validate: Callable[[], tuple[dict[str, float], list[dict[str, Any]]]] | None,
        device: torch.device,
        report_to: str,
        first: bool,
    ) -> None:
        from datasets import Dataset

        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.training, self.validation, self.validate, self.first = training, validation, validate, first
        self.checkpoints = folder / "ckpt_sft"
        self.selection = Selection()
        self.last_step = 0
        self.report_to = report_to
        batches = steps * training.gradient_accumulation_steps
        lengths = [len(row.input_ids) for row in rows]
        order = order_of_records(lengths, batches, training.batch_size, seed)
        self.tokens = [lengths[i] for i in order]
        data = Dataset.from_list([asdict(row) for row in rows]).select(order)
        self.trainer = SFTTrainer(
            model,
            args=self._arguments(settings, seed, steps, on_cpu=device.type == "cpu"),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[_Callback(self)],
        )
        self.trainer.remove_callback(PrinterCallback)  # stage.terminal and train.jsonl say it

    def _arguments(self, settings: ModelSettings, seed: int, steps: int, on_cpu: bool) -> SFTConfig:
        training, validation = self.training, self.validation
        return SFTConfig(
            output_dir=str(self.checkpoints),
            per_device_train_batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            learning_rate=training.learning_rate,
            warmup_steps=training.warmup_steps,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            max_steps=steps,
            lr_scheduler_type="constant_with_warmup",
            logging_steps=validation.logging_steps,
            save_steps=validation.save_steps,
            seed=seed,
            data_seed=seed,
            bf16=settings.precision == "bf16",
            use_cpu=on_cpu,
            activation_checkpointing=settings.activation_checkpointing,
            max_length=None,
            pad_to_multiple_of=32,
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to="none",
            train_sampling_strategy="sequential",
            disable_tqdm=True,
            dataloader_pin_memory=not on_cpu,
            remove_unused_columns=False,
        )

    def resume_point(self) -> Path | None:
        """The newest whole step folder."""
        whole = [path for path in steps_in(self.checkpoints) if (path / "selection.json").is_file()]
        return whole[-1] if whole else None

    def train(self, resuming: bool, progress: Progress) -> Selection:
        """Train until the stopping rule or the last step; `best` and `final` are written. Returns the selection."""
        point = self.resume_point() if resuming else None
        step = 0
        if point:
            step = step_number(point)
            self.selection = Selection(**read_json(point / "selection.json"))
        self.progress = progress
        self.log = TrainLog(self.folder, step if point else None, self.report_to)
        if self.first and not point:
            self.evaluate(0)
        self.trainer.train(resume_from_checkpoint=str(point) if point else None)
        self.last_step = self.trainer.state.global_step
        if self.validate and self.trainer.state.global_step % self.validation.eval_steps:
            self.evaluate(self.last_step)
        self.log.close()
        save_model(self.model, self.tokenizer, self.checkpoints / "final")
        if not self.validate:
            shutil.copytree(self.checkpoints / "final", self.checkpoints / "best", dirs_exist_ok=True)
        return self.selection

    def spent(self) -> dict[str, int]:
        """Tokens passed forward and backward so far, padding left out."""
        records = self.training.batch_size * self.training.gradient_accumulation_steps
        return {"gradient_tokens": sum(self.tokens[: self.last_step * records])}

    def evaluate(self, step: int) -> bool:
        """Validate at a step: log it, keep it when it is the best. Whether the stopping rule says stop."""
        assert self.validate is not None
        training = self.model.training
        self.model.eval()
        figures, rows = self.validate()
        self.model.train(training)
        self.log.write(step, {"phase": "validation", **figures})
        write_json(self.folder / "valid_samples" / f"step_{step}.json", rows)
        if self.selection.note(step, figures["val_execution_accuracy"]):
            save_model(self.model, self.tokenizer, self.checkpoints / "best")
        self.progress.update(step, accuracy=figures["val_execution_accuracy"], parsed=figures["val_parse_rate"])
        return 0 < self.training.patience <= self.selection.evaluations_since


class _Callback(TrainerCallback):  # type: ignore[misc]
    """What the trainer tells us, in its words."""

    def __init__(self, run: Supervised) -> None:
        self.run = run

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = self.run
        due = state.global_step % run.validation.eval_steps == 0
        if run.validate and due and run.evaluate(state.global_step):
            control.should_training_stop = True
        run.progress.update(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        figures = {name: logs[name] for name in LOGGED if logs and name in logs}
        if "loss" in figures:
            if not all(math.isfinite(value) for value in figures.values()):
                raise UserError(
                    f"step {state.global_step}: {figures}: not finite; "
                    "lower training.learning_rate, or use precision fp32"
                )
            self.run.log.write(state.global_step, {"phase": "train", **figures})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = self.run
        made = run.checkpoints / f"checkpoint-{state.global_step}"
        write_json(made / "selection.json", asdict(run.selection))
        target = run.checkpoints / f"step_{state.global_step}"
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
        drop_old(run.checkpoints, state.global_step, run.validation.keep_checkpoints)
        # TRL's model card names no base and has its tags in another order each time; `export` writes one with figures
        (run.checkpoints / "README.md").unlink(missing_ok=True)
