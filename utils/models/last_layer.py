"""A last layer that computes no more than is read of it.

Nobody reads what a model says at the tokens of a prompt, and the last layer's output there goes nowhere else: of these
columns it has to give its keys and values, but no query, attention or MLP. With prompts many times as long as their
answers that is the larger part of the layer. It is called twice: over all columns, until it hands its keys and values
to the cache, and over those that are read, with a cache that has the others' already.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from utils.models.attention import NAME
from utils.models.memory import CUT_FAMILIES
from utils.models.packed_rows import describe, described

if TYPE_CHECKING:
    from utils.models.load import Model

Columns = slice | torch.Tensor


@contextmanager
def reading_only(model: Model, columns: Columns) -> Iterator[bool]:
    """Passes inside give hidden states of these columns alone (a slice, or indices [_C]); False: of all, as ever.

    A layer that drops out at random, and a mask that cannot be cut, cost as much as they did.
    """
    layer = _last_layer(model)
    if layer is None:
        yield False
        return
    with exchanged(layer, _narrow(layer, columns, model.config._attn_implementation in (NAME, "sdpa"))):
        yield True


@contextmanager
def exchanged(module: Any, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Another forward for a module while this is open."""
    own = vars(module).get("forward")  # of the instance: accelerate's hooks put theirs there
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def layers_of(model: Model) -> torch.nn.ModuleList | None:
    """A model's layers, first to last."""
    stacks = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return next((stack for stack in stacks if 0 < len(stack) == model.config.num_hidden_layers), None)


def _last_layer(model: Model) -> Any:
    """None for other families than those whose layers are known to cache finished keys, their positions turned in."""
    config = getattr(model, "config", None)
    if config is None or config.model_type not in CUT_FAMILIES:
        return None
    layers = layers_of(model)
    return None if layers is None else layers[-1]


def _narrow(layer: Any, columns: Columns, causal_by_default: bool) -> Callable[..., torch.Tensor]:
    forward = layer.forward
    signature = inspect.signature(type(layer).forward.__get__(layer))  # hooks take anything

    def narrow(*args: Any, **kwargs: Any) -> torch.Tensor:
        given = dict(signature.bind(*args, **kwargs).arguments)
        given |= given.pop("kwargs", {})
        mask = given.get("attention_mask")
        if _drops_out(layer) or not (causal_by_default if mask is None else mask.dim() == 4):
            return _of(forward(**given), columns)
        twice = partial(_twice, layer, forward, columns, given)
        recomputed = layer.training and layer.gradient_checkpointing
        hidden = given.pop("hidden_states")
        output: torch.Tensor = layer._gradient_checkpointing_func(twice, hidden) if recomputed else twice(hidden)
        return output

    return narrow


def _drops_out(layer: Any) -> bool:
    """Whether a second call would drop other units than the first."""
    return any(module.p for module in layer.modules() if isinstance(module, torch.nn.Dropout) and module.training)


def _twice(
    layer: Any, forward: Callable[..., torch.Tensor], columns: Columns, given: dict[str, Any], hidden: torch.Tensor
) -> torch.Tensor:
    """The layer's output [B, _C, _D] for hidden states [B, _W, _D] and whatever else it is given."""
    cache = _Taken(given.get("past_key_values"))
    recomputed, layer.gradient_checkpointing = layer.gradient_checkpointing, False  # which would allow no cache
    try:
        with suppress(_TakenError):
            forward(hidden, **given | {"past_key_values": cache})
        read = {
            "past_key_values": cache,
            "attention_mask": _cut(given.get("attention_mask"), columns, hidden),
            "position_ids": _of(given["position_ids"], columns),
        }
        if "position_embeddings" in given:
            read["position_embeddings"] = tuple(_of(part, columns) for part in given["position_embeddings"])
        return forward(_of(hidden, columns), **given | read)
    finally:
        layer.gradient_checkpointing = recomputed


def _of(states: torch.Tensor, columns: Columns) -> torch.Tensor:
    """[B, _W, ...] -> [B, _C, ...]."""
    return states[:, columns] if isinstance(columns, slice) else states.index_select(1, columns)


def _cut(mask: torch.Tensor | None, columns: Columns, hidden: torch.Tensor) -> torch.Tensor:
    """The mask of these queries; None is the causal one."""
    if mask is None:
        column = torch.arange(hidden.shape[1], device=hidden.device)
        return (column <= column[columns, None])[None, None]
    cut, rows = mask[:, :, columns], described(mask)
    if rows is not None and mask.shape[2] - cut.shape[2] == rows.start - 1:  # what they can do without the others
        describe(cut, rows)
    return cut


class _TakenError(Exception):
    """The layer has handed over its keys and values."""


class _Taken(DynamicCache):  # type: ignore[misc]
    """Takes a layer's keys and values of all columns, into a cache where there is one, and gives them to every call."""

    def __init__(self, behind: Cache | None) -> None:
        super().__init__()
        self.behind = behind
        self.states: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.states is not None:
            return self.states
        self.states = key_states, value_states
        if self.behind is not None:
            self.states = self.behind.update(key_states, value_states, *args, **kwargs)
        raise _TakenError
