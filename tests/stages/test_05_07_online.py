"""05 and 07 as programs: what they write, that they repeat and resume byte by byte, that they stay parallel to 06."""

from __future__ import annotations

import difflib
import importlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.invariants.tiny import LetterTask, VariedTask, letter_prompts, save_letter_model
from utils.files import read_json, read_jsonl, read_yaml, sha256, write_jsonl, write_text
from utils.models.load import save_model
from utils.rl import checkpoints, losses
from utils.rl.learner import Learner
from utils.rl.rollouts import examples_of_step
from utils.rl.session import Session
from utils.seeds import uniforms
from utils.settings import GRPOSettings, PPOSettings, RLOOSettings
from utils.stage import main

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"ppo": "05_train_ppo", "grpo": "06_train_grpo", "rloo": "07_train_rloo"}
SAMPLES = {"ppo": "--group_size", "grpo": "--group_size", "rloo": "--num_samples"}
ADAPTED = ["--kl_target", "0.01", "--mini_batches", "2"]


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
    settle(tmp_path)
    return [
        "--config", str(tmp_path / "model.yaml"), "--seed", "3", "--steps", "4", "--eval_every", "2",
        "--prompts_per_step", "4", "--max_new_tokens", "3",
        "--policy_ckpt", str(tmp_path / "start"), "--train_jsonl", str(tmp_path / "train.jsonl"),
        "--val_jsonl", str(tmp_path / "val.jsonl"), "--reward_spec", str(tmp_path / "reward_spec.yaml"), "--quiet",
    ]  # fmt: skip


def settle(folder: Path, learning_rate: float = 1e-2, **model: Any) -> None:
    """Write the model file; `lora=True` trains adapters. A pass holds two prompts with their six samples."""
    lora = {"use_lora": model.pop("lora", False), "r": 4, "target_modules": ["q_proj", "v_proj", "lm_head"]}
    rates = {"learning_rate": learning_rate, "critic_learning_rate": 3e-2, "micro_batch_tokens": 64}
    write_text(
        folder / "model.yaml",
        json.dumps({"model": {"name": str(folder / "start"), **model}, "lora": lora, "rl": rates}),
    )


def train(method: str, folder: Path, flags: list[str], samples: int = 6) -> int:
    script = importlib.import_module(SCRIPTS[method])
    arguments = ["--output_dir", str(folder), SAMPLES[method], str(samples), *flags]
    return main(script.Config, script.run, script.__doc__, str(script.__file__), argv=arguments, plan=script.plan)


def rows(folder: Path, phase: str = "train") -> list[dict[str, Any]]:
    return [row for row in read_jsonl(folder / "logs" / "train.jsonl") if row["phase"] == phase]


def results(method: str, folder: Path) -> dict[str, Any]:
    """Everything that must not depend on how often the run was interrupted."""
    ckpt = f"ckpt_{method}"
    names = [f"{ckpt}/final", f"{ckpt}/best", "logs/train.jsonl", "val_generations"]
    names += ["logs/samples", "gradient_variance.json"] if method == "rloo" else []
    state = torch.load(folder / ckpt / "step_4" / "training_state.pt", weights_only=True)
    manifest = read_json(folder / "manifest.json")
    weights = next((folder / ckpt / "step_4").glob("*model.safetensors"))
    hashes = {name: sha256(folder / name) for name in names} | {"step_4": sha256(weights)}
    return {**hashes, "state": plain(state), "metrics": manifest["metrics"], "spent": manifest["spent"]}


