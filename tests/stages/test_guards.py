"""Guards in whole runs: what is said once, also after a kill; and NaN or infinity, named before it does harm.

Every kind of number is spoiled at one place of a real run of 03, 05, 06, 07 or 09.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariants.letters import trainer
from tests.invariants.tiny import LetterTask, letter_prompts, letter_tokenizer
from tests.stages import test_05_07_online as online
from tests.stages import test_09_train_dpo as preference
from utils.files import is_temporary, read_json, read_jsonl, write_jsonl, write_text
from utils.rl.plan import passes_per_step, tokens_spent
from utils.rl.trainer_run import NamedBatches
from utils.stage import main
from utils.tasks.base import Reward

inputs, full = online.inputs, preference.full  # fixtures
Patch = pytest.MonkeyPatch
NAN, INF = float("nan"), float("inf")


def warnings(folder: Path) -> list[str]:
    return list(read_json(folder / "manifest.json")["warnings"])


class VowelTask(LetterTask):
    """Pays an answer for beginning with A, whatever was asked; what is right stays what it was."""

    def score(self, rollouts: Any) -> list[Reward]:
        totals = [float(rollout.text[:1] == "A") for rollout in rollouts]
        return [Reward(total, {"vowel": total}) for total in totals]


@pytest.mark.slow
def test_a_policy_that_learns_to_be_paid_for_wrong_answers_is_reported(tmp_path: Path, monkeypatch: Patch) -> None:
    run = trainer("06_train_grpo", tmp_path, monkeypatch)
    honest = run("honest", 0, 3e-3, 25)
    assert not any("reward pays" in line for line in warnings(honest))
    monkeypatch.setattr("utils.rl.session.make_task", lambda settings, spec: VowelTask())
    hacked = run("hacked", 0, 3e-3, 25, "--policy_ckpt", str(honest))
    (line,) = [line for line in warnings(hacked) if "reward pays for something else" in line]
    accuracy = [row["accuracy"] for row in online.rows(hacked)]
    assert accuracy[0] > 0.7 and accuracy[-1] < 0.5
    since = int(line.split(":")[0].removeprefix("since step "))
    now = sum(accuracy[since - 1 : since + 4]) / 5
    assert line.startswith(f"since step {since}: accuracy is {now:.4g}, down from ")


def test_a_guard_speaks_once_also_after_a_kill(
    tmp_path: Path, inputs: list[str], monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It looks at five steps, of which the resumed run made one: the others stand in the log."""
    online.settle(tmp_path, learning_rate=0.0)
    flags = [*inputs, "--steps", "7", "--eval_every", "4"]
    assert online.train("grpo", tmp_path / "whole", flags) == 0
    (line,) = [line for line in warnings(tmp_path / "whole") if "since step 1: kl is 0, below 1e-09" in line]
    assert "the policy has not moved" in line and "raise --learning_rate" in line
    assert capsys.readouterr().err.count(line) == 1
    with monkeypatch.context() as patch:
        patch.setattr("utils.rl.session.Session.record", online.killed_at(5))
        with pytest.raises(online.Killed):
            online.train("grpo", tmp_path / "cut", flags)
    assert line in warnings(tmp_path / "cut")
    assert online.train("grpo", tmp_path / "cut", [*flags, "--resume"]) == 0
    assert warnings(tmp_path / "cut") == warnings(tmp_path / "whole")
    states = [tmp_path / name / "ckpt_grpo" / "step_7" / "training_state.pt" for name in ("cut", "whole")]
    cut, whole = (online.plain(torch.load(state, weights_only=True)) for state in states)
    assert cut == whole and cut["warned"] == ["truncated", "stands_still"]


class Spoiled:
    """A function whose result's third number is `value` the first time that gradients are computed, or are not.

    The result is a tensor [_N] or a tuple of such, of which `part` is spoiled.
    """

    def __init__(self, function: Callable[..., Any], value: float, gradient: bool, part: int = 0) -> None:
        self.function, self.value, self.gradient, self.part = function, value, gradient, part
        self.done = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.function(*args, **kwargs)
        if self.done or torch.is_grad_enabled() is not self.gradient:
            return result
        self.done = True
        parts = list(result) if isinstance(result, tuple) else [result]
        parts[self.part] = parts[self.part].index_put((torch.tensor([2]),), torch.tensor(self.value))
        return tuple(parts) if isinstance(result, tuple) else parts[0]


