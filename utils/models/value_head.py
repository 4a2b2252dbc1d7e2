"""PPO's critic: a linear head that reads a value off the last hidden state, and the adapter it may stand on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from utils.models.load import ADAPTER
from utils.models.reference import copy_adapter

if TYPE_CHECKING:
    from utils.models.load import Model

CRITIC = "critic"
"""Name of the critic's adapter beside the policy's and the reference's."""


class ValueHead(torch.nn.Module):
    """hidden [..., hidden_size] -> value [...] in fp32. It starts at 0: before the first update every value is 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(hidden_size, 1)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values of hidden states of any floating dtype."""
        value: torch.Tensor = self.linear(hidden.float()).squeeze(-1)
        return value


@contextmanager
def last_hidden(model: Model) -> Iterator[list[torch.Tensor]]:
    """A list that gets what each forward pass inside hands to the output layer: hidden states [rows, columns, width].

    So values come from the pass that gives the log-probs; columns are those that logits are computed for.
    """
    seen: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def add_critic_adapter(policy: Model) -> dict[str, torch.nn.Parameter]:
    """A second trainable adapter, a copy of the policy's as it is now; its parameters by name.

    The output layer's part is left out: values do not pass through it.
    """
    copied = copy_adapter(policy, CRITIC, frozen=False)
    output = {id(parameter) for parameter in policy.get_output_embeddings().parameters()}
    return {name: parameter for name, parameter in copied.items() if id(parameter) not in output}


def critic_hidden(
    policy: Model,
    parameters: dict[str, torch.nn.Parameter],
    *,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
) -> torch.Tensor:
    """Last hidden states [rows, columns, width] of the policy's base with the critic's adapter.

    Activations are kept even where the policy's are recomputed: that would happen under the policy's adapter.
    """
    training = policy.training
    policy.eval()
    policy.set_adapter(CRITIC)
    try:
        trunk = policy.get_base_model().base_model
        hidden: torch.Tensor = trunk(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
    finally:
        policy.set_adapter(ADAPTER)
        policy.train(training)
    # set_adapter froze what it left, and a frozen parameter gets no gradient even from a pass that has been made
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return hidden
