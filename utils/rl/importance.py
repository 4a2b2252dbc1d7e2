"""Truncated importance weights: completions drawn by a back end whose log-probs are not the learner's.

Another engine computes the same policy with other kernels and other rounding, so that a token is drawn a little more or
less often than the learner believes. Its terms in the loss are multiplied by min(learner / back end, cap) (Yao et al.
2025, "Your efficient RL framework secretly brings you off-policy RL training"; TRL's
vllm_importance_sampling_correction in mode token_truncate). TRL leaves the KL in the loss unweighted; here the whole
loss of a token is weighted, since all of it is an expectation over the policy's tokens. `native` needs none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from utils.rl.completions import Completion
from utils.rl.distributed import everywhere

if TYPE_CHECKING:
    from utils.rl.micro_batch import MicroBatch


def reported_logprobs(groups: Sequence[Sequence[Completion]]) -> torch.Tensor | None:
    """The back end's log-probs fp32 [_N] of all tokens, sample by sample; None where it reports none.

    ValueError where some completions have them and others do not, or not one per token.
    """
    completions = [completion for group in groups for completion in group]
    if all(completion.logprobs is None for completion in completions):
        return None
    for completion in completions:
        found = len(completion.logprobs or [])
        if found != len(completion.tokens):
            raise ValueError(f"a completion of {len(completion.tokens)} tokens came with {found} log-probs")
    return torch.tensor([value for completion in completions for value in completion.logprobs or []])


def truncated_importance(logp: torch.Tensor, backend_logp: torch.Tensor, cap: float) -> torch.Tensor:
    """min(exp(logp - backend_logp), cap) [_N], without gradient."""
    return torch.exp(logp.detach() - backend_logp).clamp(max=cap)


def importance_figures(mini_batches: Sequence[Sequence[MicroBatch]]) -> dict[str, float]:
    """Mean and largest weight over the tokens of a rollout, all processes'; empty where there are none."""
    found = [micro.importance for mini_batch in mini_batches for micro in mini_batch if micro.importance is not None]
    if not found:
        return {}
    [weights] = everywhere(torch.cat(found))
    return {"importance_mean": float(weights.double().mean()), "importance_max": float(weights.max())}
