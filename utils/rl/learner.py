"""The policy in training: its reference, its optimiser, its micro-batches, and what is saved of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.models.load import autocast, load_model, load_weights, resolve_device, save_model, trainable_parameters
from utils.models.reference import Reference
from utils.models.sharding import in_first, shard, shares_of_state, together, whole, whole_weights
from utils.models.tokens import load_tokenizer
from utils.ranks import gather, rank
from utils.rl.checkpoints import load_state, save_checkpoint
from utils.rl.distributed import own_share, sum_gradients, summed
from utils.rl.finite import gradient_norm
from utils.rl.importance import reported_logprobs
from utils.rl.logprobs import completion_logprobs
from utils.rl.micro_batch import MicroBatch
from utils.rl.packing import PackedBatch, in_pieces, lay_out, micro_batches, row_tokens
from utils.rl.passes import Passes
from utils.rl.rollouts import RolloutBatch
from utils.rl.values import Critic
from utils.seeds import seed_everything
from utils.settings import LoraSettings, ModelSettings, RLSettings

if TYPE_CHECKING:
    from utils.models.load import Model


@dataclass
class TokenFigures:
    """Running means over completion tokens (or whatever is added) of some optimiser steps, those of all processes."""

    sums: dict[str, float] = field(default_factory=dict)
    tokens: int = 0

    def add(self, **values: torch.Tensor) -> None:
        """Add values [_N] by name."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach().double().sum())
        self.tokens += len(next(iter(values.values())))

    def means(self) -> dict[str, float]:
        """Name -> mean over all tokens added."""
        sums = summed({**self.sums, "tokens": self.tokens})
        tokens = sums.pop("tokens")
        return {name: total / tokens for name, total in sums.items()}


