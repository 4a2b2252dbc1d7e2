"""The ways of making a GRPO update that are compared, each on the same batch: tokens, advantages, reference log-probs.

`project` packs a prompt with its completions into one row; `project, a row per sample` is the same engine without
sharing; TRL is GRPOTrainer's `compute_loss`; PrefixGrouper (Liu et al. 2025, arXiv:2506.05433) shares the prompt in
another way. Every way takes the same optimiser and gives the same gradient (tests/unit/test_engine_benchmarks.py).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import peaks, trl_trainer
from benchmarks.measure import quickest, seconds
from benchmarks.rollouts import PAD, Work, build, build_own, context
from benchmarks.trl_trainer import CLIP, KL, RATE
from utils.errors import UserError
from utils.machine import free_memory, is_out_of_memory
from utils.rl.logprobs import completion_logprobs
from utils.rl.losses import clipped_policy_loss, k3_kl
from utils.rl.packing import pack, separate
from utils.rl.passes import free_cached

OWN, UNSHARED, TRL, COMPLETIONS_ONLY = "project", "project, a row per sample", "TRL", "TRL, completions scored only"
GROUPED = "prefix_grouper"
ATTENTIONS = ("sdpa", "eager")
"""An opponent takes the one that is faster for it; the project has its own."""
ROOM = 1.5
"""Micro-batches grow no further when RAM has not so many times free what a pass took: Linux ends a process that takes
more than there is."""
SLOWER = 1.05
"""Micro-batches grow until the next is so many times slower per sample."""
TRIALS, ENOUGH = (2, 8), 5.0
"""Passes of each size: at least and at most so many; no more than the least once they have taken so many seconds."""


class Update:
    """Forward and backward passes over `units` (prompts with all their samples, or samples), and an optimiser."""

    attentions: tuple[str, ...] = ()

    def __init__(self, model: Any, units: int, backward: Callable[[slice], None]) -> None:
        self.model, self.units, self.backward = model, units, backward
        self.optimizer: torch.optim.Optimizer | None = None

    def __call__(self, size: int) -> None:
        """The whole update in micro-batches of `size` units."""
        for start in range(0, self.units, size):
            self.backward(slice(start, start + size))
        if self.optimizer is None:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=RATE)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def tune(self) -> dict[str, Any]:
        """Take the attention and the micro-batch that are fastest here; what they are.

        UserError when memory does not suffice for one prompt or sample.
        """
        chosen: dict[str, Any] = {}
        if self.attentions:
            chosen["attention"] = quickest({name: partial(self._attend, name) for name in self.attentions})
            self.model.set_attn_implementation(chosen["attention"])
        best, size = float("inf"), 1
        while size <= self.units:
            room, taken = self._tried(size)
            if taken > SLOWER * best:
                break
            if taken < best:
                best, chosen["micro_batch"] = taken, size
            if not room:
                break
            size *= 2
        self.model.zero_grad()
        return chosen

    def _tried(self, size: int) -> tuple[bool, float]:
        """Whether there is room for more than passes of this size, and seconds per unit (endless: none for it)."""
        call = partial(self.backward, slice(0, size))
        try:
            return _room_for_twice(call), _quickest_pass(call) / size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        free_cached()
        if size == 1:
            raise UserError("out of memory in a pass over a single prompt or sample: --memory_gb is too little for it")
        return False, float("inf")

    def _attend(self, attention: str) -> None:
        self.model.set_attn_implementation(attention)
        units = range(min(self.units, 4))
        try:
            self.backward(slice(0, len(units)))
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        free_cached()
        for unit in units:  # the same work
            self.backward(slice(unit, unit + 1))


def _room_for_twice(call: Callable[[], None]) -> bool:
    """Make a pass, and say whether RAM has room for one of twice its size beside what it took and keeps (Linux)."""
    if not peaks.STATUS.exists():
        call()
        return True
    taken, ram = peaks.resident_peak(call), free_memory(gpu=False)
    return ram is None or ram.free > ROOM * taken


def _quickest_pass(call: Callable[[], None]) -> float:
    """Seconds of the fastest of some passes."""
    least, most = TRIALS
    taken: list[float] = []
    while len(taken) < least or (len(taken) < most and sum(taken) < ENOUGH):
        taken.append(seconds(call))
    return min(taken)


def updates(flags: argparse.Namespace, work: Work) -> dict[str, Callable[[], Update]]:
    """What makes each way; those that are not installed, or say the same as another here, are left out."""
    ways: dict[str, Callable[[], Update]] = {
        OWN: lambda: of_project(flags, work, shared=True),
        UNSHARED: lambda: of_project(flags, work, shared=False),
        TRL: lambda: of_trl(flags, work),
    }
    if flags.device == "cpu":
        ways[COMPLETIONS_ONLY] = lambda: of_trl(flags, work, completions_only=True)
    if importlib.util.find_spec(GROUPED):
        ways[GROUPED] = lambda: of_prefix_grouper(flags, work)
    return ways


def of_project(flags: argparse.Namespace, work: Work, *, shared: bool, model: Any = None) -> Update:
    """The pass that 06 makes, prompts computed once, or once per sample; of a new model unless one is given."""
    model = build_own(flags) if model is None else model
    prompts: Sequence[list[int]] = work.prompts
    groups: Sequence[list[list[int]]] = work.completions
    if not shared:
        prompts = [prompt for prompt in prompts for _ in range(flags.group)]
        groups = [[completion] for group in groups for completion in group]
    layout = pack if shared else separate
    advantages, reference = work.advantages.view(len(prompts), -1), work.reference.view(len(prompts), -1)

    def backward(chosen: slice) -> None:
        batch = layout(prompts[chosen], groups[chosen], PAD).to(reference.device)
        with context(flags):
            logp, _ = completion_logprobs(model, batch)
        loss(logp, advantages[chosen].flatten()[batch.sample], reference[chosen].flatten(), work).backward()

    return Update(model, len(prompts), backward)


def loss(logp: torch.Tensor, advantage: torch.Tensor, reference: torch.Tensor, work: Work) -> torch.Tensor:
    """GRPO's loss: the mean over all tokens of the batch, to which micro-batches add up."""
    policy_loss, _, _ = clipped_policy_loss(logp, logp.detach(), advantage, CLIP, CLIP)
    return (policy_loss + KL * k3_kl(logp, reference)).sum() / work.reference.numel()


