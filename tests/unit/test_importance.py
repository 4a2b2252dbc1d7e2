"""Importance weights by hand: what they are, that the loss gets them, what is logged."""

from __future__ import annotations

from math import log
from pathlib import Path

import pytest
import torch

from tests.invariants.tiny import save_letter_model
from utils.models.load import Model
from utils.rl.completions import Completion
from utils.rl.finite import NonFiniteError
from utils.rl.importance import importance_figures, reported_logprobs, truncated_importance
from utils.rl.learner import Learner
from utils.rl.logprobs import completion_logprobs
from utils.rl.losses import token_weights
from utils.rl.packing import pack
from utils.rl.rollouts import RolloutBatch
from utils.settings import LoraSettings, ModelSettings, RLSettings
from utils.tasks.base import Example

PROMPTS = [[1, 4, 5], [1, 6]]
ANSWERS = [[[4, 2], [5]], [[7, 8, 2], [9]]]
FACTORS = [0.5, 1.0, 4.0, 1.5, 0.25, 10.0, 1.0]
"""What the policy's probability is of the back end's, for each of the seven tokens."""


def test_by_hand() -> None:
    logp = torch.tensor([0.5, 0.2, 0.9]).log().requires_grad_()
    weights = truncated_importance(logp, torch.tensor([0.25, 0.4, 0.1]).log(), cap=2.5)
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.5, 2.5]))
    assert not weights.requires_grad
    # far beyond what exp can hold
    assert truncated_importance(torch.tensor([0.0]), torch.tensor([-1000.0]), 2.0).tolist() == [2.0]


def test_what_a_back_end_reports_is_one_number_per_token_or_nothing() -> None:
    with_numbers, without = Completion([5, 2], False, [-1.0, -2.0]), Completion([5], True)
    assert reported_logprobs([[without], [without, without]]) is None
    found = reported_logprobs([[with_numbers], [Completion([7], True, [-3.0])]])
    assert found is not None and found.tolist() == [-1.0, -2.0, -3.0]
    for wrong in (without, Completion([5, 2], False, [-1.0])):
        with pytest.raises(ValueError, match="came with"):
            reported_logprobs([[with_numbers, wrong]])


def learner_of(folder: Path, cap: float) -> Learner:
    save_letter_model(folder)
    settings = ModelSettings(name=str(folder), architecture="LlamaForCausalLM", precision="fp32")
    rates = RLSettings(learning_rate=0.0, micro_batch_tokens=64, importance_cap=cap)
    return Learner(settings, LoraSettings(), rates, start=folder, device="cpu", seed=0)


def rollout(policy: Model, factors: list[float] | None) -> RolloutBatch:
    """The answers above, to the back end less likely than to the policy by these factors."""
    with torch.no_grad():
        logp = completion_logprobs(policy, pack(PROMPTS, ANSWERS, pad_id=0))[0].tolist()
    reported = iter([] if factors is None else [a - log(b) for a, b in zip(logp, factors, strict=True)])
    groups = [
        [Completion(ids, False, None if factors is None else [next(reported) for _ in ids]) for ids in group]
        for group in ANSWERS
    ]
    examples = [Example(id=f"r{i}", input_text="ab") for i in range(2)]
    return RolloutBatch(examples, PROMPTS, groups, [["", ""]] * 2, step=1)


@pytest.mark.parametrize("mini_batches", [1, 2])
def test_the_loss_is_weighted_and_the_weights_are_logged(tmp_path: Path, mini_batches: int) -> None:
    """Cap 2; losses of 1: with mean weights 1 / 7 per token, or those of each mini-batch (1 / 3, 1 / 4)."""
    learner = learner_of(tmp_path / "model", cap=2.0)

    def weigh(lengths: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return token_weights(lengths, kept, "dapo", 3)

    batch = rollout(learner.policy, FACTORS)
    parts = learner.mini_batches(batch, torch.zeros(2, 2), weigh, mini_batches)
    capped = [0.5, 1.0, 2.0, 1.5, 0.25, 2.0, 1.0]
    expected = [sum(capped[:3]) / 3, sum(capped[3:]) / 4] if mini_batches == 2 else [sum(capped) / 7]
    for part, value in zip(parts, expected, strict=True):
        for micro in part:
            logp, _ = learner.logprobs(micro.packed)
            old = micro.sampling_logp(logp)
            torch.testing.assert_close(old, logp.detach())
            assert micro.sampling_logp(logp) is old  # a second epoch weighs nothing twice
            learner.backward(torch.exp(logp - old), micro)
        assert learner.update(1, 1, 0.0)["loss"] == pytest.approx(value, abs=1e-5)
    figures = importance_figures(learner.rollout)
    assert figures["importance_mean"] == pytest.approx(sum(capped) / 7, abs=1e-5)
    assert figures["importance_max"] == 2.0
    learner.mini_batches(rollout(learner.policy, None), torch.zeros(2, 2), weigh, mini_batches)
    assert importance_figures(learner.rollout) == {}


def test_a_log_prob_that_is_not_finite_names_the_record(tmp_path: Path) -> None:
    learner = learner_of(tmp_path / "model", cap=2.0)
    batch = rollout(learner.policy, FACTORS)
    reported = batch.groups[1][1].logprobs
    assert reported is not None
    reported[0] = float("nan")
    with pytest.raises(NonFiniteError, match="record r1 .sample 1.: the back end's log-prob"):
        learner.mini_batches(batch, torch.zeros(2, 2), lambda lengths, kept: kept.double() / lengths, 1)
