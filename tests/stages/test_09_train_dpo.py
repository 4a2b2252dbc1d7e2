"""09 as a program: what it writes, that it repeats and resumes byte by byte, and what it says to wrong input."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariants.tiny import LetterTask, letter_pairs, letter_prompts, save_letter_model
from utils.files import read_json, read_jsonl, sha256, write_jsonl, write_text
from utils.stage import main

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = importlib.import_module("09_train_dpo")
LN2 = 0.6931471824645996  # in fp32


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


def inputs_in(folder: Path, lora: bool) -> list[str]:
    """Flags of a small run on the letter task: four steps, saved and validated every two; DPO's loss alone."""
    save_letter_model(folder / "start")
    write_jsonl(folder / "pairs.jsonl", letter_pairs(10, 6))
    write_jsonl(folder / "val.jsonl", letter_prompts(8, seed=2))
    write_text(folder / "reward_spec.yaml", "none: 0\n")
    sections = {
        "model": {"name": str(folder / "start")},
        "lora": {"use_lora": lora, "r": 4, "dropout": 0.3, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        "preference": {"learning_rate": 1e-2, "batch_size": 2, "gradient_accumulation_steps": 2},
        "validation": {"eval_steps": 2, "save_steps": 2, "logging_steps": 1},
    }
    write_text(folder / "model.yaml", json.dumps(sections))
    return [
        "--config", str(folder / "model.yaml"), "--seed", "3", "--max_steps", "4", "--warmup_steps", "0",
        "--max_new_tokens", "3", "--sft_coef", "0", "--policy_ckpt", str(folder / "start"),
        "--pairs", str(folder / "pairs.jsonl"),
        "--val_jsonl", str(folder / "val.jsonl"), "--reward_spec", str(folder / "reward_spec.yaml"), "--quiet",
    ]  # fmt: skip


@pytest.fixture(params=["full", "lora"])
def inputs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("utils.tasks.make_task", lambda settings, spec: LetterTask())
    return inputs_in(tmp_path, request.param == "lora")


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("utils.tasks.make_task", lambda settings, spec: LetterTask())
    return inputs_in(tmp_path, False)


def train(folder: Path, flags: list[str]) -> int:
    arguments = ["--output_dir", str(folder), *flags]
    return main(SCRIPT.Config, SCRIPT.run, SCRIPT.__doc__, SCRIPT.__file__, argv=arguments, plan=SCRIPT.plan)


def weights(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def results(folder: Path) -> dict[str, str]:
    """Hashes of everything that must not depend on how often the run was interrupted."""
    policies = [weights(folder / "ckpt_dpo" / name) for name in ("final", "best", "step_4")]
    paths = [
        *policies,
        folder / "ckpt_dpo/step_4/optimizer.pt",
        folder / "logs/train.jsonl",
        folder / "val_generations",
    ]
    return {str(path.relative_to(folder)): sha256(path) for path in paths}


def test_what_it_writes(tmp_path: Path, inputs: list[str]) -> None:
    folder = tmp_path / "run_001" / "09_dpo"
    assert train(folder, inputs) == 0
    rows = read_jsonl(folder / "logs" / "train.jsonl")
    phases = [(row["step"], row["phase"]) for row in rows]
    assert phases[0] == (0, "validation") and sorted(phases[1:]) == [
        (1, "train"), (2, "train"), (2, "validation"), (3, "train"), (4, "train"), (4, "validation"),
    ]  # fmt: skip
    first = next(row for row in rows if row["phase"] == "train")
    assert first["loss"] == LN2 == pytest.approx(math.log(2), abs=1e-7)  # the policy is its reference
    assert (first["preference_margin"], first["implicit_reward_chosen"], first["implicit_reward_rejected"]) == (0, 0, 0)
    assert first["grad_norm"] > 0 and first["learning_rate"] == 1e-2 and first["logp_chosen"] < 0 < first["entropy"]
    start, *others = [row for row in rows if row["phase"] == "validation"]
    assert (start["val_preference_accuracy"], start["val_preference_margin"], start["kl"]) == (0.5, 0.0, 0.0)
    assert all(row["kl"] > 0 and row["val_preference_margin"] > 0 for row in others)
    assert {path.name for path in (folder / "ckpt_dpo").iterdir()} == {"best", "final", "last_complete", "step_4"}
    assert not (folder / "ckpt_dpo" / "best" / "ref").exists()
    assert {row["id"] for row in read_json(folder / "val_generations" / "step_4.json")} == {f"2-{i}" for i in range(8)}
    manifest = read_json(folder / "manifest.json")
    metrics, spent = manifest["metrics"], manifest["spent"]
    assert metrics["steps"] == 4 and metrics["pairs"] == 10 and metrics["final_kl"] == others[-1]["kl"]
    # 16 pairs: bos and 3 or 4 letters once, and two answers of a letter and eos
    assert 16 * (4 + 4) <= spent["gradient_tokens"] <= 16 * (5 + 4)
    assert spent["forward_tokens"] == spent["gradient_tokens"]


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_step_on_a_quantised_base_from_the_sft_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: str
) -> None:
    """The reference is the adapter that SFT left, not the base: the first loss is ln 2 although the two differ."""
    from safetensors.torch import load_file, save_file

    from utils.config import resolve
    from utils.models.load import load_model, save_model, trainable_parameters
    from utils.models.tokens import load_tokenizer
    from utils.rl.dpo import Preferences

    monkeypatch.setattr("utils.tasks.make_task", lambda settings, spec: LetterTask())
    flags = [*inputs_in(tmp_path, lora=True), f"--{bits}", "--max_steps", "1"]
    cfg = resolve(SCRIPT.Config, flags, doc="", script="09_train_dpo.py").config
    sft = load_model(cfg.model, cfg.lora, checkpoint=None, trainable=True, device=torch.device("cpu"))
    for parameter in trainable_parameters(sft).values():
        torch.nn.init.normal_(parameter, std=0.3)
    save_model(sft, load_tokenizer(cfg.model, None), tmp_path / "sft")
    expected: list[Any] = []
    measured = Preferences._held_out_figures

    def noted(self: Preferences) -> dict[str, float]:
        with self.trainer.reference() as frozen:
            expected.append({n: w.clone() for n, w in frozen.named_parameters() if ".ref." in n})
        return measured(self)

    monkeypatch.setattr(Preferences, "_held_out_figures", noted)
    assert train(tmp_path / "dpo", [*flags, "--policy_ckpt", str(tmp_path / "sft")]) == 0
    (row,) = [row for row in read_jsonl(tmp_path / "dpo" / "logs" / "train.jsonl") if row["phase"] == "train"]
    if bits == "load_in_4bit":
        assert row["loss"] == LN2 and (row["preference_margin"], row["implicit_reward_chosen"]) == (0, 0)
    assert row["loss"] == pytest.approx(LN2, abs=1e-2) and row["grad_norm"] > 0
    start, end = (load_file(weights(folder)) for folder in (tmp_path / "sft", tmp_path / "dpo/ckpt_dpo/final"))
    assert start.keys() == end.keys() and [name for name in start if torch.equal(start[name], end[name])] == []
    for reference in expected:  # before the step and after it
        assert len(reference) == len(start)
        assert all(torch.equal(reference[f"{n[:-7]}.ref.weight"], start[n]) for n in start)
    save_file({name: torch.zeros_like(weight) for name, weight in start.items()}, weights(tmp_path / "sft"))
    assert train(tmp_path / "base", [*flags, "--policy_ckpt", str(tmp_path / "sft")]) == 0
    (plain,) = [row for row in read_jsonl(tmp_path / "base" / "logs" / "train.jsonl") if row["phase"] == "train"]
    assert plain["logp_chosen"] != row["logp_chosen"]


def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils.rl.dpo import Preferences

    assert train(tmp_path / "whole", inputs) == 0
    evaluate = Preferences.evaluate

    def killed(self: Preferences, step: int) -> bool:
        if step == 4:
            raise Killed
        return evaluate(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Preferences, "evaluate", killed)
        with pytest.raises(Killed):
            train(tmp_path / "cut", inputs)
    assert [path.name for path in (tmp_path / "cut" / "ckpt_dpo").glob("step_*")] == ["step_2"]
    half = tmp_path / "cut" / "ckpt_dpo" / "checkpoint-4"  # of another kill, while it was written
    half.mkdir()
    (half / "README.md").write_text("---\ntags:\n- half\n---\n\nHalf a model card\n")
    assert train(tmp_path / "cut", [*inputs, "--resume"]) == 0
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    cards = [(tmp_path / name / "ckpt_dpo" / "step_4" / "README.md") for name in ("whole", "cut")]
    assert len({card.read_text() if card.is_file() else "" for card in cards}) == 1
    spent = [read_json(tmp_path / name / "manifest.json")["spent"] for name in ("whole", "cut")]
    assert spent[0] == spent[1]


def test_killed_after_the_last_checkpoint_it_reports_the_same(
    tmp_path: Path, full: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last validation is not made again: its figures are in the log."""

    def killed(*_: object) -> None:
        raise Killed

    assert train(tmp_path / "whole", full) == 0
    with monkeypatch.context() as patch:
        patch.setattr("utils.rl.dpo.Preferences.spent", killed)
        with pytest.raises(Killed):
            train(tmp_path / "cut", full)
    assert train(tmp_path / "cut", [*full, "--resume"]) == 0
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    whole, cut = (read_json(tmp_path / name / "manifest.json") for name in ("whole", "cut"))
    assert cut["metrics"] == whole["metrics"] and "final_kl" in cut["metrics"]
    assert cut["warnings"] == whole["warnings"]


def test_it_stops_by_its_rule_without_held_out_pairs_too(
    tmp_path: Path, full: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.5, 0.25, 0.75, 0.75, 0.5, 1.0])

    def validate(*_: object) -> tuple[dict[str, float], list[dict[str, object]]]:
        return {"val_accuracy": next(accuracies), "val_parse_rate": 1.0, "val_reward": 0.0}, []

    monkeypatch.setattr("utils.rl.rollouts.validate", validate)
    write_jsonl(tmp_path / "pairs.jsonl", letter_pairs(10, 0))
    assert train(tmp_path / "dpo", [*full, "--patience", "2", "--max_steps", "20"]) == 0
    rows = [row for row in read_jsonl(tmp_path / "dpo" / "logs" / "train.jsonl") if row["phase"] == "validation"]
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8]
    assert all("val_preference_accuracy" not in row and "kl" in row for row in rows)
    metrics = read_json(tmp_path / "dpo" / "manifest.json")["metrics"]
    assert (metrics["best_step"], metrics["steps"], metrics["stopped_by_rule"]) == (4, 8, True)


def test_a_policy_that_runs_away_is_reported(tmp_path: Path, full: list[str]) -> None:
    sections = json.loads((tmp_path / "model.yaml").read_text())
    sections["preference"]["learning_rate"] = 1.0
    write_text(tmp_path / "model.yaml", json.dumps(sections))
    assert train(tmp_path / "far", full) == 0
    warnings = " ".join(read_json(tmp_path / "far" / "manifest.json")["warnings"])
    assert "above 1: the policy has left its reference; raise --beta" in warnings


def pair(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "prompt": "ab", "chosen": "B", "rejected": "A", "split": "train"} | changes


def test_wrong_input_is_one_line(tmp_path: Path, full: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def refused(rows: list[dict[str, Any]], *flags: str) -> str:
        write_jsonl(tmp_path / "pairs.jsonl", rows)
        assert train(tmp_path / "wrong", [*full, *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    assert "pairs.jsonl:2, key 'chosen': expected text, got None" in refused([pair(), pair(chosen=None)])
    assert "key 'split': expected train or held_out, got 'dev'" in refused([pair(split="dev")])
    assert "no pair to train on" in refused([pair(split="held_out")])
    assert "the prompt of record b is in both splits" in refused([pair(), pair(id="b", split="held_out")])
    long = refused([pair(prompt="ab" * 20)], "--max_length", "16")
    assert "record a: prompt + answer have 43 tokens, preference.max_length is 16" in long
    assert "--beta: beta must be at least 1e-06" in refused([pair()], "--beta", "0")
    assert "needs label_smoothing" in refused([pair()], "--loss_type", "exo_pair")
    assert "no effect on loss_type sigmoid" in refused([pair()], "--label_smoothing", "0.1")
    assert "no such folder" in refused([pair()], "--policy_ckpt", str(tmp_path / "nowhere"))


def test_dry_run_says_what_would_happen(tmp_path: Path, full: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "dry", [*full, "--dry_run"]) == 0
    assert "2 x 2 pairs per optimiser step" in capsys.readouterr().out and not (tmp_path / "dry").exists()