def spoil(name: str, value: float, *, gradient: bool, part: int = 0) -> Callable[[Patch], None]:
    """Spoils a function, by its dotted name where it is called."""

    def apply(patch: Patch) -> None:
        spoiled = Spoiled(pkgutil.resolve_name(name), value, gradient, part)
        patch.setattr(name, lambda *args, **kwargs: spoiled(*args, **kwargs))

    return apply


def spoil_reward(total: float, completions: int) -> Callable[[Patch], None]:
    """Of the third completion of rollouts of so many: a step has 24, a validation 8."""
    score = LetterTask.score

    def spoiled(self: LetterTask, rollouts: Any) -> list[Any]:
        rewards = score(self, rollouts)
        if len(rollouts) == completions:
            rewards[2] = Reward(total, {"style": total, "exact": 0.0})
        return rewards

    return lambda patch: patch.setattr(LetterTask, "score", spoiled)


def spoil_advantage(patch: Patch) -> None:
    from utils.rl import advantages

    original = advantages.group_advantages

    def spoiled(*args: Any) -> torch.Tensor:
        found = original(*args)
        found[1, 4] = NAN
        return found

    patch.setattr(advantages, "group_advantages", spoiled)


def spoil_gradient(parameter: str) -> Callable[[Patch], None]:
    from utils.rl.learner import Learner

    original = Learner.backward

    def spoiled(self: Learner, *args: Any) -> float:
        loss = original(self, *args)
        everything = self.parameters if self.critic is None else {**self.parameters, **self.critic.parameters}
        everything[parameter].grad.view(-1)[-1] = NAN
        return loss

    return lambda patch: patch.setattr(Learner, "backward", spoiled)


def spoil_weights(patch: Patch) -> None:
    """After the first update; the next thing that the policy computes is sampled."""
    from utils.rl.learner import Learner

    original = Learner.update

    def spoiled(self: Learner, *args: Any) -> dict[str, float]:
        figures = original(self, *args)
        next(iter(self.parameters.values())).data[:] = NAN
        return figures

    patch.setattr(Learner, "update", spoiled)


LOGPROBS, WITH_CRITIC = "utils.rl.learner.completion_logprobs", "utils.rl.values.completion_logprobs"
VALUE = "utils.models.value_head.ValueHead.forward"
RECORD = r"record 1-\d \(sample \d\): "
MLP = "model.layers.0.mlp.up_proj.weight"
PLACES: dict[str, tuple[str, Callable[[Patch], None], str]] = {
    "reference": ("grpo", spoil(LOGPROBS, NAN, gradient=False), f"step 1: {RECORD}the reference's log-prob is nan at"),
    "reference of ppo": ("ppo", spoil(LOGPROBS, NAN, gradient=False), f"{RECORD}the reference's log-prob is nan at"),
    "policy": ("rloo", spoil(LOGPROBS, NAN, gradient=True), f"step 1: {RECORD}the policy's log-prob is nan at token"),
    "old policy": ("ppo", spoil(WITH_CRITIC, NAN, gradient=False), f"{RECORD}the policy's log-prob is nan at token"),
    "old value": ("ppo", spoil(VALUE, INF, gradient=False), f"step 1: {RECORD}the critic's value is inf at token"),
    "value": ("ppo", spoil(VALUE, INF, gradient=True), f"step 1: {RECORD}the loss is inf at token"),
    "far away": ("rloo", spoil(LOGPROBS, -300.0, gradient=True), f"{RECORD}the KL to the reference is inf at token"),
    "entropy": ("grpo", spoil(LOGPROBS, NAN, gradient=True, part=1), "step 1: entropy is nan; train with a lower"),
    "reward": (
        "rloo",
        spoil_reward(NAN, 24),
        r"step 1: the reward of record 1-\d \(sample 2\) is nan, component style; correct the task's score",
    ),
    "reward beyond fp32": (
        "ppo",
        spoil_reward(1e39, 24),
        r"step 1: the reward of record .* is 1e\+39, component style",
    ),
    "validation": (
        "grpo",
        spoil_reward(-INF, 8),
        r"validation of step 0: greedy answers: the reward of record 2-2 \(sample 0\) is -inf, component style",
    ),
    "advantage": ("grpo", spoil_advantage, r"step 1: record 1-\d \(sample 4\): the loss is nan at token 1"),
    "loss": ("grpo", spoil("utils.rl.losses.k3_kl", INF, gradient=True), f"step 1: {RECORD}the loss is inf at token"),
    "gradient": ("grpo", spoil_gradient(MLP), f"step 1: the gradient of {MLP} is not finite"),
    "critic": ("ppo", spoil_gradient("value_linear.bias"), "step 1: the gradient of value_linear.bias is not finite"),
    "weights": ("rloo", spoil_weights, r"step 2: record 1-\d: logits are not finite at token 1 of a completion"),
}
"""What is spoiled -> method, how, and what the message must say."""


