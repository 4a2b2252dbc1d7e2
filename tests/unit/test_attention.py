"""Attention in blocks and in pieces beside the textbook's formula in float64: values, gradients, masks."""

from __future__ import annotations

import pytest
import torch
from transformers.masking_utils import sdpa_mask

from tests.invariants.tiny import tiny_model
from utils.models.attention import NAME, attention, attention_in_blocks, attention_mask
from utils.models.blocks import BLOCK
from utils.models.packed_rows import describe, described
from utils.rl.packing import pack

WIDTH = 2 * BLOCK + 44
MODULE = torch.nn.Module()


def tensors(heads: int, shared: int, queries: int, keys: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, queries, 16), (2, heads // shared, keys, 16), (2, heads // shared, keys, 16)]
    return [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]


def textbook(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    query, key, value = (tensor.double() for tensor in (query, key, value))
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
    output: torch.Tensor = (scores.softmax(-1) @ value).transpose(1, 2)
    return output


def some_mask(queries: int, keys: int) -> torch.Tensor:
    """Causal with holes that differ from row to row; every query sees itself."""
    holes = torch.rand(2, 1, queries, keys, generator=torch.Generator().manual_seed(1)) < 0.7
    return (holes & torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)) | torch.eye(
        queries, keys, dtype=torch.bool
    ).roll(keys - queries, 1)


@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_values_and_gradients_are_the_textbooks(shared: int, kind: str) -> None:
    ours = [tensor.requires_grad_() for tensor in tensors(4, shared, WIDTH, WIDTH)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    causal = torch.ones(2, 1, WIDTH, WIDTH, dtype=torch.bool).tril()
    mask = causal if kind == "none" else some_mask(WIDTH, WIDTH)
    given = {"none": None, "bool": mask, "added": torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))}[kind]
    output, _ = attention(MODULE, ours[0], ours[1], ours[2], given)
    expected = textbook(theirs[0], theirs[1], theirs[2], mask)
    torch.testing.assert_close(output.double(), expected, atol=0.03, rtol=0.02)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (output * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None
        error = (mine.grad.double() - other.grad.double()).norm() / other.grad.double().norm()
        assert error < 0.01


@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("width", [WIDTH, 5])
def test_causal_rows_of_sampling(shared: int, amx: bool, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With AMX they go to torch's kernel, which sees queries and keys in bf16 also from inside autocast."""
    monkeypatch.setattr("utils.models.attention.AMX", amx)
    calls: list[torch.dtype] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def noted(query: torch.Tensor, *given: object, **options: object) -> torch.Tensor:
        calls.append(query.dtype)
        return kernel(query, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    query, key, value = tensors(4, shared, width, width)
    expected = textbook(query, key, value, torch.ones(2, 1, width, width, dtype=torch.bool).tril())
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        output, _ = attention(MODULE, query.float(), key, value, None)
    assert calls == [torch.bfloat16] * amx
    torch.testing.assert_close(output.double(), expected, atol=0.03, rtol=0.02)
    with torch.no_grad():  # a reference's, whose numbers are the policy's where it is the policy
        attention(MODULE, query, key, value, None)
    assert len(calls) == amx


@pytest.mark.parametrize("shared", [1, 2])
def test_queries_at_the_end_of_a_cache(shared: int) -> None:
    query, key, value = tensors(4, shared, 3, 50)
    mask = some_mask(3, 50)
    output, _ = attention(MODULE, query, key, value, mask)
    torch.testing.assert_close(output.double(), textbook(query, key, value, mask), atol=0.03, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_that_overflow_in_a_padding_slot_reach_no_gradient(dtype: torch.dtype) -> None:
    """The slot after a short completion asks what its first token asks, of keys that come later."""
    batch = pack([[1] * 5], [[[1], [1] * 7]], 0)
    generator, shape = torch.Generator().manual_seed(0), (1, 2, batch.attention_mask.shape[-1], 8)
    ours = [(30 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_() for _ in range(3)]
    output, _ = attention(MODULE, ours[0], ours[1], ours[2], batch.attention_mask)
    output.sum().backward()
    assert all(states.grad is not None and bool(torch.isfinite(states.grad).all()) for states in ours)


@pytest.mark.parametrize(
    ("prompts", "groups"),
    [
        ([70], [[9] * 8]),
        ([70, 33, 5], [[4, 1, 7], [2], [30, 3, 3, 30]]),
        ([1], [[1]]),
        ([32, 64], [[1, 40], [12, 60, 1]]),
        ([32, 40], [[16, 16], [32, 32, 32]]),
    ],
)
@pytest.mark.parametrize("shared", [1, 4])
@pytest.mark.parametrize("all_queries", [True, False])
@pytest.mark.parametrize("kernel", ["fp32", "bf16", "bf16, long"])
def test_packed_rows_go_piece_by_piece(
    prompts: list[int],
    groups: list[list[int]],
    shared: int,
    all_queries: bool,
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing but the mask tells which rows they are; values and gradients of all that is not padding.

    Also for the queries of completions and each prompt's last token alone.
    """
    monkeypatch.setattr("utils.models.blocks.ROW_BLOCK", 16)
    if "long" in kernel:
        monkeypatch.setattr("utils.models.pieces.MOST_PAIRS", 1)
    dtype = torch.float32 if kernel == "fp32" else torch.bfloat16
    atol, rtol = (1e-5, 0.0) if kernel == "fp32" else (0.03, 0.02)
    batch = pack([[1] * n for n in prompts], [[[1] * n for n in group] for group in groups], 0)
    mask = batch.attention_mask
    width, generator = mask.shape[-1], torch.Generator().manual_seed(0)
    real = mask[:, 0].sum(-1) > 1  # padding sees itself alone, as a prompt's first token does
    first = torch.tensor([width - batch.logits_to_keep + 1 - n for n in prompts])
    real[torch.arange(len(prompts)), first] = True
    queries = width if all_queries else batch.logits_to_keep
    if not all_queries:
        rows = described(mask)
        mask, real = mask[:, :, -queries:], real[:, -queries:]
        assert rows is not None
        describe(mask, rows)
    shapes = [(len(prompts), 4, queries, 8), *[(len(prompts), 4 // shared, width, 8)] * 2]
    ours = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    expected = textbook(theirs[0], theirs[1], theirs[2], mask)
    output, _ = attention(MODULE, ours[0], ours[1], ours[2], mask)
    passes = str(output.grad_fn.next_functions) if output.grad_fn else ""
    assert ("_FlashBackward" in passes) == (kernel != "bf16"), passes
    torch.testing.assert_close(output[real].double(), expected[real], atol=atol, rtol=rtol)
    assert not output[~real].any()
    weight = torch.randn(expected.shape, generator=generator)
    (output * weight).sum().backward()
    (expected * weight * real[..., None, None]).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None
        if kernel == "fp32":
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-5)
        else:
            error = (mine.grad.double() - other.grad.double()).norm()
            assert error < 0.01 * other.grad.double().norm() + 1e-6


def test_the_passes_of_packed_rows_keep_weights_for_the_backward_pass_alone() -> None:
    batch = pack([[1] * 20], [[[1] * 5] * 3], 0)
    shape = (1, 2, batch.attention_mask.shape[-1], 8)
    query, key, value = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    kept, _ = attention(MODULE, query, key, value, batch.attention_mask)
    with torch.no_grad():
        alone, _ = attention(MODULE, query, key, value, batch.attention_mask)
    assert torch.equal(kept, alone) and alone.grad_fn is None


def test_a_mask_is_forgotten_with_its_tensor() -> None:
    mask = pack([[1, 2]], [[[3]]], 0).attention_mask
    assert described(mask) is not None and described(mask.clone()) is None


@pytest.mark.parametrize("longest", [None, 19])
def test_fp32_and_long_rows_are_left_to_sdpa(monkeypatch: pytest.MonkeyPatch, longest: int | None) -> None:
    query, key, value = tensors(4, 1, 20, 20)
    if longest is None:
        query, key, value = query.float(), key.float(), value.float()
    else:
        monkeypatch.setattr("utils.models.attention.MOST_PAIRS", longest**2 // 2)
    output, _ = attention(MODULE, query, key, value, None)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    assert torch.equal(output, expected)


def test_a_mask_is_left_out_only_where_no_token_sees_padding() -> None:
    def mask(rows: list[list[int]], window: int | None = None) -> torch.Tensor | None:
        given = torch.tensor(rows, dtype=torch.bool)
        width = given.shape[1]
        return attention_mask(batch_size=2, q_length=width, kv_length=width, attention_mask=given, local_size=window)

    assert mask([[1, 1, 1, 0], [1, 1, 0, 0]]) is None
    left = mask([[0, 1, 1, 1], [1, 1, 1, 1]])
    expected = sdpa_mask(2, 4, 4, attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool))
    assert left is not None and expected is not None and torch.equal(left, expected)
    assert mask([[1, 1, 1, 0], [1, 1, 0, 0]], window=2) is not None


def test_a_models_logits_do_not_depend_on_padding() -> None:
    """bf16: a short row alone, and beside a longer one, padded on the right and on the left."""
    model = tiny_model("llama").bfloat16()
    model.set_attn_implementation(attention_in_blocks())
    assert model.config._attn_implementation == NAME
    short, long = torch.arange(3, 20)[None], torch.arange(3, 35)[None]
    alone = model(short).logits[0]
    ids, seen = long.repeat(2, 1), torch.ones(2, 32, dtype=torch.long)
    ids[1, :17], seen[1, 17:] = short, 0
    right = model(ids, attention_mask=seen).logits[1, :17]
    ids[1, 15:], seen = short, seen.flip(1)
    left = model(ids, attention_mask=seen, position_ids=(seen.cumsum(1) - 1).clamp(min=0)).logits[1, 15:]
    torch.testing.assert_close(right, alone, atol=0.02, rtol=0.05)
    torch.testing.assert_close(left, alone, atol=0.02, rtol=0.05)