def plain(value: Any) -> Any:
    """Tensors as lists, so that states compare with ==."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def killed_at(last: int) -> Any:
    original = Session.record

    def record(self: Session, step: int, *rest: Any) -> None:
        original(self, step, *rest)
        if step == last:
            raise Killed

    return record


SHARED = {
    "reward_mean", "reward_std", "reward_exact", "frac_reward_zero_std", "parse_rate", "accuracy", "kl",
    "entropy", "clip_frac", "ratio_mean", "grad_norm", "lr", "completion_length", "truncated", "loss", "kl_completion",
}  # fmt: skip


def test_what_ppo_writes(tmp_path: Path, inputs: list[str]) -> None:
    folder = tmp_path / "run_001" / "05_ppo"
    assert train("ppo", folder, inputs) == 0
    phases = [(row["step"], row["phase"]) for row in read_jsonl(folder / "logs" / "train.jsonl")]
    assert phases == [
        (0, "validation"), (1, "train"), (2, "train"), (2, "validation"), (3, "train"), (4, "train"), (4, "validation"),
    ]  # fmt: skip
    first = rows(folder)[0]
    of_critic = {"explained_variance", "value_loss", "value_clip_frac", "value_mean", "return_mean", "critic_grad_norm"}
    assert SHARED | of_critic | {"kl_k1", "kl_coef", "kl_old", "epochs"} <= set(first)
    assert (first["epochs"], first["value_mean"], first["kl_coef"]) == (4, 0.0, 0.05)
    manifest = read_json(folder / "manifest.json")
    spent, metrics = manifest["spent"], manifest["metrics"]
    assert spent["completions"] == 4 * 4 * 6 and metrics["updates"] == 4 * 4
    # sampling (every token of a completion but its last), reference and old policy; four epochs with gradient
    assert spent["gradient_tokens"] / 4 * 3 - spent["completions"] == spent["forward_tokens"]
    assert {path.name for path in (folder / "ckpt_ppo").iterdir()} == {"best", "final", "last_complete", "step_4"}
    state = torch.load(folder / "ckpt_ppo" / "step_4" / "training_state.pt", weights_only=True)
    assert set(state["learner"]["critic"]) == {"value_linear.weight", "value_linear.bias"}
    groups = state["learner"]["optimizer"]["param_groups"]
    assert [(group["lr"], len(group["params"])) for group in groups][1] == (3e-2, 2)
    assert {row["id"] for row in read_json(folder / "val_generations" / "step_4.json")} == {f"2-{i}" for i in range(8)}


def test_what_rloo_writes(tmp_path: Path, inputs: list[str]) -> None:
    folder = tmp_path / "run_001" / "07_rloo"
    assert train("rloo", folder, inputs) == 0
    assert SHARED | {"baseline_mean", "advantage_std"} <= set(rows(folder)[0])
    assert {path.name for path in (folder / "ckpt_rloo").iterdir()} == {"best", "final", "last_complete", "step_4"}
    for step, row in enumerate(rows(folder), start=1):
        samples = read_json(folder / "logs" / "samples" / f"step_{step}.json")
        assert len(samples) == 4 * 6 and len({sample["record"] for sample in samples}) == 24
        assert sum(sample["reward"] for sample in samples) / 24 == pytest.approx(row["reward_mean"])
        for sample in samples:
            assert sample["advantage"] == pytest.approx(sample["penalised_reward"] - sample["baseline"])
            assert sample["penalised_reward"] == pytest.approx(sample["reward"] - 0.05 * sample["kl"], abs=1e-6)
            group = [s for s in samples if s["record"].split(" ")[0] == sample["record"].split(" ")[0]]
            others = [s["penalised_reward"] for s in group if s is not sample]
            assert sample["baseline"] == pytest.approx(sum(others) / 5, abs=1e-6)
    spent = read_json(folder / "manifest.json")["spent"]
    # the first pass itself gives the old log-probs: sampling and reference are all the forward passes there are
    assert spent["forward_tokens"] == 2 * spent["gradient_tokens"] - spent["completions"]


def test_rloo_measures_the_variance_of_its_gradient(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every answer is paid something, so that a baseline has something to take away."""
    monkeypatch.setattr(LetterTask, "score", VariedTask.score)
    folder = tmp_path / "rloo"
    flags = [flag for flag in inputs if flag != "--quiet"]
    assert train("rloo", folder, [*flags, "--variance_prompts", "4"], samples=12) == 0
    found = read_json(folder / "gradient_variance.json")
    assert (found["prompts"], found["samples"]) == (4, 12)
    ratio = found["relative_to_none"]
    assert ratio["none"] == 1 > ratio["loo"] > ratio["mean"] == pytest.approx(ratio["loo"] * (11 / 12) ** 2)
    assert read_json(folder / "manifest.json")["metrics"]["gradient_variance_loo"] == ratio["loo"]
    assert f"relative to plain REINFORCE (4 prompts x 12): loo {ratio['loo']:.3g}" in capsys.readouterr().out
    without = tmp_path / "without"
    assert train("rloo", without, [*inputs, "--variance_prompts", "0"], samples=12) == 0
    assert not (without / "gradient_variance.json").exists()
    # measuring leaves no trace in training
    assert sha256(without / "logs" / "train.jsonl") == sha256(folder / "logs" / "train.jsonl")
    starved = tmp_path / "starved"
    monkeypatch.setattr("utils.rl.sequences.gradient_variance", out_of_memory)
    assert train("rloo", starved, [*inputs, "--variance_prompts", "4"], samples=12) == 0
    assert read_json(starved / "manifest.json")["warnings"][0].startswith("gradient variance: not measured")
    assert sha256(starved / "logs" / "train.jsonl") == sha256(folder / "logs" / "train.jsonl")