@pytest.mark.parametrize("place", PLACES)
def test_a_number_that_is_not_finite_is_named_before_it_does_harm(
    tmp_path: Path, inputs: list[str], monkeypatch: Patch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    method, apply, expected = PLACES[place]
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        apply(patch)
        assert online.train(method, folder, inputs) == 2
    error = capsys.readouterr().err
    assert re.match(f"error: .*{expected}", error) and error.count("\n") == 1, error
    manifest = read_json(folder / "manifest.json")
    assert (manifest["status"], f"error: {manifest['error']}\n") == ("failed", error)
    assert not any(is_temporary(path.relative_to(folder)) for path in folder.rglob("*"))
    assert {path.name for path in folder.glob("ckpt_*/*")} <= {"best"}
    assert len(online.rows(folder)) == (1 if place == "weights" else 0)
    if place in ("policy", "critic"):
        assert online.train(method, tmp_path / "whole", inputs) == 0
        assert online.train(method, folder, [*inputs, "--resume"]) == 0
        assert online.results(method, folder) == online.results(method, tmp_path / "whole")


def sft(folder: Path, flags: list[str]) -> int:
    """Stage 03 on the letter task: two steps of two micro-batches of two records."""
    script = importlib.import_module("03_sft_train")
    sections = {"training": {"batch_size": 2, "gradient_accumulation_steps": 2}, "validation": {"eval_steps": 2}}
    config = json.loads((folder.parent / "model.yaml").read_text()) | sections
    del config["preference"]
    write_text(folder.parent / "sft.yaml", json.dumps(config))
    arguments = [
        "--config", str(folder.parent / "sft.yaml"), "--max_steps", "2", "--max_new_tokens", "3", "--quiet",
        "--train_jsonl", str(folder.parent / "train.jsonl"), "--val_jsonl", str(folder.parent / "val.jsonl"),
        "--reward_spec", str(folder.parent / "reward_spec.yaml"), "--output_dir", str(folder), *flags,
    ]  # fmt: skip
    return main(script.Config, script.run, script.__doc__, script.__file__, argv=arguments)


def trained(number: int, folder: Path, full: list[str]) -> int:
    """Stage 03 or 09, beside the files of `full`; the letters of a record's prompt are found again in `prompts_of`."""
    if number == 9:
        return preference.train(folder, full)
    write_jsonl(folder.parent / "train.jsonl", letter_prompts(10, seed=1))
    return sft(folder, [])


def prompts_of(number: int, folder: Path) -> dict[str, str]:
    rows = read_jsonl(folder / ("pairs.jsonl" if number == 9 else "train.jsonl"))
    return {row["id"]: row["prompt" if number == 9 else "text"] for row in rows}


@pytest.mark.parametrize("number", [3, 9])
def test_a_token_of_supervised_and_preference_training_is_named(
    tmp_path: Path, full: list[str], monkeypatch: Patch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """The last token of the second micro-batch of the second step."""
    name = {3: "utils.rl.sft_trainer.token_logprobs", 9: "utils.rl.dpo_trainer.completion_logprobs"}[number]
    calls, original = 0, pkgutil.resolve_name(name)

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        logp, entropy = original(*args, **kwargs)
        calls += torch.is_grad_enabled()
        if calls == 4 and torch.is_grad_enabled():
            logp = logp.index_put((torch.tensor([len(logp) - 1]),), torch.tensor(NAN))
        return logp, entropy

    seen: list[str] = []
    step = NamedBatches.training_step

    def noted(self: Any, model: Any, batch: dict[str, torch.Tensor], *rest: Any) -> Any:
        ids = batch["input_ids"][len(batch["input_ids"]) // (2 if number == 9 else 1) - 1]
        seen.append(letter_tokenizer().decode(ids, skip_special_tokens=True))
        return step(self, model, batch, *rest)

    monkeypatch.setattr(name, spoiled)
    monkeypatch.setattr(NamedBatches, "training_step", noted)
    assert trained(number, tmp_path / "run", full) == 2
    error = capsys.readouterr().err
    found = re.match(r"error: step 2: record (\S+): the log-prob of (the target|an answer) is nan at token 2; ", error)
    assert found and error.count("\n") == 1, error
    assert len(seen) == 4 and seen[-1].startswith(prompts_of(number, tmp_path)[found[1]])
    folders = {path.name for path in (tmp_path / "run").glob("ckpt_*/*")}
    assert folders <= {"best"} and read_json(tmp_path / "run" / "manifest.json")["status"] == "failed"


@pytest.mark.parametrize("number", [3, 9])
@pytest.mark.parametrize("what", ["the loss", f"the gradient of {MLP}"])
def test_loss_and_gradient_of_supervised_and_preference_training_are_named(
    tmp_path: Path, full: list[str], monkeypatch: Patch, capsys: pytest.CaptureFixture[str], number: int, what: str
) -> None:
    name = {3: "utils.rl.sft_trainer.TargetTrainer", 9: "utils.rl.dpo_trainer.PairTrainer"}[number]
    trainer_class = pkgutil.resolve_name(name)
    original = trainer_class.compute_loss

    def spoiled(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        if what == "the loss":
            return loss + INF
        self.model.get_parameter(MLP).register_hook(lambda gradient: gradient * INF)
        return loss

    monkeypatch.setattr(trainer_class, "compute_loss", spoiled)
    assert trained(number, tmp_path / "run", full) == 2
    error = capsys.readouterr().err
    end = {"the loss": "the loss is inf"}.get(what, f"{what} is not finite")
    found = re.match(rf"error: step 1: one of the records (\S+), (\S+): {end}; train with a lower", error)
    assert found and set(found.groups()) <= set(prompts_of(number, tmp_path)) and error.count("\n") == 1, error


def test_figures_of_a_validation_are_named(
    tmp_path: Path, full: list[str], monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("utils.rl.dpo.k3_kl", lambda logp, reference: logp * NAN)
        assert preference.train(tmp_path / "kl", full) == 2
    assert "error: validation of step 0: kl is nan" in capsys.readouterr().err
    spoil_reward(NAN, 8)(monkeypatch)
    assert preference.train(tmp_path / "reward", full) == 2
    assert "validation of step 0: greedy answers: the reward of record 2-2 (sample 0) is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "critic", "mini_batches"),
    [("ppo", "head", 1), ("ppo", "adapter", 2), ("grpo", "", 2), ("rloo", "", 1)],
)
def test_the_plan_counts_what_a_run_spends(
    tmp_path: Path, inputs: list[str], method: str, critic: str, mini_batches: int
) -> None:
    """Ten prompts of three letters, with <s> four tokens."""
    write_jsonl(tmp_path / "train.jsonl", [{"id": f"1-{i}", "text": "abc"} for i in range(10)])
    online.settle(tmp_path, lora=True)
    flags = [*inputs, "--mini_batches", str(mini_batches), *(["--critic", critic] if critic else [])]
    assert online.train(method, tmp_path / "run", flags) == 0
    spent = read_json(tmp_path / "run" / "manifest.json")["spent"]
    passes = passes_per_step(critic, mini_batches, 4 if method == "ppo" else 1)
    expected = tokens_spent(4 * 4 * 4, spent["generated_tokens"], spent["completions"], *passes)
    assert {name: spent[name] for name in expected} == expected
