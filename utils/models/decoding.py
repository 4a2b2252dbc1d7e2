"""The passes of sampling in a third of the calls that transformers makes for them.

A new token of each sample is so little work that calling is much of what a step takes. Here a layer is some twenty
calls. In autocast, fp32 weights are cast once per `Decoder` instead of at every step, and queries, keys and values come
from one product then, as do the two inner halves of the MLP. Layers with adapters or quantised weights are called as
they are. Other families, other adapters than LoRA, and models whose modules are not transformers' own (divided among
processes, spread over devices) have no `Decoder`: `utils.rl.sampling` then calls the model. Hooks on a model, on its
layers and on what is cast are not called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers.cache_utils import Cache

from utils.models.attention import NAME, attention
from utils.models.last_layer import layers_of
from utils.models.linear import WideLinear, blocked, linear_of_blocks, takes_blocks
from utils.models.memory import CUT_FAMILIES

if TYPE_CHECKING:
    from utils.models.load import Model

Product = Callable[[torch.Tensor], torch.Tensor]


class Decoder:
    """Passes while sampling, with the weights that a model has now."""

    def __init__(self, model: Any, layers: Sequence[Any], columns: int) -> None:
        """`model` and `layers` as `decoder_of` finds them, for positions below `columns`."""
        inner, some = model.model, next(model.parameters())
        self.embed, self.rotary, self.norm = inner.embed_tokens, inner.rotary_emb, _norm(inner.norm)
        self.head = side_by_side([model.lm_head])
        self.turned = model.config.num_attention_heads + model.config.num_key_value_heads
        self.layers = [_Layer(layer, i) for i, layer in enumerate(layers)]
        self.table: list[torch.Tensor] = []
        if self.rotary.rope_type not in ("dynamic", "longrope"):  # whose angles depend on the longest of a pass
            self.table = [part[0] for part in self._angles(some, torch.arange(columns, device=some.device)[None])]
        products = [product for layer in self.layers for product in (layer.asked, layer.out, layer.joined, layer.down)]
        cast = all(isinstance(product, Cast) for product in (self.head, *products))
        self.context = partial(torch.autocast, some.device.type, enabled=False) if cast else nullcontext

    def prompts(self, ids: torch.Tensor, cache: Cache, read: torch.Tensor) -> torch.Tensor:
        """Logits [_R, 1, _V] of prompts [_R, _W], which begin a cache, at one column of each, `read` [_R].

        The last layer has no queries and no MLP elsewhere (`utils.models.last_layer`).
        """
        columns = torch.arange(ids.shape[1], device=ids.device)
        *layers, last = self.layers
        with self.context():
            hidden = self.embed(ids)
            turn = self._turn(hidden, torch.minimum(columns, read.max())[None])
            for layer in layers:
                hidden = layer(hidden, turn, cache)
            hidden = last(hidden, turn, cache, mask=(columns <= read[:, None])[:, None, None], read=read)
            return self.head(self.norm(hidden))

    def step(self, ids: torch.Tensor, positions: torch.Tensor, cache: Cache, mask: torch.Tensor) -> torch.Tensor:
        """Logits [_R, _G, _V] after the tokens `ids` [_R, _G] at `positions` [_R], which the cache then holds.

        All samples of a prompt stand at one position. `mask` [_R, 1, _G, columns of the cache] is added to the scores.
        """
        with self.context():
            hidden = self.embed(ids)
            turn = self._turn(hidden, positions[:, None])
            for layer in self.layers:
                hidden = layer(hidden, turn, cache, mask=mask)
            return self.head(self.norm(hidden))

    def _turn(self, hidden: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What queries and keys [..., all heads] are multiplied with, and with each head's halves exchanged."""
        here = [part[positions] for part in self.table] or self._angles(hidden, positions)
        return tuple(part.repeat(1, 1, self.turned) for part in here)

    def _angles(self, hidden: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """cos and sin [..., head]; rotate_half(x) sin is x, its halves exchanged, times sin, the first half negated."""
        cos, sin = self.rotary(hidden, position_ids=positions)
        half = sin.shape[-1] // 2
        return [cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)]


