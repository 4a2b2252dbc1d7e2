"""Policy, reference and optimiser in shares (--fsdp): the same numbers, files and errors as where each process has all.

What a model in shares computes is tried with a group of one process; 05, 06 and 07 run as two.
"""

from __future__ import annotations

import importlib
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peaks import allocated_peak
from tests.invariants.test_processes import SCRIPTS, alone, finish, flags_of, inputs, start, wait_for
from tests.invariants.tiny import letter_tokenizer, tiny_completions, tiny_model, tiny_prompts
from utils.errors import UserError
from utils.files import read_json, read_jsonl, sha256
from utils.models.load import autocast, load_model
from utils.models.sharding import in_shares, is_share, shard, together, whole
from utils.ranks import leave
from utils.rl.completions import Completion, Request
from utils.rl.learner import Learner
from utils.rl.logprobs import completion_logprobs
from utils.rl.losses import token_weights
from utils.rl.memory import Shape, pass_bytes, sampling_bytes
from utils.rl.packing import in_pieces, pack
from utils.rl.rollouts import RolloutBatch
from utils.rl.sampling import sample
from utils.settings import (
    GenerationSettings,
    GRPOSettings,
    LoraSettings,
    ModelSettings,
    OnlineRunSettings,
    RLSettings,
    RolloutSettings,
    TaskSettings,
    ValidationSettings,
)
from utils.stage import main
from utils.tasks.base import Example

__all__ = ["inputs"]
EVEN = ["--prompts_per_step", "4"]
CASES: dict[str, tuple[str, bool, str, int]] = {
    "llama": ("llama", False, "", 2**24),
    "gpt2": ("gpt2", False, "", 2**24),
    "logits in chunks": ("llama", False, "", 64 * 8),
    "recomputed": ("llama", True, "", 2**24),
    "recomputed, logits in chunks": ("gpt2", True, "", 64 * 8),
    "critic's head": ("llama", False, "head", 2**24),
    "critic in the trunk": ("llama", False, "trunk", 64 * 8),
}
"""Model, activation_checkpointing, critic, logits at once."""


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """This process as a group."""
    importlib.import_module("torch.distributed.nn.functional")  # see utils.ranks
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    leave()


def learner_of(folder: Path, case: str, fsdp: bool) -> Learner:
    kind, recomputed, critic, _ = CASES[case]
    if not folder.is_dir():
        tiny_model(kind).save_pretrained(folder)
        letter_tokenizer().save_pretrained(folder)
    settings = ModelSettings(
        name=str(folder), type="", architecture="", precision="fp32", activation_checkpointing=recomputed
    )
    rates = RLSettings(learning_rate=1e-2, critic_learning_rate=1e-2, micro_batch_tokens=64)
    return Learner(settings, LoraSettings(), rates, start=folder, device="cpu", seed=0, critic=critic, fsdp=fsdp)


def rollout() -> RolloutBatch:
    """Four prompts with two answers each."""
    prompts = tiny_prompts(4, seed=3)
    groups = [[Completion(ids, False) for ids in (group * 2)[:2]] for group in tiny_completions(prompts, seed=4)]
    return RolloutBatch(
        [Example(id=f"r{i}", input_text="") for i in range(4)],
        prompts,
        groups,
        [["", ""]] * 4,
    )


