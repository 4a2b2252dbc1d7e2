"""The letter task through the scripts: one run on files in a folder, and what it gained on held-out prompts."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.invariants.tiny import LetterTask, letter_prompts, save_letter_model
from utils.files import read_json, write_jsonl, write_text
from utils.stage import main

SEEDS = (0, 1, 2)
STEPS = 25
Train = Callable[..., Path]


def trainer(script_name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """A function that runs a script (05, 06 or 07) on the letter task, from `folder`/start, and returns its folder."""
    script = importlib.import_module(script_name)
    monkeypatch.setattr("utils.rl.session.make_task", lambda settings, spec: LetterTask())
    save_letter_model(folder / "start")
    write_jsonl(folder / "train.jsonl", letter_prompts(64, seed=1))
    write_jsonl(folder / "val.jsonl", letter_prompts(64, seed=2))
    write_text(folder / "reward_spec.yaml", "none: 0\n")

    def run(name: str, seed: int, learning_rate: float, steps: int = STEPS, *flags: str, lora: bool = False) -> Path:
        write_text(folder / "model.yaml", model_file(folder / "start", learning_rate, lora))
        target = folder / name
        arguments = [
            "--output_dir", str(target), "--config", str(folder / "model.yaml"), "--seed", str(seed),
            "--steps", str(steps), "--eval_every", str(steps), "--prompts_per_step", "16", "--max_new_tokens", "2",
            "--policy_ckpt", str(folder / "start"), "--train_jsonl", str(folder / "train.jsonl"),
            "--val_jsonl", str(folder / "val.jsonl"), "--reward_spec", str(folder / "reward_spec.yaml"), "--quiet",
        ]  # fmt: skip
        assert main(script.Config, script.run, script.__doc__, str(script.__file__), argv=[*arguments, *flags]) == 0
        return target

    return run


def model_file(start: Path, learning_rate: float, lora: bool) -> str:
    """The model's settings; the critic's rate follows the policy's, so that with 0 nothing moves."""
    sections = {
        "model": {"name": str(start), "type": "llama"},
        "lora": {"use_lora": lora, "r": 8, "alpha": 32, "target_modules": ["q_proj", "v_proj", "down_proj", "lm_head"]},
        "rl": {"learning_rate": learning_rate, "critic_learning_rate": 4 * learning_rate},
    }
    return json.dumps(sections)


def gains(folder: Path) -> np.ndarray:
    """Held-out reward after the last step minus before the first, per record."""
    before, *_, after = sorted(folder.glob("val_generations/step_*.json"), key=lambda p: int(p.stem.split("_")[1]))
    first, last = read_json(before), read_json(after)
    return np.array([b["reward"] - a["reward"] for a, b in zip(first, last, strict=True)])


def standard_errors(differences: np.ndarray) -> float:
    """Mean over its standard error."""
    return float(differences.mean() / max(differences.std(ddof=1) / len(differences) ** 0.5, 1e-9))
