"""What --dry_run of an online RL run says about memory, in numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from utils.machine import DeviceMemory
from utils.rl.memory import (
    Shape,
    _attention_bytes,
    largest_micro_batch,
    need_of,
    put_together,
    resident_bytes,
    weights_and_optimizer,
)
from utils.rl.plan import describe, passes_per_step, tokens_spent
from utils.settings import (
    GenerationSettings,
    GRPOSettings,
    LoraSettings,
    ModelSettings,
    OnlineRunSettings,
    PPOSettings,
    RLSettings,
    RolloutSettings,
    TaskSettings,
    ValidationSettings,
)

MODEL = ModelSettings(name="absent/model", hidden_size=64, num_layers=1, vocab_size=10, precision="bf16")
LORA = LoraSettings(use_lora=True, r=2, target_modules=("q_proj", "v_proj"))
OTHERS = 10 * 64  # the embedding
LINEAR = 4 * 64 * 64 + 3 * 170 * 64  # four projections, an MLP of width 64 x 8 // 3
ADAPTERS = 20 * 2 * 2 * (64 + 64)  # two layers of rank 2; fp32 weight, gradient, two moments, and the frozen copy


def test_the_base_under_an_adapter_is_counted_as_it_is_held() -> None:
    assert weights_and_optimizer(replace(MODEL, precision="fp32"), LORA) == 4 * (OTHERS + LINEAR) + ADAPTERS
    assert weights_and_optimizer(MODEL, LORA) == 2 * (OTHERS + LINEAR) + ADAPTERS
    # a byte per weight and 4 per output
    eight = LINEAR + 4 * (4 * 64 + 3 * 170)
    assert weights_and_optimizer(replace(MODEL, load_in_8bit=True), LORA) == 2 * OTHERS + eight + ADAPTERS
    # half a byte per weight, one per block of 64, 4 per 256 blocks, two tables and an offset of 273 numbers a layer
    four = 4 * (2048 + 64 + 4 + 4 * 273) + 3 * (5440 + 170 + 4 + 4 * 273)
    assert weights_and_optimizer(replace(MODEL, load_in_4bit=True), LORA) == 2 * OTHERS + four + ADAPTERS
    exact = replace(MODEL, load_in_4bit=True, precision="fp32")  # what is not quantised is fp32 then
    assert weights_and_optimizer(exact, LORA) == 4 * OTHERS + four + ADAPTERS


def test_a_policy_trained_whole_has_gradient_moments_and_a_frozen_copy() -> None:
    assert weights_and_optimizer(MODEL, LoraSettings()) == 20 * (OTHERS + LINEAR)


def test_layers_that_no_llama_has_are_taken_as_square() -> None:
    gpt2 = replace(LORA, target_modules=("c_attn", "c_proj"))
    assert weights_and_optimizer(MODEL, gpt2) == weights_and_optimizer(MODEL, LORA)


LARGE = replace(MODEL, hidden_size=4096, num_layers=32, vocab_size=128256)


def run_of(model: ModelSettings, critic: str = "") -> Any:
    return SimpleNamespace(
        run=OnlineRunSettings(device="cpu"), model=model, lora=LORA, rl=RLSettings(), task=TaskSettings(),
        generation=GenerationSettings(), rollout=RolloutSettings(), validation=ValidationSettings(),
        algorithm=PPOSettings(critic=critic) if critic else GRPOSettings(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (LARGE, "14 GB"),
        (replace(LARGE, load_in_8bit=True), "7.5 GB"),
        (replace(LARGE, load_in_4bit=True), "4.4 GB"),
        (ModelSettings(name="absent/model"), "not estimated"),
    ],
)
def test_quantisation_shows_in_the_line(model: ModelSettings, expected: str) -> None:
    """32 layers of width 4,096 are 12 x 4096^2 x 32 = 6.44e9 weights, the embedding is 0.53e9, the rest is small."""
    lines = describe(run_of(model), group_size=4, passes=1)
    (line,) = (one for one in lines if "memory" in one)
    assert f"optimiser {expected}" in line or f"memory: {expected}" in line


@pytest.mark.parametrize(
    ("critic", "mini_batches", "epochs", "expected"),
    [
        ("", 1, 1, (1, 1)),
        ("", 2, 3, (2, 3)),
        ("head", 1, 4, (2, 4)),
        ("trunk", 2, 1, (2, 1)),
        ("adapter", 1, 4, (3, 8)),
    ],
)
def test_passes(critic: str, mini_batches: int, epochs: int, expected: tuple[int, int]) -> None:
    assert passes_per_step(critic, mini_batches, epochs) == expected


def test_tokens_by_hand() -> None:
    """Three prompts of 5 tokens, two completions of 4 each: 39 packed, of which sampling computes 33."""
    assert tokens_spent(15, 24, 6, 3, 8) == {"forward_tokens": 33 + 3 * 39, "gradient_tokens": 8 * 39}
    # and where each prompt is computed for both of its samples
    assert tokens_spent(15, 24, 6, 3, 8, copies=2) == {"forward_tokens": 48 + 3 * 39, "gradient_tokens": 8 * 39}


def test_a_critic_shows_in_the_plan() -> None:
    """32 prompts of 768 tokens with 8 answers of 96: 49,152 tokens per pass."""

    def plan(critic: str) -> str:
        cfg = run_of(LARGE, critic)
        cfg.algorithm = replace(cfg.algorithm, steps=2)
        return "\n".join(describe(cfg, group_size=8, passes=4))

    assert "1 without gradient (reference), 4 with; at most 49152 tokens per update" in plan("")
    assert f"in all at most {2 * (2 * 49152 - 256)} tokens without gradient, {8 * 49152} with" in plan("")
    assert "2 without gradient (reference, old policy and values), 4 with; at most 49152" in plan("head")
    assert "3 without gradient (reference, old policy and values), 8 with; at most 98304" in plan("adapter")
    # five rows of 1,536 tokens, 32 layers, 34 x 4,096 + 8 x 10,922 bytes of a token in each; 64 heads x 2 bytes of a
    # weight: completions see 896 keys (768 + 96, rounded up), prompts in blocks of 256 on average 512. In the last
    # layer 20 x 4,096 of the 767 that are not read; a second pass keeps as many again
    assert "activations 78 GB" in plan("head") and "activations 155 GB" in plan("adapter")
    # 2 x 32 matrices of rank 2 have 1,048,576 weights: 4 bytes of each in a policy, 12 in a step folder, critic too
    assert "best and final 4.2 MB each, a step folder 13 MB" in plan("head")
    assert "best and final 4.2 MB each, a step folder 25 MB" in plan("adapter")
    # weight, gradient and two moments of the head of width 4,096, and of the second adapter
    assert resident_bytes(run_of(LARGE, "head")) - resident_bytes(run_of(LARGE)) == 16 * 4097
    assert resident_bytes(run_of(LARGE, "adapter")) - resident_bytes(run_of(LARGE)) == 16 * (4097 + 1048576)


def test_four_processes_hold_a_quarter_each_and_all_while_they_sample() -> None:
    """20 bytes per weight; a pass puts together what is in no layer and two layers, with gradients but one's."""
    alone = run_of(MODEL)
    alone.lora = LoraSettings()
    shared = SimpleNamespace(**vars(alone))
    shared.run = OnlineRunSettings(device="cpu", num_processes=4, fsdp=True)
    assert resident_bytes(alone) == 20 * (OTHERS + LINEAR) and resident_bytes(shared) == 5 * (OTHERS + LINEAR)
    assert put_together(alone) == (0, 0)
    assert put_together(shared) == (4 * (2 * OTHERS + 3 * LINEAR), 4 * (OTHERS + LINEAR))
    assert "a share of weights, gradients and optimiser" in "".join(describe(shared, group_size=4, passes=1))


