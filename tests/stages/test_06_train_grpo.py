"""06 as a program: what it writes, that it repeats and resumes byte by byte, and what it says to wrong input."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.invariants.tiny import LetterTask, letter_prompts, save_letter_model
from utils.files import read_json, read_jsonl, sha256, write_jsonl, write_text
from utils.rl import checkpoints
from utils.stage import main

ROOT = Path(__file__).resolve().parents[2]
script = importlib.import_module("06_train_grpo")


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a small run on the letter task: four steps, saved every two."""
    monkeypatch.setattr("utils.rl.session.make_task", lambda settings, spec: LetterTask())
    save_letter_model(tmp_path / "start")
    write_jsonl(tmp_path / "train.jsonl", letter_prompts(10, seed=1))
    write_jsonl(tmp_path / "val.jsonl", letter_prompts(8, seed=2))
    write_text(tmp_path / "reward_spec.yaml", "none: 0\n")
    sections = {"model": {"name": str(tmp_path / "start")}, "rl": {"learning_rate": 1e-2, "micro_batch_tokens": 128}}
    write_text(tmp_path / "model.yaml", json.dumps(sections))
    return [
        "--config", str(tmp_path / "model.yaml"), "--seed", "3", "--steps", "4", "--eval_every", "2",
        "--prompts_per_step", "4", "--group_size", "3", "--max_new_tokens", "3",
        "--policy_ckpt", str(tmp_path / "start"), "--train_jsonl", str(tmp_path / "train.jsonl"),
        "--val_jsonl", str(tmp_path / "val.jsonl"), "--reward_spec", str(tmp_path / "reward_spec.yaml"), "--quiet",
    ]  # fmt: skip


def train(folder: Path, flags: list[str]) -> int:
    arguments = ["--output_dir", str(folder), *flags]
    return main(script.Config, script.run, script.__doc__, script.__file__, argv=arguments, plan=script.plan)


def results(folder: Path) -> dict[str, str]:
    """Hashes of everything that must not depend on how often the run was interrupted."""
    policies = ["ckpt_grpo/final", "ckpt_grpo/best", "ckpt_grpo/step_4/model.safetensors"]
    names = [*policies, "logs/train.jsonl", "val_generations"]
    return {name: sha256(folder / name) for name in names}


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 4 + 3), (1e9, 3)])
def test_memory_goes_back_after_validations_and_now_and_then_after_a_step(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, seconds: float, times: int
) -> None:
    given: list[None] = []
    monkeypatch.setattr("utils.rl.session.give_back_memory", lambda: given.append(None))
    monkeypatch.setattr("utils.rl.session.GIVE_BACK_SECONDS", seconds)
    assert train(tmp_path / "06_grpo", inputs) == 0
    assert len(given) == times


def test_what_it_writes(tmp_path: Path, inputs: list[str]) -> None:
    folder = tmp_path / "run_001" / "06_grpo"
    assert train(folder, inputs) == 0
    rows = read_jsonl(folder / "logs" / "train.jsonl")
    assert [(row["step"], row["phase"]) for row in rows] == [
        (0, "validation"), (1, "train"), (2, "train"), (2, "validation"), (3, "train"), (4, "train"), (4, "validation"),
    ]  # fmt: skip
    expected = {
        "reward_mean", "reward_std", "reward_exact", "frac_reward_zero_std", "parse_rate", "accuracy", "kl",
        "entropy", "clip_frac", "ratio_mean", "grad_norm", "lr", "completion_length", "truncated", "loss",
    }  # fmt: skip
    assert expected <= set(rows[1])
    assert [row["lr"] for row in rows if row["phase"] == "train"] == [0.005, 0.01, 0.01, 0.01]
    manifest = read_json(folder / "manifest.json")
    spent = manifest["spent"]
    assert spent["completions"] == 4 * 4 * 3 and manifest["metrics"]["updates"] == 4
    lengths = sum(row["completion_length"] * 12 for row in rows if row["phase"] == "train")
    assert spent["generated_tokens"] == round(lengths)
    # sampling computes each prompt once and every token but a completion's last; the reference all of them once
    assert spent["forward_tokens"] == 2 * spent["gradient_tokens"] - spent["completions"]
    digest = sha256(folder / "ckpt_grpo" / "step_4")
    assert (folder / "ckpt_grpo" / "last_complete").read_text() == f"step_4 {digest}\n"
    assert {path.name for path in (folder / "ckpt_grpo").iterdir()} == {"best", "final", "last_complete", "step_4"}
    accuracy = {row["step"]: row["val_accuracy"] for row in rows if row["phase"] == "validation"}
    del accuracy[0]  # the start was chosen on these records before
    highest = max(accuracy.values())
    assert manifest["metrics"]["best_step"] == min(step for step in accuracy if accuracy[step] == highest)
    assert {row["id"] for row in read_json(folder / "val_generations" / "step_4.json")} == {f"2-{i}" for i in range(8)}


