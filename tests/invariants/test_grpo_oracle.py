"""GRPO's advantages, loss and gradient equal TRL's GRPOTrainer on a batch that TRL sampled itself, left-padded.

TRL's `use_bias_correction_kl` is off: it multiplies the KL by the importance weight, which the paper does not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.invariants.tiny import letter_prompts, letter_tokenizer, save_letter_model
from utils.rl.advantages import group_advantages
from utils.rl.logprobs import completion_logprobs
from utils.rl.losses import clipped_policy_loss, k3_kl, token_weights
from utils.rl.packing import pack

PROMPTS, GROUP, LONGEST, BETA, LOW, HIGH = 4, 3, 6, 0.3, 0.1, 0.2


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Any function of the tokens, known to both sides."""
    return [(sum(ids) % 7) / 7 for ids in completion_ids]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Per `scale_rewards`: the trainer after one step at learning rate 0, and the batch it trained on."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class Capturing(GRPOTrainer):
        def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
            self.batch = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            return super().compute_loss(model, inputs, **options)

    start = tmp_path_factory.mktemp("start")
    save_letter_model(start)
    prompts = Dataset.from_list([{"prompt": text} for text in ("ab", "abcd", "dcb", "a")])
    found = {}
    for scale in ("group", "batch"):
        arguments = GRPOConfig(
            str(tmp_path_factory.mktemp("trl")), per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
            max_completion_length=LONGEST, max_steps=1, learning_rate=0.0, beta=BETA, epsilon=LOW, epsilon_high=HIGH,
            scale_rewards=scale, use_bias_correction_kl=False, use_cpu=True, bf16=False, report_to="none",
            activation_checkpointing=False, disable_tqdm=True, seed=1,
        )  # fmt: skip
        tokenizer = letter_tokenizer()
        trainer = Capturing(str(start), [reward], arguments, train_dataset=prompts, processing_class=tokenizer)
        trainer.train()
        trainer.model.train()
        found[scale] = trainer
    return found


def rows_of(batch: dict[str, torch.Tensor]) -> tuple[list[list[int]], list[list[int]]]:
    """Unpadded prompts and completions, one per row."""
    pairs = (("prompt_ids", "prompt_mask"), ("completion_ids", "completion_mask"))
    return tuple([ids[m.bool()].tolist() for ids, m in zip(batch[i], batch[k], strict=True)] for i, k in pairs)  # type: ignore[return-value]


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_advantages(captured: dict[str, Any], scale: str) -> None:
    batch = captured[scale].batch
    prompts, completions = rows_of(batch)
    assert len({len(prompt) for prompt in prompts}) > 1, "prompts must be padded for this test to say something"
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(row)
    order = torch.tensor(list(groups.values()))
    totals = torch.tensor(reward(completions))[order]
    assert totals.std() > 0.05
    ours = group_advantages(totals, use_batch_bonus=scale == "batch")
    torch.testing.assert_close(ours, batch["advantages"][order], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_loss_and_gradient(captured: dict[str, Any], loss_type: str, accumulate: int) -> None:
    trainer = captured["group"]
    batch = dict(trainer.batch)
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(2, *batch["completion_ids"].shape, generator=generator)
    with torch.no_grad():
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        logp = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, batch["completion_ids"].shape[1])[0]
    # an old policy and a reference that differ, so that ratio, clipping and KL all matter
    batch["old_per_token_logps"], batch["ref_per_token_logps"] = logp + 0.2 * noise[0], logp + 0.5 * noise[1]
    batch["advantages"] = torch.randn(len(ids), generator=generator)

    theirs = trl_loss(trainer, batch, loss_type, accumulate)
    their_gradient = gradients(trainer.model)
    ours, clipped = our_loss(trainer.model, batch, loss_type, accumulate)
    our_gradient = gradients(trainer.model)
    assert 0.1 < clipped < 0.9
    assert ours == pytest.approx(theirs, rel=1e-5)
    for name, gradient in their_gradient.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(our_gradient[name] / scale, gradient / scale, atol=1e-5, rtol=1e-5)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def trl_loss(trainer: Any, batch: dict[str, torch.Tensor], loss_type: str, accumulate: int) -> float:
    """TRL's loss with `accumulate` micro-batches, summed; gradients are left in the model."""
    trainer.loss_type = loss_type
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = accumulate
    trainer.model.zero_grad()
    total, rows = 0.0, len(batch["prompt_ids"]) // accumulate
    for i in range(accumulate):
        part = {k: v if v.dim() == 0 else v[i * rows : (i + 1) * rows] for k, v in batch.items()}
        loss = type(trainer).__mro__[1].compute_loss(trainer, trainer.model, part)
        loss.backward()
        total += float(loss.detach())
    return total


def our_loss(model: Any, batch: dict[str, torch.Tensor], loss_type: str, accumulate: int) -> tuple[float, float]:
    """The loss as 06 computes it, packed and in micro-batches of other sizes, and the share of clipped tokens."""
    prompts, completions = rows_of(batch)
    lengths = torch.tensor([len(completion) for completion in completions])
    weights = token_weights(lengths, torch.ones_like(lengths, dtype=torch.bool), loss_type, LONGEST).float()
    total, clipped_tokens = 0.0, 0.0
    edges = [0, len(prompts)] if accumulate == 1 else [0, 3, 8, len(prompts)]
    for first, last in zip(edges, edges[1:], strict=False):
        rows = torch.arange(first, last)
        packed = pack(prompts[first:last], [[completion] for completion in completions[first:last]], pad_id=0)
        logp, _ = completion_logprobs(model, packed)
        row, time = rows[packed.sample], packed.time
        old, reference = batch["old_per_token_logps"][row, time], batch["ref_per_token_logps"][row, time]
        loss, _, clipped = clipped_policy_loss(logp, old, batch["advantages"][row], LOW, HIGH)
        loss = (weights[row] * (loss + BETA * k3_kl(logp, reference))).sum()
        loss.backward()
        total += float(loss.detach())
        clipped_tokens += float(clipped.sum())
    return total, clipped_tokens / int(lengths.sum())


def test_the_letters_of_the_prompts_are_known() -> None:
    """The prompts above are made of letters that the tokenizer knows, like those of the other tests."""
    assert 3 not in {token for row in letter_prompts(5, 0) for token in letter_tokenizer()(row["text"])["input_ids"]}
