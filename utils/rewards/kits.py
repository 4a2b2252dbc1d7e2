"""What stage 02 and the tasks need of each kind's reward: its profiles, its file, its cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.rewards import corpus, scoring, sentiment, sentiment_corpus, spec
from utils.rewards.cases import Case


@dataclass(frozen=True)
class RewardKit:
    """Functions take and return the kind's own specification, which has `profile`, `weights`, `hash` and `save`."""

    components: Sequence[str]
    profiles: Mapping[str, Any]
    load: Callable[[Path], Any]
    profile_of: Callable[[object, str], Any]
    override: Callable[[Any, str], Any]
    cases: Callable[[Any], list[Case]]
    score: Callable[[str, Any], Any]
    range_line: Callable[[Any], str]


REWARDS: dict[str, RewardKit] = {
    "finqa": RewardKit(
        components=spec.COMPONENTS,
        profiles=spec.PROFILES,
        load=spec.load_spec,
        profile_of=spec.profile_of,
        override=spec.override,
        cases=lambda chosen: corpus.cases(chosen, corpus.case_example()),
        score=lambda text, chosen: scoring.score_text(text, corpus.case_example(), chosen),
        range_line=spec.range_line,
    ),
    "sentiment": RewardKit(
        components=sentiment.COMPONENTS,
        profiles=sentiment.PROFILES,
        load=sentiment.load_spec,
        profile_of=sentiment.profile_of,
        override=sentiment.override,
        cases=sentiment_corpus.cases,
        score=sentiment.score_text,
        range_line=sentiment.range_line,
    ),
}