def of_trl(flags: argparse.Namespace, work: Work, *, completions_only: bool = False, trainer: Any = None) -> Update:
    """`GRPOTrainer.compute_loss`, a row per sample; of a new trainer unless one is given."""
    rows = flags.prompts * flags.group
    trainer = _trainer(flags, rows) if trainer is None else trainer
    trainer.model.train()
    prompts = torch.tensor(work.prompts, device=flags.device).repeat_interleave(flags.group, dim=0)
    completions = torch.tensor(work.completions, device=flags.device).flatten(0, 1)
    inputs = {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": completions,
        "completion_mask": torch.ones_like(completions), "advantages": work.advantages.flatten(),
        "ref_per_token_logps": work.reference,
    }  # fmt: skip

    def backward(chosen: slice) -> None:
        part = {name: value[chosen] for name, value in inputs.items()}
        trainer.current_gradient_accumulation_steps = rows / len(part["prompt_ids"])
        trainer.compute_loss(trainer.model, part).backward()

    def compact(chosen: slice) -> None:
        with trl_trainer.scoring_completions_only():
            backward(chosen)

    update = Update(trainer.model, rows, compact if completions_only else backward)
    update.attentions = ATTENTIONS
    return update


def _trainer(flags: argparse.Namespace, rows: int) -> Any:
    """A GRPOTrainer that is never asked to sample."""
    with tempfile.TemporaryDirectory() as start:
        trl_trainer.save_start(flags, Path(start))
        texts = [trl_trainer.word(PAD)] * flags.prompts
        return trl_trainer.trainer(flags, Path(start), texts, lambda completions, **_: [0.0], rows=rows)


