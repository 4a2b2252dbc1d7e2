"""The frozen start of a policy, for KL terms.

With LoRA both are adapters on one base: `default` trains, `sft` is its frozen copy, and the reference pass switches
between them, so that the KL of the first step is exactly 0 whatever the precision of the base. A fresh adapter changes
nothing yet, so its copy is the base itself. A policy whose own weights train is copied whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from utils.models.load import ADAPTER
from utils.models.sharding import put_back

if TYPE_CHECKING:
    from utils.models.load import Model

FROZEN = "sft"


class Reference:
    """The policy as it is now; later changes to the policy do not reach it. Make it before the first update."""

    def __init__(self, policy: Model) -> None:
        self.policy = policy
        self.copy: Model | None = None
        if hasattr(policy, "peft_config"):
            copy_adapter(policy, FROZEN, frozen=True)
        else:
            self.copy = copy.deepcopy(policy).requires_grad_(False).eval()

    @contextmanager
    def model(self) -> Iterator[Model]:
        """The reference as a model, without gradients. With LoRA the policy itself, switched to the frozen adapter."""
        with torch.no_grad():
            if self.copy is not None:
                yield self.copy
                put_back(self.copy)
                return
            self.policy.set_adapter(FROZEN, inference_mode=True)
            try:
                yield self.policy
            finally:
                self.policy.set_adapter(ADAPTER)


def copy_adapter(policy: Model, name: str, *, frozen: bool) -> dict[str, torch.nn.Parameter]:
    """Put a copy of the policy's adapter, as it is now, beside it under another name; the copy's parameters by name."""
    config = copy.deepcopy(policy.peft_config[ADAPTER])
    config.inference_mode = frozen
    policy.add_adapter(name, config)
    copied = _copied(policy, name)
    if frozen:
        freeze_copy(policy, name)
    policy.set_adapter(ADAPTER)
    policy.eval()
    return copied


def freeze_copy(policy: Model, name: str) -> None:
    """Let an adapter of this name hold what the policy's holds now, for good."""
    for weight in _copied(policy, name).values():
        weight.requires_grad_(False)


def _copied(policy: Model, name: str) -> dict[str, torch.nn.Parameter]:
    """An adapter's parameters by name, after they have taken over those of the policy's adapter."""
    weights = dict(policy.named_parameters())
    # by whole parts of the name: in layers it stands before `.weight`, of embeddings at the end
    copied = {own: weight for own, weight in weights.items() if name in own.split(".")}
    for own, weight in copied.items():
        weight.data.copy_(weights[".".join(ADAPTER if part == name else part for part in own.split("."))].data)
    return copied
