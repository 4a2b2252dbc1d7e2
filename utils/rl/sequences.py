"""RLOO's view of a rollout: a whole completion is one action, with one reward, one log-prob, one KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from utils.files import write_json
from utils.machine import is_out_of_memory
from utils.ranks import rank
from utils.rl.advantages import leave_one_out
from utils.rl.distributed import of_all
from utils.rl.logprobs import completion_logprobs
from utils.rl.packing import PackedBatch, lay_out
from utils.rl.passes import free_cached

if TYPE_CHECKING:
    from utils.rl.learner import Learner
    from utils.rl.micro_batch import MicroBatch
    from utils.rl.rollouts import RolloutBatch
    from utils.stage import Stage


def at_tokens(values: torch.Tensor, packed: PackedBatch) -> torch.Tensor:
    """[_S] per sample -> [_N], each at all tokens of its sample."""
    return values.index_select(0, packed.sample)


def sequence_logp(logp: torch.Tensor, packed: PackedBatch) -> torch.Tensor:
    """Log-prob of a token's whole completion [_N], from those of the tokens [_N].

    A loss of it stands at every token of its completion: with token weights 1 / (samples x length) its sum is the mean
    over completions.
    """
    return at_tokens(packed.padded(logp).sum(dim=1), packed)


def sequence_advantages(micro: MicroBatch, kl_coef: float, baseline_type: str) -> torch.Tensor:
    """Advantages [_N] of the samples' rewards minus kl_coef times their KL to the reference; figures go to `samples`.

    The KL of a completion is the sum of log policy - log reference over its tokens, under the policy that sampled (k1),
    and part of its reward (Ahmadian et al. 2024, arXiv:2402.14740, eq. 3). `micro.payoff` holds whole groups.
    """
    kl = micro.packed.padded(micro.old_logp_or_fail - micro.reference_logp).sum(dim=1)
    penalised = micro.payoff - kl_coef * kl.view_as(micro.payoff)
    advantages, baselines = leave_one_out(penalised, baseline_type)
    micro.samples = {
        "reward": micro.payoff.flatten(), "kl": kl, "penalised_reward": penalised.flatten(),
        "baseline": baselines.flatten(), "advantage": advantages.flatten(),
    }  # fmt: skip
    return at_tokens(advantages.flatten(), micro.packed)


def sample_rows(mini_batches: Sequence[Sequence[MicroBatch]]) -> list[dict[str, Any]]:
    """One row per sample of a rollout, all processes': its record and what `sequence_advantages` found."""
    rows = []
    for micro in (micro for mini_batch in mini_batches for micro in mini_batch):
        columns = {name: values.tolist() for name, values in micro.samples.items()}
        numbers = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        rows += [{"record": record, **row} for record, row in zip(micro.records, numbers, strict=True)]
    return of_all(rows)


def sample_means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Figures of a step from its samples' rows."""
    columns = {name: torch.tensor([row[name] for row in rows]) for name in ("baseline", "advantage", "kl")}
    return {
        "baseline_mean": float(columns["baseline"].mean()),
        "advantage_std": float(columns["advantage"].std(correction=0)),
        "kl_completion": float(columns["kl"].mean()),
    }


def report_variance(stage: Stage, learner: Learner, batch: RolloutBatch, totals: torch.Tensor, prompts: int) -> None:
    """Print `gradient_variance` and leave it in the stage's folder (gradient_variance.json) and manifest.

    The first process measures it, whatever the number of others; not where each has but a share of the gradients.
    """
    if rank():
        return
    if learner.passes.in_shares:
        stage.terminal.say("gradient variance: not measured with --fsdp")
        return
    if min(prompts, len(batch.prompts)) < 2:
        stage.terminal.say("gradient variance: not measured, a step has one prompt")
        return
    try:
        found = gradient_variance(learner, batch, totals, prompts)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        free_cached()
        stage.warn("gradient variance: not measured, out of memory; --variance_prompts 0 does not try")
        return
    write_json(stage.path("gradient_variance.json"), found)
    ratios = {kind: ratio for kind, ratio in found["relative_to_none"].items() if kind != "none" and ratio is not None}
    stage.report({f"gradient_variance_{kind}": ratio for kind, ratio in ratios.items()})
    against = ", ".join(f"{kind} {ratio:.3g}" for kind, ratio in ratios.items()) or "every reward is 0, none to compare"
    stage.terminal.say(
        f"gradient variance relative to plain REINFORCE ({found['prompts']} prompts x {found['samples']}): {against}"
    )


def gradient_variance(learner: Learner, batch: RolloutBatch, totals: torch.Tensor, prompts: int) -> dict[str, Any]:
    """How much the policy gradient varies from prompt to prompt under each baseline, on the first `prompts` prompts.

    A prompt's gradient is that of -mean over its _G samples of A log p(completion), without KL. `variance` is the trace
    of its covariance over prompts (sum over parameters, divided by n - 1): what a step's gradient has over the number
    of its prompts. `mean`'s gradients are `loo`'s times (_G - 1) / _G. Leaves no gradient behind.
    """
    count, samples = min(prompts, len(batch.prompts)), totals.shape[1]
    kinds = ("none", "loo") if samples > 1 else ("none",)
    sums: dict[str, list[torch.Tensor]] = {}
    squares = dict.fromkeys(kinds, 0.0)
    parameters = list(learner.parameters.values())
    learner.policy.train(learner.model_settings.activation_checkpointing)
    for b in range(count):
        completions = [completion.tokens for completion in batch.groups[b]]
        pad = learner.tokenizer.pad_token_id
        packed = lay_out(learner.policy, [batch.prompts[b]], [completions], pad).to(learner.device)
        with learner.context():
            logp = packed.padded(completion_logprobs(learner.policy, packed)[0]).sum(dim=1)
        for kind in kinds:
            advantages, _ = leave_one_out(totals[b : b + 1].to(logp.device), kind)
            gradient = torch.autograd.grad(
                -(advantages[0] * logp).mean(), parameters, retain_graph=kind != kinds[-1], materialize_grads=True
            )
            squares[kind] += sum(float(part.double().square().sum()) for part in gradient)
            if kind in sums:
                torch._foreach_add_(sums[kind], gradient)
            else:
                sums[kind] = list(gradient)
    learner.policy.eval()
    variance = {}
    for kind in kinds:
        mean_square = sum(float((part.double() / count).square().sum()) for part in sums[kind])
        variance[kind] = (squares[kind] - count * mean_square) / (count - 1)
    if samples > 1:
        variance["mean"] = variance["loo"] * ((samples - 1) / samples) ** 2
    ratios = {kind: value / variance["none"] if variance["none"] > 0 else None for kind, value in variance.items()}
    return {"prompts": count, "samples": samples, "variance": variance, "relative_to_none": ratios}
