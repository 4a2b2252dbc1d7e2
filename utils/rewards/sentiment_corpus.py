"""The cases and attacks of the sentiment reward."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from utils.files import read_jsonl, read_yaml
from utils.rewards.cases import Case
from utils.rewards.sentiment import COMPONENTS, SentimentSpec

FOLDER = Path(__file__).resolve().parent
PROMPT = "the soup by the river was"


@cache
def _files() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    written = read_yaml(FOLDER / "sentiment_cases.yaml").data["cases"]
    return written, read_jsonl(FOLDER / "sentiment_attacks.jsonl")


def cases(spec: SentimentSpec) -> list[Case]:
    """The hand-computed cases with their pay under `spec`, then, where it is safe to optimise, the attacks."""
    written, attacks = _files()
    found = []
    for case in written:
        pays = case["pays"].get(spec.profile, {}) if spec.profile in case["pays"] else case["pays"]
        expected = {name: spec.weights[name] * pays.get(name, 0.0) for name in COMPONENTS}
        found.append(Case(case["name"], case["text"], expected))
    if spec.profile != "strict":
        return found
    return found + [Case(f"attack: {one['name']}", one["text"].replace("{prompt}", PROMPT), None) for one in attacks]
