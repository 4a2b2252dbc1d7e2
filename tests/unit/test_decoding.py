"""The passes of sampling say what transformers' own say, for the families and kinds of layers that they take."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import pytest
import torch

from tests.invariants.tiny import tiny_model, with_adapter
from tests.unit.test_last_layer import model_of
from utils.models.decoding import Cast, decoder_of
from utils.models.memory import CUT_FAMILIES
from utils.rl.cache import growing

PROMPTS = torch.tensor([[5, 9, 13, 7, 21, 8], [11, 3, 4, 60, 33, 0]])
LENGTHS = [6, 5]
TOKENS = torch.tensor([[[7, 8, 9], [30, 31, 32]], [[40, 41, 42], [50, 51, 52]]])
"""[prompts, steps, samples]"""
LOWEST = torch.finfo(torch.float32).min


def decoded(model: Any, dtype: torch.dtype) -> torch.Tensor:
    """Logits [prompts, 1 + steps, samples, _V] after the prompts and after each step's tokens."""
    steps, samples = TOKENS.shape[1:]
    decoder = decoder_of(model, PROMPTS.shape[1] + steps)
    assert decoder is not None
    columns = PROMPTS.shape[1] + steps * samples
    cache = growing(model.config.num_hidden_layers, 2, PROMPTS.shape[1], samples, columns)
    for layer in cache.layers:
        layer.part = slice(0, 2)
    found = [decoder.prompts(PROMPTS, cache, torch.tensor(LENGTHS) - 1).expand(-1, samples, -1)]
    for layer in cache.layers:
        layer.part, layer.length = None, PROMPTS.shape[1]
    mask = torch.full((2, 1, samples, 4096), LOWEST)
    for i, length in enumerate(LENGTHS):
        mask[i, ..., :length] = 0
    for t in range(steps):
        start = PROMPTS.shape[1] + t * samples
        mask[..., start : start + samples].diagonal(dim1=-2, dim2=-1).zero_()
        seen = mask[..., : cache.layers[0].seen(start + samples)].to(dtype)
        found.append(decoder.step(TOKENS[:, t], torch.tensor(LENGTHS) + t, cache, seen))
    return torch.stack(found, dim=1).float()


def plain(model: Any) -> torch.Tensor:
    """The same of transformers' passes, a sequence each."""
    steps, samples = TOKENS.shape[1:]
    found = torch.empty(2, 1 + steps, samples, model.config.vocab_size)
    for i, length in enumerate(LENGTHS):
        for g in range(samples):
            ids = torch.cat([PROMPTS[i, :length], TOKENS[i, :, g]])
            found[i, :, g] = model(input_ids=ids[None]).logits[0, length - 1 :]
    return found


def changed(kind: str) -> Any:
    name, _, what = kind.partition("-")
    model = model_of(name)
    if what.startswith("lora"):
        return with_adapter(model.bfloat16() if what == "lora16" else model, name)
    if what:
        rope = {"rope_type": what, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 4}
        extra = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if what == "llama3" else {}
        model.config.rope_parameters = rope | extra
        model.config.max_position_embeddings = 4  # so that `dynamic` has something to do
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model


KINDS = [*CUT_FAMILIES, "llama-lora", "llama-llama3", "llama-yarn", "llama-dynamic"]


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_logits_are_those_of_transformers(kind: str) -> None:
    model = changed(kind)
    expected = plain(model)
    found = decoded(model, torch.float32)
    if kind == "llama-dynamic":  # its angles depend on the longest of a pass: the first prompt, alone there as here
        found, expected = found[:1], expected[:1, :1].expand(1, 1, *found.shape[2:])
        found = found[:, :1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("kind", [*CUT_FAMILIES, "llama-lora", "llama-lora16"])
@torch.inference_mode()
def test_in_autocast_they_are_as_far_from_fp32_as_its_own(kind: str) -> None:
    model = changed(kind)
    exact = plain(copy.deepcopy(model).float())
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = decoded(model, torch.bfloat16), plain(model)
    ours, own = ((logits - exact).square().mean().sqrt() for logits in (found, theirs))
    assert 0 < ours < 1.5 * own


def test_weights_are_cast_once_and_only_where_autocast_would() -> None:
    model = model_of("llama")
    with torch.autocast("cpu", torch.bfloat16):
        decoder = decoder_of(model, 8)
        adapted = decoder_of(with_adapter(model_of("llama"), "llama"), 8)
    plain_decoder = decoder_of(model, 8)
    assert decoder is not None and adapted is not None and plain_decoder is not None
    assert isinstance(decoder.layers[0].asked, Cast) and isinstance(decoder.head, Cast)
    assert decoder.layers[0].asked.dtype == torch.bfloat16
    assert not isinstance(adapted.layers[0].asked, Cast) and isinstance(adapted.layers[0].down, Cast)
    assert plain_decoder.layers[0].out is model.model.layers[0].self_attn.o_proj


def test_there_is_none_for_what_is_not_transformers_own() -> None:
    assert decoder_of(tiny_model("gpt2"), 8) is None
    assert decoder_of(model_of("llama").train(), 8) is None
    other = model_of("llama")
    other.set_attn_implementation("eager")
    assert decoder_of(other, 8) is None
    hooked = model_of("llama")
    layer = hooked.model.layers[1]
    layer.forward = MethodType(type(layer).forward, layer)
    assert decoder_of(hooked, 8) is None
    from peft import PromptTuningConfig, get_peft_model

    prompted = get_peft_model(model_of("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert decoder_of(prompted.eval(), 8) is None
    divided = model_of("llama")
    divided.model.layers[0].__class__ = type("Divided", (type(divided.model.layers[0]),), {})
    assert decoder_of(divided, 8) is None
