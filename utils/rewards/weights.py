"""What reward specifications have in common: weights from YAML and from flags, keys, kind, version, hash, profiles.

One clear line for each mistake.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from utils.errors import UserError
from utils.files import YamlFile, read_yaml
from utils.keys import nearest

S = TypeVar("S")


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


def open_spec(path: Path, kind: str | None, version: int, keys: Sequence[str], components: Sequence[str]) -> YamlFile:
    """A reward_spec.yaml whose keys, kind (None: the file states none) and version are right. Errors: UserError."""
    file = read_yaml(path)
    if kind is None and "kind" in file.data:
        raise UserError(
            f"{file.where('kind')}: kind is {file.data['kind']!r}, this task is of kind 'finqa'; give --task "
            f"{file.data['kind']}, or write the file again with 02_build_rewards.py"
        )
    if kind is not None and file.data.get("kind") != kind:
        raise UserError(
            f"{file.where('kind')}: kind is {file.data.get('kind')!r}, this task is of kind {kind!r}; "
            f"write the file again with 02_build_rewards.py --task {kind}"
        )
    for key in file.data:
        if key not in keys:
            hint = "; it goes below weights" if key in components else nearest(str(key), keys)
            raise UserError(f"{file.where(str(key))}: unknown key {key}; expected {', '.join(keys)}{hint}")
    if file.data.get("version") != version or file.data["version"] is True:
        raise UserError(
            f"{file.where('version')}: version is {file.data.get('version')!r}, this scorer is version {version}; "
            "write the file again with 02_build_rewards.py"
        )
    return file


def weights_in(file: YamlFile, components: Sequence[str]) -> dict[str, float]:
    """The weights that a specification states. Errors: UserError."""
    given = file.data.get("weights", {})
    if not isinstance(given, dict):
        raise UserError(f"{file.where('weights')}: weights must hold `name: number` lines, got {given!r}")
    for name in given:
        check_name(str(name), components, file.where(f"weights.{name}"))
    return {name: number(value, file.where(f"weights.{name}"), name) for name, value in given.items()}


def check_hash(file: YamlFile, found: str) -> None:
    """UserError when the file states another hash than that of its content, `found`."""
    if file.data.get("hash", found) != found:
        raise UserError(f"{file.where('hash')}: hash is not this content's; delete the line if the change was meant")


def pick(profiles: Mapping[str, S], name: object, where: str) -> S:
    """A shipped profile by name. Errors: UserError with the nearest name."""
    if not isinstance(name, str) or name not in profiles:
        hint = nearest(str(name), profiles)
        raise UserError(f"{where}: reward profile must be one of {', '.join(profiles)}; got {name!r}{hint}")
    return profiles[name]
