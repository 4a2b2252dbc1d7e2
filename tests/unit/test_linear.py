"""Products by oneDNN: the numbers of torch's own layer, where they are taken, and where not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariants.tiny import tiny_model
from utils import machine
from utils.models import linear
from utils.models.linear import WideLinear, use_wide_products

WIDE, NARROW = "AuthenticAMD avx2 avx512f avx512_bf16", "GenuineIntel avx2 avx512f avx512_bf16 amx_bf16"


@pytest.fixture
def on_amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(WIDE, tmp_path, monkeypatch)


def processor(said: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cpuinfo").write_text(f"vendor_id : {said.replace(' ', chr(10) + 'flags : ', 1)}\n")
    monkeypatch.setattr(machine, "PROCESSOR", folder / "cpuinfo")


@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 5, 7), (1, 1, 7), (4, 0, 7), (64, 33, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool, on_amd: None) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(7, 11, bias=bias)
    wide = copy.deepcopy(plain)
    use_wide_products(wide)
    assert type(wide) is WideLinear and wide.weight is not plain.weight
    found = []
    for layer in (plain, wide):
        x = torch.linspace(-1, 1, max(1, torch.Size(shape).numel()))[: torch.Size(shape).numel()].view(shape)
        x.requires_grad_()
        output = layer(x)
        output.backward(torch.cos(torch.arange(output.numel(), dtype=torch.float32)).view(output.shape))
        with torch.no_grad():
            again = layer(x)
        assert torch.equal(again, output)
        found.append([output.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert ours is not None and theirs is not None and ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_what_does_not_train_gets_no_gradient(on_amd: None) -> None:
    layer = torch.nn.Linear(4, 3)
    use_wide_products(layer)
    layer.weight.requires_grad_(False)
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None


def test_only_plain_layers_and_only_where_it_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(torch.nn.Linear):
        pass

    for said, expected in ((NARROW, torch.nn.Linear), ("AuthenticAMD avx2", torch.nn.Linear), (WIDE, WideLinear)):
        processor(said, tmp_path, monkeypatch)
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), Own(2, 2))
        use_wide_products(model)
        assert [type(layer) for layer in model] == [expected, Own]


def test_other_arithmetic_is_torch_s_own(on_amd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> torch.Tensor:
        raise AssertionError("taken")

    layer = torch.nn.Linear(4, 3)
    use_wide_products(layer)
    monkeypatch.setattr(linear, "_times_transposed", refuse)
    with pytest.raises(AssertionError, match="taken"):
        layer(torch.ones(2, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 4)).dtype == torch.bfloat16
    assert layer.double()(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_a_copied_model_computes_with_its_own_weights(on_amd: None) -> None:
    model = tiny_model("llama")
    use_wide_products(model)
    assert type(model.lm_head) is WideLinear and model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.tensor([[3, 4, 5]])
    before = model(input_ids=ids).logits
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()
    assert torch.equal(other(input_ids=ids).logits, before) and not torch.equal(model(input_ids=ids).logits, before)