def small(**model: Any) -> Any:
    """A row of 100 + 2 x 14 tokens, fp32: 40 x 64 + 16 x 170 = 5,280 bytes of a token that the one layer is read at.

    Those are the completions and the prompt's last token; of the others it keeps 20 x 64 bytes.
    """
    cfg = run_of(replace(MODEL, precision="fp32", **model))
    cfg.task, cfg.generation = TaskSettings(max_prompt_tokens=100), GenerationSettings(max_new_tokens=14)
    cfg.rl = RLSettings(micro_batch_tokens=300)
    return cfg


LOGITS = 29 * 10 * (8 + 16)  # of a row: 28 columns and the prompt's last, 10 entries, gradients, what is made of them
MOVING = 128 * 8 * (64 + 170) - LOGITS
ROW = 29 * 5280 + 99 * 20 * 64 + MOVING


def test_rows_with_too_many_pairs_for_blocks_seem_to_need_no_less() -> None:
    """They keep no weights, but those that a pass really holds may be shorter. Bytes per token of one layer."""
    per_token = []
    shapes = [Shape(256, 688, 5, 8, 4096, prompt, 768, 48) for prompt in (320, 704, 1088, 1472, 2496, 3968)]
    for shape in shapes:
        per_token.append(_attention_bytes("bf16", shape, gpu=False, of_prompt=shape.prompt) / shape.row)
    assert per_token == sorted(per_token) and per_token[-1] < 1.2 * per_token[3]
    assert not any(_attention_bytes("fp32", shape, gpu=False, of_prompt=shape.prompt) for shape in shapes)


