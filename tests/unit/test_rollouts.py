"""Which prompts a step takes, by hand; how often a prompt is computed, by what the model is given."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.invariants.tiny import letter_tokenizer, tiny_model
from utils.errors import UserError
from utils.rl.backends import make_backend
from utils.rl.rollouts import Sampler, examples_of_step
from utils.seeds import uniforms
from utils.settings import GenerationSettings
from utils.tasks.base import Example

RECORDS = [Example(id=str(i), input_text="") for i in range(10)]


def names(step: int, seed: int = 3) -> list[str]:
    return [example.id for example in examples_of_step(RECORDS, step, 3, seed)]


def test_each_pass_takes_every_record_at_most_once_in_an_order_of_its_own() -> None:
    """Ten records, three a step: a pass is three steps and leaves one out."""
    first, second = ([names(step) for step in steps] for steps in ((1, 2, 3), (4, 5, 6)))
    for steps in (first, second):
        assert len({name for step in steps for name in step}) == 9
    assert first != second and sum(first, []) != sorted(sum(first, []))


def test_the_order_follows_from_seed_and_step_alone() -> None:
    assert names(5) == names(5) and names(5) != names(5, seed=4)
    assert [names(step) for step in (3, 1)] == [names(step) for step in (1, 3)][::-1]


def test_too_few_records_are_one_line() -> None:
    with pytest.raises(UserError, match="only 10 training records for --prompts_per_step 11: lower it"):
        examples_of_step(RECORDS, 1, 11, 0)


@pytest.mark.parametrize(
    ("kind", "backend", "copies"),
    [("llama", "native", 1), ("mistral", "native", 3), ("llama", "transformers", 3), ("mistral", "transformers", 3)],
)
def test_a_prompt_counts_as_often_as_it_is_computed(
    kind: str, backend: str, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts of five tokens, three samples of four tokens each; a sliding window keeps samples from sharing."""
    monkeypatch.setattr("utils.rl.rollouts.encode_prompt", lambda tokenizer, text: [3 + int(text)] * 5)
    monkeypatch.setattr("utils.rl.rollouts.decode", lambda tokenizer, tokens: "")
    monkeypatch.setattr("utils.rl.sampling.WIDTH_MULTIPLE", 1)  # padding counts nowhere
    model, given = tiny_model(kind), []

    def note(module: Any, args: tuple[torch.Tensor]) -> None:
        given.append(args[0].shape)

    model.get_input_embeddings().register_forward_pre_hook(note)
    warnings: list[str] = []
    sampler = Sampler(
        model, letter_tokenizer(), 4, 1000, nullcontext, backend=make_backend(GenerationSettings(backend=backend)),
        warn=warnings.append,
    )  # fmt: skip
    monkeypatch.setattr("utils.rl.rollouts.stop_ids", lambda tokenizer: [])
    examples = [Example(id=str(i), input_text=str(i)) for i in range(2)]
    for step in (1, 2):
        batch = sampler.draw(examples, 3, uniforms(0, step, ["0", "1"], 3, 4))
    computed = sum(rows * width for rows, width in given if width == 5) / 2
    assert computed == batch.prompt_tokens == copies * 10
    assert batch.sampling_tokens == copies * 10 + 2 * 3 * 3  # the last token of a completion is not computed
    once = "mistral attends within a sliding window of 4 tokens: prompts are computed once per sample instead of"
    assert [line.startswith(once) for line in warnings] == [True] * (kind == "mistral")
    given.clear()
    greedy = sampler.draw(examples, 1, None)
    assert greedy.prompt_tokens == sum(rows * width for rows, width in given if width == 5) == 10