@pytest.mark.parametrize("extra", [[], ["--num_iterations", "2", "--mini_batches", "2", "--loss_type", "dapo"]])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    flags = inputs + extra
    assert train(tmp_path / "whole", flags) == 0
    assert train(tmp_path / "again", flags) == 0
    assert results(tmp_path / "again") == results(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("utils.rl.session.Session.record", killed_at(3))
        with pytest.raises(Killed):
            train(tmp_path / "cut", flags)
    assert checkpoints.last_checkpoint(tmp_path / "cut" / "ckpt_grpo") == tmp_path / "cut" / "ckpt_grpo" / "step_2"
    assert train(tmp_path / "cut", [*flags, "--resume"]) == 0
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    spent = [read_json(tmp_path / name / "manifest.json")["spent"] for name in ("whole", "cut")]
    assert spent[0] == spent[1]


def killed_at(last: int) -> Any:
    from utils.rl.session import Session

    original = Session.record

    def record(self: Session, step: int, *rest: Any) -> None:
        original(self, step, *rest)
        if step == last:
            raise Killed

    return record


def test_resume_before_the_first_checkpoint_starts_again(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path / "whole", inputs) == 0
    with monkeypatch.context() as patch:
        patch.setattr("utils.rl.session.Session.record", killed_at(1))
        with pytest.raises(Killed):
            train(tmp_path / "cut", inputs)
    assert train(tmp_path / "cut", [*inputs, "--resume"]) == 0
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_later_mini_batches_are_measured_against_the_policy_that_sampled(tmp_path: Path, inputs: list[str]) -> None:
    """The second mini-batch is updated after the first has moved the policy: its ratio is no longer 1."""
    assert train(tmp_path / "two", [*inputs, "--mini_batches", "2", "--group_size", "16"]) == 0
    first, second = read_jsonl(tmp_path / "two" / "logs" / "train.jsonl")[1:3]
    assert 0 < abs(first["ratio_mean"] - 1) < 0.1 and 0 < abs(second["ratio_mean"] - 1) < 0.1
    assert read_json(tmp_path / "two" / "manifest.json")["metrics"]["updates"] == 8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_activations_change_nothing(tmp_path: Path, inputs: list[str], precision: str) -> None:
    config = json.loads((tmp_path / "model.yaml").read_text())
    config["model"]["precision"] = precision
    config["lora"] = {"use_lora": True, "r": 4, "dropout": 0.5}
    for name, recompute in (("kept", False), ("recomputed", True)):
        config["model"]["activation_checkpointing"] = recompute
        write_text(tmp_path / "model.yaml", json.dumps(config))
        assert train(tmp_path / name, inputs) == 0
    kept, recomputed = (read_jsonl(tmp_path / name / "logs" / "train.jsonl") for name in ("kept", "recomputed"))
    assert kept == recomputed
    assert (kept[1]["ratio_mean"], kept[1]["kl"], kept[1]["clip_frac"]) == (1.0, 0.0, 0.0)


def test_nan_weights_stop_with_the_record(
    tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "start" / "model.safetensors")
    weights["lm_head.weight"][5] = float("nan")
    save_file(weights, tmp_path / "start" / "model.safetensors", metadata={"format": "pt"})
    assert train(tmp_path / "nan", inputs) == 2
    error = capsys.readouterr().err
    assert "record 2-" in error and "not finite at token 1" in error and error.count("\n") == 1


def test_wrong_input_is_one_line(tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--prompts_per_step", "11"): "only 10 training records for --prompts_per_step 11",
        ("--policy_ckpt", str(tmp_path / "nowhere")): "no such folder",
        ("--max_new_tokens", "62"): "64 positions",
        ("--rollout.temperature", "0.7"): "",
    }
    for number, (flags, message) in enumerate(cases.items()):
        assert train(tmp_path / str(number), [*inputs, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_dry_run_says_what_would_happen(tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "dry", [*inputs, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "4 steps of 4 prompts x 3 samples: 48 completions, 4 updates" in shown
    assert not (tmp_path / "dry").exists()


def test_the_start_is_measured_but_never_chosen(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(accuracies: Iterator[float]) -> Any:
        return lambda *_: ({"val_accuracy": next(accuracies), "val_reward": 0.0}, [])

    monkeypatch.setattr("utils.rl.session.validate", said(iter([0.9, 0.5, 0.3])))
    assert train(tmp_path / "worse", inputs) == 0
    metrics = read_json(tmp_path / "worse" / "manifest.json")["metrics"]
    assert (metrics["best_step"], metrics["best_val_accuracy"]) == (2, 0.5)
