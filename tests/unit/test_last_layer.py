"""The last layer, asked for some columns alone: it gives what it gives there, and computes no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from tests.invariants.tiny import VOCAB, tiny_completions, tiny_model, tiny_prompts, with_adapter
from utils.models.attention import attention_in_blocks
from utils.models.last_layer import reading_only
from utils.models.memory import CUT_FAMILIES
from utils.rl.packing import PackedBatch, pack, separate

PROMPTS = tiny_prompts(3, seed=4)
COMPLETIONS = tiny_completions(PROMPTS, seed=4)
LAYOUTS = {"packed": pack(PROMPTS, COMPLETIONS, pad_id=0), "separate": separate(PROMPTS, COMPLETIONS, pad_id=0)}


def model_of(family: str) -> Any:
    """Three layers of width 32."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, initializer_range=0.25, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    if hasattr(config, "sliding_window"):
        config.sliding_window = None
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention_in_blocks())
    return model.eval()


def logits(model: Any, batch: PackedBatch, only: bool) -> tuple[torch.Tensor, list[int]]:
    """Of the columns that a batch's completions are predicted at, and how many tokens went through each layer's MLP."""
    counts: list[int] = []
    handles = [
        module.register_forward_hook(lambda _, given, __: counts.append(given[0].shape[1]))
        for name, module in model.named_modules()
        if name.endswith(".mlp")
    ]
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    if only:
        with reading_only(model, slice(-batch.logits_to_keep, None)) as narrowed:
            assert narrowed
            found = model(**inputs, use_cache=False).logits
    else:
        found = model(**inputs, use_cache=False, logits_to_keep=batch.logits_to_keep).logits
    for handle in handles:
        handle.remove()
    return found, counts


def gradients(model: Any, found: torch.Tensor, batch: PackedBatch) -> dict[str, torch.Tensor]:
    """Of a sum of the logits that predict a completion's token, each with a weight of its own."""
    model.zero_grad()
    read = found.flatten(0, 1).index_select(0, batch.row * batch.logits_to_keep + batch.source)
    (read * torch.linspace(-1, 1, read.numel()).view_as(read)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", [*CUT_FAMILIES, "llama-lora"])
def test_logits_and_gradients_are_those_of_all_columns(family: str, layout: str) -> None:
    name, _, adapter = family.partition("-")
    model = with_adapter(model_of(name), name) if adapter else model_of(name)
    batch = LAYOUTS[layout]
    width, read = batch.input_ids.shape[1], batch.logits_to_keep
    whole, counts = logits(model, batch, only=False)
    expected = gradients(model, whole, batch)
    only, narrowed = logits(model, batch, only=True)
    assert counts == [width] * 3 and narrowed == [width, width, read] and read < width
    place = batch.row * read + batch.source
    of_tokens = [found.flatten(0, 1)[place] for found in (only, whole)]
    torch.testing.assert_close(*of_tokens, atol=1e-5, rtol=1e-5)
    assert of_tokens[0].std() > 0.1
    found = gradients(model, only, batch)
    assert found.keys() == expected.keys()
    for parameter, gradient in found.items():
        scale = expected[parameter].abs().max()
        assert scale > 0, parameter
        torch.testing.assert_close(gradient / scale, expected[parameter] / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CUT_FAMILIES)
def test_a_prefill_fills_the_cache_as_ever(family: str) -> None:
    """Some columns of equally long rows without a mask, then a token more."""
    model, ids = model_of(family), torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    columns, positions = torch.tensor([4, 11]), torch.arange(12).expand(2, -1)
    caches = DynamicCache(config=model.config), DynamicCache(config=model.config)
    with torch.inference_mode():
        whole = model(input_ids=ids, position_ids=positions, past_key_values=caches[0]).logits[:, columns]
        with reading_only(model, columns):
            only = model(input_ids=ids, position_ids=positions, past_key_values=caches[1]).logits
        torch.testing.assert_close(only, whole, atol=1e-5, rtol=1e-5)
        following = [model(input_ids=ids[:, :1], past_key_values=cache).logits for cache in caches]
    assert caches[1].get_seq_length() == 13
    torch.testing.assert_close(following[1], following[0], atol=1e-5, rtol=1e-5)


def test_a_recomputed_layer_gives_the_same_to_the_bit() -> None:
    """It is asked for the same columns when the backward pass computes it again."""
    model, batch = model_of("llama"), LAYOUTS["packed"]
    kept, _ = logits(model, batch, only=True)
    expected = gradients(model, kept, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    counts: list[int] = []
    model.model.layers[-1].mlp.register_forward_pre_hook(lambda _, given: counts.append(given[0].shape[1]))
    found, _ = logits(model, batch, only=True)
    assert torch.equal(found, kept)
    for name, gradient in gradients(model, found, batch).items():
        assert torch.equal(gradient, expected[name]), name
    assert counts == [batch.logits_to_keep] * 2 and model.model.layers[-1].gradient_checkpointing


def test_a_layer_that_drops_out_is_computed_whole() -> None:
    model, batch = with_adapter(model_of("llama"), "llama"), LAYOUTS["packed"]
    model.train()
    _, counts = logits(model, batch, only=True)
    assert counts == [batch.input_ids.shape[1]] * 3


def test_other_models_give_all_columns() -> None:
    """GPT-2 gives its hidden states the shape of its tokens, come what may."""
    model = tiny_model("gpt2")
    for other in (model, SimpleNamespace()):
        with reading_only(other, slice(-2, None)) as narrowed:
            assert not narrowed
            assert other is not model or model(input_ids=torch.tensor([[3, 4, 5]])).logits.shape[1] == 3


def test_the_layer_is_left_as_it_was() -> None:
    """Also one whose forward was exchanged, as accelerate does, and when the pass fails."""
    model = tiny_model("llama")
    layer, calls = model.model.layers[-1], []
    forward = layer.forward

    def hooked(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    for own in (None, hooked):
        if own is not None:
            layer.forward = own
        with pytest.raises(RuntimeError, match="in the pass"), reading_only(model, slice(-1, None)):
            model(input_ids=torch.tensor([[3, 4, 5]]))
            raise RuntimeError("in the pass")
        assert vars(layer).get("forward") is own
    assert len(calls) == 2
