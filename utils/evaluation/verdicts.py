"""Everything that is said about the answers of an evaluation, record by record and in sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from utils.evaluation.groups import summarise_groups
from utils.evaluation.metrics import summarise
from utils.tasks.base import Evaluated, Reward
from utils.tasks.words import Words


def summary(found: Evaluated, rewards: Sequence[Reward], words: Words, seed: int) -> dict[str, Any]:
    """The entries of metrics.json: rates, mean reward of the answers, failures, `groups`, and figures of the set."""
    rates = summarise(found.judged, seed, words, found.further, [reward.total for reward in rewards])
    sets = {"set": dict(found.figures)} if found.figures else {}
    return rates | {"groups": summarise_groups(found.groups, found.judged, seed)} | sets


def columns(found: Evaluated) -> list[Mapping[str, str | bool]]:
    """What stands in breakdown.csv beside our verdict."""
    return [{**one, **group} for one, group in zip(found.further, found.groups, strict=True)]
