"""The benchmarks of the engine run on small work, all ways of it do the same work, and they say what they measured."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import arithmetic, rollouts, sampler, updates
from benchmarks.measure import alternate, compared, quickest, row
from benchmarks.rollouts import Work
from benchmarks.table import NEEDED
from tests.unit import fake_vllm
from utils.errors import UserError

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = ["--prompt", "9", "--completion", "3", "--prompts", "2", "--group", "2"]
WAYS = {
    "sampler": {"project", "generate, dynamic", "generate, static"},
    "update": {"project", "project, a row per sample", "TRL", "TRL, completions scored only"},
    "step": {"project", "TRL", "TRL, completions scored only"},
    "growth": {f"{side}, group {group}" for side in ("project", "TRL") for group in (2, 4)},
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rollouts.SHAPES, "5M", TINY)


def settled(*more: str) -> argparse.Namespace:
    """Flags of tiny work."""
    parser = argparse.ArgumentParser()
    rollouts.add_flags(parser)
    flags = parser.parse_args([*SIZES, *more])
    rollouts.check(flags)
    return flags


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WAYS))
def test_every_way_is_measured_on_the_same_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "GROUPED", "a package that is not installed")
    out = tmp_path / "figures.json"
    assert importlib.import_module(f"benchmarks.{name}").main([*SIZES, "--repeats", "1", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    own, *others = figures["median"]
    assert set(figures["median"]) == WAYS[name] and set(figures["ratio"]) == set(others) and own.startswith("project")
    assert min(figures["median"].values()) > 0 and set(NEEDED) <= set(figures)
    assert figures["machine"]["cores"] and figures["machine"]["threads"] and figures["settings"]["group"] == 2
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == figures["row"] and ", fp32, prompt 9, completion 3, 2 x 2 |" in last


def gradients(update: updates.Update, size: int) -> dict[str, torch.Tensor]:
    for start in range(0, update.units, size):
        update.backward(slice(start, start + size))
    found = {name: parameter.grad.clone() for name, parameter in update.model.named_parameters()}
    update.model.zero_grad()
    return found


@pytest.mark.slow
def test_every_way_of_an_update_has_the_same_gradient() -> None:
    flags = settled()
    work = Work.of(flags)
    made = {name: make() for name, make in updates.updates(flags, work).items()}
    wanted = gradients(made["project"], 1)
    assert max(gradient.abs().max() for gradient in wanted.values()) > 1e-4
    for name, update in made.items():
        for size in (1, update.units):
            for attention in update.attentions or (None,):
                if attention:
                    update.model.set_attn_implementation(attention)
                for weight, gradient in gradients(update, size).items():
                    close = {"atol": 1e-6, "rtol": 1e-4, "msg": f"{name}, {attention}, {size} at once: {weight}"}
                    torch.testing.assert_close(gradient, wanted[weight], **close)


def test_the_fastest_micro_batch_is_taken_and_slower_ones_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {1: 1.0, 2: 1.5, 4: 4.0, 8: 1.0}
    tried: list[int] = []
    update = updates.Update(torch.nn.Linear(1, 1), 8, lambda chosen: tried.append(chosen.stop))
    monkeypatch.setattr(updates, "seconds", lambda call: (call(), taken[tried[-1]])[1])
    assert update.tune() == {"micro_batch": 2}
    # one that is not counted, then until five seconds have gone, twice at least
    assert tried == [1] * 6 + [2] * 5 + [4] * 3


def test_micro_batches_grow_as_far_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over more than two units find none; attentions are then compared unit by unit."""
    done: list[int] = []

    def backward(chosen: slice) -> None:
        if chosen.stop - chosen.start > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        done.append(chosen.stop - chosen.start)

    class Model(torch.nn.Linear):
        def set_attn_implementation(self, name: str) -> None:
            pass

    monkeypatch.setattr(updates, "seconds", lambda call: (call(), 1.0)[1])
    monkeypatch.setattr(updates, "quickest", lambda choices: [(call(), name)[1] for name, call in choices.items()][0])
    update, room = updates.Update(Model(1, 1), 8, backward), 2
    update.attentions = ("sdpa", "eager")
    assert update.tune() == {"attention": "sdpa", "micro_batch": 2} and done[:4] == [1, 1, 1, 1]
    room = 0
    update.attentions = ()
    with pytest.raises(UserError, match="out of memory in a pass over a single prompt or sample"):
        update.tune()


def test_vllm_draws_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    fake_vllm.install(monkeypatch, calls)
    flags = argparse.Namespace(**vars(settled()), vllm_memory=0.2)
    model = rollouts.build_own(flags).requires_grad_(False)
    backend = sampler.vllm(model, flags)
    for _ in range(2):
        sampler.draw(backend, model, Work.of(flags), flags)
    assert [call for call in calls if call[0] == "generate"] == [("generate", 2)] * 2
    assert [call[1]["gpu_memory_utilization"] for call in calls if call[0] == "LLM"] == [0.2]
    assert calls.count(("apply_model",)) == 1  # the weights do not change


