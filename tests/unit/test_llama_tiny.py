"""What llama-tiny is taught: formulas of the page's own numbers, in wordings that finqa_mini does not use."""

from __future__ import annotations

import json
import re

import torch

from tests.invariants.tiny import tiny_model
from tools.pretrain_llama_tiny import deepen
from tools.tiny_corpus import LEVELS, document, table
from tools.tiny_formulas import FINQA_MINI, FORMULAS, formula_question, wording_of
from utils.finqa.answers import read_answer
from utils.finqa.program import parse
from utils.seeds import generator


def test_a_formula_is_a_program_over_the_cells() -> None:
    rng = generator(0, "formulas")
    for _ in range(300):
        _, cells = table(rng, 5, 3)
        question, answer = formula_question(rng, cells)
        program = json.loads(answer)["formula"]
        operands = [word for step in parse(program) for word in step.args]
        numbers = {word for word in operands if re.fullmatch(r"[\d.]+", word)}
        assert "{" not in question and numbers <= set(cells.values())


def test_no_wording_is_one_of_finqa_minis() -> None:
    rng = generator(0, "wordings")
    drawn = {wording_of(rng, formula) for formula in FORMULAS for _ in range(300)}
    assert len(drawn) > 1000 and not drawn & FINQA_MINI


def test_answers_in_the_tasks_format_are_copied_only() -> None:
    """A learned piece that holds program and answer repeats the piece before it."""
    rng, seen = generator(0, "documents"), 0
    for _ in range(300):
        pieces = document(rng, LEVELS[-1])
        for (before, _), (text, learned) in zip(pieces, pieces[1:], strict=False):
            if learned and read_answer(text.strip()).problem is None:
                seen += 1
                assert before.removesuffix("\nagain:").endswith(text.strip())
    assert seen > 20


def test_a_deepened_model_is_the_same_function() -> None:
    model, tokens = tiny_model("llama"), torch.arange(3, 23)[None]
    before = model(tokens).logits
    deeper = deepen(model, 3)
    assert deeper.config.num_hidden_layers == len(deeper.model.layers) == 3
    assert torch.equal(deeper(tokens).logits, before)