def weigh(lengths: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return token_weights(lengths, kept, "dapo", 12)


def updated(learner: Learner) -> dict[str, float]:
    """One update; its figures."""
    (mini_batch,) = learner.mini_batches(rollout(), torch.arange(8.0).view(4, 2) - 3.5, weigh, 1)
    assert len(mini_batch) > 1
    for micro in mini_batch:
        if learner.critic is None:
            logp, _ = learner.logprobs(micro.packed)
            learner.backward(-micro.advantage * logp + (logp - micro.reference_logp) ** 2, micro)
        else:
            logp, entropy, value = learner.logprobs_and_values(micro.packed, 0.1)
            learner.backward(-micro.advantage * logp + (value - 1) ** 2 - 0.1 * entropy, micro)
    return learner.update(1, 1, 0.5)


def weights(learner: Learner) -> torch.Tensor:
    critic = learner.critic.parameters.values() if learner.critic else ()
    parameters = [*learner.parameters.values(), *critic]
    return torch.cat([together(one.detach()).flatten() for one in parameters])


def greedy(learner: Learner) -> list[list[list[int]]]:
    numbers = np.random.default_rng(0).random((4, 2, 6))
    with learner.whole():
        found = sample(learner.policy, Request(tiny_prompts(4, seed=5), 2, 6, [2], 0, numbers))
    return [[completion.tokens for completion in one] for one in found]


@pytest.mark.parametrize("case", CASES)
def test_a_model_in_shares_learns_samples_and_goes_on_like_a_whole_one(
    case: str, tmp_path: Path, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are the same files, and each goes on with the other's."""
    monkeypatch.setattr("utils.rl.logprobs.CHUNK", CASES[case][3])
    plain, shared = (learner_of(tmp_path / "model", case, fsdp) for fsdp in (False, True))
    assert in_shares(shared.policy) and all(map(is_share, shared.parameters.values()))
    begun = weights(plain)
    for step in range(1, 4):
        assert greedy(plain) == greedy(shared)
        assert updated(shared) == pytest.approx(updated(plain), rel=1e-5)
        torch.testing.assert_close(weights(shared), weights(plain), rtol=0, atol=2e-6)
        assert float((weights(plain) - begun).abs().max()) > 5e-3 * step
    for learner, name in ((plain, "plain"), (shared, "shared")):
        learner.save(tmp_path / name, 3, {})
        learner.save_policy(tmp_path / name / "final")
    folders = (tmp_path / "plain", tmp_path / "shared")
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in folders]
    assert files[0] == files[1]
    ends = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("plain", "shared")]
    assert list(ends[0]) == list(ends[1])
    assert sha256(tmp_path / "plain" / "final" / "config.json") == sha256(tmp_path / "shared" / "final" / "config.json")
    others = [learner_of(tmp_path / "model", case, fsdp) for fsdp in (False, True)]
    for learner, origin in zip(others, ("shared", "plain"), strict=True):
        assert learner.restore(tmp_path / origin / "step_3")["step"] == 3
    for learner in (plain, shared, *others):
        updated(learner)
    for learner in (shared, *others):
        torch.testing.assert_close(weights(learner), weights(plain), rtol=0, atol=4e-6)


def test_bf16_is_that_of_a_whole_model(tmp_path: Path, group: None) -> None:
    """Autocast over shares that are fp32, as over whole weights."""
    learners = []
    for fsdp in (False, True):
        learner = learner_of(tmp_path / "model", "llama", fsdp)
        learner.model_settings = replace(learner.model_settings, precision="bf16")
        learners.append(learner)
    for _ in range(2):
        assert updated(learners[1]) == pytest.approx(updated(learners[0]), rel=1e-5)
    torch.testing.assert_close(weights(learners[1]), weights(learners[0]), rtol=0, atol=2e-6)


