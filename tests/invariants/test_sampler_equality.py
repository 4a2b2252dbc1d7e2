"""What `utils.rl.sampling` draws is what plain transformers says: distribution, greedy tokens, log-probs.

Each test takes Llama and GPT-2, whole and with an adapter. Batching and compaction must change nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.invariants.tiny import MODELS, tiny_model, tiny_prompts
from utils.rl import sampling
from utils.rl.cache import GrowingLayer
from utils.rl.completions import Completion, Request
from utils.rl.logprobs import completion_logprobs
from utils.rl.packing import lay_out
from utils.rl.sampling import sample
from utils.seeds import uniforms

STOP, PAD, STEPS = 2, 0, 16
TIE = 1e-4
"""Greedy tokens may differ where the two best logits are closer than this."""
EXPECTED = 5
"""Tokens that are expected fewer times than this are counted together, as the chi-square test asks for."""


def draw(model: Any, prompts: list[list[int]], numbers: Any, **options: Any) -> list[list[Completion]]:
    settings = {"group_size": 1, "max_new_tokens": STEPS, "stop_ids": [STOP], "pad_id": PAD, **options}
    return sample(model, Request(prompts, uniforms=numbers, **settings))


def plain_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """Logits [len(tokens), _V] of one sequence alone, without cache, padding or mask."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
    return logits


def p_value(tokens: list[int], probabilities: torch.Tensor) -> float:
    """Of a chi-square test that the tokens were drawn with these probabilities."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    expected = probabilities.double().numpy() / float(probabilities.double().sum()) * len(tokens)
    rare = expected < EXPECTED
    seen = [*counts[~rare], *([counts[rare].sum()] if rare.any() else [])]
    wanted = [*expected[~rare], *([expected[rare].sum()] if rare.any() else [])]
    assert len(wanted) > 5
    return float(chisquare(seen, wanted).pvalue)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_are_drawn_with_the_models_probabilities(kind: str, temperature: float) -> None:
    """The first token of 3,000 samples, and the second of those that began with the likeliest token."""
    model, [prompt] = tiny_model(kind, scale=0.15), tiny_prompts(1, seed=3)
    numbers = uniforms(0, 1, ["record"], 3000, 2)
    groups = draw(
        model, [prompt], numbers, group_size=3000, max_new_tokens=2, stop_ids=[], temperature=temperature
    )  # fmt: skip
    answers = [completion.tokens for completion in groups[0]]
    first = torch.softmax(plain_logits(model, prompt)[-1] / temperature, dim=-1)
    assert p_value([tokens[0] for tokens in answers], first) > 1e-3
    best = int(first.argmax())
    second = torch.softmax(plain_logits(model, [*prompt, best])[-1] / temperature, dim=-1)
    assert p_value([tokens[1] for tokens in answers if tokens[0] == best], second) > 1e-3
    # it would notice: these are not the probabilities of another temperature
    assert p_value([tokens[0] for tokens in answers], torch.softmax(first.log() * 1.5, dim=-1)) < 1e-6


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_equals_generate_but_for_ties(kind: str) -> None:
    model, prompts = tiny_model(kind, seed=1), tiny_prompts(40, seed=1)
    ours = [group[0].tokens for group in draw(model, prompts, None, tokens_per_batch=300)]
    ties = 0
    for prompt, tokens in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=STEPS,
            pad_token_id=PAD, eos_token_id=STOP,
        )[0, len(prompt) :].tolist()  # fmt: skip
        ties += tokens != theirs
        assert tokens == theirs or is_tie(model, prompt, tokens, theirs)
    assert ties <= 1, f"{ties} of {len(prompts)} answers differ at ties"


def is_tie(model: Any, prompt: list[int], ours: list[int], theirs: list[int]) -> bool:
    """Whether the two best logits are closer than TIE where two answers part."""
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    best = plain_logits(model, [*prompt, *ours[:place]])[-1].topk(2).values
    return float(best[0] - best[1]) < TIE


class Watched:
    """The logits that the sampler chose from: `logits[prompt, sample, time]`, through batches and compaction."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.logits: dict[tuple[int, int, int], torch.Tensor] = {}
        self.batch: list[int] = []
        run, prefill, step = sampling._run, sampling._Rows._prefill, sampling._Rows._step

        def noted_run(model: Any, request: Request, batch: list[int], decoder: Any) -> list[list[Completion]]:
            self.batch = batch
            return run(model, request, batch, decoder)

        def noted_prefill(rows: Any) -> torch.Tensor:
            logits = prefill(rows)
            self.note(rows, logits.expand(-1, rows.groups, -1), 0)
            return logits

        def noted_step(rows: Any, chosen: torch.Tensor, t: int) -> torch.Tensor:
            logits = step(rows, chosen, t)
            self.note(rows, logits, t + 1)
            return logits

        patch.setattr("utils.rl.sampling._run", noted_run)
        patch.setattr("utils.rl.sampling._Rows._prefill", noted_prefill)
        patch.setattr("utils.rl.sampling._Rows._step", noted_step)

    def note(self, rows: Any, logits: torch.Tensor, t: int) -> None:
        for place, row in enumerate(rows.row.tolist()):
            for g in range(rows.groups):
                i, sample = (row, g) if rows.shared else divmod(row, rows.request.group_size)
                self.logits[self.batch[i], sample, t] = logits[place, g].float()

    def logprobs(self, answers: list[list[list[int]]]) -> torch.Tensor:
        """Of all tokens, prompt by prompt, sample by sample."""
        return torch.stack([
            self.logits[i, g, t].log_softmax(-1)[token]
            for i, group in enumerate(answers) for g, tokens in enumerate(group) for t, token in enumerate(tokens)
        ])  # fmt: skip