def test_an_update_covers_the_batch_and_moves_the_weights() -> None:
    seen: list[slice] = []
    model = torch.nn.Linear(1, 1)
    before = model.weight.item()

    def backward(chosen: slice) -> None:
        seen.append(chosen)
        model(torch.ones(1)).sum().backward()

    updates.Update(model, 5, backward)(2)
    assert seen == [slice(0, 2), slice(2, 4), slice(4, 6)] and model.weight.item() != before
    assert model.weight.grad is None


def test_medians_ratios_and_turns() -> None:
    calls: list[str] = []
    values = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3 and [len(found) for found in values.values()] == [2, 2]
    figures = compared({"a": [1.0, 3.0, 2.0], "b": [9.0, 8.0, 4.0]})
    assert figures["median"] == {"a": 2.0, "b": 8.0} and figures["ratio"] == {"b": 4.0}
    assert row({"title": "work", **figures}) == "| work | a 2 s, b 8 s | 4 x b |"
    sized: Any = {"title": "work", **compared({"a": [2e6], "b": [1e6]}, "bytes"), "also": "more"}
    assert row(sized) == "| work | a 2 MB, b 1 MB, more | 0.5 x b |"


def test_the_quickest_is_the_one_whose_shortest_call_is(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"a": iter([3.0, 3.0, 3.0]), "b": iter([9.0, 2.0, 9.0])}
    calls: list[str] = []
    monkeypatch.setattr("benchmarks.measure.seconds", lambda call: next(taken[call()]))
    assert quickest({name: lambda name=name: (calls.append(name), name)[1] for name in taken}) == "b"
    assert calls == ["a", "b"] * 4
    assert quickest({"alone": lambda: calls.append("never called")}) == "alone" and "never called" not in calls


def test_arithmetic_of_an_update_by_hand() -> None:
    flags = settled("--vocabulary", "10")
    assert arithmetic.tokens(flags, shared=True) == 2 * 9 + 2 * 2 * 3
    assert arithmetic.tokens(flags, shared=False) == 4 * (9 + 3)
    keys, others = 2 * 32 * 32, 2 * 32 * 32 + 3 * 32 * 48
    pairs_of_prompts, pairs_of_samples = 2 * 9 * 10 // 2, 2 * 2 * (3 * 9 + 3 * 4 // 2)
    first = (keys + others) * 30 + 2 * 32 * (pairs_of_prompts + pairs_of_samples)
    last = keys * 30 + others * 12 + 2 * 32 * pairs_of_samples
    products = first + last + 32 * 10 * 12
    assert arithmetic.of_an_update(flags) == 6 * products
    assert 0 < arithmetic.share_of_peak(flags, 6 * products, 1.0) < 0.1
    # a step samples and asks the reference, too, and PPO the old policy; adapters need no gradient of the weights
    attention = 2 * 32 * (pairs_of_prompts + 2 * pairs_of_samples)
    for method, lora, wanted in (("grpo", False, 5), ("ppo", False, 6), ("rloo", True, 5)):
        sized = argparse.Namespace(**vars(flags), method=method, lora=lora)
        assert arithmetic.of_a_step(sized) == 2 * (wanted * products - lora * (products - attention))


def test_work_is_the_same_for_the_same_flags() -> None:
    one, same = Work.of(settled()), Work.of(settled())
    assert one.prompts == same.prompts and torch.equal(one.reference, same.reference)
    assert {len(prompt) for prompt in one.prompts} == {9} and one.reference.shape == (4, 3)
    assert max(max(prompt) for prompt in Work.of(settled("--vocabulary", "16")).prompts) < 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--group", "0"], "--group must be 1 or more, got 0"),
        (["--repeats", "0"], "--repeats must be 1 or more, got 0"),
        (["--vocabulary", "3"], "--vocabulary must be 8 or more, got 3"),
        (["--only", "that"], "--only 'that': expected some of 'project', 'generate, dynamic', 'generate, static'"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module("benchmarks.sampler").main([*SIZES, *flags]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load_in_4bit"], "--load_in_4bit needs --lora: quantised weights cannot train"),
        (["--memory_gb", "6"], "--memory_gb limits a GPU; without --device cuda there is none"),
        (["--steps", "9"], "--steps must be 20 or more, got 9: tenths of it are compared"),
    ],
)
def test_mistakes_about_steps_are_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module("benchmarks.growth").main([*SIZES, "--device", "cpu", *flags]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
