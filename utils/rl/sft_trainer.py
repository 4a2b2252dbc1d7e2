"""TRL's SFTTrainer with the loss taken at the targets alone where TRL would take it at every token.

Without Triton, TRL 1.16 puts every position through the output layer and masks the prompts' afterwards. Prompts are ten
times longer than targets here: on a CPU that is half of a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl import SFTTrainer

from utils.models.last_layer import reading_only
from utils.rl.finite import check_tokens
from utils.rl.logprobs import token_logprobs
from utils.rl.trainer_run import NamedBatches

if TYPE_CHECKING:
    import torch

TRITON = ("cuda", "xpu")
"""Devices on which TRL itself skips what carries no loss."""


class TargetTrainer(NamedBatches, SFTTrainer):  # type: ignore[misc]
    """The same loss, gradients and logged figures as its parent's, from the columns that hold a target only."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean negative log-likelihood (nats per target token) over `num_items_in_batch` tokens, or this batch's."""
        import torch

        if return_outputs or inputs["input_ids"].device.type in TRITON:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        targets = inputs["labels"][:, 1:]
        learned = targets != -100
        columns = learned.any(dim=0).nonzero().flatten()
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        with reading_only(self.accelerator.unwrap_model(model), columns) as only:
            logits = model(**rest, use_cache=False, logits_to_keep=0 if only else columns).logits
        row, place = learned[:, columns].nonzero(as_tuple=True)
        tokens, predictions = targets[row, columns[place]], row * len(columns) + place
        logits = logits.flatten(0, 1).index_select(0, predictions)  # those of padding may go
        logp, entropy = token_logprobs(logits, torch.arange(len(tokens), device=tokens.device), tokens)
        check_tokens("the log-prob of the target", logp, row, learned.cumsum(1)[:, columns][row, place] - 1)
        loss = -logp.sum()
        with torch.no_grad():
            right = logits.argmax(dim=-1) == tokens
            of_this_process = torch.stack([entropy.double().sum(), right.double().sum(), learned.double().sum()])
            totals = self.accelerator.gather_for_metrics(of_this_process[None]).sum(dim=0)
            for name, total in zip(("entropy", "mean_token_accuracy"), totals, strict=False):
                self._metrics["train"][name].append(float(total / totals[-1].clamp(min=1)))
        loss = loss / torch.as_tensor(len(tokens) if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # which are averaged over
        return loss