def plain_logprobs(model: Any, prompts: list[list[int]], answers: list[list[list[int]]]) -> torch.Tensor:
    """The same of plain forward passes, each over one sequence."""
    found = []
    for prompt, group in zip(prompts, answers, strict=True):
        for tokens in group:
            logits = plain_logits(model, [*prompt, *tokens])[len(prompt) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0])
    return torch.cat(found)


def drawn_and_watched(
    model: Any, prompts: list[list[int]], patch: pytest.MonkeyPatch
) -> tuple[list[list[list[int]]], torch.Tensor]:
    """Four answers to each prompt, some of which end early and leave the batch; what the sampler drew them from."""
    numbers = uniforms(0, 1, list(range(len(prompts))), 4, STEPS)
    stops = halfway_stops(draw(model, prompts, numbers, group_size=4))
    with patch.context() as context:
        watched = Watched(context)
        groups = draw(model, prompts, numbers, group_size=4, stop_ids=stops, tokens_per_batch=400)
    answers = [[completion.tokens for completion in group] for group in groups]
    assert {completion.truncated for group in groups for completion in group} == {True, False}
    return answers, watched.logprobs(answers)


@pytest.mark.parametrize("kind", [*MODELS, "mistral"])
def test_tokens_are_drawn_from_the_log_probs_of_a_plain_forward_pass(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler's own numbers and the learner's, token by token."""
    model, prompts = tiny_model(kind), tiny_prompts(12)
    answers, drawn_from = drawn_and_watched(model, prompts, monkeypatch)
    expected = plain_logprobs(model, prompts, answers)
    torch.testing.assert_close(drawn_from, expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        logp, _ = completion_logprobs(model, lay_out(model, prompts, answers, PAD))
    torch.testing.assert_close(logp, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_in_bf16_the_sampler_is_as_far_from_fp32_as_the_learner(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root mean squares, in nats; the two differ from each other by no more (docs/backends.md)."""
    model, prompts = tiny_model(kind), tiny_prompts(12)
    with torch.autocast("cpu", torch.bfloat16):
        answers, drawn_from = drawn_and_watched(model, prompts, monkeypatch)
        with torch.no_grad():
            logp, _ = completion_logprobs(model, lay_out(model, prompts, answers, PAD))
    exact = plain_logprobs(model, prompts, answers)
    pairs = {"sampler": (drawn_from, exact), "learner": (logp, exact), "apart": (drawn_from, logp)}
    error = {name: float((one - other).square().mean().sqrt()) for name, (one, other) in pairs.items()}
    print(kind, error, "largest apart", float((drawn_from - logp).abs().max()))
    assert 1e-4 < error["sampler"] < 1.5 * error["learner"]
    assert error["apart"] < 1.5 * error["learner"]


def halfway_stops(groups: list[list[Completion]]) -> list[int]:
    """Two tokens that, as stop tokens, end some answers early and leave others whole."""
    answers = [set(completion.tokens) for group in groups for completion in group]
    shares = {token: sum(token in answer for answer in answers) for token in set().union(*answers)}
    return sorted(shares, key=lambda token: (abs(shares[token] - len(answers) / 3), token))[:2]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("sampled", [True, False])
def test_compaction_batches_and_order_change_nothing(kind: str, sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model(kind), tiny_prompts(12, seed=2)
    names = [str(i) for i in range(12)]
    numbers = uniforms(0, 1, names, 2, STEPS) if sampled else None
    stops = halfway_stops(draw(model, prompts, numbers, group_size=2))
    selections: list[int] = []
    original = GrowingLayer.batch_select_indices

    def counted(self: GrowingLayer, going: torch.Tensor) -> None:
        selections.append(int((~going).sum()))
        original(self, going)

    monkeypatch.setattr(GrowingLayer, "batch_select_indices", counted)
    options: dict[str, Any] = {"group_size": 2, "stop_ids": stops}
    found = {}
    for share in (0.0, 0.25, 2.0):
        monkeypatch.setattr("utils.rl.sampling.COMPACT_SHARE", share)
        selections.clear()
        found[share] = draw(model, prompts, numbers, **options)
        # compaction at every step, sometimes, never
        assert (sum(selections) > 0) == (share < 1), share
    assert found[0.0] == found[0.25] == found[2.0]
    assert {completion.truncated for group in found[0.25] for completion in group} == {True, False}
    monkeypatch.setattr("utils.rl.sampling.COMPACT_SHARE", 0.25)
    for budget in (1, 100, 500):
        assert draw(model, prompts, numbers, tokens_per_batch=budget, **options) == found[0.25]
    order = np.random.default_rng(0).permutation(12)
    shuffled = draw(
        model, [prompts[i] for i in order], None if numbers is None else numbers[order], tokens_per_batch=200, **options
    )  # fmt: skip
    assert shuffled == [found[0.25][i] for i in order]
