"""Rollouts: which prompts a step takes, what the policy writes, and how a policy does on validation records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import UserError
from utils.machine import is_out_of_memory
from utils.models.tokens import decode, encode_prompt, stop_ids
from utils.ranks import from_first
from utils.rl.backends import Backend, prompt_copies
from utils.rl.completions import Completion, Request
from utils.rl.distributed import in_order, own_share
from utils.rl.finite import REMEDY, NonFiniteError, check_rewards
from utils.rl.packing import unpackable
from utils.rl.passes import free_cached
from utils.rl.sampling import prompt_tokens, sample
from utils.seeds import generator, uniforms
from utils.tasks.base import Example, Reward, Rollout, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.models.load import Model


@dataclass(frozen=True)
class RolloutBatch:
    """Prompts of one step (0: of none) and their completions: `groups[b][g]`, texts likewise.

    `copies`: how often each prompt was computed.
    """

    examples: list[Example]
    prompts: list[list[int]]
    groups: list[list[Completion]]
    texts: list[list[str]]
    step: int = 0
    copies: int = 1

    def rollouts(self) -> list[Rollout]:
        """One per completion, prompt by prompt: what a task scores."""
        return [
            Rollout(example, g, text, completion.truncated, len(completion.tokens))
            for example, group, texts in zip(self.examples, self.groups, self.texts, strict=True)
            for g, (completion, text) in enumerate(zip(group, texts, strict=True))
        ]

    @property
    def generated_tokens(self) -> int:
        """Tokens of all completions."""
        return sum(len(completion.tokens) for group in self.groups for completion in group)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each as often as it was computed."""
        return self.copies * sum(map(len, self.prompts))

    @property
    def sampling_tokens(self) -> int:
        """Tokens that sampling computed: the prompts', and every token of a completion but its last."""
        return self.prompt_tokens + self.generated_tokens - sum(map(len, self.groups))


@dataclass
class Sampler:
    """Draws completions of a policy; `context` makes the context manager of a forward pass (autocast).

    Temperature and top_p stay 1 in online RL, whose log-probs are those of the sampling policy. `tokens_per_batch` is
    halved when memory runs out, which `warn` is told; so it is, once, of a model whose samples cannot share a prompt.
    """

    policy: Model
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    tokens_per_batch: int
    context: Callable[[], AbstractContextManager[Any]]
    temperature: float = 1.0
    top_p: float = 1.0
    backend: Backend = sample
    warn: Callable[[str], None] = print
    told: bool = field(default=False, init=False)

    def draw(self, examples: Sequence[Example], group_size: int, uniforms: np.ndarray[Any, Any] | None) -> RolloutBatch:
        """`group_size` completions of each example's `input_text`; uniforms None is greedy.

        Each process draws for its share of the examples and gets all. UserError names the record whose logits are not
        finite, and says so when memory does not suffice for one prompt.
        """
        if group_size > 1 and not self.told and (reason := unpackable(self.policy)):
            self.warn(f"{reason}: prompts are computed once per sample instead of once per group")
            self.told = True
        prompts = [encode_prompt(self.tokenizer, example.input_text) for example in examples]
        mine = own_share(len(examples))
        own_prompts = [prompts[i] for i in mine]
        own_uniforms = None if uniforms is None else uniforms[list(mine)]
        groups = None
        try:
            while groups is None:
                groups = self._drawn(own_prompts, group_size, own_uniforms)
        except NonFiniteError as error:
            record = examples[mine[error.row or 0]].id
            raise NonFiniteError(f"record {record}: {error}; {REMEDY}") from error
        groups = in_order(groups)
        texts = [[decode(self.tokenizer, completion.tokens) for completion in group] for group in groups]
        greedy = uniforms is None or not self.temperature
        copies = prompt_copies(self.backend, self.policy, group_size, greedy)
        return RolloutBatch(list(examples), prompts, groups, texts, copies=copies)

    def _drawn(
        self, prompts: list[list[int]], group_size: int, uniforms: np.ndarray[Any, Any] | None
    ) -> list[list[Completion]] | None:
        """Completions of each prompt; None when memory ran out: batches are half as large from then on."""
        request = Request(
            prompts, group_size, self.max_new_tokens, stop_ids(self.tokenizer), self.tokenizer.pad_token_id, uniforms,
            self.temperature, self.top_p, self.tokens_per_batch,
        )  # fmt: skip
        try:
            with self.context():
                return self.backend(self.policy, request)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        free_cached()
        rows = [size + group_size * self.max_new_tokens for size in prompt_tokens(self.policy, request)]
        failed = min(self.tokens_per_batch, sum(rows))
        if failed <= max(rows):
            raise UserError(
                f"out of memory while sampling {group_size} completions of one prompt: lower max_new_tokens, "
                "max_prompt_tokens or the number of completions"
            )
        self.tokens_per_batch = failed // 2
        self.warn(f"out of memory while sampling: goes on with at most {self.tokens_per_batch} tokens at once")
        return None


