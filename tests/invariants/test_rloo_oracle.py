"""RLOO's advantages, loss and gradient equal TRL's RLOOTrainer on a batch that TRL sampled itself, left-padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.invariants.test_grpo_oracle import GROUP, LONGEST, PROMPTS, gradients, reward, rows_of
from tests.invariants.tiny import letter_tokenizer, save_letter_model
from utils.rl.logprobs import completion_logprobs
from utils.rl.losses import clipped_policy_loss, token_weights
from utils.rl.micro_batch import MicroBatch
from utils.rl.packing import pack
from utils.rl.sequences import at_tokens, sequence_advantages, sequence_logp

BETA, CLIP = 0.3, 0.2


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trainer after one step at learning rate 0, with a reference that differs, and the batch it trained on."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    class Capturing(RLOOTrainer):
        def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
            self.batch = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            return super().compute_loss(model, inputs, **options)

    start = tmp_path_factory.mktemp("start")
    save_letter_model(start)
    prompts = Dataset.from_list([{"prompt": text} for text in ("ab", "abcd", "dcb", "a")])
    arguments = RLOOConfig(
        str(tmp_path_factory.mktemp("trl")), per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
        max_completion_length=LONGEST, max_steps=1, learning_rate=0.0, beta=BETA, epsilon=CLIP, use_cpu=True,
        bf16=False, report_to="none", activation_checkpointing=False, disable_tqdm=True, seed=1,
    )  # fmt: skip
    found = Capturing(str(start), [reward], arguments, train_dataset=prompts, processing_class=letter_tokenizer())
    generator = torch.Generator().manual_seed(3)
    for weight in found.ref_model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    found.train()
    found.model.train()
    return found


def grouped(batch: dict[str, torch.Tensor]) -> tuple[list[list[int]], list[list[list[int]]], torch.Tensor]:
    """Prompts, their groups of completions, and the row of TRL's batch of each sample [_B, _G]."""
    prompts, completions = rows_of(batch)
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(row)
    samples = [[completions[row] for row in rows] for rows in groups.values()]
    return [list(prompt) for prompt in groups], samples, torch.tensor(list(groups.values()))


def micro_batch(trainer: Any, first: int, last: int) -> tuple[MicroBatch, torch.Tensor]:
    """Our micro-batch of some groups, packed, with its rewards and the policy that sampled; and TRL's rows."""
    prompts, samples, order = grouped(trainer.batch)
    packed = pack(prompts[first:last], samples[first:last], pad_id=0)
    totals = torch.tensor([reward(group) for group in samples])[first:last]
    lengths = torch.tensor([len(completion) for group in samples for completion in group])
    weights = token_weights(lengths, torch.ones_like(lengths, dtype=torch.bool), "grpo", LONGEST).float()
    with torch.no_grad():
        reference, _ = completion_logprobs(trainer.ref_model, packed)
        old, _ = completion_logprobs(trainer.model, packed)
    weight = at_tokens(weights.view(order.shape)[first:last].flatten(), packed)
    return MicroBatch(packed, [], totals, totals.flatten(), weight, reference, old), order[first:last].flatten()


def test_advantages(trainer: Any) -> None:
    assert trainer.batch["prompt_mask"].sum(1).unique().numel() > 1, "prompts must be padded to say something"
    micro, order = micro_batch(trainer, 0, PROMPTS)
    sequence_advantages(micro, BETA, "loo")
    assert micro.samples["kl"].abs().min() > 1e-3 and micro.samples["reward"].std() > 0.05
    torch.testing.assert_close(micro.samples["advantage"], trainer.batch["advantages"][order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_loss_and_gradient(trainer: Any, accumulate: int) -> None:
    """An old policy that differs, so that ratio and clipping matter."""
    batch = dict(trainer.batch)
    # every other sample has moved far in the direction that its advantage wants, which is clipped; the others a little
    far = torch.arange(len(batch["prompt_ids"])) % 2 == 0
    noise = torch.where(far, -0.5, 0.1) * batch["advantages"].sign()
    batch["old_logps"] = batch["old_logps"] + noise
    trainer.model.zero_grad()
    theirs = 0.0
    # TRL's accumulation: the trainer divides each micro-batch's mean by their number
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = accumulate
    rows = len(noise) // accumulate
    for i in range(accumulate):
        part = {name: value[i * rows : (i + 1) * rows] if value.dim() else value for name, value in batch.items()}
        loss = type(trainer).__mro__[1].compute_loss(trainer, trainer.model, part) / accumulate
        loss.backward()
        theirs += float(loss.detach())
    their_gradient = gradients(trainer.model)

    ours, clipped = 0.0, []
    edges = [0, PROMPTS] if accumulate == 1 else [0, 1, PROMPTS]
    for first, last in zip(edges, edges[1:], strict=False):
        micro, order = micro_batch(trainer, first, last)
        advantage = sequence_advantages(micro, BETA, "loo")
        logp, _ = completion_logprobs(trainer.model, micro.packed)
        old = sequence_logp(micro.old_logp_or_fail, micro.packed) + at_tokens(noise[order], micro.packed)
        loss, _, clip = clipped_policy_loss(sequence_logp(logp, micro.packed), old, advantage, CLIP, CLIP)
        loss = (micro.weight * loss).sum()
        loss.backward()
        ours += float(loss.detach())
        clipped.append(clip)
    our_gradient = gradients(trainer.model)
    assert 0.1 < torch.cat(clipped).float().mean() < 0.9
    assert ours == pytest.approx(theirs, rel=1e-5)
    for name, gradient in their_gradient.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(our_gradient[name] / scale, gradient / scale, atol=1e-5, rtol=1e-5)
