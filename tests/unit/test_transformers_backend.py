"""The back end `transformers`: greedy as native, samples from the same distribution, its own log-probs, its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.invariants.tiny import MODELS, tiny_model, tiny_prompts
from utils.errors import UserError
from utils.rl.completions import Completion, Request, batches_by_length, cut
from utils.rl.finite import NonFiniteError
from utils.rl.logprobs import completion_logprobs
from utils.rl.packing import lay_out
from utils.rl.sampling import sample
from utils.rl.transformers_backend import generate
from utils.seeds import uniforms

PAD, STEPS = 0, 12
TIE = 1e-4
"""Greedy tokens may differ where the two best logits are closer than this."""


def draw(call: Any, model: Any, prompts: list[list[int]], numbers: Any, **options: Any) -> list[list[Completion]]:
    settings = {"group_size": 3, "max_new_tokens": STEPS, "stop_ids": [2], "pad_id": PAD, **options}
    return call(model, Request(prompts, uniforms=numbers, **settings))  # type: ignore[no-any-return]


def test_a_completion_is_cut_after_its_first_stop_token() -> None:
    assert cut([5, 6, 2, 0, 2], [2, 3]) == Completion([5, 6, 2], truncated=False)
    assert cut([5, 6], [2]) == Completion([5, 6], truncated=True)
    assert cut([3, 6], [2, 3], [-1.0, -9.0]) == Completion([3], truncated=False, logprobs=[-1.0])


def test_batches_hold_to_their_budget() -> None:
    assert list(batches_by_length([5, 1, 9, 2], 2, 3, 20)) == [[1, 3], [0], [2]]
    assert list(batches_by_length([50], 2, 3, 20)) == [[0]]


@pytest.mark.parametrize("kind", [*MODELS, "mistral"])
def test_greedy_is_that_of_native(kind: str) -> None:
    model, prompts = tiny_model(kind, seed=2), tiny_prompts(20, seed=2)
    free = [group[0].tokens for group in draw(sample, model, prompts, None, group_size=1)]
    stops = sorted({tokens[-1] for tokens in free})[:2]  # some answers end early
    native = draw(sample, model, prompts, None, stop_ids=stops)
    ours = draw(generate, model, prompts, None, stop_ids=stops, tokens_per_batch=200)
    differing = 0
    for prompt, group, expected in zip(prompts, ours, native, strict=True):
        found = [Completion(one.tokens, one.truncated) for one in group]
        assert len(found) == 3 and found == [found[0]] * 3
        differing += found != expected
        assert found == expected or tie(model, prompt, found[0].tokens, expected[0].tokens)
    assert differing <= 1
    assert {one.truncated for group in native for one in group} == {True, False}
    assert draw(generate, model, prompts, uniforms(0, 1, prompts_named(20), 3, STEPS), temperature=0.0) == draw(
        generate, model, prompts, None
    )


def prompts_named(count: int) -> list[str]:
    return [f"record-{i}" for i in range(count)]


def tie(model: Any, prompt: list[int], ours: list[int], theirs: list[int]) -> bool:
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    with torch.no_grad():
        best = model(input_ids=torch.tensor([[*prompt, *ours[:place]]])).logits[0, -1].topk(2).values
    return float(best[0] - best[1]) < TIE


@pytest.mark.parametrize("kind", MODELS)
def test_it_reports_the_log_probs_that_it_drew_from(kind: str) -> None:
    model, prompts = tiny_model(kind), tiny_prompts(5)
    groups = draw(generate, model, prompts, uniforms(0, 1, prompts_named(5), 3, STEPS), tokens_per_batch=100)
    answers = [[one.tokens for one in group] for group in groups]
    with torch.no_grad():
        expected, _ = completion_logprobs(model, lay_out(model, prompts, answers, PAD))
    found = [value for group in groups for one in group for value in one.logprobs or []]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6)])
def test_samples_follow_the_distribution_that_native_draws_from(temperature: float, top_p: float) -> None:
    model, [prompt] = tiny_model("llama", scale=0.15), tiny_prompts(1, seed=3)
    options = {"group_size": 3000, "max_new_tokens": 1, "stop_ids": [], "temperature": temperature, "top_p": top_p}
    [group] = draw(generate, model, [prompt], uniforms(0, 1, ["a"], 3000, 1), **options)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    probs = torch.softmax(logits / temperature, dim=-1)
    ordered = probs.sort(descending=True)
    kept = ordered.indices[(ordered.values.cumsum(0) - ordered.values) < top_p]
    wanted = torch.zeros_like(probs).index_copy(0, kept, probs[kept])
    expected = (wanted / wanted.sum() * 3000).numpy()
    counts = np.bincount([one.tokens[0] for one in group], minlength=64)
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    seen, likely = [*counts[often], counts[~often].sum()], [*expected[often], expected[~often].sum()]
    keep = [i for i, value in enumerate(likely) if value > 0]
    assert chisquare([seen[i] for i in keep], [likely[i] for i in keep]).pvalue > 1e-3


def test_a_batch_follows_from_its_numbers_and_leaves_torchs_generator_alone() -> None:
    model, prompts = tiny_model("llama"), tiny_prompts(6)
    numbers = uniforms(3, 1, prompts_named(6), 3, STEPS)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw(generate, model, prompts, numbers)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert draw(generate, model, prompts, numbers) == first
    assert draw(generate, model, prompts, uniforms(3, 2, prompts_named(6), 3, STEPS)) != first
    assert len({tuple(one.tokens) for group in first for one in group}) > 15


def test_a_models_own_generation_settings_have_no_say() -> None:
    model, prompts = tiny_model("llama"), tiny_prompts(4)
    numbers = uniforms(3, 1, prompts_named(4), 3, STEPS)
    expected = draw(generate, model, prompts, numbers)
    settings = model.generation_config
    settings.temperature, settings.top_p, settings.top_k, settings.repetition_penalty = 0.1, 0.5, 2, 3.0
    assert draw(generate, model, prompts, numbers) == expected


def test_errors_are_those_of_native() -> None:
    model, prompts = tiny_model("llama"), tiny_prompts(4)
    with pytest.raises(UserError, match="only 256 positions"):
        draw(generate, model, [[5] * 250], None)
    with torch.no_grad():
        model.model.embed_tokens.weight[63] = float("nan")
    prompts[2] = [*prompts[2][:-1], 63]
    for numbers in (None, uniforms(0, 1, prompts_named(4), 3, STEPS)):
        with pytest.raises(NonFiniteError, match="not finite at token 1 ") as caught:
            draw(generate, model, prompts, numbers)
        assert caught.value.row == 2
