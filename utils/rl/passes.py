"""Passes of a policy over packed rows, which go on in smaller parts when memory runs out, with the same sums.

A script's loss is differentiated down to what the pass gave for each completion token (log-prob, entropy, value), and
from there through the model. The first half is a few numbers per token, kept until the update: when memory runs out in
a backward pass, what was added up is thrown away, and every pass since the last update is made again from them, in
parts. Weights do not move in between, so that the sum is the one there would have been (but for rounding), and the
script's loop runs through each micro-batch once. Recomputing a pass behind gradients of its outputs is GradCache's
way (Gao et al. 2021, arXiv:2101.06983, section 3.2).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from utils.errors import UserError
from utils.machine import is_out_of_memory
from utils.models.sharding import in_shares
from utils.ranks import meeting
from utils.rl.memory import SMALLEST
from utils.rl.packing import PackedBatch, lay_out

if TYPE_CHECKING:
    from utils.models.load import Model

T = TypeVar("T")
Outputs = tuple[torch.Tensor, ...]
"""Tensors [_N], value by value in the order of a batch's completion tokens."""
Compute = Callable[[PackedBatch], Outputs]

REMEDY = "shorten max_prompt_tokens or max_new_tokens, set model.activation_checkpointing or lora.use_lora"


@dataclass
class _Pass:
    """A pass with gradient: what it computes, what a script sees of it (`leaves`), and how it goes on to the weights.

    `outputs` hang on the model's graph until they are differentiated; None when the pass was made in parts.
    """

    batch: PackedBatch
    compute: Compute
    leaves: Outputs
    outputs: Outputs | None

    def to_weights(self) -> bool:
        """Go back through the model's graph, which nothing holds afterwards."""
        outputs, self.outputs = self.outputs or (), None
        return _differentiate(outputs, [leaf.grad for leaf in self.leaves])


