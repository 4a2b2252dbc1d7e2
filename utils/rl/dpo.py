"""Direct preference optimisation through TRL's DPOTrainer, in the way `utils.rl.supervised` uses its SFTTrainer.

    loss = -log sigmoid(beta (log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x)))        (Rafailov et al. 2023, eq. 7)

The reference is the policy as it was when the run was made: an adapter's frozen copy on the same base, or a frozen copy
of a policy whose own weights train. Both pass through the same arithmetic, so that the first loss is ln 2 exactly.
Dropout is off. The trainer gets ready token ids, so that it reads what sampling and evaluation read.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from trl import DPOConfig

from utils.errors import UserError
from utils.models.reference import freeze_copy
from utils.models.tokens import encode_prompt, encode_target
from utils.rl.dpo_trainer import REFERENCE, PairTrainer
from utils.rl.logprobs import completion_logprobs
from utils.rl.losses import k3_kl
from utils.rl.packing import lay_out, unpackable
from utils.rl.rollouts import Sampler
from utils.rl.trainer_run import TrainerRun, Validation, on_one_device, order_of_records, trainer_arguments
from utils.seeds import uniforms
from utils.settings import DPOSettings, ModelSettings, PreferenceSettings, ValidationSettings
from utils.tasks.base import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.models.load import Model

LOGGED = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "rewards/accuracies": "preference_accuracy",
    "rewards/margins": "preference_margin",
    "rewards/chosen": "implicit_reward_chosen",
    "rewards/rejected": "implicit_reward_rejected",
    "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected",
    "entropy": "entropy",
}
"""TRL's figure -> its name in train.jsonl: everything that holds no clock."""


