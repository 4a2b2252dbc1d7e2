"""PPO's critic over packed groups: values of completion tokens, and from them the advantages of a rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from utils.errors import UserError
from utils.models.last_layer import reading_only
from utils.models.value_head import ValueHead, add_critic_adapter, critic_hidden, last_hidden
from utils.rl.advantages import explained_variance, generalized_advantages, whiten
from utils.rl.distributed import everywhere
from utils.rl.logprobs import completion_logprobs
from utils.rl.packing import PackedBatch

if TYPE_CHECKING:
    from utils.models.load import Model
    from utils.rl.micro_batch import MicroBatch


class Critic:
    """Values of the states that completion tokens are drawn in: V(prompt and the tokens before).

    `kind`: `head` reads the policy's last hidden state and passes no gradient on, `trunk` passes it on, `adapter` has
    an adapter of its own beside the policy's (a pass of its own, too). UserError for `adapter` without LoRA.
    """

    def __init__(self, policy: Model, kind: str) -> None:
        if kind == "adapter" and not hasattr(policy, "peft_config"):
            raise UserError("critic: adapter needs an adapter on the policy; set lora.use_lora: true, or critic: head")
        self.policy, self.kind = policy, kind
        self.passes = 2 if kind == "adapter" else 1  # through the layers, for log-probs and values of a batch
        self.adapter = add_critic_adapter(policy) if kind == "adapter" else {}
        self.head = ValueHead(policy.config.hidden_size).to(next(policy.parameters()).device)
        self.parameters = {**self.adapter, **{f"value_{n}": p for n, p in self.head.named_parameters()}}

    def forward(
        self, packed: PackedBatch, context: Callable[[], AbstractContextManager[Any]], entropy_gradient: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(log-prob, entropy, value) [_N] of the completion tokens; `context` makes the models' autocast.

        The head works in fp32 outside of it.
        """
        with last_hidden(self.policy) as seen, context():
            logp, entropy = completion_logprobs(self.policy, packed, entropy_gradient=entropy_gradient)
        # the first: what is computed in chunks passes through the output layer once more
        hidden = seen[0] if self.kind == "trunk" else seen[0].detach()
        if self.kind == "adapter":
            read = slice(-packed.logits_to_keep, None)
            with context(), reading_only(self.policy, read):
                hidden = critic_hidden(
                    self.policy, self.adapter, input_ids=packed.input_ids,
                    attention_mask=packed.attention_mask, position_ids=packed.position_ids,
                )[:, read]  # fmt: skip
        # a token's value stands where the token is predicted: it must not know the token
        states = hidden.flatten(0, 1).index_select(0, packed.row * hidden.shape[1] + packed.source)
        return logp, entropy, self.head(states)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that trains here, by name."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave. KeyError when the critic is of another kind."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state[name])


def estimate_advantages(
    mini_batches: Sequence[Sequence[MicroBatch]], kl_coef: float, gamma: float, gae_lambda: float, whitened: bool
) -> dict[str, float]:
    """Fill `advantage` and `returns` of every micro-batch of a rollout; what they say about rollout and critic.

    A token's reward is -kl_coef (log policy - log reference), at the last token plus the completion's own (Ziegler et
    al. 2019, arXiv:1909.08593, eq. 2); returns are advantages + values. `whitened`: over all tokens of the rollout.
    `explained_variance` takes the rewards to come as they are, not the returns, which hold the critic's own guesses.
    UserError names a token whose advantage is not finite.
    """
    micros = [micro for mini_batch in mini_batches for micro in mini_batch]
    outcomes, kls = [], []
    for micro in micros:
        packed, kl = micro.packed, micro.old_logp_or_fail - micro.reference_logp
        rewards = packed.padded(-kl_coef * kl)
        last = packed.padded(torch.ones_like(kl)).sum(dim=1).long() - 1
        rewards[torch.arange(packed.samples, device=kl.device), last] += micro.payoff.flatten()
        values = packed.padded(micro.old_value)
        where = packed.sample, packed.time
        micro.advantage = generalized_advantages(rewards, values, gamma, gae_lambda)[where]
        micro.returns = micro.advantage + micro.old_value
        micro.check("the advantage", micro.advantage)  # whitening would spread it over the rollout
        outcomes.append(generalized_advantages(rewards, torch.zeros_like(values), gamma, 1.0)[where])
        kls.append(packed.padded(kl).sum(dim=1))
    advantages, values, returns, all_outcomes, all_kls = everywhere(
        torch.cat([micro.advantage for micro in micros]),
        torch.cat([micro.old_value for micro in micros]),
        torch.cat([micro.returns for micro in micros]),
        torch.cat(outcomes),
        torch.cat(kls),
    )
    if whitened:
        for micro in micros:
            micro.advantage = whiten(micro.advantage, advantages)
    return {
        "explained_variance": explained_variance(values, all_outcomes),
        "value_mean": float(values.mean()),
        "return_mean": float(returns.mean()),
        "kl_k1": float(all_kls.sum()) / len(values),
        "kl_completion": float(all_kls.mean()),
        "kl_coef": kl_coef,
    }
