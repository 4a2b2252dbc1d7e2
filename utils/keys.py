"""The vocabulary of a settings dataclass: its keys, their flags, and how a raw value becomes a checked one."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.errors import UserError

TIER_FLAGS = {"model": "config", "algorithm": "algo_config", "task": "task"}
"""Tier of a settings file -> the flag that names the file. Files are read in this order, later ones win."""

ELSEWHERE = {
    "base_model": "model",
    "base_or_sft_ckpt": "policy_ckpt",
    "beta": "kl_coef",
    "epsilon": "clip_range",
    "epsilon_high": "clip_range_high",
    "gpu": "cuda",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_r": "r",
    "lora_rank": "r",
    "lr": "learning_rate",
    "max_completion_length": "max_new_tokens",
    "max_len": "max_length",
    "max_seq_length": "max_length",
    "model_name": "model",
    "model_name_or_path": "model",
    "nproc_per_node": "num_processes",
    "num_generations": "group_size",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "rank": "r",
    "save_total_limit": "keep_checkpoints",
}
"""What transformers, TRL, peft and the origins of this project call a setting -> its name here."""

_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_EXPECTED = {bool: "true or false", str: "text (in quotes)", int: "a whole number", float: "a number"}


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    flag: str | None = None,
    positional: bool = False,
) -> Any:
    """A field of a settings dataclass.

    `flag` is the name on the command line where it differs from the field's (`""`: only in files);
    `positional` makes a tuple field take the arguments that are no flags.
    """
    metadata = {"help": help, "choices": tuple(choices), "minimum": minimum, "maximum": maximum}
    return field(default=default, metadata=metadata | {"flag": flag, "positional": positional})


@dataclass(frozen=True)
class Key:
    """One setting of one section. `kind` is the bare type: without `| None` (`optional`), a tuple's items' (`many`)."""

    section: str
    name: str
    kind: type
    optional: bool
    many: bool
    field: dataclasses.Field[Any]

    @property
    def dotted(self) -> str:
        """`section.name`."""
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        """The name on the command line, without dashes; empty when there is none."""
        given = self.field.metadata.get("flag")
        return self.name if given is None else str(given)


def tier(section_class: type) -> str:
    """Which file may set a section; sections that a script declares itself are set by flags alone."""
    return str(getattr(section_class, "TIER", "flag"))


def sections_of(config_class: type) -> dict[str, type]:
    """The sections of a Config class by name."""
    hints = typing.get_type_hints(config_class)
    return {item.name: hints[item.name] for item in dataclasses.fields(config_class)}


def keys_of(section: str, section_class: type) -> dict[str, Key]:
    """The settings of one section by name."""
    hints = typing.get_type_hints(section_class)
    return {item.name: _key(section, item, hints[item.name]) for item in dataclasses.fields(section_class)}


def _key(section: str, item: dataclasses.Field[Any], kind: Any) -> Key:
    optional = typing.get_origin(kind) in (typing.Union, types.UnionType)
    if optional:
        kind = next(one for one in typing.get_args(kind) if one is not type(None))
    many = typing.get_origin(kind) is tuple
    if many:
        kind = typing.get_args(kind)[0]
    if kind not in _EXPECTED:
        raise TypeError(f"{section}.{item.name}: settings are bool, int, float, str or tuples of them, not {kind}")
    return Key(section, item.name, kind, optional, many, item)


def flags_of(config_class: type) -> dict[str, Key]:
    """The flags of a script by name. TypeError when two sections claim one name.

    One clash is settled: the algorithm's file wins, since GRPO's `--temperature` must mean `rollout.temperature`,
    which has to be 1, and not stage 04's `generation.temperature`.
    """
    flags: dict[str, Key] = {}
    sections = sections_of(config_class)
    for section, section_class in sections.items():
        for key in keys_of(section, section_class).values():
            other = flags.get(key.flag)
            if not key.flag:
                continue
            if other:
                claims = [one for one in (key, other) if tier(sections[one.section]) == "algorithm"]
                if len(claims) != 1:
                    raise TypeError(f"{config_class.__module__}: --{key.flag} is both {other.dotted} and {key.dotted}")
                key = claims[0]
            flags[key.flag] = key
    return flags


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for what `name` is called here, else for the known name most like it, or nothing."""
    names = list(known)
    dashes, bare = ("--", name[2:]) if name.startswith("--") else ("", name)
    here = dashes + ELSEWHERE.get(bare.lower().replace("-", "_"), "")
    close = [here] if here in names else difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def coerce(value: Any, key: Key, where: str) -> Any:
    """The value as the key's type, within its range and choices. `where` begins the UserError's line."""
    if key.optional and (value is None or value in ("none", "null")):
        return None
    if not key.many:
        return _check(_scalar(value, key, where), key, where)
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where}: {key.name} must be a list, got {shown(value)}")
    return tuple(_check(_scalar(one, key, where), key, where) for one in value)


def _scalar(value: Any, key: Key, where: str) -> Any:
    """YAML gives numbers as numbers, flags give text, and PyYAML gives `5e-7` as text: all three are read alike."""
    text = value.strip() if isinstance(value, str) else None
    if key.kind is str and text is not None:
        return value
    if key.kind is bool and (isinstance(value, bool) or (text or "").lower() in ("true", "false")):
        return value if isinstance(value, bool) else str(text).lower() == "true"
    if key.kind is int and type(value) is int:
        return value
    if key.kind is int and text is not None and re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    if key.kind is float and type(value) in (int, float):
        return float(value) if abs(value) <= sys.float_info.max or value != value else math.inf
    if key.kind is float and text is not None and _NUMBER.fullmatch(text):
        return float(text)
    raise UserError(f"{where}: {key.name} must be {_EXPECTED[key.kind]}, got {shown(value)}")


def _check(value: Any, key: Key, where: str) -> Any:
    rules = key.field.metadata
    choices, low, high = rules.get("choices"), rules.get("minimum"), rules.get("maximum")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {key.name} must be a finite number, got {value}")
    if choices and value not in choices:
        hint = nearest(str(value), choices)
        raise UserError(f"{where}: {key.name} must be one of {', '.join(choices)}; got {value!r}{hint}")
    if low is not None and value < low:
        raise UserError(f"{where}: {key.name} must be at least {low:g}, got {value:g}")
    if high is not None and value > high:
        raise UserError(f"{where}: {key.name} must be at most {high:g}, got {value:g}")
    return value


def shown(value: Any) -> str:
    """A raw value as the user wrote it."""
    return str(value).lower() if isinstance(value, bool) else "nothing" if value is None else repr(value)
