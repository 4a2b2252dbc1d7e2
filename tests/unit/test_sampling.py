"""Sampling: greedy equals transformers.generate, a sample depends on its own numbers, frequencies follow softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.invariants.tiny import MODELS, tiny_model, tiny_prompts
from utils.errors import UserError
from utils.rl.completions import Request
from utils.rl.finite import NonFiniteError
from utils.rl.sampling import _parts, choose, sample
from utils.seeds import uniforms

STOP, PAD, STEPS = 2, 0, 12


def draw(model, prompts, numbers, group_size=3, stop=STOP, **options):
    return sample(model, Request(prompts, group_size, STEPS, [stop], PAD, numbers, **options))


@pytest.mark.parametrize("kind", [*MODELS, "mistral"])
def test_greedy_equals_generate_token_for_token(kind: str) -> None:
    model, prompts = tiny_model(kind), tiny_prompts(7)
    # the batch is cut into several, of different lengths; a likely stop token makes rows end and leave
    stop = greedy_favourite(model, prompts)
    ours = draw(model, prompts, None, group_size=1, stop=stop, tokens_per_batch=70)
    assert any(not group[0].truncated for group in ours) and any(group[0].truncated for group in ours)
    for prompt, [completion] in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=STEPS,
            pad_token_id=PAD, eos_token_id=stop,
        )  # fmt: skip
        assert completion.tokens == theirs[0, len(prompt) :].tolist()
        assert completion.truncated == (completion.tokens[-1] != stop)


def greedy_favourite(model, prompts) -> int:
    """A token that some greedy answers contain and some do not."""
    answers = [group[0].tokens for group in draw(model, prompts, None, group_size=1)]
    counts = {token: sum(token in answer for answer in answers) for answer in answers for token in answer}
    return min(counts, key=lambda token: (abs(counts[token] - len(answers) / 2), token))


@pytest.mark.parametrize("kind", [*MODELS, "mistral"])
def test_a_sample_depends_on_its_own_numbers_alone(kind: str) -> None:
    model, prompts = tiny_model(kind), tiny_prompts(6)
    names = [f"record-{i}" for i in range(6)]
    together = draw(model, prompts, uniforms(3, 1, names, 3, STEPS))
    backwards = draw(model, prompts[::-1], uniforms(3, 1, names[::-1], 3, STEPS))
    alone = [draw(model, [prompts[i]], uniforms(3, 1, [names[i]], 3, STEPS))[0] for i in range(6)]
    small_batches = draw(model, prompts, uniforms(3, 1, names, 3, STEPS), tokens_per_batch=1)
    fewer_samples = draw(model, prompts, uniforms(3, 1, names, 2, STEPS), group_size=2)
    assert together == backwards[::-1] == alone == small_batches
    assert [group[:2] for group in together] == fewer_samples
    assert len({tuple(c.tokens) for group in together for c in group}) > 15


def test_separate_rows_draw_the_same_samples_as_shared_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model("llama"), tiny_prompts(4)
    numbers = uniforms(0, 1, list(range(4)), 3, STEPS)
    shared = draw(model, prompts, numbers)
    monkeypatch.setattr("utils.rl.sampling.unpackable", lambda model: "says the test")
    assert draw(model, prompts, numbers) == shared


def test_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    numbers = torch.from_numpy(np.random.default_rng(0).random(20_000))
    drawn = choose(logits.expand(20_000, -1), numbers)
    expected = torch.softmax(logits, 0).double() * 20_000
    assert chisquare(torch.bincount(drawn, minlength=5).numpy(), expected / expected.sum() * 20_000).pvalue > 0.01


def test_inverse_cdf_by_hand() -> None:
    """Probabilities 0.5, 0, 0.25, 0.25: running sums 0.5, 0.5, 0.75, 1."""
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().expand(6, -1)
    numbers = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2.0**-53], dtype=torch.float64)
    assert choose(logits, numbers).tolist() == [0, 0, 2, 2, 3, 3]
    assert choose(logits, None).tolist() == [0] * 6
    # temperature 0.5 squares the odds: 4 : 1 : 1, so that 0.6 < 4/6 falls on the first
    assert choose(logits[:1], torch.tensor([0.6], dtype=torch.float64), temperature=0.5).tolist() == [0]


def test_a_token_of_probability_0_is_never_drawn() -> None:
    """Probabilities 0, 1/2, 0, 1/2, 0: at the edges of the intervals too."""
    logits = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]).log().expand(3, -1)
    assert choose(logits, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist() == [1, 3, 3]


def test_nucleus_keeps_the_smallest_set_that_holds_the_mass() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().expand(4, -1)
    numbers = torch.tensor([0.0, 0.6, 0.7, 0.99], dtype=torch.float64)
    # 0.5 + 0.25 reaches 0.7: tokens 1 and 3 remain with 2/3 and 1/3
    assert choose(logits, numbers, top_p=0.7).tolist() == [1, 1, 3, 3]
    assert choose(logits, numbers, top_p=0.0).tolist() == [1, 1, 1, 1]


def test_non_finite_logits_name_the_prompt() -> None:
    model, prompts = tiny_model("llama"), tiny_prompts(4)
    with torch.no_grad():
        model.model.embed_tokens.weight[63] = float("nan")
    prompts[2] = [*prompts[2][:-1], 63]
    with pytest.raises(NonFiniteError, match="not finite at token 1") as caught:
        draw(model, prompts, None)
    assert caught.value.row == 2


def test_a_prompt_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(UserError, match="only 256 positions"):
        draw(tiny_model("llama"), [[5] * 250], None)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_prompts_come_in_few_widths_but_not_beyond_a_models_positions(kind: str) -> None:
    """Prompts of 3 and 20 tokens take 32 columns, one of 33 takes 64: a model has 45 positions, answers included."""
    model, widths = tiny_model(kind), []
    model.config.max_position_embeddings = 45
    if kind == "gpt2":
        positions = model.transformer.wpe
        positions.weight = torch.nn.Parameter(positions.weight[:45].clone())
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, given, found: widths.append(given[0].shape[1]))
    draw(model, [[7] * 3], None)
    for tokens in (20, 33):
        assert len(draw(model, [[7] * tokens], None, stop=-1)[0][0].tokens) == STEPS
    handle.remove()
    assert [width for width in widths if width > 3] == [32, 32, 64]  # 3: a decoding step of three samples


@pytest.mark.parametrize(
    ("tokens", "places", "expected"),
    [
        (100, 100, [(0, 5)]),
        (12, 100, [(0, 2), (2, 4), (4, 5)]),  # two rows of 6
        (3, 100, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
        (100, 4, [(0, 4), (4, 5)]),  # four rows of one length, or two of two
        (100, 1, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
        (100, 9, [(0, 4), (4, 5)]),  # five rows of two lengths would be ten
    ],
)
def test_a_prefill_is_cut_by_tokens_and_by_logits(tokens: int, places: int, expected: list[tuple[int, int]]) -> None:
    parts = [(part.start, part.stop) for part in _parts([5, 5, 5, 5, 6], tokens, places)]
    assert parts == expected


def test_logits_of_a_prefill_are_bounded_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of twelve lengths: at most three rows, of three lengths, at a time."""
    model, prompts = tiny_model("gpt2"), [prompt[:1] + prompt for prompt in tiny_prompts(12)]  # has no `Decoder`
    whole = draw(model, prompts, None, group_size=1)
    sizes: list[int] = []
    head = model.lm_head
    handle = head.register_forward_hook(lambda module, given, logits: sizes.append(logits[..., 0].numel()))
    draw(model, prompts, None, group_size=1)
    together = max(sizes)
    sizes.clear()
    monkeypatch.setattr("utils.rl.sampling.PREFILL_LOGITS", 9 * model.config.vocab_size)
    assert draw(model, prompts, None, group_size=1) == whole
    handle.remove()
    assert together > 50 and max(sizes) <= 12  # of decoding: a token of each row
