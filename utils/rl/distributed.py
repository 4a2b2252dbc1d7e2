"""What the processes of a training run exchange: rollouts, figures, gradients. With one process all is as it was.

The work is split by rows: each process samples its share of a step's prompts and puts its share of every mini-batch
through the model. Weights of tokens are those of the whole mini-batch, so its gradient is the sum of the shares'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from utils.models.sharding import is_share
from utils.ranks import collective, gather, rank, size

T = TypeVar("T")

BUCKET = 2**25
"""Gradients summed at once: one message for many small ones, and no second copy of a large model's."""


def own_share(count: int) -> range:
    """Which of `count` items are this process's: every _n-th, so that what is sorted is spread evenly."""
    return range(rank(), count, size())


def in_order(items: Sequence[T]) -> list[T]:
    """All processes' `own_share` items, in the order that they were split from."""
    parts = gather(list(items))
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def of_all(items: Sequence[T]) -> list[T]:
    """All processes' items, one process's after the other's."""
    return [item for part in gather(list(items)) for item in part]


def everywhere(*values: torch.Tensor) -> list[torch.Tensor]:
    """Each tensor [_N] together with the other processes', [sum of _N]."""
    if size() == 1:
        return list(values)
    parts = gather([value.cpu() for value in values])
    return [torch.cat(same).to(value.device) for value, same in zip(values, zip(*parts, strict=True), strict=True)]


def summed(numbers: Mapping[str, float]) -> dict[str, float]:
    """Sums over the processes by name; the same floats in each."""
    parts = gather(dict(numbers))
    return {name: sum(part[name] for part in parts) for name in numbers}


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Every parameter's gradient becomes the sum over the processes; bit for bit the same in each.

    Those of parameters in shares have come back from their pass as sums.
    """
    if size() == 1:
        return
    for bucket in _buckets(parameter for parameter in parameters if not is_share(parameter)):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        collective(dist.all_reduce, flat)
        for gradient, total in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(total.view_as(gradient))


def _buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterator[list[torch.Tensor]]:
    """The gradients there are: every process has rows, so one that is missing is missing in each."""
    bucket: list[torch.Tensor] = []
    for gradient in (parameter.grad for parameter in parameters if parameter.grad is not None):
        if bucket and sum(one.numel() for one in bucket) + gradient.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
