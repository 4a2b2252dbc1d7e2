"""What one forward-backward pass of the learner needs beside the policy."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from utils.rl.finite import REMEDY, NonFiniteError, check_tokens
from utils.rl.importance import truncated_importance
from utils.rl.packing import PackedBatch


@dataclass
class MicroBatch:
    """What one forward-backward pass needs, values per completion token [_N] where nothing else is said.

    `payoff` [rows, _G] is what the script hands over for each sample, an advantage (06) or a reward (05, 07);
    `advantage` is that at each token until the script puts its own there. `old_logp` and `old_value` belong to the
    policy that sampled. `backend_logp` is what the back end says to the tokens that it drew, where it has its own
    numbers: `importance` is then part of the weight. `samples`: figures [_S] by name, for logs. `step` and `records`
    are what to name when it fails.
    """

    packed: PackedBatch
    records: list[str]
    payoff: torch.Tensor
    advantage: torch.Tensor
    weight: torch.Tensor
    reference_logp: torch.Tensor
    old_logp: torch.Tensor | None = None
    old_value: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    returns: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    samples: dict[str, torch.Tensor] = field(default_factory=dict)
    step: int = 0
    backend_logp: torch.Tensor | None = None
    importance: torch.Tensor | None = None
    importance_cap: float = 1.0

    def check(self, name: str, values: torch.Tensor, remedy: str = REMEDY) -> None:
        """NonFiniteError names step, record and token of the first of `values` [_N] that is NaN or infinite."""
        try:
            check_tokens(name, values, self.packed.sample, self.packed.time)
        except NonFiniteError as error:
            record = self.records[error.row or 0]
            raise NonFiniteError(f"step {self.step}: record {record}: {error}; {remedy}") from error

    def sampling_logp(self, logp: torch.Tensor) -> torch.Tensor:
        """The log-probs of the policy that sampled: those from before its first update, else of this first pass.

        UserError where the policy's, or their distance from the reference's, are not finite.
        """
        self.check("the policy's log-prob", logp)
        self.check("the KL to the reference", torch.exp(self.reference_logp - logp.detach()))
        return self.remember(logp.detach()) if self.old_logp is None else self.old_logp

    def remember(self, old_logp: torch.Tensor) -> torch.Tensor:
        """Take these for the log-probs of the policy that sampled; tokens are weighed by what the back end says."""
        self.old_logp = old_logp
        if self.backend_logp is not None:
            self.importance = truncated_importance(old_logp, self.backend_logp, self.importance_cap)
            self.weight = self.weight * self.importance
        return old_logp

    @property
    def old_logp_or_fail(self) -> torch.Tensor:
        """`old_logp` where it must be there. ValueError when no pass has been made yet."""
        if self.old_logp is None:
            raise ValueError("the sampling policy's log-probs are not computed yet")
        return self.old_logp