def of_prefix_grouper(flags: argparse.Namespace, work: Work) -> Update:
    """PrefixGrouper as its README says, its attention registered with transformers; only completions are scored."""
    grouping: Any = importlib.import_module(GROUPED).PrefixGrouper
    attentions = _grouped_attentions(flags)
    model = build(flags, attentions[0])
    device, group = torch.device(flags.device), flags.group
    suffix = flags.prompt + torch.arange(flags.completion, device=device)
    positions = torch.cat([torch.arange(flags.prompt, device=device), suffix.repeat(group)])

    def backward(chosen: slice) -> None:
        prompts = torch.tensor(work.prompts[chosen], device=device)
        completions = torch.tensor(work.completions[chosen], device=device).flatten(0, 1)
        masks = torch.ones_like(prompts), torch.ones_like(completions)
        grouper = grouping.from_ungrouped_masks(*masks, group, device=device, padding_mode="right")
        ids = grouper.concat_input(prompts, masks[0], completions, masks[1])
        with context(flags):
            hidden = model.model(
                input_ids=ids, position_ids=positions.expand_as(ids), use_cache=False, prefix_grouper=grouper
            ).last_hidden_state
            _, _, scored, _ = grouper.split_output(hidden, include_prefix_last=1)
            logits = model.lm_head(scored[:, :-1]).float()
        logp = logits.gather(-1, completions[..., None]).squeeze(-1) - logits.logsumexp(-1)
        rows = slice(chosen.start * group, chosen.stop * group)
        loss(logp, work.advantages[chosen].view(-1, 1), work.reference[rows], work).backward()

    update = Update(model, flags.prompts, backward)
    update.attentions = attentions
    return update


def _grouped_attentions(flags: argparse.Namespace) -> tuple[str, ...]:
    """PrefixGrouper around SDPA and eager attention, registered; on a GPU around flash attention where it is there.

    Its masks are those of flash attention: padding alone, of which there is none here. The others need the causal one.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama.modeling_llama import eager_attention_forward

    def causal(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        shape = query.shape[2], key.shape[2]
        return torch.ones(shape, dtype=torch.bool, device=query.device).tril(shape[1] - shape[0])

    def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: Any, module: Any, **options: Any) -> torch.Tensor:
        mask = None if q.shape[2] == k.shape[2] else causal(q, k)
        output: torch.Tensor = sdpa_attention_forward(module, q, k, v, mask, **options)[0]
        return output

    def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: Any, module: Any, **options: Any) -> torch.Tensor:
        hidden = torch.zeros(q.shape[2], k.shape[2], dtype=q.dtype, device=q.device)
        hidden.masked_fill_(~causal(q, k), torch.finfo(q.dtype).min)
        output: torch.Tensor = eager_attention_forward(module, q, k, v, hidden, **options)[0]
        return output

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: Any, module: Any, **options: Any) -> torch.Tensor:
        output: torch.Tensor = ALL_ATTENTION_FUNCTIONS["flash_attention_2"](module, q, k, v, None, **options)[0]
        return output

    def grouped(inner: Any) -> Any:
        def attention(
            module: Any,
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            mask: Any,
            *,
            prefix_grouper: Any,
            **options: Any,
        ) -> tuple[torch.Tensor, None]:
            return prefix_grouper.forward(inner, q, k, v, module, **options), None

        return attention

    inner = {"grouped_sdpa": sdpa, "grouped_eager": eager}
    if flags.device == "cuda" and flags.dtype == "bf16" and importlib.util.find_spec("flash_attn"):
        inner = {"grouped_flash": flash}
    for name, function in inner.items():
        AttentionInterface.register(name, grouped(function))
    return tuple(inner)
