"""What stage 02 and the tasks need of each kind's reward: its profiles, its file, its cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.rewards import corpus, genalign, genalign_corpus, scoring, sentiment, sentiment_corpus, spec
from utils.rewards.cases import Case, run_cases
from utils.tasks.base import Reward


@dataclass(frozen=True)
class RewardKit:
    """Functions take and return the kind's own specification, which has `profile`, `weights`, `hash` and `save`."""

    components: Sequence[str]
    profiles: Mapping[str, Any]
    load: Callable[[Path], Any]
    profile_of: Callable[[object, str], Any]
    override: Callable[[Any, str], Any]
    range_line: Callable[[Any], str]
    written: Callable[[Any], list[dict[str, Any]]]
    """The cases as JSON."""
    run: Callable[[Any], list[dict[str, Any]]]
    """What each was paid: name, components, total, expected, reasons and `passed`."""


def _of_texts(
    cases: Callable[[Any], list[Case]], score: Callable[[str, Any], Reward]
) -> dict[str, Callable[[Any], list[dict[str, Any]]]]:
    """`written` and `run` where every text is paid by itself."""
    return {
        "written": lambda chosen: [asdict(case) for case in cases(chosen)],
        "run": lambda chosen: run_cases(cases(chosen), lambda text: score(text, chosen)),
    }


REWARDS: dict[str, RewardKit] = {
    "finqa": RewardKit(
        components=spec.COMPONENTS,
        profiles=spec.PROFILES,
        load=spec.load_spec,
        profile_of=spec.profile_of,
        override=spec.override,
        range_line=spec.range_line,
        **_of_texts(
            lambda chosen: corpus.cases(chosen, corpus.case_example()),
            lambda text, chosen: scoring.score_text(text, corpus.case_example(), chosen),
        ),
    ),
    "sentiment": RewardKit(
        components=sentiment.COMPONENTS,
        profiles=sentiment.PROFILES,
        load=sentiment.load_spec,
        profile_of=sentiment.profile_of,
        override=sentiment.override,
        range_line=sentiment.range_line,
        **_of_texts(sentiment_corpus.cases, sentiment.score_text),
    ),
    "genalign": RewardKit(
        components=genalign.COMPONENTS,
        profiles=genalign.PROFILES,
        load=genalign.load_spec,
        profile_of=genalign.profile_of,
        override=genalign.override,
        range_line=genalign.range_line,
        written=genalign_corpus.written,
        run=genalign_corpus.run,
    ),
}
