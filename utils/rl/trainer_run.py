"""What training through TRL's trainers (03, 09) shares: our order of records, validation, stopping rule, checkpoints.

Their checkpoints, once whole, become those of `utils.rl.checkpoints`; a run goes on from the last one as if it had
never stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from utils.errors import UserError
from utils.files import read_json, read_jsonl, write_json
from utils.logs import TrainLog
from utils.models.load import in_order, load_weights, save_model
from utils.rl.checkpoints import new_checkpoint, resume_point, step_number
from utils.rl.finite import REMEDY, NonFiniteError, check_figures, gradient_norm, named
from utils.seeds import generator
from utils.settings import ModelSettings, ValidationSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Trainer

    from utils.models.load import Model
    from utils.terminal import Progress

SomeArguments = TypeVar("SomeArguments", bound=TrainingArguments)
Validation = Callable[[], tuple[dict[str, float], list[dict[str, Any]]]]
"""Measures the policy: (figures with `val_accuracy` and `val_parse_rate`, one row per record)."""


@dataclass
class Selection:
    """The best validation so far and how long ago it was; kept in every checkpoint."""

    best: float = -1.0
    best_step: int = -1
    evaluations_since: int = 0

    def note(self, step: int, accuracy: float) -> bool:
        """Take in one evaluation; whether it is the best (the first of equals counts).

        Step 0 is a start that was chosen on the same records: the highest of many there, it is never chosen again.
        Waiting begins with the first correct answer: until the format is learned, accuracy is 0 and cannot rise.
        """
        if not step:
            return False
        if accuracy > self.best:
            self.best, self.best_step, self.evaluations_since = accuracy, step, 0
            return True
        self.evaluations_since += self.best > 0
        return False


def order_of_records(lengths: Sequence[int], batches: int, batch_size: int, seed: int) -> list[int]:
    """Record numbers of `batches` optimiser steps: seeded permutations end to end, records of like length together.

    Eight batches at a time are sorted by length and then shuffled, so that little padding is computed. A batch depends
    on (seed, its number) alone: a resumed run reads on where it stopped, and into how many micro-batches a step is cut
    does not change what it learns from.
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


def trainer_arguments(
    settings: ModelSettings, validation: ValidationSettings, *, seed: int, steps: int, on_cpu: bool
) -> dict[str, Any]:
    """Arguments that SFTConfig and DPOConfig get alike: ready token ids in our order, nothing cut, nothing printed."""
    return {
        "max_steps": steps,
        "lr_scheduler_type": "constant_with_warmup",
        "logging_steps": validation.logging_steps,
        "save_steps": validation.save_steps,
        "seed": seed,
        "data_seed": seed,
        "bf16": settings.precision == "bf16",
        "use_cpu": on_cpu,
        "activation_checkpointing": settings.activation_checkpointing,
        "max_length": None,
        "pad_to_multiple_of": 32,
        "report_to": "none",
        "train_sampling_strategy": "sequential",
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
    }


def on_one_device(arguments: SomeArguments) -> SomeArguments:
    """The same with a single GPU: beside others, TRL's trainers would ask for DataParallel, which they refuse."""
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _refuse_adapted_head(model: Model) -> None:
    """UserError for an adapter on the output layer, which TRL would meet with a traceback."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise UserError("lora.target_modules: TRL trains no adapter on the output layer; leave lm_head out")


class NamedBatches:
    """Mixin of TRL's trainers: what is not finite stops them, with step and record, before anything is learned from it.

    `names`: of the records, in the order in which they are passed.
    """

    names: Sequence[str] = ()
    _step = _part = -1
    args: Any
    model: Any
    state: Any

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Loss of a micro-batch, whose gradient is added (transformers.Trainer). UserError names what is not finite."""
        step = self.state.global_step
        self._part = self._part + 1 if step == self._step else 0
        self._step = step
        size = self.args.per_device_train_batch_size
        start = (step * self.args.gradient_accumulation_steps + self._part) * size
        names = self.names[start : start + size]
        try:
            loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        except NonFiniteError as error:
            raise NonFiniteError(f"step {step + 1}: record {names[error.row or 0]}: {error}; {REMEDY}") from error
        place = f"step {step + 1}: one of the records {', '.join(names)}"
        check_figures(place, {"the loss": loss})
        gradient_norm(place, dict(self.model.named_parameters()))
        return loss


