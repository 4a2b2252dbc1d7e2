"""GRPO learns: on held-out prompts, from the reward alone, through the script; and with learning rate 0 it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.invariants.letters import SEEDS, Train, gains, standard_errors, trainer
from tests.invariants.tiny import tiny_model
from utils.files import read_jsonl
from utils.rl.advantages import group_advantages
from utils.rl.logprobs import completion_logprobs
from utils.rl.losses import clipped_policy_loss
from utils.rl.packing import pack


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """A function that runs 06 on the letter task and returns its folder."""
    return trainer("06_train_grpo", tmp_path, monkeypatch)


@pytest.mark.parametrize("lora", [False, True])
def test_held_out_reward_rises(train: Train, tmp_path: Path, lora: bool) -> None:
    rate = 2e-2 if lora else 5e-3
    folders = [train(f"run-{seed}", seed, rate, lora=lora) for seed in SEEDS]
    differences = np.concatenate([gains(folder) for folder in folders])
    assert standard_errors(differences) >= 3, f"mean gain {differences.mean():.3f}"
    assert differences.mean() > 0.3
    for folder in folders:
        first, *others = [row for row in read_jsonl(folder / "logs" / "train.jsonl") if row["phase"] == "train"]
        assert (first["ratio_mean"], first["kl"], first["clip_frac"]) == (1.0, 0.0, 0.0)
        assert first["grad_norm"] > 0 and first["lr"] == rate / 2
        assert all(row["kl"] > 0 for row in others)
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    moved = load_file(folders[0] / "ckpt_grpo" / "final" / weights)
    still = load_file(folders[1] / "ckpt_grpo" / "final" / weights) if lora else load_file(tmp_path / "start" / weights)
    for name, weight in moved.items():
        assert not weight.equal(still[name]), f"{name} did not move"


def test_with_learning_rate_0_nothing_rises(train: Train, tmp_path: Path) -> None:
    folders = [train(f"run-{seed}", seed, 0.0, steps=3) for seed in SEEDS]
    differences = np.concatenate([gains(folder) for folder in folders])
    assert standard_errors(differences) < 3 and differences.mean() == 0.0
    same = load_file(folders[0] / "ckpt_grpo" / "final" / "model.safetensors")
    start = load_file(tmp_path / "start" / "model.safetensors")
    assert all(weight.equal(start[name]) for name, weight in same.items())


def test_the_kl_coefficient_has_a_gradient(train: Train) -> None:
    """With a large coefficient the policy stays near its start; with none it goes where the reward is."""
    free = read_jsonl(train("free", 0, 5e-3, 8, "--kl_coef", "0") / "logs" / "train.jsonl")
    held = read_jsonl(train("held", 0, 5e-3, 8, "--kl_coef", "10") / "logs" / "train.jsonl")
    # the first update is made at KL 0, where its gradient is 0 too: the second rollout is the same
    assert [row["reward_mean"] for row in free[1:3]] == [row["reward_mean"] for row in held[1:3]]
    assert held[-2]["kl"] < 0.5 * free[-2]["kl"]


def test_a_paid_sample_gets_likelier_and_an_unpaid_one_less_likely() -> None:
    model, prompt, samples = tiny_model("llama"), [5, 6, 7], [[8, 9], [10, 11, 12]]
    batch = pack([prompt], [samples], pad_id=0)
    advantage = group_advantages(torch.tensor([[1.0, 0.0]]), use_batch_bonus=True).flatten()[batch.sample]
    before, _ = completion_logprobs(model, batch)
    loss, _, _ = clipped_policy_loss(before, before.detach(), advantage, 0.2, 0.2)
    loss.sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    after, _ = completion_logprobs(model, batch)
    change = batch.padded((after - before).detach()).sum(dim=1)
    assert change[0] > 0 > change[1]