def out_of_memory(*arguments: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_rloo_counts_clipped_answers_not_their_tokens(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ratio is a whole answer's: its share of the answers is logged, however long they are."""
    seen: list[tuple[float, float]] = []
    original = losses.clipped_policy_loss

    def keep(logp: torch.Tensor, *rest: Any) -> Any:
        loss, ratio, clipped = original(logp, *rest)
        # all tokens of an answer have its ratio; no two answers have the same
        seen.extend(dict(zip(ratio.tolist(), clipped.double().tolist(), strict=True)).items())
        return loss, ratio, clipped

    monkeypatch.setattr(LetterTask, "score", VariedTask.score)
    monkeypatch.setattr("utils.rl.losses.clipped_policy_loss", keep)
    flags = [*inputs, "--steps", "1", "--num_iterations", "2", "--mini_batches", "2", "--clip_range", "0.001"]
    flags += ["--warmup_steps", "0", "--variance_prompts", "0"]
    assert train("rloo", tmp_path / "rloo", flags) == 0
    [row] = rows(tmp_path / "rloo")
    assert 0 < row["clip_frac"] < 1
    moved = [(ratio, clipped) for ratio, clipped in seen if ratio != 1.0]
    answers = 2 * 4 * 6  # two passes over four prompts' six answers
    assert row["clip_frac"] == pytest.approx(sum(clipped for _, clipped in moved) / answers, abs=1e-6)


def test_figures_of_updates_are_means(tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    update = Learner.update

    def keep(self: Learner, *rest: Any) -> Any:
        found = update(self, *rest)
        norms.append(found["grad_norm"])
        return found

    monkeypatch.setattr(Learner, "update", keep)
    assert train("ppo", tmp_path / "ppo", [*inputs, "--steps", "1", "--ppo_epochs", "2", "--mini_batches", "2"]) == 0
    assert len(norms) == 4 and rows(tmp_path / "ppo")[0]["grad_norm"] == pytest.approx(sum(norms) / 4)


def test_settings_that_cannot_work_are_one_line(
    tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, message in (
        (["--mini_batches", "5"], "--mini_batches 5: a step has only 4 prompts (--prompts_per_step)"),
        (["--kl_coef", "0", "--kl_target", "6"], "kl_target multiplies kl_coef, and has no effect on kl_coef 0"),
        (["--stop_kl", "0.1", "--ppo_epochs", "1"], "stop_kl has no effect on ppo_epochs 1"),
    ):
        assert train("ppo", tmp_path / "ppo", [*inputs, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("method", "lora", "extra"),
    [
        ("ppo", False, []),
        ("ppo", True, ["--critic", "adapter", *ADAPTED]),
        ("ppo", False, ["--critic", "trunk", "--stop_kl", "1e-4", "--entropy_coef", "0.01", *ADAPTED]),
        ("rloo", False, []),
        ("rloo", True, ["--num_iterations", "2", "--mini_batches", "2"]),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, method: str, lora: bool, extra: list[str]
) -> None:
    settle(tmp_path, lora=lora)
    flags = inputs + extra
    assert train(method, tmp_path / "whole", flags) == 0
    with monkeypatch.context() as patch:
        patch.setattr("utils.rl.session.Session.record", killed_at(3))
        with pytest.raises(Killed):
            train(method, tmp_path / "cut", flags)
    ckpt = tmp_path / "cut" / f"ckpt_{method}"
    assert checkpoints.last_checkpoint(ckpt) == ckpt / "step_2"
    assert train(method, tmp_path / "cut", [*flags, "--resume"]) == 0
    assert results(method, tmp_path / "cut") == results(method, tmp_path / "whole")
    if "--kl_target" in extra:
        assert len({row["kl_coef"] for row in rows(tmp_path / "cut")}) == 4
    if "--stop_kl" in extra:
        assert rows(tmp_path / "cut")[-1]["epochs"] < 4


@pytest.mark.parametrize("method", SCRIPTS)
def test_a_rollout_follows_from_seed_step_and_record(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Which prompts a step takes and the numbers that their samples are drawn with, not what was drawn before."""
    drawn: dict[int, tuple[list[str], Any]] = {}
    sampled = Session._sampled

    def noted(self: Session, examples: Any, group_size: int, numbers: Any, step: int) -> Any:
        drawn[step] = [example.id for example in examples], numbers
        return sampled(self, examples, group_size, numbers, step)

    monkeypatch.setattr(Session, "_sampled", noted)
    assert train(method, tmp_path / "run", inputs) == 0
    records = LetterTask().load(tmp_path / "train.jsonl")
    assert list(drawn) == [1, 2, 3, 4]
    for step, (names, numbers) in drawn.items():
        assert names == [example.id for example in examples_of_step(records, step, 4, seed=3)]
        assert np.array_equal(numbers, uniforms(3, step, names, 6, 3))


TWICE = "--num_iterations 2 --mini_batches 2"
USUAL = {"grpo": TWICE, "rloo": TWICE, "ppo": "--ppo_epochs 2 --mini_batches 2"}
"""Two passes in two updates each, so that ratios leave 1 and are clipped."""
COMMON = {
    "mini_batches": "--mini_batches 1", "clip_range_high": "--clip_range_high 0.01", "warmup_steps": "--warmup_steps 0",
    "max_grad_norm": "--max_grad_norm 0.01", "steps": "--steps 1", "clip_range": "--clip_range 0.001",
    "kl_coef": "--kl_coef 0.5",
}  # fmt: skip
VARIED = {
    "grpo": COMMON | {
        "use_batch_bonus": "--no_use_batch_bonus", "loss_type": "--loss_type dapo",
        "mask_truncated_completions": "--mask_truncated_completions", "num_iterations": "--num_iterations 1",
    },
    "rloo": COMMON | {"baseline_type": "--baseline_type none", "num_iterations": "--num_iterations 1"},
    "ppo": COMMON | {
        "critic": "--critic trunk", "gamma": "--gamma 0.5", "gae_lambda": "--gae_lambda 0.5",
        "whiten_advantages": "--no_whiten_advantages", "loss_type": "--loss_type grpo",
        "value_clip_range": "--value_clip_range 0.001", "value_coef": "--value_coef 0.01",
        "entropy_coef": "--entropy_coef 0.1", "kl_target": "--kl_target 0.001", "stop_kl": "--stop_kl 0.0001",
        "ppo_epochs": "--ppo_epochs 1",
    },
}  # fmt: skip
"""A value for each setting under which another policy comes out."""
SETTINGS = {"ppo": PPOSettings, "grpo": GRPOSettings, "rloo": RLOOSettings}
SILENT = {"eval_every", "patience", "group_size", "num_samples", "variance_prompts", "kl_gain"}
"""Those that choose among policies, that every run here gives, or that say something only beside another."""


@pytest.mark.parametrize("method", SCRIPTS)
def test_every_setting_of_an_algorithm_has_a_say(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("utils.rl.session.make_task", lambda settings, spec: VariedTask())
    assert {field.name for field in fields(SETTINGS[method])} - SILENT == set(VARIED[method])

    def policy(name: str, *flags: str) -> str:
        given = [*inputs, "--steps", "2", *USUAL[method].split(), *flags]
        assert train(method, tmp_path / name, given) == 0
        return sha256(tmp_path / name / f"ckpt_{method}" / "final")

    usual = policy("usual")
    assert policy("again") == usual
    without_a_say = [name for name, flags in VARIED[method].items() if policy(name, *flags.split()) == usual]
    assert without_a_say == []
    if method == "ppo":
        steered = ["--kl_target", "0.001", "--kl_gain"]
        assert policy("gain_1", *steered, "1") != policy("gain_0.01", *steered, "0.01")


@pytest.mark.parametrize("updates", [9, 10, 15])
def test_killed_between_the_epochs_over_a_rollout_it_draws_the_same_rollout_again(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    """Four updates per rollout, a checkpoint every two: 9 and 10 are in the third rollout, 15 is in the fourth."""
    drawn: dict[str, dict[int, Any]] = {"whole": {}, "cut": {}, "resumed": {}}
    draw, update = Session.draw, Learner.update

    def keep(where: dict[int, Any]) -> Any:
        def noted(self: Session, step: int) -> Any:
            batch = draw(self, step)
            where[step] = [[one.tokens for one in group] for group in batch.groups]
            return batch

        return noted

    def killed(self: Learner, *rest: Any) -> Any:
        if self.updates == updates:
            raise Killed
        return update(self, *rest)

    monkeypatch.setattr(Session, "draw", keep(drawn["whole"]))
    assert train("ppo", tmp_path / "whole", inputs) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Session, "draw", keep(drawn["cut"]))
        patch.setattr(Learner, "update", killed)
        with pytest.raises(Killed):
            train("ppo", tmp_path / "cut", inputs)
    step = updates // 4 + 1
    assert list(drawn["cut"]) == list(range(1, step + 1)) and checkpoints.last_checkpoint(tmp_path / "cut/ckpt_ppo")
    monkeypatch.setattr(Session, "draw", keep(drawn["resumed"]))
    assert train("ppo", tmp_path / "cut", [*inputs, "--resume"]) == 0
    assert list(drawn["resumed"]) == [3, 4] and drawn["resumed"][step] == drawn["cut"][step] == drawn["whole"][step]
    assert results("ppo", tmp_path / "cut") == results("ppo", tmp_path / "whole")


@pytest.mark.parametrize("method", SCRIPTS)
def test_it_stops_when_accuracy_no_longer_rises(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    settle(tmp_path, learning_rate=0.0)
    flags = [*inputs, "--eval_every", "1", "--steps", "9", "--patience", "2"]
    assert train(method, tmp_path / "early", flags) == 0
    assert [row["step"] for row in rows(tmp_path / "early", "validation")] == [0, 1, 2, 3]
    metrics = read_json(tmp_path / "early" / "manifest.json")["metrics"]
    assert (metrics["steps"], metrics["best_step"]) == (3, 1)
    assert (tmp_path / "early" / f"ckpt_{method}" / "final" / "model.safetensors").is_file()
    assert not any("ends no run" in line for line in read_json(tmp_path / "early" / "manifest.json")["warnings"])
    never = [*inputs, "--eval_every", "1", "--steps", "3", "--patience", "2"]
    assert train(method, tmp_path / "never", never) == 0
    (warning,) = [line for line in read_json(tmp_path / "never" / "manifest.json")["warnings"] if "ends no run" in line]
    assert warning.startswith("--patience 2 with a validation every 1 steps ends no run of 3 steps early")
    # killed after the last checkpoint, before the end: it must not train on
    with monkeypatch.context() as patch:
        patch.setattr("utils.rl.learner.save_model", save_all_but_final)
        with pytest.raises(Killed):
            train(method, tmp_path / "cut", flags)
    assert train(method, tmp_path / "cut", [*flags, "--resume"]) == 0
    names = [f"ckpt_{method}/final", "logs/train.jsonl"]
    assert [sha256(tmp_path / "cut" / name) for name in names] == [sha256(tmp_path / "early" / name) for name in names]


def save_all_but_final(model: Any, tokenizer: Any, folder: Path, weights: Any = None) -> None:
    if folder.name == "final":
        raise Killed
    save_model(model, tokenizer, folder, weights)


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_recomputed_activations_and_bf16_change_nothing_that_they_should_not(
    tmp_path: Path, inputs: list[str], method: str
) -> None:
    flags = [*inputs, "--steps", "2", *(["--ppo_epochs", "1", "--critic", "adapter"] if method == "ppo" else [])]
    for name, recompute in (("kept", False), ("recomputed", True)):
        settle(tmp_path, lora=True, precision="bf16", activation_checkpointing=recompute)
        assert train(method, tmp_path / name, flags) == 0
    assert rows(tmp_path / "kept") == rows(tmp_path / "recomputed")
    first = rows(tmp_path / "kept")[0]
    assert (first["ratio_mean"], first["kl"], first["clip_frac"]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("method", ["ppo", "rloo"])
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_step_on_a_quantised_base(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, method: str, bits: str
) -> None:
    monkeypatch.setattr(LetterTask, "score", VariedTask.score)
    settle(tmp_path, lora=True, **{bits: True})
    flags = [*inputs, "--steps", "1", *(["--critic", "adapter", "--ppo_epochs", "1"] if method == "ppo" else [])]
    assert train(method, tmp_path / "run", flags) == 0
    (row,) = rows(tmp_path / "run")
    assert row["grad_norm"] > 0 and row["kl"] == 0.0
    if bits == "load_in_4bit":
        assert row["ratio_mean"] == 1.0


@pytest.mark.parametrize("method", SCRIPTS)
def test_micro_batches_do_not_change_the_update(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    passes, seen = [], {}
    backward = Learner.backward

    def counted(*arguments: Any) -> None:
        passes.append(1)
        backward(*arguments)

    monkeypatch.setattr(Learner, "backward", counted)
    monkeypatch.setattr(LetterTask, "score", VariedTask.score)
    for tokens in (64, 4096):
        settle(tmp_path)
        config = json.loads((tmp_path / "model.yaml").read_text())
        config["rl"]["micro_batch_tokens"] = tokens
        write_text(tmp_path / "model.yaml", json.dumps(config))
        assert train(method, tmp_path / str(tokens), [*inputs, "--steps", "1"]) == 0
        seen[tokens] = len(passes)
        passes.clear()
    assert seen[64] > seen[4096] > 0
    small, large = (rows(tmp_path / str(tokens))[0] for tokens in (64, 4096))
    assert small["grad_norm"] == pytest.approx(large["grad_norm"], rel=1e-4) and small["grad_norm"] > 0
    assert small["loss"] == pytest.approx(large["loss"], abs=1e-5)


def test_wrong_settings_are_one_line(tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        ("ppo", ["--critic", "adapter"], "critic: adapter needs an adapter on the policy; set lora.use_lora: true"),
        ("ppo", ["--prompts_per_step", "1", "--group_size", "1"], "a step needs at least 2 completions"),
        ("ppo", ["--critic", "hed"], "must be one of head, trunk, adapter; got 'hed'; did you mean head?"),
        ("rloo", ["--num_samples", "1"], "baseline_type loo needs num_samples of at least 2"),
        ("rloo", ["--baseline_type", "median"], "must be one of loo, mean, none; got 'median'"),
        ("rloo", ["--algo_config", str(ROOT / "configs/algorithms/ppo.yaml")], "is for ppo, but 07_train_rloo.py"),
    ]
    for number, (method, flags, message) in enumerate(cases):
        assert train(method, tmp_path / str(number), [*inputs, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_truncated_completions_can_be_left_out_of_the_loss(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one new token nothing but a stop token at once is complete: hardly anything is left to learn from."""
    monkeypatch.setattr(LetterTask, "score", VariedTask.score)
    flags = [*inputs, "--steps", "1", "--max_new_tokens", "1"]
    assert train("grpo", tmp_path / "all", flags) == 0
    assert train("grpo", tmp_path / "whole", [*flags, "--mask_truncated_completions"]) == 0
    everything, whole = (rows(tmp_path / name)[0] for name in ("all", "whole"))
    assert everything["truncated"] == whole["truncated"] > 0.5
    assert whole["grad_norm"] < 0.5 * everything["grad_norm"]


def test_a_warm_start_begins_where_candidates_were_paid_differently(
    tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    differing = {"1-0", "1-3", "1-5", "1-7"}
    paid = [{"id": f"1-{i}", "scores": [{"total": 0.0}, {"total": float(f"1-{i}" in differing)}]} for i in range(10)]
    write_jsonl(tmp_path / "04" / "scores.jsonl", paid)
    assert train("rloo", tmp_path / "warm", [*inputs, "--warm_start", str(tmp_path / "04")]) == 0
    taken = [read_json(tmp_path / "warm" / "logs" / "samples" / f"step_{step}.json") for step in (1, 2, 3)]
    first, *later = ({sample["record"].split(" ")[0] for sample in samples} for samples in taken)
    # then a pass over all ten, of which two steps take eight
    assert first == differing and len(set.union(*later)) == 8
    assert (
        train("ppo", tmp_path / "few", [*inputs, "--warm_start", str(tmp_path / "04"), "--prompts_per_step", "5"]) == 2
    )
    assert "only 4 training records have candidates with different rewards" in capsys.readouterr().err
    write_jsonl(tmp_path / "04" / "scores.jsonl", [*paid[:1], {"id": "1-1"}])
    assert train("ppo", tmp_path / "broken", [*inputs, "--warm_start", str(tmp_path / "04")]) == 2
    assert "scores.jsonl:2, key 'scores': expected a list, got 'None'; run 04 again" in capsys.readouterr().err


def test_the_shipped_numbers() -> None:
    """What the methods' own files promise, and nothing in them but method and rollout."""
    promised: dict[str, dict[str, Any]] = {
        "ppo": {"clip_range": 0.2, "kl_coef": 0.05, "ppo_epochs": 4},
        "rloo": {"num_samples": 4, "baseline_type": "loo"},
    }
    completions = set()
    for method in SCRIPTS:
        data = read_yaml(ROOT / "configs" / "algorithms" / f"{method}.yaml").data
        assert set(data) == {"method", "algorithm", "rollout"} and data["method"] == method
        assert promised.get(method, {}).items() <= data["algorithm"].items()
        samples = data["algorithm"][SAMPLES[method].removeprefix("--")]
        completions.add(samples * data["rollout"]["prompts_per_step"] * data["algorithm"]["steps"])
    assert len(completions) == 1, "the methods sample equally much"


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_dry_run_says_what_would_happen(
    tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str], method: str
) -> None:
    assert train(method, tmp_path / "dry", [*inputs, "--dry_run"]) == 0
    updates = {"ppo": 16, "rloo": 4}[method]
    assert f"4 steps of 4 prompts x 6 samples: 96 completions, {updates} updates" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_the_scripts_stay_parallel(method: str) -> None:
    """What stands in one of them and not in 06 is the algorithm: fewer than 40 lines, and fewer back."""
    grpo, other = ((ROOT / f"{SCRIPTS[name]}.py").read_text().splitlines() for name in ("grpo", method))
    changes = list(difflib.unified_diff(grpo, other, lineterm="", n=0))[2:]
    assert 0 < sum(line.startswith("+") for line in changes) < 40
    assert 0 < sum(line.startswith("-") for line in changes) < 40
