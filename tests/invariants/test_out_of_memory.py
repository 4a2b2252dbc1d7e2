"""Out of memory in any pass of 05, 06 and 07: the run goes on in smaller parts and learns the same."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.invariants.tiny import VariedTask, letter_prompts, save_letter_model, tiny_model
from utils.errors import UserError
from utils.files import read_json, read_jsonl, write_jsonl, write_text
from utils.rl import logprobs, passes, sampling
from utils.rl.packing import pack
from utils.rl.passes import Passes
from utils.rl.session import Session
from utils.stage import main

ADAPTER = {"use_lora": True, "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
RUNS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "grpo": ("06_train_grpo", {}, ["--group_size", "4", "--num_iterations", "2", "--mini_batches", "2"]),
    "grpo-lora": ("06_train_grpo", ADAPTER, ["--group_size", "4", "--num_iterations", "2"]),
    "ppo-head": ("05_train_ppo", {}, ["--group_size", "4", "--ppo_epochs", "2", "--entropy_coef", "0.1"]),
    "ppo-trunk": ("05_train_ppo", {}, ["--group_size", "4", "--ppo_epochs", "2", "--critic", "trunk"]),
    "ppo-adapter": ("05_train_ppo", ADAPTER, ["--group_size", "4", "--ppo_epochs", "1", "--critic", "adapter"]),
    "rloo": ("07_train_rloo", {}, ["--num_samples", "4", "--variance_prompts", "0"]),
}
STEPS = 3


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a run on the letter task reads."""
    monkeypatch.setattr("utils.rl.session.make_task", lambda settings, spec: VariedTask())
    save_letter_model(tmp_path / "start")
    write_jsonl(tmp_path / "train.jsonl", letter_prompts(12, seed=1))
    write_jsonl(tmp_path / "val.jsonl", letter_prompts(4, seed=2))
    write_text(tmp_path / "reward_spec.yaml", "none: 0\n")
    return tmp_path


def train(kind: str, folder: Path, name: str, *more: str) -> int:
    script_name, lora, flags = RUNS[kind]
    script = importlib.import_module(script_name)
    rl = {"learning_rate": 1e-3, "critic_learning_rate": 1e-2, "micro_batch_tokens": 4096}
    model = {"name": str(folder / "start")}
    write_text(folder / "model.yaml", json.dumps({"model": model, "lora": lora, "rl": rl}))
    files = {
        "config": "model.yaml", "policy_ckpt": "start", "train_jsonl": "train.jsonl", "val_jsonl": "val.jsonl",
        "reward_spec": "reward_spec.yaml",
    }  # fmt: skip
    named = [word for flag, file in files.items() for word in (f"--{flag}", str(folder / file))]
    sizes = ["--steps", str(STEPS), "--eval_every", "2", "--prompts_per_step", "4", "--max_new_tokens", "3"]
    common = ["--output_dir", str(folder / name), "--seed", "3", "--quiet", *sizes]
    argv = [*common, *named, *flags, *more]
    return main(script.Config, script.run, script.__doc__, str(script.__file__), argv=argv, plan=script.plan)


def starve(monkeypatch: pytest.MonkeyPatch, largest: int) -> list[int]:
    """Memory runs out in every pass of more than `largest` padded tokens; sizes of all passes that were tried."""
    tried: list[int] = []

    def completion_logprobs(model: Any, batch: Any, **options: Any) -> Any:
        tried.append(batch.input_ids.numel())
        found = logprobs.completion_logprobs(model, batch, **options)
        if tried[-1] > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return found

    for module in ("learner", "values"):
        monkeypatch.setattr(f"utils.rl.{module}.completion_logprobs", completion_logprobs)
    return tried


def same_run(starved: Path, plain: Path) -> None:
    """Equal weights and logs, but for rounding; the starved one's manifest says what happened."""
    (policy,) = plain.glob("ckpt_*/final")
    name = next(file.name for file in policy.glob("*.safetensors"))
    expected, found = load_file(policy / name), load_file(starved / policy.relative_to(plain) / name)
    for weight, value in expected.items():
        torch.testing.assert_close(found[weight], value, atol=1e-6, rtol=1e-5)
    rows, others = (read_jsonl(folder / "logs" / "train.jsonl") for folder in (plain, starved))
    for row, other in zip(rows, others, strict=True):
        assert other.pop("phase") == row.pop("phase")
        assert other == pytest.approx(row, rel=1e-4, abs=1e-6)
    spent = [read_json(folder / "manifest.json")["spent"] for folder in (plain, starved)]
    assert spent[0] == spent[1]
    assert any("out of memory" in line for line in read_json(starved / "manifest.json")["warnings"])