def test_out_of_memory_ends_in_one_line(tmp_path: Path, group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other processes wait in the same pass: nobody goes on in smaller parts."""
    learner = learner_of(tmp_path / "model", "llama", True)

    def full(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("utils.rl.learner.completion_logprobs", full)
    learner.rl = replace(learner.rl, micro_batch_tokens=1)
    with pytest.raises(UserError, match=r"in a pass over one group \(\d+ tokens with its prompt\): shorten"):
        learner.mini_batches(rollout(), torch.zeros(4, 2), weigh, 1)
    learner.rl = replace(learner.rl, micro_batch_tokens=4096)
    remedy = r"go on with --resume --no_auto_batch --micro_batch_tokens \d+$"
    said = rf"in a pass of \d+ tokens, which with --fsdp all make at once; {remedy}"
    with pytest.raises(UserError, match=said):
        learner.mini_batches(rollout(), torch.zeros(4, 2), weigh, 1)
    assert learner.passes.room == 0


def test_a_limit_of_before_divides_no_pass(tmp_path: Path, group: None) -> None:
    """A run that ran out of memory goes on in shares: the limit holds for micro-batches, of which all have as many."""
    learner = learner_of(tmp_path / "model", "llama", True)
    learner.passes.room = 32
    (mini_batch,) = learner.mini_batches(rollout(), torch.zeros(4, 2), weigh, 1)
    assert [len(micro.packed.prompts) for micro in mini_batch] == [1] * 4
    assert all(learner.passes.parts(micro.packed) == [micro.packed] for micro in mini_batch)


def test_batches_are_cut_into_as_many_as_others_have() -> None:
    assert in_pieces([[0], [1, 2, 3], [4, 5]], 5) == [[0], [1], [2], [3], [4, 5]]
    assert in_pieces([[0, 1], [2]], 2) == [[0, 1], [2]]
    assert in_pieces([[0, 1, 2, 3]], 2) == [[0, 1], [2, 3]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("ppo", ["--ppo_epochs", "2", "--mini_batches", "2", "--critic", "trunk", "--stop_kl", "0.05"]),
        ("grpo", ["--num_iterations", "2", "--loss_type", "dapo"]),
        ("rloo", []),
    ],
)
def test_two_processes_equal_one_on_recorded_rollouts(
    tmp_path: Path, inputs: list[str], method: str, more: list[str]
) -> None:
    """Loss, gradients and weights of 20 steps, and every other figure, within 1e-4 in fp32; each holds a half."""
    flags = [*inputs, *EVEN, "--steps", "20", "--eval_every", "20", *more]
    one = alone(method, flags_of(method, tmp_path / "one", flags), tmp_path / "seen_one")
    seen, replay = tmp_path / "seen_two", str(tmp_path / "seen_one" / "0.pt")
    two = flags_of(method, tmp_path / "two", [*flags, "--fsdp"])
    code, error = finish(start(method, two, seen, WATCHED_REPLAY=replay))
    assert code == 0, error
    both = [torch.load(seen / f"{rank}.pt") for rank in (0, 1)]
    assert len(both[0]["weights"]) == len(one["weights"]) >= 20
    for name in ("weights", "gradients"):
        for ours, other, lone in zip(both[0][name], both[1][name], one[name], strict=True):
            assert torch.equal(ours, other), "the processes drift apart"
            assert torch.allclose(ours, lone, rtol=0, atol=1e-4), f"{name} off by {float((ours - lone).abs().max())}"
    assert float((one["weights"][-1] - one["weights"][0]).abs().max()) > 1e-2
    for held in (half["held"] for half in both):
        assert 0.4 * one["held"] < held < 0.6 * one["held"]
    rows, lone_rows = (read_jsonl(tmp_path / name / "logs" / "train.jsonl") for name in ("two", "one"))
    for row, lone_row in zip(rows, lone_rows, strict=True):
        assert row == {name: pytest.approx(value, abs=1e-4) for name, value in lone_row.items()}, "figures differ"
    manifests = [read_json(tmp_path / name / "manifest.json") for name in ("one", "two")]
    assert manifests[0]["spent"] == manifests[1]["spent"]
    assert (tmp_path / "one" / "gradient_variance.json").exists() == (method == "rloo")


@pytest.mark.slow
def test_a_killed_run_goes_on_in_shares_and_without(tmp_path: Path, inputs: list[str]) -> None:
    """Byte by byte with as many processes; as one process, and from one, within rounding."""
    flags = [*inputs, *EVEN, "--steps", "4"]
    alone("grpo", flags_of("grpo", tmp_path / "one", flags), tmp_path / "seen_one")
    whole = start("grpo", flags_of("grpo", tmp_path / "whole", [*flags, "--fsdp"]), tmp_path / "seen_whole")
    assert finish(whole) == (0, "")
    cut = start("grpo", flags_of("grpo", tmp_path / "cut", [*flags, "--fsdp"]), tmp_path / "seen_cut")
    wait_for(lambda: (tmp_path / "cut" / "ckpt_grpo" / "last_complete").exists() or cut.poll() is not None)
    cut.send_signal(signal.SIGKILL)
    finish(cut)
    shutil.copytree(tmp_path / "cut", tmp_path / "cut_one")
    again = start("grpo", flags_of("grpo", tmp_path / "cut", [*flags, "--fsdp", "--resume"]), tmp_path / "seen_again")
    assert finish(again) == (0, "")
    for name in ("ckpt_grpo/final", "ckpt_grpo/step_4", "logs/train.jsonl", "val_generations"):
        assert sha256(tmp_path / "cut" / name) == sha256(tmp_path / "whole" / name), name
    alone("grpo", flags_of("grpo", tmp_path / "cut_one", [*flags, "--resume"]), tmp_path / "seen_cut_one")
    ends = [
        load_file(tmp_path / name / "ckpt_grpo" / "final" / "model.safetensors") for name in ("one", "whole", "cut_one")
    ]
    for name, weight in ends[0].items():
        for other in ends[1:]:
            assert torch.allclose(weight, other[name], rtol=0, atol=1e-4), name


@pytest.mark.slow
def test_an_error_in_one_process_ends_both_in_one_line(tmp_path: Path, inputs: list[str]) -> None:
    """The other one waits in the middle of a pass."""
    flags = flags_of("grpo", tmp_path / "run", [*inputs, *EVEN, "--steps", "4", "--fsdp"])
    code, error = finish(start("grpo", flags, tmp_path / "seen", WATCHED_NAN="1,2"))
    assert code == 2 and error.count("\n") == 1
    assert error.startswith("error: step 2: record 1-") and "the loss is nan at token 1" in error


@pytest.mark.parametrize(
    ("processes", "more", "said"),
    [
        ("1", [], "--fsdp: one process has nobody to share with"),
        ("2", ["--use_lora"], "--fsdp is for policies that train whole: leave it out, or give --no_use_lora"),
        (
            "2",
            ["--prompts_per_step", "8", "--mini_batches", "3"],
            "8 must be a multiple of 6 (--mini_batches 3",
        ),
        ("2", ["--prompts_per_step", "5"], "--prompts_per_step 5 must be a multiple of 2"),
    ],
)
def test_what_cannot_be_shared(
    processes: str, more: list[str], said: str, tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Said at once, also by --dry_run, before a process starts or a manifest is touched."""
    script = importlib.import_module(SCRIPTS["grpo"])
    flags = flags_of("grpo", tmp_path / "run", [*inputs, *EVEN, "--fsdp", "--num_processes", processes, *more])
    for dry in ([], ["--dry_run"]) if processes == "2" else ([],):
        assert main(script.Config, script.run, script.__doc__, str(script.__file__), argv=[*flags, *dry]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_plan_leaves_the_number_of_processes_open(
    tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module(SCRIPTS["grpo"])
    flags = flags_of("grpo", tmp_path / "run", [*inputs, "--prompts_per_step", "3", "--fsdp", "--dry_run"])
    call = [script.Config, script.run, script.__doc__, str(script.__file__)]
    assert main(*call, argv=flags, plan=script.plan) == 0
    assert "plan:" in capsys.readouterr().out
    assert main(*call, argv=[*flags, "--use_lora"], plan=script.plan) == 2


SIZES = {"fp32": ("fp32", 2048, 256), "bf16": ("bf16", 2048, 256), "much in no layer": ("fp32", 16384, 128)}
"""Precision, vocabulary, width; four layers."""


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("what", ["a pass", "sampling"])
def test_the_estimate_of_memory_is_near_the_peak(case: str, what: str, tmp_path: Path, group: None) -> None:
    """Of torch's allocator, beyond the shares, where most of it is what is put together."""
    precision, vocabulary, width = SIZES[case]
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=4, num_attention_heads=4,
        vocab_size=vocabulary, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(tmp_path)
    letter_tokenizer().save_pretrained(tmp_path)
    settings = ModelSettings(
        name=str(tmp_path), hidden_size=width, num_layers=4, vocab_size=vocabulary, precision=precision
    )
    cpu = torch.device("cpu")
    policy = load_model(settings, LoraSettings(), checkpoint=None, trainable=True, device=cpu)
    shard(policy, cpu)
    prompt, samples, new = 24, 4, 8
    packed = pack([[5] * prompt], [[[6] * new] * samples], pad_id=0)
    request = Request([[5] * prompt], samples, new, [], 0, np.random.default_rng(0).random((1, samples, new)))

    def call() -> None:
        if what == "sampling":
            with whole(policy), autocast(settings, cpu):
                sample(policy, request)
            return
        with autocast(settings, cpu):
            logp, _ = completion_logprobs(policy, packed)
        logp.mean().backward()

    call()
    cfg: Any = SimpleNamespace(
        run=OnlineRunSettings(device="cpu", fsdp=True), model=settings, lora=LoraSettings(),
        task=TaskSettings(max_prompt_tokens=prompt), generation=GenerationSettings(max_new_tokens=new),
        rollout=RolloutSettings(prompts_per_step=1), validation=ValidationSettings(eval_records=1),
        algorithm=GRPOSettings(),
    )  # fmt: skip
    sizes = Shape.of(cfg, samples)
    assert sizes is not None
    expected = sum(pass_bytes(cfg, sizes, 1)) if what == "a pass" else sampling_bytes(cfg, sizes, samples)
    found = expected / allocated_peak(call, "cpu")
    print(f"{what}, {case}: {found:.2f}")
    assert 0.7 < found < 1.5