@dataclass(frozen=True)
class TokenPair:
    """One pair as ids; both answers end with the end of text."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    id: str = field(default="", compare=False)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    def computed(self, packed: bool) -> int:
        """Tokens that a pass computes: the prompt once where a model takes packed rows, else for each answer."""
        return (1 if packed else 2) * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


def tokenise_pairs(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], max_length: int
) -> list[TokenPair]:
    """Rows of pairs.jsonl as ids. UserError for a pair longer than `max_length`: none is ever cut."""
    pairs = []
    for row in rows:
        chosen, rejected = (encode_target(tokenizer, row[side]) for side in ("chosen", "rejected"))
        pair = TokenPair(encode_prompt(tokenizer, row["prompt"]), chosen, rejected, row["id"])
        if pair.longest > max_length:
            raise UserError(
                f"record {row['id']}: prompt + answer have {pair.longest} tokens, preference.max_length is "
                f"{max_length}; raise it, or lower task.max_prompt_tokens and run 01 again"
            )
        pairs.append(pair)
    return pairs


class Preferences(TrainerRun):
    """One run of DPO in `folder` (ckpt_dpo, logs, val_generations): `steps` optimiser steps at most.

    `validate` measures greedy answers; `held_out` pairs are measured with it, and the KL to the reference on one sample
    for each of `kl_examples`, drawn with the same numbers every time.
    """

    trainer: PairTrainer

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        pairs: Sequence[TokenPair],
        held_out: Sequence[TokenPair],
        *,
        settings: ModelSettings,
        preference: PreferenceSettings,
        algorithm: DPOSettings,
        validation: ValidationSettings,
        seed: int,
        steps: int,
        validate: Validation | None,
        sampler: Sampler,
        kl_examples: Sequence[Example],
        device: torch.device,
        report_to: str,
    ) -> None:
        from datasets import Dataset

        super().__init__(
            model,
            tokenizer,
            folder,
            method="dpo",
            samples="val_generations",
            logged=LOGGED,
            patience=algorithm.patience,
            validation=validation,
            validate=None if validate is None else functools.partial(self._measured, validate),
            report_to=report_to,
            first=validate is not None,
        )
        self.preference, self.beta, self.seed = preference, algorithm.beta, seed
        self.sampler, self.kl_examples = sampler, list(kl_examples)
        self.held_out = sorted(held_out, key=lambda pair: pair.longest)
        # the policy is still the reference, also in a run that will go on from a checkpoint
        self.held_out_reference = self._pair_logprobs() if validate else np.empty((0, 2))
        per_step = preference.batch_size * preference.gradient_accumulation_steps
        order = order_of_records([pair.longest for pair in pairs], steps, per_step, seed)
        reason = unpackable(model)
        if reason is not None:
            sampler.warn(f"{reason}: a pair's prompt is computed twice instead of once")
        self.tokens = [pairs[i].computed(reason is None) for i in order]
        arguments = self._arguments(settings, algorithm, seed, steps, on_cpu=device.type == "cpu")
        frozen = None if hasattr(model, "peft_config") else copy.deepcopy(model).requires_grad_(False).eval()
        columns = ("prompt_ids", "chosen_ids", "rejected_ids")
        rows = [{column: getattr(pair, column) for column in columns} for pair in pairs]
        trainer = PairTrainer(
            model,
            ref_model=frozen,
            args=on_one_device(arguments),
            train_dataset=Dataset.from_list(rows).select(order),
            processing_class=tokenizer,
        )
        trainer.names = [pairs[i].id for i in order]
        if frozen is None:  # TRL's own copy leaves adapters on embeddings out
            freeze_copy(model, REFERENCE)
        self.attach(trainer)

    def _arguments(
        self, settings: ModelSettings, algorithm: DPOSettings, seed: int, steps: int, on_cpu: bool
    ) -> DPOConfig:
        preference = self.preference
        losses = {algorithm.loss_type: 1.0} | ({"sft": algorithm.sft_coef} if algorithm.sft_coef else {})
        return DPOConfig(
            output_dir=str(self.checkpoints),
            per_device_train_batch_size=preference.batch_size,
            gradient_accumulation_steps=preference.gradient_accumulation_steps,
            learning_rate=preference.learning_rate,
            warmup_steps=algorithm.warmup_steps,
            weight_decay=preference.weight_decay,
            max_grad_norm=algorithm.max_grad_norm,
            beta=algorithm.beta,
            loss_type=list(losses),
            loss_weights=list(losses.values()),
            label_smoothing=algorithm.label_smoothing,
            **trainer_arguments(settings, self.validation, seed=seed, steps=steps, on_cpu=on_cpu),
        )

    def spent(self) -> dict[str, int]:
        """Tokens passed so far, padding left out: with gradient, and as many through the reference."""
        records = self.preference.batch_size * self.preference.gradient_accumulation_steps
        tokens = sum(self.tokens[: self.last_step * records])
        return {"gradient_tokens": tokens, "forward_tokens": tokens}

    def _measured(self, validate: Validation) -> tuple[dict[str, float], list[dict[str, Any]]]:
        figures, rows = validate()
        return {**figures, **self._held_out_figures(), "kl": self._kl()}, rows

    def _held_out_figures(self) -> dict[str, float]:
        """Implicit rewards beta log(pi / ref) of held-out pairs; a tie counts half. Nothing without held-out pairs."""
        if not self.held_out:
            return {}
        rewards = self.beta * (self._pair_logprobs() - self.held_out_reference)
        margins = rewards[:, 0] - rewards[:, 1]
        return {
            "val_preference_accuracy": float(np.mean((margins > 0) + 0.5 * (margins == 0))),
            "val_preference_margin": float(margins.mean()),
            "val_implicit_reward_chosen": float(rewards[:, 0].mean()),
            "val_implicit_reward_rejected": float(rewards[:, 1].mean()),
        }

    def _pair_logprobs(self) -> np.ndarray[Any, Any]:
        """float64 [held-out pairs, 2]: log-probs of the chosen and of the rejected answer under the policy as it is."""
        size = self.preference.batch_size
        found = []
        for start in range(0, len(self.held_out), size):
            part = self.held_out[start : start + size]
            answers = [[pair.chosen_ids, pair.rejected_ids] for pair in part]
            batch = lay_out(self.model, [pair.prompt_ids for pair in part], answers, self.tokenizer.pad_token_id)
            batch = batch.to(self.model.device)
            with torch.no_grad(), self.sampler.context():
                logp, _ = completion_logprobs(self.model, batch)
            found.append(batch.padded(logp).double().sum(1).view(-1, 2).cpu().numpy())
        return np.concatenate(found) if found else np.empty((0, 2))

    def _kl(self) -> float:
        """Nats per token from the policy to the reference, by the k3 estimator on samples of the policy."""
        records = [example.id for example in self.kl_examples]
        numbers = uniforms(self.seed, 0, records, 1, self.sampler.max_new_tokens)
        drawn = self.sampler.draw(self.kl_examples, 1, numbers)
        total, count, size = 0.0, 0, self.preference.batch_size
        for start in range(0, len(records), size):
            prompts = drawn.prompts[start : start + size]
            answers = [[one.tokens for one in group] for group in drawn.groups[start : start + size]]
            batch = lay_out(self.model, prompts, answers, self.tokenizer.pad_token_id).to(self.model.device)
            with torch.no_grad(), self.sampler.context():
                logp, _ = completion_logprobs(self.model, batch)
            with self.trainer.reference() as frozen, self.sampler.context():
                reference, _ = completion_logprobs(frozen, batch)
            total += float(k3_kl(logp, reference).double().sum())
            count += len(logp)
        return total / count
