"""PPO and RLOO learn: on held-out prompts, from the reward alone, through the scripts; with learning rate 0 or a loss
that is cut off from the policy they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.invariants.letters import SEEDS, Train, gains, standard_errors, trainer
from utils.files import read_jsonl
from utils.rl.losses import clipped_policy_loss

SCRIPTS = {"ppo": "05_train_ppo", "rloo": "07_train_rloo"}
METHODS = sorted(SCRIPTS)
ONE_PASS = {"ppo": ["--ppo_epochs", "1"], "rloo": []}


@pytest.fixture
def train(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """A function that runs the method's script on the letter task and returns its folder."""
    return trainer(SCRIPTS[request.getfixturevalue("method")], tmp_path, monkeypatch)


def train_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(folder / "logs" / "train.jsonl") if row["phase"] == "train"]


@pytest.mark.parametrize(
    ("method", "lora", "flags"),
    [
        ("ppo", False, []),
        ("ppo", False, ["--group_size", "1", "--critic", "trunk", "--prompts_per_step", "64"]),
        ("ppo", True, ["--critic", "adapter"]),
        ("rloo", False, []),
        ("rloo", True, ["--prompts_per_step", "32"]),
    ],
)
def test_held_out_reward_rises(train: Train, tmp_path: Path, method: str, lora: bool, flags: list[str]) -> None:
    rate = 2e-2 if lora else 5e-3
    folders = [train(f"run-{seed}", seed, rate, 25, *flags, lora=lora) for seed in SEEDS]
    differences = np.concatenate([gains(folder) for folder in folders])
    assert standard_errors(differences) >= 3, f"mean gain {differences.mean():.3f}"
    assert differences.mean() > 0.3
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    moved = load_file(folders[0] / f"ckpt_{method}" / "final" / weights)
    other = folders[1] / f"ckpt_{method}" / "final" if lora else tmp_path / "start"
    still = load_file(other / weights)
    for name, weight in moved.items():
        assert not weight.equal(still[name]), f"{name} did not move"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lora", [False, True])
def test_the_first_pass_is_made_with_the_policy_that_sampled(train: Train, method: str, lora: bool) -> None:
    critic = ["--critic", "adapter"] if lora and method == "ppo" else []
    first, second = train_rows(train("run", 0, 5e-3, 2, *ONE_PASS[method], "--warmup_steps", "2", *critic, lora=lora))
    assert (first["ratio_mean"], first["kl"], first["clip_frac"], first["kl_completion"]) == (1.0, 0.0, 0.0, 0.0)
    assert first["grad_norm"] > 0 and first["lr"] == 2.5e-3
    assert second["ratio_mean"] == 1.0 and second["kl"] > 0 and second["kl_completion"] != 0


@pytest.mark.parametrize("method", METHODS)
def test_with_learning_rate_0_nothing_rises(train: Train, tmp_path: Path, method: str) -> None:
    folders = [train(f"run-{seed}", seed, 0.0, 3) for seed in SEEDS]
    differences = np.concatenate([gains(folder) for folder in folders])
    assert standard_errors(differences) < 3 and differences.mean() == 0.0
    same = load_file(folders[0] / f"ckpt_{method}" / "final" / "model.safetensors")
    start = load_file(tmp_path / "start" / "model.safetensors")
    assert all(weight.equal(start[name]) for name, weight in same.items())


@pytest.mark.parametrize("method", METHODS)
def test_with_a_detached_loss_nothing_rises(train: Train, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss's value is right and backward() runs, but nothing leads from the loss to the policy."""

    def detached(logp: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        loss, ratio, clipped = clipped_policy_loss(logp.detach(), *rest)
        return loss + 0 * logp, ratio, clipped

    monkeypatch.setattr("utils.rl.losses.clipped_policy_loss", detached)
    folders = [train(f"run-{seed}", seed, 5e-3, 3) for seed in SEEDS]
    assert np.concatenate([gains(folder) for folder in folders]).mean() == 0.0
    assert all(row["grad_norm"] == 0 for folder in folders for row in train_rows(folder))


@pytest.mark.parametrize("method", METHODS)
def test_the_kl_coefficient_holds_the_policy(train: Train, method: str) -> None:
    free = train_rows(train("free", 0, 5e-3, 8, "--kl_coef", "0"))
    held = train_rows(train("held", 0, 5e-3, 8, "--kl_coef", "3"))
    assert held[-1]["kl"] < 0.5 * free[-1]["kl"]
