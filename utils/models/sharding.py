"""A model in shares: of every weight, with its gradient and moments, each process holds a part (`--fsdp`).

torch's `fully_shard` (FSDP2; Zhao et al. 2023, arXiv:2304.11277) puts a layer together while it computes. Each pass is
then made by all processes at once, with gradients that come back summed. While they sample, at a pace of their own, the
model is whole in each (`whole`). Nothing here touches a model that is not in shares.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from utils.models.last_layer import layers_of
from utils.ranks import collective, on_leaving, rank, size

if TYPE_CHECKING:
    from utils.models.load import Model


def shard(model: Model, device: torch.device) -> None:
    """Leave this process its share of a model's weights, on `device`; the model has the same weights in each.

    What is in no layer (embeddings, output layer, last norm) stays together from forward to backward pass.
    """
    mesh = init_device_mesh(device.type, (size(),))
    on_leaving(partial(_let_go, mesh))
    for layer in layers_of(model) or ():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    # said of logits that are a view of the columns which are read; nobody writes into them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    for part in _parts(model):  # sums, where means are the custom: weights of tokens are those of all processes' rows
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def in_shares(model: torch.nn.Module) -> bool:
    """Whether `shard` was called for it."""
    return isinstance(model, FSDPModule)


def is_share(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of those that are in shares."""
    return isinstance(tensor, DTensor)


def put_back(model: Model) -> None:
    """Let go of what is not this process's share; the next pass puts it together again."""
    for part in _parts(model):
        part.reshard()
    if isinstance(model, FSDPModule):
        model.reset_iter_state()  # which grows with every pass that none backward follows


@contextmanager
def whole(model: Model) -> Iterator[None]:
    """Inside, each process has all weights and computes by itself, without gradients."""
    parts = _parts(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        collective(part.unshard)
    try:
        yield
    finally:
        put_back(model)
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)


def together(tensor: torch.Tensor) -> torch.Tensor:
    """The same, or the whole, on the CPU, of one that is in shares. All processes call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    found: torch.Tensor = collective(tensor.full_tensor)
    return found.detach().cpu()


def in_first(state: Any) -> Any:
    """What `state` (dicts, lists of tensors and plain values) is with whole tensors, in the first process.

    All call it; the others get None for what is in shares. Weights that a model holds under two names stay one.
    """
    return _in_first(state, {})


def _in_first(value: Any, seen: dict[int, torch.Tensor | None]) -> Any:
    if isinstance(value, DTensor):
        if id(value) not in seen:
            tensor = together(value)
            seen[id(value)] = None if rank() else tensor
        return seen[id(value)]
    if isinstance(value, Mapping):
        return {name: _in_first(item, seen) for name, item in value.items()}
    return type(value)(_in_first(item, seen) for item in value) if isinstance(value, (list, tuple)) else value


def whole_weights(model: Model) -> dict[str, torch.Tensor] | None:
    """In the first process, `state_dict` of the whole model; None of one that is not in shares. All call it."""
    weights: dict[str, torch.Tensor] | None = in_first(model.state_dict(keep_vars=True)) if in_shares(model) else None
    return weights


def take_weights(model: Model, weights: dict[str, torch.Tensor]) -> None:
    """`load_state_dict` of whole weights, also where only a share of each is kept."""
    if in_shares(model):
        of_whole: Any = StateDictOptions(full_state_dict=True)
        collective(partial(set_model_state_dict, model, dict[str, Any](weights), options=of_whole))
    else:
        model.load_state_dict(weights)


def shares_of_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's `state_dict` of whole tensors as that of a process which holds shares of its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shares = {
        i: {name: _share(value, parameters[i]) for name, value in moments.items()}
        for i, moments in state["state"].items()
    }
    return {**state, "state": shares}


def _share(value: Any, parameter: torch.nn.Parameter) -> Any:
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    here, mesh = value.to(parameter.device), parameter.device_mesh
    return distribute_tensor(here, mesh, parameter.placements, src_data_rank=None)  # each has read it: nobody sends it


def _let_go(mesh: DeviceMesh) -> None:
    """Of the group: torch's caches of how tensors are laid out keep every mesh, and with it its group, for good."""
    mesh._pg_registry.clear()


def _parts(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
