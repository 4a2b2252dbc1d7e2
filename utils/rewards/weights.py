"""Weights of a reward specification, from YAML and from flags: one clear line for each mistake."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.errors import UserError
from utils.keys import nearest


def parse_weights(text: str, components: Sequence[str]) -> dict[str, float]:
    """Read `exact=1.0,program=0.3,format=0.2`; empty text has no weight. Errors: UserError."""
    weights: dict[str, float] = {}
    for item in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise UserError(f"--weights: expected name=number, got {item!r}; for example {components[0]}=1.0")
        check_name(name, components, "--weights")
        if name in weights:
            raise UserError(f"--weights: {name} stands twice; keep one")
        weights[name] = number(value, "--weights", name)
    return weights


def check_name(name: str, components: Sequence[str], where: str) -> None:
    """UserError for a weight that is none of the components."""
    if name not in components:
        raise UserError(f"{where}: unknown weight {name}; expected {', '.join(components)}{nearest(name, components)}")


def number(value: object, where: str, name: str) -> float:
    """A finite number that is not negative, from YAML or from text. Errors: UserError."""
    try:
        found = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise UserError(f"{where}: {name} must be a finite number, 0 or more; got {value!r:.60}")
    return found
