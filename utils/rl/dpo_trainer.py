"""TRL's DPOTrainer on packed pairs: its losses, figures and loop, our forward pass.

TRL passes a prompt once per answer and, on a CPU, scores every position of it. Here a pair is one row, its prompt
computed once (`utils.rl.packing`), and only answers are scored. Policy and reference go the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from trl import DPOTrainer
from trl.trainer.utils import use_adapter

from utils.rl.finite import check_tokens
from utils.rl.logprobs import completion_logprobs
from utils.rl.packing import lay_out
from utils.rl.trainer_run import NamedBatches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from utils.models.load import Model

IGNORED = -100
REFERENCE = "ref"
"""What TRL calls the frozen copy of the adapter."""


class PairTrainer(NamedBatches, DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on ready ids and packed pairs, with its reference within reach."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for model in (self.model, self.ref_model):
            if model is not None:
                inner = model.get_base_model() if hasattr(model, "peft_config") else model
                _pack_pairs(inner, self.accelerator.autocast)

    def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
        return dataset

    @contextmanager
    def reference(self) -> Iterator[Model]:
        """The reference as a model, without gradients."""
        with torch.no_grad():
            if self.ref_model is not None:
                yield self.ref_model
                return
            with use_adapter(self.model, REFERENCE):
                yield self.model


def pair_outputs(
    model: PreTrainedModel, score: Any, ids: torch.Tensor, seen: torch.Tensor, labels: torch.Tensor
) -> SimpleNamespace:
    """What TRL's losses read of a batch, from one packed row per pair; `score` is the forward pass of `model`.

    Row i of `ids` [2 _B, _T] holds a prompt with its chosen answer, row _B + i the same prompt with its rejected one;
    `seen` is 0 at padding, `labels` are -100 outside answers. `log_probs` and `entropy` [2 _B, _T - 1] stand where
    TRL's own would, 0 outside answers. Its mean logits and argmax, which only feed figures that are not kept, are 0.
    """
    half = len(ids) // 2
    texts = [row[kept.bool()].tolist() for row, kept in zip(ids, seen, strict=True)]
    answers = [row[row != IGNORED].tolist() for row in labels]
    prompts = [texts[i][: len(texts[i]) - len(answers[i])] for i in range(half)]
    groups = [[answers[i], answers[half + i]] for i in range(half)]
    batch = lay_out(model, prompts, groups, pad_id=0).to(ids.device)  # padding is masked, whatever it is
    logp, entropy = completion_logprobs(score, batch, owner=model)
    pair, rejected = batch.sample // 2, batch.sample % 2
    check_tokens("the log-prob of an answer", logp, pair, batch.time)
    before = torch.tensor([len(prompt) - 1 for prompt in prompts], device=ids.device)
    place = (pair + half * rejected, before[pair] + batch.time)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(ids), ids.shape[1] - 1).index_put(place, values)

    nothing = torch.zeros_like(ids[:, 1:])
    return SimpleNamespace(
        log_probs=spread(logp), entropy=spread(entropy), mean_logits=nothing.float(), is_top1=nothing.bool()
    )


def _pack_pairs(model: PreTrainedModel, autocast: Callable[[], AbstractContextManager[None]]) -> None:
    """Let `pair_outputs` answer where TRL asks for log-probs; every other call is the model's own.

    The reference's forward is in autocast already, the policy's will be around this: all of both is computed in it,
    the output layer too where logits come in chunks.
    """
    scored_by_trl = model.forward

    @functools.wraps(type(model).forward)  # generation checks its arguments against the signature
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **inputs: Any) -> Any:
        if not fused_lm_head:
            return scored_by_trl(*args, **inputs)
        # not through `self`, whose forward may be wrapped in autocast by now: entering that twice would leave it on
        with autocast():
            return pair_outputs(self, scored_by_trl, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])

    model.forward = MethodType(forward, model)