def mean_figures(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """What a step logs of its updates: the mean of each figure."""
    return {name: sum(one[name] for one in updates) / len(updates) for name in updates[0]}


class Learner:
    """A policy that starts at `start`, with a reference that stays there. Randomness: `seed` draws fresh adapters.

    `critic` names the kind of `utils.rl.values.Critic` that learns beside it, at its own rate (empty: none). `fsdp`:
    each process keeps a share of policy, reference and optimiser; all call every method, with as many prompts each.
    """

    def __init__(
        self,
        model: ModelSettings,
        lora: LoraSettings,
        rl: RLSettings,
        *,
        start: Path,
        device: str,
        seed: int,
        critic: str = "",
        fsdp: bool = False,
        warn: Callable[[str], None] = print,
    ) -> None:
        seed_everything(seed)
        self.model_settings, self.rl = model, rl
        self.device = resolve_device(device)
        self.tokenizer = load_tokenizer(model, start)
        # what is to be in shares need not fit the device as a whole
        place = torch.device("cpu") if fsdp else self.device
        self.policy: Model = load_model(model, lora, checkpoint=start, trainable=True, device=place)
        self.reference = Reference(self.policy)
        if fsdp:
            shard(self.policy, self.device)
            if self.reference.copy is not None:
                shard(self.reference.copy, self.device)
        self.parameters = trainable_parameters(self.policy)
        self.critic = Critic(self.policy, critic) if critic else None
        if model.activation_checkpointing:
            _recompute_activations(self.policy)
        trained = [(self.parameters, rl.learning_rate)]
        if self.critic is not None:
            trained.append((self.critic.parameters, rl.critic_learning_rate))
        self.rates = [rate for _, rate in trained]
        groups = [{"params": list(parameters.values())} for parameters, _ in trained]
        self.optimizer = torch.optim.AdamW(groups, lr=rl.learning_rate, weight_decay=0.0)
        everything = [parameter for group in groups for parameter in group["params"]]
        self.passes = Passes(self.policy, self.tokenizer.pad_token_id, everything, warn)
        self.updates = 0
        self.rollout: list[list[MicroBatch]] = []
        self.gradient_tokens = self.forward_tokens = 0
        # of this process since the last update, which adds up what all have done
        self.since_update = {"loss": 0.0, "gradient_tokens": 0, "forward_tokens": 0}

    def context(self) -> AbstractContextManager[Any]:
        """Autocast of one forward pass."""
        return autocast(self.model_settings, self.device)

    def whole(self) -> AbstractContextManager[None]:
        """Inside, the policy can sample; where it is in shares it is put together for that."""
        return whole(self.policy)

    def logprobs(self, packed: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-prob, entropy) [_N] of the policy; the first with gradient."""
        # activations are recomputed in training mode only; the policy stays in it until `update`
        self.policy.train(self.model_settings.activation_checkpointing)
        logp, entropy = self.passes.with_gradient(packed, partial(self._logprobs, self.policy))
        self.since_update["gradient_tokens"] += packed.computed_tokens
        return logp, entropy

    def _logprobs(self, model: Model, packed: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        with self.context():
            return completion_logprobs(model, packed)

    def logprobs_and_values(
        self, packed: PackedBatch, entropy_coef: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(log-prob, entropy, value) [_N] of policy and critic, with gradient (the entropy where it has a weight)."""
        if self.critic is None:
            raise ValueError("this learner has no critic")
        self.policy.train(self.model_settings.activation_checkpointing)
        compute = partial(self.critic.forward, context=self.context, entropy_gradient=entropy_coef > 0)
        logp, entropy, value = self.passes.with_gradient(packed, compute)
        self.since_update["gradient_tokens"] += packed.computed_tokens * self.critic.passes
        return logp, entropy, value

    def mini_batches(
        self,
        batch: RolloutBatch,
        payoffs: torch.Tensor,
        weigh: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        count: int,
        mask_truncated: bool = False,
    ) -> list[list[MicroBatch]]:
        """The rollout cut into `count` mini-batches (one optimiser step each) of micro-batches (one pass each).

        `payoffs` [_B, _G]; `weigh` turns the lengths [_S] of a mini-batch's samples, and which of them count, into
        weights of their tokens. Groups stay whole, and each process gets its share of a mini-batch's. The reference's
        log-probs are computed here, and where there are several mini-batches or a critic the old policy's too; else the
        first pass itself gives them. UserError names what of all this is not finite.
        """
        lengths = torch.tensor([[len(completion.tokens) for completion in group] for group in batch.groups])
        kept = torch.tensor([[not (mask_truncated and one.truncated) for one in group] for group in batch.groups])
        weights = torch.empty(lengths.shape, dtype=torch.float64)
        pieces = _split(len(batch.prompts), count)
        for piece in pieces:
            of_piece = weigh(lengths[list(piece)].flatten(), kept[list(piece)].flatten())
            weights[list(piece)] = of_piece.view(len(piece), -1)
        result = [list(self._micro_batches(batch, piece, payoffs, weights)) for piece in pieces]
        if count > 1 or self.critic is not None:
            for micro in (micro for mini in result for micro in mini):
                self._remember(micro)
        self.rollout = result
        return result

    def _remember(self, micro: MicroBatch) -> None:
        """What the policy that sampled, and its critic, say to a micro-batch."""
        if self.critic is None:
            old_logp, _ = self.passes.without_gradient(micro.packed, partial(self._logprobs, self.policy))
            self.since_update["forward_tokens"] += micro.packed.computed_tokens
        else:
            compute = partial(self.critic.forward, context=self.context)
            old_logp, _, micro.old_value = self.passes.without_gradient(micro.packed, compute)
            self.since_update["forward_tokens"] += micro.packed.computed_tokens * self.critic.passes
            micro.check("the critic's value", micro.old_value)
        micro.check("the policy's log-prob", old_logp)
        micro.remember(old_logp)

    def _micro_batches(
        self, batch: RolloutBatch, rows: Sequence[int], payoffs: torch.Tensor, weights: torch.Tensor
    ) -> Iterator[MicroBatch]:
        completions = [[completion.tokens for completion in group] for group in batch.groups]
        size = {i: row_tokens(self.policy, batch.prompts[i], completions[i]) for i in rows}
        by_size = sorted(rows, key=lambda i: (size[i], i))
        ordered = [by_size[place] for place in own_share(len(by_size))]
        pad = self.tokenizer.pad_token_id
        cut = micro_batches([size[i] for i in ordered], self.passes.within(self.rl.micro_batch_tokens))
        if self.passes.in_shares:  # every pass is made by all
            cut = in_pieces(cut, max(gather(len(cut))))
        for places in cut:
            chosen = [ordered[place] for place in places]
            prompts, groups = [batch.prompts[i] for i in chosen], [completions[i] for i in chosen]
            packed = lay_out(self.policy, prompts, groups, pad).to(self.device)
            with self.reference.model() as reference:
                reference_logp, _ = self.passes.without_gradient(packed, partial(self._logprobs, reference))
            self.since_update["forward_tokens"] += packed.computed_tokens
            records = [f"{batch.examples[i].id} (sample {g})" for i in chosen for g in range(len(completions[i]))]
            payoff = payoffs[chosen].to(self.device, torch.float32)
            advantage, weight = _per_token(payoffs[chosen], packed), _per_token(weights[chosen], packed)
            micro = MicroBatch(packed, records, payoff, advantage, weight, reference_logp, step=batch.step)
            micro.check("the reference's log-prob", reference_logp, "give another --policy_ckpt, or --precision fp32")
            reported = reported_logprobs([batch.groups[i] for i in chosen])
            if reported is not None:
                micro.backend_logp, micro.importance_cap = reported.to(self.device), self.rl.importance_cap
                micro.check("the back end's log-prob", micro.backend_logp, "--backend native has none of its own")
            yield micro

    def backward(self, losses: torch.Tensor, batch: MicroBatch) -> None:
        """Backpropagate sum(weight x loss) of per-token losses [_N]. UserError names what is not finite."""
        batch.check("the loss", losses)
        loss = (batch.weight * losses).sum()
        self.passes.backward(loss)
        self.since_update["loss"] += float(loss.detach())

    def update(self, step: int, warmup_steps: int, max_grad_norm: float) -> dict[str, float]:
        """One optimiser step: linear warm-up, clipping by norm (0: none). {loss, grad_norm before clipping, lr}.

        The critic's gradient is clipped by its own norm, `critic_grad_norm`. Losses and gradients of all processes add
        up, since the weights of tokens are those of the whole mini-batch.
        """
        # before the gradients: this notices when a process is gone, where nccl would wait
        done = summed(self.since_update)
        self.since_update = dict.fromkeys(self.since_update, 0)
        self.gradient_tokens += int(done["gradient_tokens"])
        self.forward_tokens += int(done["forward_tokens"])
        sum_gradients([*self.parameters.values(), *(self.critic.parameters.values() if self.critic else ())])
        figures = {"loss": done["loss"], "grad_norm": _clip(self.parameters, max_grad_norm, step)}
        if self.critic is not None:
            figures["critic_grad_norm"] = _clip(self.critic.parameters, max_grad_norm, step)
        self.updates += 1
        warmth = min(1.0, self.updates / max(1, warmup_steps))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * warmth
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.passes.finish()
        self.policy.eval()
        return {**figures, "lr": self.rates[0] * warmth}

    def save(self, folder: Path, step: int, state: dict[str, Any], keep: int = 1) -> None:
        """A checkpoint to continue from; `state` holds what the script keeps (plain values, tensors).

        The first process writes it: the others hold the same, or the other shares of it, so that any number of them can
        continue, in shares or not.
        """
        weights, optimizer = whole_weights(self.policy), in_first(self.optimizer.state_dict())
        if rank():
            return
        own = {
            "optimizer": optimizer, "updates": self.updates,
            "gradient_tokens": self.gradient_tokens, "forward_tokens": self.forward_tokens,
            "micro_batch_tokens": self.rl.micro_batch_tokens, "room": self.passes.room,
        }  # fmt: skip
        if self.critic is not None:
            own["critic"] = self.critic.state_dict()
        save_checkpoint(folder, step, self.policy, self.tokenizer, {"learner": own, **state}, keep, weights)

    def save_policy(self, folder: Path) -> None:
        """The policy alone, by the first process."""
        weights = whole_weights(self.policy)
        if not rank():
            save_model(self.policy, self.tokenizer, folder, weights)

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Take everything back from a checkpoint; what the script had kept, and `step`."""
        load_weights(self.policy, checkpoint)
        state = load_state(checkpoint)
        own = state.pop("learner")
        self.optimizer.load_state_dict(shares_of_state(self.optimizer, own["optimizer"]))
        self.updates, self.gradient_tokens = own["updates"], own["gradient_tokens"]
        self.forward_tokens = own["forward_tokens"]
        if self.rl.auto_batch:  # as they were then, on another machine too: another cut would round otherwise
            self.rl = replace(self.rl, micro_batch_tokens=own["micro_batch_tokens"])
        self.passes.room = own["room"]
        if self.critic is not None:
            self.critic.load_state_dict(own["critic"])
        return state


def _clip(parameters: dict[str, torch.nn.Parameter], max_norm: float, step: int) -> float:
    """Scale gradients down to a norm (0: leave them); the norm before. UserError names what is not finite."""
    norm = gradient_norm(f"step {step}", parameters)
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), max_norm, norm)
    return float(together(norm))


def _recompute_activations(policy: Model) -> None:
    """Keep only the layers' inputs for the backward pass. Training mode then must not bring dropout: it is set to 0."""
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    policy.activation_checkpointing_enable({"use_reentrant": False})


def _split(count: int, pieces: int) -> list[range]:
    """`count` indices in `pieces` consecutive ranges whose lengths differ by at most one; empty ones are left out."""
    edges = [count * i // pieces for i in range(pieces + 1)]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]


def _per_token(values: torch.Tensor, packed: PackedBatch) -> torch.Tensor:
    """[rows, _G] per sample -> fp32 [_N] per token, on the batch's device."""
    return values.flatten().to(packed.tokens.device, torch.float32)[packed.sample]
