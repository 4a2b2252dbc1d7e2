"""What a completion is worth: a versioned, hashed YAML file of weights.

Both profiles score the executed program against `exe_ans` and pay the largest of three parts,

    exact    the value is `exe_ans`, rounded to 5 decimals as the published evaluator does
    numeric  the value is within `tolerance` of `exe_ans`, relative
    program  the share of the gold program's steps that were found, where a gold program is known

and treat the format differently, because only one of them is safe to optimise:

    seed     1.0 exact, 0.8 numeric within 5 %, 0.3 program; an invalid format costs 0.2, whatever else
    strict   1.0 exact, nothing for near misses; a wrong answer in valid format whose program executes earns 0.1, and a
             correct answer in invalid format loses 0.1: the format never decides between right and wrong
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError
from utils.files import write_text
from utils.rewards.weights import check_hash, number, open_spec, parse_weights, pick, weights_in

VERSION = 1
"""Raised whenever the same file would score a completion differently; older files are refused, not reinterpreted."""

COMPONENTS = ("exact", "numeric", "program", "format")
KEYS = ("version", "profile", "tolerance", "weights", "hash")


@dataclass(frozen=True)
class RewardSpec:
    """One reward. Range of the total: seed [-format, exact], strict [0, exact]."""

    profile: str
    weights: Mapping[str, float]
    tolerance: float = 0.05
    version: int = VERSION

    def __post_init__(self) -> None:
        unequal = set(COMPONENTS) ^ set(self.weights)
        if unequal or any(not (math.isfinite(weight) and weight >= 0) for weight in self.weights.values()):
            raise ValueError(f"weights must be {', '.join(COMPONENTS)}, finite, 0 or more; got {dict(self.weights)}")
        worst_right, best_wrong = self.worst_right(), self.best_wrong()
        if worst_right < best_wrong or self.weights["exact"] <= best_wrong:
            raise ValueError(
                f"a wrong answer could earn {best_wrong:g} and a correct one {worst_right:g}; "
                "raise exact, or lower numeric, program or format"
            )

    def worst_right(self) -> float:
        """The least a correct answer earns: its format is invalid."""
        return self.weights["exact"] - self.weights["format"]

    def best_wrong(self) -> float:
        """The most a wrong answer earns."""
        bonus = self.weights["format"] if self.profile == "strict" else 0.0
        return max(self.weights["numeric"], self.weights["program"]) + bonus

    @property
    def hash(self) -> str:
        """Sha256 of everything that decides a score."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {"version": self.version, "profile": self.profile, "tolerance": float(self.tolerance)}
        return {**content, "weights": {name: float(self.weights[name]) for name in COMPONENTS}}

    def save(self, path: Path) -> None:
        """Write the YAML file, keys in fixed order, so that `diff` compares two runs."""
        content = yaml.safe_dump({**self._content(), "hash": self.hash}, sort_keys=False)
        write_text(path, "# How completions are paid; utils/rewards/spec.py explains the keys.\n" + content)


PROFILES: dict[str, RewardSpec] = {
    "strict": RewardSpec("strict", {"exact": 1.0, "numeric": 0.0, "program": 0.0, "format": 0.1}),
    "seed": RewardSpec("seed", {"exact": 1.0, "numeric": 0.8, "program": 0.3, "format": 0.2}),
}


def load_spec(path: Path) -> RewardSpec:
    """Read a reward_spec.yaml. Errors: UserError with file, line and key; missing weights are those of the profile."""
    file = open_spec(path, None, VERSION, KEYS, COMPONENTS)
    base = profile_of(file.data.get("profile"), file.where("profile"))
    tolerance = _tolerance(file.data.get("tolerance", base.tolerance), file.where("tolerance"))
    spec = _with(base, weights_in(file, COMPONENTS), tolerance, file.where("weights"))
    check_hash(file, spec.hash)
    return spec


def range_line(spec: RewardSpec) -> str:
    """What the terminal says of the range."""
    return f"correct {spec.worst_right():g} to {spec.weights['exact']:g}, wrong at most {spec.best_wrong():g}"


def profile_of(name: object, where: str) -> RewardSpec:
    """Return a shipped profile by name. Errors: UserError with the nearest name."""
    return pick(PROFILES, name, where)


def override(spec: RewardSpec, text: str) -> RewardSpec:
    """Return the spec with weights such as `exact=1.0,program=0.3,format=0.2` put in; empty text changes nothing."""
    weights = parse_weights(text, COMPONENTS)
    return _with(spec, weights, spec.tolerance, "--weights")


def _with(spec: RewardSpec, weights: Mapping[str, float], tolerance: float, where: str) -> RewardSpec:
    try:
        return replace(spec, weights={**spec.weights, **weights}, tolerance=tolerance)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _tolerance(value: object, where: str) -> float:
    tolerance = number(value, where, "tolerance")
    if tolerance >= 1:
        raise UserError(f"{where}: tolerance is relative and must be below 1, got {tolerance:g}")
    return tolerance
