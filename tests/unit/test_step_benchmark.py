"""Whole steps: the script's own loop and TRL's own step, paid alike; and what a long run says about memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import growth, rollouts, step, steps, trl_trainer
from benchmarks.rollouts import Work
from utils.files import read_jsonl
from utils.rl.session import Session
from utils.tasks.base import Rollout

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES = ["--prompt", "9", "--completion", "3", "--prompts", "2", "--group", "4", "--device", "cpu"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rollouts.SHAPES, "5M", TINY)


def settled(*more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    step.add_flags(parser)
    flags = parser.parse_args([*SIZES, *more])
    step.check(flags)
    return flags


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["--method", "grpo"], ["--method", "ppo"], ["--method", "rloo", "--lora"]], ids="-".join
)
def test_a_step_of_the_project_is_the_scripts(more: list[str], tmp_path: Path) -> None:
    flags = settled(*more)
    steps.save_start(flags, tmp_path)
    taken = steps.ProjectStep(flags, Work.of(flags), tmp_path)
    log = tmp_path / steps.SCRIPTS[flags.method] / "logs" / "train.jsonl"
    assert not log.exists() or not log.read_text()
    assert taken.tune()["micro_batch"] in (1, 2)
    before = weights(taken.policy).clone()
    taken()
    taken()
    rows = read_jsonl(log)
    assert [row["step"] for row in rows] == [1, 2] and not torch.equal(weights(taken.policy), before)
    assert {row["completion_length"] for row in rows} == {3.0} and rows[0]["reward_std"] > 0.1


@pytest.mark.slow
def test_a_step_of_trl_is_its_own_loops(tmp_path: Path) -> None:
    flags = settled()
    steps.save_start(flags, tmp_path)
    task = steps.GivenAnswers(Work.of(flags))
    texts = [example.input_text for example in task.examples]

    def made() -> Any:
        return trl_trainer.trainer(flags, tmp_path / "start", texts, task.reward, rows=4)

    ours, theirs = trl_trainer.TrainerStep(made()), made()
    start = weights(theirs.model).clone()
    torch.manual_seed(1)
    ours()
    ours()
    theirs.args.max_steps = 2
    torch.manual_seed(1)
    theirs.train()
    assert theirs.state.global_step == 2 and not torch.equal(weights(theirs.model), start)
    torch.testing.assert_close(weights(ours.model), weights(theirs.model), atol=0, rtol=0)
    assert ours.trainer._metrics["train"]["completions/min_length"] == [3.0, 3.0]


def test_both_sides_are_paid_for_the_same_answers() -> None:
    task = steps.GivenAnswers(Work.of(settled()))
    ours = [r.total for r in task.score([Rollout(e, g, "t5 t6", True, 2) for e in task.examples for g in range(4)])]
    theirs = task.reward(["t7"] * 8, [0] * 4 + [1] * 4)
    assert ours == theirs and ours[0] == ours[3] == 1.0 and min(ours) < 1.0
    assert [len(example.input_text.split()) for example in task.examples] == [9, 9]


def test_the_made_up_tokenizer_writes_what_the_model_reads() -> None:
    tokenizer = trl_trainer.made_up_tokenizer(16)
    assert tokenizer("t3 t15 t0")["input_ids"] == [3, 15, 0] and tokenizer.eos_token_id == 16
    assert tokenizer.decode([3, 15]) == "t3 t15"


@pytest.mark.parametrize(("leak", "flat"), [(0, True), (3, False)])
def test_memory_that_grows_is_seen(leak: int, flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytes] = []
    figures = iter(range(1000))
    monkeypatch.setattr(Session, "record", lambda session, *_: kept.append(bytes(next(figures) and leak * 2**20)))
    monkeypatch.setattr(growth, "resident", lambda field: 100 * 2**20 + sum(map(len, kept)))
    monkeypatch.setattr(growth, "forget_peak", lambda: 0)

    def train(flags: argparse.Namespace, folder: Path) -> int:
        for _ in range(flags.steps):
            Session.record(None)  # type: ignore[call-arg, arg-type]
        return 0

    monkeypatch.setattr(growth, "train", train)
    flags = settled()
    flags.steps, flags.prompts_per_step = 20, 2
    found = growth.of_a_long_run(flags)
    assert len(found["by_step"]) == 20 and (found["ratio"]["last tenth"] < 1.05) is flat
    assert found["also"].startswith("changed by +0.0%" if flat else "changed by +44.7%")


def test_a_run_that_ends_early_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "train", lambda flags, folder: 2)
    flags = settled()
    flags.steps, flags.prompts_per_step = 20, 2
    with pytest.raises(growth.UserError, match="code 2 after 0 of 20 steps"):
        growth.of_a_long_run(flags)


@pytest.mark.slow
def test_a_long_run_is_06_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        growth.PREPARATION, "01_prepare_dataset", [*growth.PREPARATION["01_prepare_dataset"], "--quick_test"]
    )
    monkeypatch.setattr(growth, "EVAL_RECORDS", 2)
    flags = settled()
    flags.steps, flags.prompts_per_step, flags.group = 20, 2, 2
    found = growth.of_a_long_run(flags)
    assert len(found["by_step"]) == 20 and min(found["by_step"]) > 2**26 and found["unit"] == "bytes"
