"""TRL's GRPOTrainer as an opponent: the project's work and numbers, and the fastest settings that give the same."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.rollouts import PAD, build, vocabulary

KL, CLIP, RATE = 0.02, 0.2, 1e-6
"""The coefficients of every benchmark, on both sides."""
LORA: dict[str, Any] = {"r": 32, "alpha": 64, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
"""Adapters on both sides, where they are asked for: the project's defaults."""


def trainer(
    flags: argparse.Namespace,
    start: Path,
    texts: Sequence[str],
    reward: Callable[..., list[float]],
    *,
    rows: int,
    method: str = "grpo",
    attention: str = "sdpa",
    cache: str | None = None,
    lora: bool = False,
    load_in_4bit: bool = False,
) -> Any:
    """A trainer of the model in `start` on one batch per step: `flags.group` completions of each text, in micro-batches
    of `rows`. No activation checkpointing, no dropout; the reward gets the text's number as `record`."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    half = torch.bfloat16 if flags.dtype == "bf16" else torch.float32
    grpo = {"loss_type": "grpo", "scale_rewards": "batch", "use_bias_correction_kl": False} if method == "grpo" else {}
    arguments = (GRPOConfig if method == "grpo" else RLOOConfig)(
        tempfile.mkdtemp(), per_device_train_batch_size=rows, num_generations=flags.group,
        gradient_accumulation_steps=len(texts) * flags.group // rows, max_completion_length=flags.completion,
        cache_implementation=cache, beta=KL, epsilon=CLIP, activation_checkpointing=False, learning_rate=RATE,
        lr_scheduler_type="constant", max_grad_norm=1.0, weight_decay=0.0, bf16=flags.dtype == "bf16",
        use_cpu=flags.device == "cpu", seed=0, report_to="none", logging_strategy="no", save_strategy="no",
        disable_tqdm=True, **grpo,
        model_init_kwargs={"attn_implementation": attention, "dtype": half if lora else torch.float32},
    )  # fmt: skip
    return (GRPOTrainer if method == "grpo" else RLOOTrainer)(
        str(start), [reward], arguments, processing_class=AutoTokenizer.from_pretrained(start),
        train_dataset=Dataset.from_list([{"prompt": text, "record": i} for i, text in enumerate(texts)]),
        peft_config=_adapters() if lora else None,
        quantization_config=_four_bits(half) if load_in_4bit else None,
    )  # fmt: skip


def _four_bits(arithmetic: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=arithmetic
    )


def _adapters() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=LORA["r"], lora_alpha=LORA["alpha"], target_modules=LORA["target_modules"], task_type="CAUSAL_LM"
    )


class TrainerStep:
    """One optimiser step of a trainer at each call, sampling, rewards and reference included.

    What `train` does around `training_step`, without its callbacks, logs and data loading (in its favour).
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        loader = trainer.get_train_dataloader()
        self.model, loader = trainer._prepare_for_training(10**9, loader, None)
        self.batches = _endless(loader)

    def __call__(self) -> None:
        trainer = self.trainer
        parts = trainer.args.gradient_accumulation_steps
        trainer.current_gradient_accumulation_steps = parts
        for part in range(parts):
            trainer.accelerator.gradient_state._set_sync_gradients(part + 1 == parts)
            trainer.training_step(self.model, next(self.batches), None)
        trainer.accelerator.clip_grad_norm_(self.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.model.zero_grad()
        trainer.state.global_step += 1


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


@contextmanager
def scoring_completions_only() -> Iterator[None]:
    """TRL scores every position where there is no Triton, so on every CPU; here it scores completions, as on a GPU."""
    with patch("trl.trainer.utils._use_triton", lambda device: True):
        yield


def word(token: int) -> str:
    """The text of a token of `made_up_tokenizer`."""
    return f"t{token}"


def made_up_tokenizer(size: int) -> Any:
    """A word for each of the model's tokens; the end of text is a further one, which the model never draws, so that
    every completion has full length."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {**{word(token): token for token in range(size)}, "<end>": size, "<unknown>": size + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token=word(PAD), padding_side="left"
    )


def save_start(flags: argparse.Namespace, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """A model with random weights and its tokenizer."""
    build(flags, "sdpa", dtype).save_pretrained(folder)
    made_up_tokenizer(vocabulary(flags)).save_pretrained(folder)