class TrainerRun:
    """One run of a TRL trainer in `folder` (ckpt_<method>, logs, a folder of samples).

    A subclass makes the trainer and hands it to `attach`. `logged`: the trainer's figure -> its name in train.jsonl,
    for everything that holds no clock. `validate` None switches validation, and with it early stopping, off. `first`:
    validate the start itself, as step 0. `patience`: evaluations without a rise before stopping (0: never). UserError
    for what TRL cannot train.
    """

    trainer: Trainer

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        *,
        method: str,
        samples: str,
        logged: Mapping[str, str],
        patience: int,
        validation: ValidationSettings,
        validate: Validation | None,
        report_to: str,
        first: bool,
    ) -> None:
        _refuse_adapted_head(model)
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.checkpoints, self.samples = folder / f"ckpt_{method}", folder / samples
        self.logged, self.patience = logged, patience
        self.validation, self.validate, self.first = validation, validate, first
        self.selection = Selection()
        self.last_step = 0
        self.report_to = report_to

    def attach(self, trainer: Trainer) -> None:
        """Take the trainer that does the steps."""
        trainer.add_callback(_Callback(self))
        trainer.remove_callback(PrinterCallback)  # stage.terminal and train.jsonl say it
        self.trainer = trainer

    @property
    def stopped(self) -> bool:
        """Whether the stopping rule says stop."""
        return 0 < self.patience <= self.selection.evaluations_since

    def train(self, resuming: bool, progress: Progress) -> Selection:
        """Train until the stopping rule or the last step; `best` and `final` are written. Returns the selection."""
        point = resume_point(self.checkpoints, self.validation.keep_checkpoints) if resuming else None
        if point:
            self.last_step = step_number(point)
            self.selection = Selection(**read_json(point / "selection.json"))
        self.progress = progress
        # a validation off the grid is the one at the end, which comes again
        repeated = "validation" if self.last_step % self.validation.eval_steps else ""
        self.log = TrainLog(self.folder, self.last_step if point else None, self.report_to, repeated)
        if self.first and not point:
            self.evaluate(0)
        if point and self.stopped:  # killed between the last checkpoint and the end
            load_weights(self.model, point)
        else:
            self.trainer.train(resume_from_checkpoint=str(point) if point else None)
            self.last_step = self.trainer.state.global_step
        if self.validate and self.last_step % self.validation.eval_steps:
            self.evaluate(self.last_step)
        self.log.close()
        save_model(self.model, self.tokenizer, self.checkpoints / "final")
        if not self.validate:
            shutil.copytree(self.checkpoints / "final", self.checkpoints / "best", dirs_exist_ok=True)
        return self.selection

    def validations(self) -> list[dict[str, Any]]:
        """Figures of every validation, oldest first."""
        return [row for row in read_jsonl(self.log.path) if row["phase"] == "validation"]

    @property
    def validated(self) -> int:
        """How many checkpoints `best` is chosen among."""
        return sum(row["step"] > 0 for row in self.validations())

    def evaluate(self, step: int) -> bool:
        """Validate at a step: log it, keep it when it is the best. Whether the stopping rule says stop."""
        assert self.validate is not None
        training = self.model.training
        self.model.eval()
        with named(f"validation of step {step}"):
            figures, rows = self.validate()
        check_figures(f"validation of step {step}", figures)
        self.model.train(training)
        self.log.write(step, {"phase": "validation", **figures})
        write_json(self.samples / f"step_{step}.json", rows)
        if self.selection.note(step, figures["val_accuracy"]):
            save_model(self.model, self.tokenizer, self.checkpoints / "best")
        self.progress.update(step, accuracy=figures["val_accuracy"], parsed=figures["val_parse_rate"])
        return self.stopped


class _Callback(TrainerCallback):  # type: ignore[misc]
    """What the trainer tells us, in its words."""

    def __init__(self, run: TrainerRun) -> None:
        self.run = run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What a kill left of a checkpoint goes: of a model card that is there, PEFT would keep what it finds."""
        for half in self.run.checkpoints.glob("checkpoint-*"):
            shutil.rmtree(half)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = self.run
        due = state.global_step % run.validation.eval_steps == 0
        if run.validate and due and run.evaluate(state.global_step):
            control.should_training_stop = True
        if control.should_save:  # the means that are being gathered for the next line are in no checkpoint
            control.should_log = True
        run.progress.update(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        figures = {ours: logs[name] for name, ours in self.run.logged.items() if logs and name in logs}
        if "loss" in figures:
            check_figures(f"step {state.global_step}", figures)
            self.run.log.write(state.global_step, {"phase": "train", **figures})
        state.log_history.clear()  # train.jsonl has it, and without TRL's token count, which begins anew at a resume

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = self.run
        run.log.sync()
        # TRL's model card names no base and has its tags in another order each time; `export` writes one with figures
        (run.checkpoints / "README.md").unlink(missing_ok=True)
        with new_checkpoint(run.checkpoints, state.global_step, run.validation.keep_checkpoints) as new:
            (run.checkpoints / f"checkpoint-{state.global_step}").rename(new)
            (new / "training_args.bin").unlink()  # a pickle that holds this folder's name; the settings are known
            for config in new.rglob("adapter_config.json"):
                in_order(config)
            write_json(new / "selection.json", asdict(run.selection))