# that many tokens lie beyond grpo's largest pass
@pytest.mark.parametrize(
    ("kind", "largest"), [(kind, n) for kind in RUNS for n in (200, 80) if (kind, n) != ("grpo", 200)]
)
def test_forward_passes(kind: str, largest: int, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows of 64 tokens: passes of at most 200 tokens halve the micro-batch, of at most 80 leave a row each."""
    assert train(kind, inputs, "plain") == 0
    with monkeypatch.context() as patch:
        tried = starve(patch, largest)
        assert train(kind, inputs, "starved") == 0
    assert max(tried) > largest and min(tried) <= largest
    assert sum(size > largest for size in tried) <= 4, "the limit is not remembered"
    same_run(inputs / "starved", inputs / "plain")


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("failing", [1, 2])
def test_backward_passes(kind: str, failing: int, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out at the end of a backward pass, when all of its gradients have been added."""
    assert train(kind, inputs, "plain", "--micro_batch_tokens", "128") == 0
    calls, differentiate = 0, passes._differentiate

    def failing_once(*arguments: Any) -> bool:
        nonlocal calls
        calls += 1
        done = differentiate(*arguments)
        if calls == failing:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 12 GB")
        return done

    with monkeypatch.context() as patch:
        patch.setattr(passes, "_differentiate", failing_once)
        assert train(kind, inputs, "starved", "--micro_batch_tokens", "128") == 0
    assert calls > failing
    same_run(inputs / "starved", inputs / "plain")


def test_sampling(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("grpo", inputs, "plain") == 0
    asked: list[int] = []

    def sample(model: Any, request: Any) -> Any:
        asked.append(request.tokens_per_batch)
        found = sampling.sample(model, request)
        if asked[-1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    with monkeypatch.context() as patch:
        patch.setattr("utils.rl.session.make_backend", lambda generation: sample)
        assert train("grpo", inputs, "starved") == 0
    assert sorted(asked, reverse=True) == asked, "the limit is not remembered"
    same_run(inputs / "starved", inputs / "plain")


def test_too_little_for_one_completion_is_one_line(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starve(monkeypatch, 10)
    assert train("grpo", inputs, "run") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: out of memory in a pass over one completion") and "lora.use_lora" in error
    assert read_json(inputs / "run" / "manifest.json")["status"] == "failed"


def test_a_group_is_divided_and_other_errors_stay() -> None:
    model, lines = tiny_model("llama"), list[str]()
    packed = pack([[5, 6, 7], [8, 9]], [[[10, 11], [12], [13, 14, 15], [16]], [[17]]], pad_id=0)
    own = Passes(model, 0, model.parameters(), lines.append)
    own.room = 64
    parts = own.parts(packed)
    assert [(part.prompts, part.groups) for part in parts] == [
        ([[5, 6, 7]], [[[10, 11], [12], [13, 14, 15], [16]]]), ([[8, 9]], [[[17]]]),
    ]  # fmt: skip
    own.room = 1
    assert [part.groups for part in own.parts(packed)] == [
        [[[10, 11]]], [[[12]]], [[[13, 14, 15]]], [[[16]]], [[[17]]],
    ]  # fmt: skip
    (found,) = own.without_gradient(packed, lambda part: logprobs.completion_logprobs(model, part)[:1])
    torch.testing.assert_close(found, logprobs.completion_logprobs(model, packed)[0], atol=1e-5, rtol=1e-5)

    def broken(part: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        own.without_gradient(packed, broken)

    def starved(part: Any) -> Any:
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="one completion"):
        own.without_gradient(packed, starved)
    assert not lines  # nothing was left to halve


def test_a_resumed_run_keeps_the_limit_and_the_micro_batch(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run took from one machine's memory holds on another one, which would choose and meet other limits."""
    from utils.rl.session import Session

    class Killed(BaseException):
        """Stands for kill -9."""

    record = Session.record

    def killed(self: Session, step: int, *rest: Any) -> None:
        record(self, step, *rest)
        if step == STEPS:
            raise Killed

    monkeypatch.setattr("utils.rl.memory.largest_micro_batch", lambda *_: 256)
    with monkeypatch.context() as patch:
        starve(patch, 200)
        assert train("grpo", inputs, "whole", "--auto_batch") == 0
        patch.setattr(Session, "record", killed)
        with pytest.raises(Killed):
            train("grpo", inputs, "cut", "--auto_batch")
    monkeypatch.setattr("utils.rl.memory.largest_micro_batch", lambda *_: 4096)
    assert train("grpo", inputs, "cut", "--auto_batch", "--resume") == 0
    logs = [(inputs / name / "logs" / "train.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    weights = [(inputs / name / "ckpt_grpo" / "final" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    for name in ("whole", "cut"):
        assert read_json(inputs / name / "manifest.json")["metrics"]["micro_batch_tokens"] == 256


def test_auto_batch_needs_to_know_the_sizes(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("grpo", inputs, "run", "--auto_batch") == 2
    assert "the model's sizes are not known; give --micro_batch_tokens" in capsys.readouterr().err


class StoppedError(Exception):
    """Ends a run."""


def test_a_run_goes_on_with_other_micro_batches(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy that --fsdp names; what is learned is the same."""
    assert train("grpo", inputs, "plain") == 0
    record = Session.record

    def stop(self: Session, step: int, *rest: Any) -> None:
        record(self, step, *rest)
        if step == STEPS:
            raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Session, "record", stop)
        train("grpo", inputs, "cut")
    with monkeypatch.context() as patch:
        sizes = starve(patch, 10**9)
        assert train("grpo", inputs, "cut", "--resume", "--micro_batch_tokens", "64") == 0
    assert max(sizes) <= 128
    ends = [load_file(inputs / name / "ckpt_grpo" / "final" / "model.safetensors") for name in ("plain", "cut")]
    for weight, value in ends[0].items():
        torch.testing.assert_close(ends[1][weight], value, atol=1e-6, rtol=1e-5)
    said = "goes on with --micro_batch_tokens 64, was 4096: the same mathematics, other rounding"
    assert said in read_json(inputs / "cut" / "manifest.json")["warnings"]