def test_memory_by_hand() -> None:
    need = need_of(small(), 2)
    assert need is not None and (need.activations, need.logits) == (2 * ROW, 2 * LOGITS)
    again = need_of(small(activation_checkpointing=True), 2)  # the layer's input beside the whole layer itself
    assert again is not None and again.activations == 2 * (128 * 5280 + MOVING + 128 * 64 * 4)
    whole = small()
    whole.lora = LoraSettings()
    trained = need_of(whole, 2)
    assert trained is not None and trained.activations == 2 * ROW + 4 * 170 * 64  # the largest gradient, a second time


def test_memory_of_sampling_by_hand() -> None:
    """Rows of 100 + 2 x 14 tokens: 260 cached at once are two of them. Shared prompts take 128 columns."""
    cfg = small()
    cfg.generation, cfg.rollout = replace(cfg.generation, tokens_per_batch=260), RolloutSettings(prompts_per_step=8)
    keys = 2 * 64 * 4  # of a token in the one layer
    per_token, drawn = 16 * 64 + 12 * 170, 2 * 2 * 10 * 28
    assert 200 * per_token > drawn
    need = need_of(cfg, 2)
    assert need is not None and need.sampling == 2 * (128 + 28) * keys + 2 * 128 * per_token
    assert need.total == need.fixed + max(need.activations + need.logits, need.sampling)
    assert replace(need, sampling=1e12).total == need.fixed + 1e12
    # each prompt is there for each of its samples
    cfg.generation = replace(cfg.generation, backend="transformers")
    again = need_of(cfg, 2)
    assert again is not None and again.sampling == 228 * keys + 200 * per_token  # one prompt twice
    assert "while it samples 0.73 MB in the place of the last two" in "\n".join(describe(cfg, group_size=2, passes=1))


@pytest.mark.parametrize(
    ("rows_there", "expected"), [(0.9, 0), (1.1, 128), (2.5, 256), (3.9, 256), (5.0, 512), (8.1, 1024), (99.0, 1024)]
)
def test_the_largest_micro_batch_fills_four_fifths_of_the_memory(rows_there: float, expected: int) -> None:
    cfg = small()
    free = int((resident_bytes(cfg) + rows_there * (ROW + LOGITS)) / 0.8)
    assert largest_micro_batch(cfg, 2, free, 8) == expected


def test_all_of_an_update_is_taken_whole() -> None:
    assert largest_micro_batch(small(), 2, 10**12, 3) == 3 * 128
    assert largest_micro_batch(run_of(ModelSettings(name="absent/model")), 2, 10**12, 3) is None


def test_the_device_stands_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def line(found: DeviceMemory | None, **settings: Any) -> str:
        monkeypatch.setattr("utils.rl.memory.free_memory", lambda gpu: found)
        cfg = small()
        cfg.run, cfg.rl = replace(cfg.run, **settings), replace(cfg.rl, auto_batch=True)
        cfg.rollout = RolloutSettings(prompts_per_step=8)
        lines = describe(cfg, group_size=2, passes=1)
        return next(one for one in lines if "this device" in one)

    there = DeviceMemory("RAM", 16 * 10**9, 8 * 10**9)
    assert "RAM 16 GB, 8 GB free; the largest micro_batch_tokens that fits is 1024 (taken by --auto_batch)" in line(
        there
    )
    assert "RAM 8 GB, 4 GB free for each process; the largest micro_batch_tokens that fits is 512" in line(
        there, num_processes=2
    )
    assert "not enough, even for micro-batches of one prompt" in line(replace(there, free=1000))
    assert "its memory is not known here" in line(None)
