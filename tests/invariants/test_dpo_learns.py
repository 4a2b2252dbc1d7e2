"""DPO learns held-out preferences and greedy answers from pairs alone, through the script; not with learning rate 0."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.invariants.tiny import LETTERS, LetterTask, letter_prompts, save_letter_model
from utils.files import read_json, read_jsonl, write_jsonl, write_text
from utils.stage import main

SEEDS = (0, 1, 2)
STEPS = 30


def pairs() -> list[dict[str, str]]:
    """The right letter is preferred to each of three others; the prompts of every tenth record are held out."""
    prompts = list(dict.fromkeys(row["text"] for row in letter_prompts(200, seed=1)))
    rows = []
    for i, prompt in enumerate(prompts):
        right = prompt[-1].upper()
        others = [letter for letter in LETTERS if letter != right]
        for k in range(3):
            split = "train" if i % 5 else "held_out"
            wrong = others[(4 * k + i) % len(others)]
            rows.append({"id": f"{i}-{k}", "prompt": prompt, "chosen": right, "rejected": wrong, "split": split})
    return rows


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs 09 on the letter task, from the random model, and returns its folder."""
    script = importlib.import_module("09_train_dpo")
    monkeypatch.setattr("utils.tasks.make_task", lambda settings, spec: LetterTask())
    save_letter_model(tmp_path / "start")
    write_jsonl(tmp_path / "pairs.jsonl", pairs())
    write_jsonl(tmp_path / "val.jsonl", letter_prompts(64, seed=2))
    write_text(tmp_path / "reward_spec.yaml", "none: 0\n")

    def run(name: str, seed: int, learning_rate: float, lora: bool = False) -> Path:
        sections = {
            "model": {"name": str(tmp_path / "start"), "type": "llama"},
            "lora": {"use_lora": lora, "r": 8, "alpha": 32, "target_modules": ["q_proj", "v_proj", "down_proj"]},
            "preference": {"learning_rate": learning_rate, "batch_size": 16, "gradient_accumulation_steps": 1},
            "validation": {"eval_steps": STEPS, "save_steps": STEPS, "logging_steps": 5},
        }  # fmt: skip
        write_text(tmp_path / "model.yaml", json.dumps(sections))
        arguments = [
            "--output_dir", str(tmp_path / name), "--config", str(tmp_path / "model.yaml"), "--seed", str(seed),
            "--max_steps", str(STEPS), "--warmup_steps", "2", "--max_new_tokens", "2", "--sft_coef", "0",
            "--policy_ckpt", str(tmp_path / "start"), "--pairs", str(tmp_path / "pairs.jsonl"),
            "--val_jsonl", str(tmp_path / "val.jsonl"), "--reward_spec", str(tmp_path / "reward_spec.yaml"), "--quiet",
        ]  # fmt: skip
        assert main(script.Config, script.run, script.__doc__, script.__file__, argv=arguments) == 0
        return tmp_path / name

    return run


def gains(folder: Path) -> np.ndarray:
    """Held-out reward after the last step minus before the first, per record."""
    first, last = (read_json(folder / "val_generations" / f"step_{step}.json") for step in (0, STEPS))
    return np.array([b["reward"] - a["reward"] for a, b in zip(first, last, strict=True)])


def validations(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(folder / "logs" / "train.jsonl") if row["phase"] == "validation"]


@pytest.mark.parametrize("lora", [False, True])
def test_held_out_preferences_and_reward_rise(train: Any, tmp_path: Path, lora: bool) -> None:
    folders = [train(f"run-{seed}", seed, 2e-2 if lora else 5e-3, lora) for seed in SEEDS]
    for folder in folders:
        first, last = validations(folder)
        assert first["val_preference_accuracy"] == 0.5 and last["val_preference_accuracy"] > 0.8
        assert last["val_preference_margin"] > 0 and last["kl"] > first["kl"] == 0.0
    differences = np.concatenate([gains(folder) for folder in folders])
    standard_error = differences.std(ddof=1) / len(differences) ** 0.5
    assert differences.mean() > max(0.3, 3 * standard_error), f"mean gain {differences.mean():.3f}"
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    one, other = (load_file(folder / "ckpt_dpo" / "final" / name) for folder in folders[:2])
    assert [key for key in one if one[key].equal(other[key])] == []


def test_with_learning_rate_0_nothing_rises(train: Any, tmp_path: Path) -> None:
    folder = train("still", 0, 0.0)
    assert not gains(folder).any()
    first, last = validations(folder)
    assert last["val_preference_accuracy"] == first["val_preference_accuracy"] == 0.5 and last["kl"] == 0.0
    same = load_file(folder / "ckpt_dpo" / "final" / "model.safetensors")
    start = load_file(tmp_path / "start" / "model.safetensors")
    assert all(weight.equal(start[name]) for name, weight in same.items())