def examples_of_step(examples: Sequence[Example], step: int, per_step: int, seed: int) -> list[Example]:
    """The prompts of step 1, 2, …: a seeded permutation per pass over the data, whose incomplete end is left out.

    Depends on (seed, step) alone, so that a resumed run needs no position. No record stands twice in a step.
    """
    steps_per_pass = len(examples) // per_step
    if not steps_per_pass:
        raise UserError(f"only {len(examples)} training records for --prompts_per_step {per_step}: lower it")
    number, place = divmod(step - 1, steps_per_pass)
    order = generator(seed, "prompt order", number).permutation(len(examples))
    return [examples[i] for i in order[place * per_step : (place + 1) * per_step]]


def training_figures(task: Task, batch: RolloutBatch, rewards: Sequence[Reward]) -> dict[str, float]:
    """Reward, its components, correctness and length of a step's completions."""
    rollouts = batch.rollouts()
    totals = np.array([reward.total for reward in rewards])
    verdicts = [task.judge(rollout.example, rollout.text) for rollout in rollouts]
    names = sorted({name for reward in rewards for name in reward.components})
    return {
        "reward_mean": float(totals.mean()),
        "reward_std": float(totals.std(ddof=1)),
        **{f"reward_{name}": _mean(reward.components.get(name, 0.0) for reward in rewards) for name in names},
        "parse_rate": _mean(verdict.format_valid for verdict in verdicts),
        **task.figures(rollouts, verdicts),
        "completion_length": _mean(rollout.tokens for rollout in rollouts),
        "truncated": _mean(rollout.truncated for rollout in rollouts),
    }


def validate(
    sampler: Sampler, task: Task, examples: Sequence[Example]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Greedy answers to validation records: (figures, one row per record with its text and verdict).

    Where answers are judged as a set they are sampled, with the same random numbers at every validation. UserError
    names a record whose logits or reward are not finite.
    """
    numbers = None
    if task.sampled:
        numbers = uniforms(0, 0, [example.id for example in examples], 1, sampler.max_new_tokens)
    rollouts = sampler.draw(examples, 1, numbers).rollouts()
    return from_first(lambda: _judged(task, rollouts))


def _judged(task: Task, rollouts: Sequence[Rollout]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    rewards = task.score(rollouts)
    check_rewards("greedy answers", rollouts, rewards)
    verdicts = [task.judge(rollout.example, rollout.text) for rollout in rollouts]
    figures = {
        **{f"val_{name}": value for name, value in task.figures(rollouts, verdicts).items()},
        "val_reward": _mean(reward.total for reward in rewards),
        "val_parse_rate": _mean(verdict.format_valid for verdict in verdicts),
        "val_completion_length": _mean(rollout.tokens for rollout in rollouts),
        "val_truncated": _mean(rollout.truncated for rollout in rollouts),
    }
    rows = [
        {
            "id": verdict.id, "text": rollout.text, "reward": reward.total, "result": verdict.result,
            "correct": verdict.correct, "failure": verdict.failure,
            "truncated": rollout.truncated,
        }
        for rollout, reward, verdict in zip(rollouts, rewards, verdicts, strict=True)
    ]  # fmt: skip
    return figures, rows


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
