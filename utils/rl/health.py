"""Guards of a training run: what goes wrong in its figures is said once, with why it matters and what to do.

05, 06 and 07 look at the mean of the last WINDOW = 5 steps:

    guard          | speaks when                                                                 | limit
    zero_variance  | frac_reward_zero_std > limit (not with one sample per prompt)               | 0.8
    paid_alike     | reward_std < limit (with one sample per prompt)                             | 1e-06
    truncated      | truncated > limit                                                           | 0.2
    kl             | kl > limit, nats per token                                                  | 1
    stands_still   | kl < limit: the policy has not moved                                        | 1e-09
    clip_frac      | clip_frac > limit                                                           | 0.3
    entropy_low    | entropy < limit, nats per token                                             | 0.005
    entropy_high   | entropy - its first five steps > limit *                                    | 1
    parse_rate     | its best five steps - parse_rate > limit +                                  | 0.1
    longer         | completion_length > limit x its first five steps *                          | 1.5
    shorter        | completion_length < its first five steps / limit *                          | 1.5
    reward_hacking | its best five steps - accuracy > limit, +                         | 0.03
                   | while reward_mean is higher than in those steps

    * and by more than STANDARD_ERRORS = 4 standard errors, as the spread of these steps has them
    + and by more than four standard errors of two shares of as many prompts, as if answers to one prompt were alike:
      among many windows of few prompts, the best lies 0.1 above the last for nothing

For `> limit`, steps that are not made yet count as 0: a rollout that is cut off whole is said after two steps.
`accuracy` tells whether answers are right; the typed answer (`exact_match`) is paid by no reward.

03 and 09 look at their last validation, whose records are the same every time:

    truncated      | val_truncated > limit                                                       | 0.2
    parse_rate     | its best - val_parse_rate > limit +                                         | 0.1
    longer         | 09: val_completion_length > limit x its first                               | 1.5
    shorter        | 09: val_completion_length < its first / limit                               | 1.5
    reward_hacking | 09: its best - val_accuracy > limit, +                            | 0.03
                   | while val_reward is higher than there
    kl             | 09: kl > limit, nats per token                                              | 1
    chosen         | 09: nats that chosen answers have lost against the reference > limit        | 10
    below_start    | 09: val_accuracy of the start - that of its best step > limit,    | 0.05
                   | and by more than two standard errors of two shares of as many records
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

WINDOW = 5
STANDARD_ERRORS = 4.0
Series = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class History:
    """Rows of a run's train.jsonl, oldest first, each about as many `prompts`; the last `window` of them are judged.

    Its methods say in words how their mean breaks a limit, or nothing.
    """

    rows: Sequence[Mapping[str, Any]]
    prompts: int
    window: int = WINDOW

    def above(self, metric: str, limit: float) -> str:
        """Steps that are not made yet count as 0."""
        last = self._values(metric)[-self.window :]
        return f"is {last.mean():.4g}, above {limit:g}" if last.sum() > limit * self.window else ""

    def below(self, metric: str, limit: float) -> str:
        """Not before there are enough steps."""
        last = self._values(metric)[-self.window :]
        return f"is {last.mean():.4g}, below {limit:g}" if len(last) == self.window and last.mean() < limit else ""

    def risen(self, metric: str, limit: float) -> str:
        """Against the first steps."""
        windows = self._windows(metric)
        first, now = windows[0], windows[-1]
        noise = STANDARD_ERRORS * math.sqrt((first.var() + now.var()) / max(1, self.window - 1))
        return _changed(first.mean(), now.mean(), limit, noise)

    def grown(self, metric: str, factor: float) -> str:
        """Against the first steps."""
        return self.risen(metric, (factor - 1) * self._windows(metric)[0].mean())

    def shrunk(self, metric: str, factor: float) -> str:
        """Against the first steps."""
        return self.risen(metric, (1 / factor - 1) * self._windows(metric)[0].mean())

    def fallen(self, metric: str, limit: float) -> str:
        """A share, against its best steps."""
        means = self._windows(metric).mean(axis=1)
        both = (means.max() + means[-1]) / 2
        noise = STANDARD_ERRORS * math.sqrt(2 * both * (1 - both) / (self.window * self.prompts))
        return _changed(means.max(), means[-1], -limit, noise)

    def parted(self, metric: str, limit: float) -> str:
        """A share fallen, and more reward than in its best steps: noise would move the two the same way."""
        paid = "val_reward" if metric.startswith("val_") else "reward_mean"
        best, reward = self._windows(metric).mean(axis=1).argmax(), self._windows(paid).mean(axis=1)
        fall, rise = self.fallen(metric, limit), _changed(reward[best], reward[-1], 0.0, 0.0)
        return f"{fall}, while {paid} {rise}" if fall and rise else ""

    def never_reached(self, metric: str, limit: float) -> str:
        """A share that the start had and no later row comes near; one look at all there is, so less noise counts."""
        first, *later = self._values(metric)
        if self.rows[0]["step"] or not later:
            return ""
        best = max(later)
        both = (first + best) / 2
        noise = STANDARD_ERRORS / 2 * math.sqrt(2 * both * (1 - both) / self.prompts)
        return f"is {best:.4g} at best, {first:.4g} at the start" if first - best > max(limit, noise) else ""

    def _values(self, metric: str) -> Series:
        return np.array([row[metric] for row in self.rows], dtype=float)

    def _windows(self, metric: str) -> Series:
        """[windows, window], oldest first; all there is, where that is less than one."""
        return np.lib.stride_tricks.sliding_window_view(self._values(metric), min(self.window, len(self.rows)))


def _changed(before: float, now: float, least: float, noise: float) -> str:
    """In words, a change the way `least` points that is larger than that and than noise."""
    direction = math.copysign(1.0, least)
    if direction * (now - before) <= max(abs(least), noise):
        return ""
    return f"is {now:.4g}, {'up' if direction > 0 else 'down'} from {before:.4g}"


@dataclass(frozen=True)
class Guard:
    """A line of the table above.

    `advice`: why it matters, and what to do; {samples} and {passes} stand for flags that methods call differently.
    """

    seen: Callable[[History, str, float], str]
    metric: str
    limit: float
    advice: str


def alarms(history: History, guards: Mapping[str, Guard], **flags: str) -> dict[str, str]:
    """Guard -> its line, for those of `guards` that the newest row sets off; a metric that it lacks is not judged."""
    since = history.rows[-history.window :][0]["step"]
    lines = {}
    for name, guard in guards.items():
        if guard.metric in history.rows[-1] and (seen := guard.seen(history, guard.metric, guard.limit)):
            lines[name] = f"since step {since}: {guard.metric} {seen}: {guard.advice.format(**flags)}"
    return lines


ONLINE = {
    "zero_variance": Guard(
        History.above, "frac_reward_zero_std", 0.8,
        "a group whose answers are all paid alike does not say which answer is better; raise {samples} or "
        "--prompts_per_step, or begin with the prompts that --warm_start finds to be paid differently",
    ),
    "paid_alike": Guard(
        History.below, "reward_std", 1e-6,
        "answers that are all paid alike do not say which answer is better; raise --prompts_per_step, or give "
        "--policy_ckpt a start that is right now and then",
    ),
    "truncated": Guard(
        History.above, "truncated", 0.2,
        "an answer that is cut off is paid as a wrong one; raise --max_new_tokens, or give --policy_ckpt a start whose "
        "answers end",
    ),
    "kl": Guard(
        History.above, "kl", 1.0,
        "the policy has left its start, and with it what SFT taught; raise --kl_coef or lower --learning_rate",
    ),
    "stands_still": Guard(
        History.below, "kl", 1e-9,
        "the policy has not moved, nothing is learned; raise --learning_rate, or {samples} where rewards do not vary",
    ),
    "clip_frac": Guard(
        History.above, "clip_frac", 0.3,
        "beyond the trust region a sample teaches nothing; lower --learning_rate or {passes}",
    ),
    "entropy_low": Guard(
        History.below, "entropy", 0.005,
        "the samples of a prompt hardly differ, so nothing new is tried; raise --kl_coef, lower --learning_rate, or "
        "give --policy_ckpt an earlier checkpoint",
    ),
    "entropy_high": Guard(
        History.risen, "entropy", 1.0, "the policy turns to noise; lower --learning_rate or raise --kl_coef"
    ),
    "parse_rate": Guard(
        History.fallen, "parse_rate", 0.1,
        "an answer that cannot be read is paid nothing; lower --learning_rate or raise --kl_coef",
    ),
    "longer": Guard(
        History.grown, "completion_length", 1.5,
        "right answers have not become longer; look in val_generations for what is paid, raise --kl_coef, and "
        "--max_new_tokens where answers are cut off",
    ),
    "shorter": Guard(
        History.shrunk, "completion_length", 1.5,
        "right answers have not become shorter; look in val_generations for what is left out, and raise --kl_coef",
    ),
    "reward_hacking": Guard(
        History.parted, "accuracy", 0.03,
        "the reward pays for something else than right answers; look in val_generations for what is paid, lower its "
        "weight with --weights in 02_build_rewards.py, or raise --kl_coef (best was chosen by accuracy and stands)",
    ),
}  # fmt: skip

FLAGS = {
    "ppo": {"samples": "--group_size", "passes": "--ppo_epochs"},
    "grpo": {"samples": "--group_size", "passes": "--num_iterations"},
    "rloo": {"samples": "--num_samples", "passes": "--num_iterations"},
}

SFT = {
    "truncated": Guard(
        History.above, "val_truncated", 0.2,
        "answers do not end in time, and RL pays nothing for them; raise --epochs or --max_new_tokens",
    ),
    "parse_rate": Guard(
        History.fallen, "val_parse_rate", 0.1,
        "the format is unlearned; lower --learning_rate or --epochs (best was chosen by accuracy and stands)",
    ),
}  # fmt: skip

DPO = {
    "truncated": Guard(
        History.above, "val_truncated", 0.2,
        "answers no longer end in time; raise --beta, or lower --max_length_bias in 08_build_prefs.py",
    ),
    "parse_rate": Guard(
        History.fallen, "val_parse_rate", 0.1,
        "the format is unlearned; raise --beta or --sft_coef, or lower --learning_rate",
    ),
    "longer": Guard(
        History.grown, "val_completion_length", 1.5,
        "length is preferred; lower --max_length_bias in 08_build_prefs.py, or raise --beta",
    ),
    "shorter": Guard(
        History.shrunk, "val_completion_length", 1.5,
        "length is preferred; lower --max_length_bias in 08_build_prefs.py, or raise --beta",
    ),
    "reward_hacking": Guard(
        History.parted, "val_accuracy", 0.03,
        "the reward pays for something else than right answers; give 08_build_prefs.py --rules correct gold, or raise "
        "--beta (best was chosen by accuracy and stands)",
    ),
    "kl": Guard(History.above, "kl", 1.0, "the policy has left its reference; raise --beta or lower --learning_rate"),
    "chosen": Guard(
        History.below, "val_implicit_reward_chosen", -10.0,
        "the loss makes both answers of a pair unlikely; raise --sft_coef (from 1) or --beta, or lower "
        "--learning_rate",
    ),
    "below_start": Guard(
        History.never_reached, "val_accuracy", 0.05,
        "telling the pairs apart has cost right answers; raise --sft_coef (from 1) or --beta, or lower --learning_rate",
    ),
}  # fmt: skip
"""The limit of `chosen` is in nats: it is times beta where rewards are."""


def online_alarms(rows: Sequence[Mapping[str, Any]], method: str, prompts: int, samples: int) -> dict[str, str]:
    """Guard -> its line after the newest of the training rows of ppo, grpo or rloo; `samples` are drawn per prompt."""
    without = "zero_variance" if samples == 1 else "paid_alike"
    guards = {name: guard for name, guard in ONLINE.items() if name != without}
    return alarms(History(rows, prompts), guards, **FLAGS[method])


def last_alarms(rows: Sequence[Mapping[str, Any]], records: int, guards: Mapping[str, Guard]) -> list[str]:
    """The lines that the last validation sets off; `rows` are all of them, each of the same `records`."""
    return list(alarms(History(rows, records, window=1), guards).values()) if rows else []


def dpo_guards(beta: float) -> dict[str, Guard]:
    """DPO's guards where an implicit reward is beta times nats."""
    return DPO | {"chosen": replace(DPO["chosen"], limit=DPO["chosen"].limit * beta)}