class Passes:
    """All passes of a learner. `room`: padded tokens that one may have since memory ran out (0: it never did).

    `warn` is told once per halving; `parameters` are those whose gradients add up between two updates. Passes of a
    model in shares are not made in parts: a UserError says so when memory runs out in one.
    """

    def __init__(
        self, model: Model, pad_id: int, parameters: Iterable[torch.nn.Parameter], warn: Callable[[str], None]
    ) -> None:
        self.model, self.pad_id, self.parameters, self.warn = model, pad_id, list(parameters), warn
        self.in_shares = in_shares(model)
        self.room = 0
        self._open: _Pass | None = None
        self._done: list[_Pass] = []

    def within(self, tokens: int) -> int:
        """`tokens`, or what there is room for."""
        return min(tokens, self.room) if self.room else tokens

    def without_gradient(self, batch: PackedBatch, compute: Compute) -> Outputs:
        """What `compute` gives for a batch. UserError when memory does not suffice for one completion."""
        while True:
            with torch.no_grad():
                found = self._outputs(self.parts(batch), compute)
            if found is not None:
                return _joined(found)

    def with_gradient(self, batch: PackedBatch, compute: Compute) -> Outputs:
        """The same as leaves: `backward` takes their gradients on to the weights."""
        self._open = None  # a pass that nobody went back through
        while True:
            parts = self.parts(batch)
            found = self._outputs(parts, compute)
            if found is not None:
                break
        joined = _joined(found)
        leaves = tuple(output.detach().requires_grad_(output.requires_grad) for output in joined)
        self._open = _Pass(batch, compute, leaves, joined if len(parts) == 1 else None)
        return leaves

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss made of the last pass's leaves to the parameters'.

        UserError when memory does not suffice for one completion.
        """
        loss.backward()
        if self._open is None:
            raise ValueError("backward without a pass before it")
        last, self._open = self._open, None
        self._done.append(last)
        in_parts = last.outputs is None
        fits = self._again(last) if in_parts else bool(self._try(last.batch, last.to_weights))
        while not fits:
            for parameter in self.parameters:
                parameter.grad = None
            fits = all(self._again(one) for one in self._done)

    def finish(self) -> None:
        """The gradients are used up: the next passes belong to another update."""
        self._open = None
        self._done.clear()

    def parts(self, batch: PackedBatch) -> list[PackedBatch]:
        """A batch as consecutive samples, each part within the room; one completion always goes, with its prompt.

        Prompts are divided first; a group that has to be divided repeats its prompt in every part.
        """
        if self.in_shares or not self.room or batch.input_ids.numel() <= self.room or batch.samples == 1:
            return [batch]
        prompts, groups = batch.prompts, batch.groups
        if len(prompts) > 1:
            middle = len(prompts) // 2
            halves = [(prompts[:middle], groups[:middle]), (prompts[middle:], groups[middle:])]
        else:
            middle = len(groups[0]) // 2
            halves = [(prompts, [groups[0][:middle]]), (prompts, [groups[0][middle:]])]
        device = batch.input_ids.device
        return [part for half in halves for part in self.parts(lay_out(self.model, *half, self.pad_id).to(device))]

    def _outputs(self, parts: Sequence[PackedBatch], compute: Compute) -> list[Outputs] | None:
        """What each part gives, the graph only of a single one; None when memory ran out."""
        found = []
        for part in parts:
            outputs = self._try(part, partial(compute, part))
            if outputs is None:
                return None
            if len(parts) > 1:
                outputs = tuple(output.detach().requires_grad_(output.requires_grad) for output in outputs)
            found.append(outputs)
        return found

    def _again(self, one: _Pass) -> bool:
        """Make a pass again, part by part, and add its gradient; whether memory sufficed."""
        start = 0
        for part in self.parts(one.batch):
            end = start + len(part.tokens)
            gradients = [None if leaf.grad is None else leaf.grad[start:end] for leaf in one.leaves]
            if self._try(part, partial(_recompute, one.compute, part, gradients)) is None:
                return False
            start = end
        return True

    def _try(self, batch: PackedBatch, call: Callable[[], T]) -> T | None:
        """What `call` gives; None when memory ran out in it, and the room is half of this batch from now on."""
        try:
            return meeting(call) if self.in_shares else call()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # the error has gone, and with it the frames that held the pass's tensors
        self._halve(batch)
        return None

    def _halve(self, batch: PackedBatch) -> None:
        tokens = batch.input_ids.numel()
        free_cached()
        if batch.samples == 1:
            raise UserError(f"out of memory in a pass over one completion ({tokens} tokens with its prompt): {REMEDY}")
        if self.in_shares and len(batch.prompts) == 1:
            raise UserError(f"out of memory in a pass over one group ({tokens} tokens with its prompt): {REMEDY}")
        if self.in_shares:
            remedy = f"go on with --resume --no_auto_batch --micro_batch_tokens {max(SMALLEST, tokens // 2)}"
            raise UserError(f"out of memory in a pass of {tokens} tokens, which with --fsdp all make at once; {remedy}")
        self.room = self.within(tokens // 2)
        self.warn(
            f"out of memory in a pass of {tokens} tokens: goes on with the same sums in passes of at most {self.room}; "
            f"--micro_batch_tokens {self.room} saves the attempt"
        )


def free_cached() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _recompute(compute: Compute, batch: PackedBatch, gradients: Sequence[torch.Tensor | None]) -> bool:
    return _differentiate(compute(batch), gradients)


def _differentiate(outputs: Outputs, gradients: Sequence[torch.Tensor | None]) -> bool:
    """Take the gradients of outputs on to the weights."""
    pairs = [(output, gradient) for output, gradient in zip(outputs, gradients, strict=True) if gradient is not None]
    if pairs:
        torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
    return True


def _joined(found: Sequence[Outputs]) -> Outputs:
    return found[0] if len(found) == 1 else tuple(torch.cat(same) for same in zip(*found, strict=True))