class _Layer:
    """One layer of the families below."""

    def __init__(self, layer: Any, index: int) -> None:
        self.index, self.attention, self.mlp = index, layer.self_attn, layer.mlp
        own = self.attention
        self.before, self.after = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.asked = side_by_side([own.q_proj, own.k_proj, own.v_proj])
        self.out, self.down = side_by_side([own.o_proj]), side_by_side([self.mlp.down_proj])
        inner = side_by_side([self.mlp.gate_proj, self.mlp.up_proj])
        self.joined = inner if isinstance(inner, Cast) else None  # putting them together would copy them

    def __call__(
        self,
        hidden: torch.Tensor,
        turn: tuple[torch.Tensor, ...],
        cache: Cache,
        mask: torch.Tensor | None = None,
        read: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden [_R, _W, _D] -> the same after the layer, or [_R, 1, _D] at the columns `read` [_R]."""
        own = self.attention
        asked = self.asked(self.before(hidden))
        keys = own.config.num_key_value_heads
        turned, values = asked[..., : turn[0].shape[-1]], asked[..., turn[0].shape[-1] :]
        if hasattr(own, "q_norm"):
            queries, found = turned.unflatten(-1, (-1, own.head_dim)).tensor_split([-keys], dim=2)
            turned = torch.cat([own.q_norm(queries), own.k_norm(found)], dim=2).flatten(2)
        turned = turned.to(turn[0].dtype)  # and in three roundings, as transformers does it
        turned = (turned * turn[0]).add_(_exchanged(turned, own.head_dim) * turn[1]).to(values.dtype)
        turned, values = (states.unflatten(-1, (-1, own.head_dim)).transpose(1, 2) for states in (turned, values))
        seen, told = cache.update(turned[:, -keys:], values, self.index)
        queries = turned[:, :-keys]
        if read is not None:
            row = torch.arange(len(read), device=read.device)
            queries, hidden = queries[row, :, read].unsqueeze(2), hidden[row, read].unsqueeze(1)
        found, _ = attention(own, queries, seen, told, mask, scaling=own.scaling)
        hidden = hidden + self.out(found.flatten(2))
        inner = self.after(hidden)
        if self.joined:
            gate, up = self.joined(inner).chunk(2, dim=-1)
        else:
            gate, up = self.mlp.gate_proj(inner), self.mlp.up_proj(inner)
        hidden += self.down(self.mlp.act_fn(gate).mul_(up))
        return hidden


def decoder_of(model: Model, columns: int) -> Decoder | None:
    """A `Decoder` for the model as it is, for positions below `columns`; None where it can be none."""
    base: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    family = getattr(getattr(base, "config", None), "model_type", None)
    adapters = getattr(model, "peft_config", {}).values()
    plain = all(one.peft_type == "LORA" and not getattr(one, "alora_invocation_tokens", None) for one in adapters)
    known = plain and family in CUT_FAMILIES and base.config._attn_implementation == NAME
    layers = layers_of(base) if known else None
    if layers is None or base.training:
        return None
    parts = [base, base.model, *(part for layer in layers for part in (layer, layer.self_attn, layer.mlp))]
    own = f"transformers.models.{family}.modeling_{family}"
    if any(type(part).__module__ != own or "forward" in vars(part) for part in parts):
        return None
    return Decoder(base, list(layers), columns)


def side_by_side(layers: Sequence[torch.nn.Module]) -> Product:
    """What layers say of one input x [..., in], side by side: [..., sum of out].

    In autocast, plain layers with fp32 weights are one product with weights cast here and now (`Cast`).
    """
    plain = all(type(layer) in (torch.nn.Linear, WideLinear) and "forward" not in vars(layer) for layer in layers)
    device = next(layers[0].parameters()).device.type
    if plain and torch.is_autocast_enabled(device):
        weights: list[torch.Tensor] = [layer.weight for layer in layers]  # type: ignore[misc]
        biases: list[Any] = [layer.bias for layer in layers]
        if all(weight.dtype == torch.float32 for weight in weights) and len({bias is None for bias in biases}) == 1:
            return Cast(weights, biases, torch.get_autocast_dtype(device))
    if len(layers) == 1:
        return layers[0]
    return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)


class Cast:
    """x [..., in] -> x weight' + bias in `dtype`, for weights (and biases, or None) one below the other."""

    def __init__(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None], dtype: torch.dtype
    ) -> None:
        self.dtype = dtype
        self.weight = _below(weights, dtype)
        self.bias = None if biases[0] is None else _below([bias for bias in biases if bias is not None], dtype)
        self.product: Callable[..., torch.Tensor] = functional.linear
        if takes_blocks(self.weight):
            self.weight, self.product = blocked(self.weight), linear_of_blocks

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self.product(x.to(self.dtype), self.weight, self.bias)
        return product


def _below(parts: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    cast = [part.detach().to(dtype) for part in parts]
    return cast[0] if len(cast) == 1 else torch.cat(cast)


def _exchanged(states: torch.Tensor, size: int) -> torch.Tensor:
    """[..., heads of this size] with each one's halves exchanged."""
    exchanged: torch.Tensor = states.unflatten(-1, (-1, size)).roll(size // 2, -1).flatten(-2)
    return exchanged


def _norm(module: Any) -> Product:
    """The same in fewer passes over its input for an RMSNorm in fp32."""
    plain = type(module).__name__.endswith("RMSNorm") and "forward" not in vars(module)
    if not plain or module.weight.dtype != torch.float32:
        return module  # type: ignore[no-any-return]

    weight = module.weight.detach()
    epsilon = weight.new_tensor(module.variance_epsilon)

    def norm(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            return module(x)  # type: ignore[no-any-return]
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()
        normed: torch.Tensor = (x * scale).mul_(weight)
        return normed

    return norm
