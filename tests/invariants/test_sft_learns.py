"""SFT learns: on held-out prompts, from targets alone, through the script; and with learning rate 0 it does not."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.invariants.tiny import LetterTask, letter_prompts, save_letter_model
from utils.files import read_json, write_jsonl, write_text
from utils.stage import main

SEEDS = (0, 1, 2)
STEPS = 30


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs 03 on the letter task, from the random model, and returns its folder."""
    script = importlib.import_module("03_sft_train")
    monkeypatch.setattr("utils.tasks.make_task", lambda settings, spec: LetterTask())
    save_letter_model(tmp_path / "start")
    write_text(tmp_path / "model.yaml", json.dumps({"model": {"name": str(tmp_path / "start"), "type": "llama"}}))
    write_jsonl(tmp_path / "train.jsonl", letter_prompts(64, seed=1))
    write_jsonl(tmp_path / "val.jsonl", letter_prompts(64, seed=2))
    write_text(tmp_path / "reward_spec.yaml", "none: 0\n")

    def run(name: str, seed: int, learning_rate: float) -> Path:
        arguments = [
            "--output_dir", str(tmp_path / name), "--config", str(tmp_path / "model.yaml"), "--seed", str(seed),
            "--max_steps", str(STEPS), "--eval_steps", str(STEPS), "--save_steps", str(STEPS), "--batch_size", "16",
            "--learning_rate", str(learning_rate), "--max_new_tokens", "2", "--no_use_lora",
            "--init_from", str(tmp_path / "start"), "--train_jsonl", str(tmp_path / "train.jsonl"),
            "--val_jsonl", str(tmp_path / "val.jsonl"), "--reward_spec", str(tmp_path / "reward_spec.yaml"), "--quiet",
        ]  # fmt: skip
        assert main(script.Config, script.run, script.__doc__, script.__file__, argv=arguments) == 0
        return tmp_path / name

    return run


def gains(folder: Path) -> np.ndarray:
    """Held-out reward after the last step minus before the first, per record."""
    first, last = (read_json(folder / "valid_samples" / f"step_{step}.json") for step in (0, STEPS))
    return np.array([b["reward"] - a["reward"] for a, b in zip(first, last, strict=True)])


def test_held_out_reward_rises(train: Any, tmp_path: Path) -> None:
    folders = [train(f"run-{seed}", seed, 1e-2) for seed in SEEDS]
    differences = np.concatenate([gains(folder) for folder in folders])
    standard_error = differences.std(ddof=1) / len(differences) ** 0.5
    assert differences.mean() > max(0.3, 3 * standard_error), f"mean gain {differences.mean():.3f}"
    start = load_file(tmp_path / "start" / "model.safetensors")
    moved = load_file(folders[0] / "ckpt_sft" / "final" / "model.safetensors")
    assert [name for name in start if moved[name].equal(start[name])] == []


def test_with_learning_rate_0_nothing_rises(train: Any, tmp_path: Path) -> None:
    folder = train("still", 0, 0.0)
    assert not gains(folder).any()
    same = load_file(folder / "ckpt_sft" / "final" / "model.safetensors")
    start = load_file(tmp_path / "start" / "model.safetensors")
    assert all(weight.equal(start[name]) for name, weight in same.items())
