"""The loss that 03 takes at the targets alone is TRL's: value, gradients and logged figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTConfig, SFTTrainer

from tests.invariants.tiny import letter_tokenizer, tiny_model
from utils.rl.sft_trainer import TargetTrainer


def batch() -> dict[str, torch.Tensor]:
    """Four rows of 12 to 20 tokens; the last 2 to 9 are targets, one row has none."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (4, 20), generator=generator)
    labels = torch.full((4, 20), -100)
    for row, (length, learned) in enumerate(((20, 5), (12, 9), (17, 2), (15, 0))):
        ids[row, length:] = 0
        labels[row, length - learned : length] = ids[row, length - learned : length]
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def measured(trainer_class: type[Any], kind: str, folder: Path, items: int | None) -> tuple[Any, ...]:
    from datasets import Dataset

    model = tiny_model(kind)
    model.train()
    arguments = SFTConfig(
        output_dir=str(folder),
        report_to="none",
        use_cpu=True,
        bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    rows = Dataset.from_list([{"input_ids": [3], "labels": [3]}])
    trainer = trainer_class(model, args=arguments, train_dataset=rows, processing_class=letter_tokenizer())
    given = None if items is None else torch.tensor(items)
    loss = trainer.compute_loss(trainer.model, batch(), num_items_in_batch=given)
    loss.backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, {k: v for k, v in trainer._metrics["train"].items() if k != "num_tokens"}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llama-lora"])
@pytest.mark.parametrize("items", [None, 40])
def test_equal_to_trl(kind: str, items: int | None, tmp_path: Path) -> None:
    loss, gradients, figures = measured(TargetTrainer, kind, tmp_path, items)
    expected, others, theirs = measured(SFTTrainer, kind, tmp_path, items)
    assert loss == pytest.approx(expected, rel=1e-5) and loss > 0
    assert gradients.keys() == others.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-6)
    assert figures.keys() == theirs.keys() == {"entropy", "mean_token_accuracy"}
    for name, values in figures.items():
        assert values == pytest.approx(theirs[name], rel=1e-5)
