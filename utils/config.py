"""Settings from files and flags: one typed, frozen Config per script, and the source of every value.

Precedence: default < model file (--config) < algorithm file (--algo_config) < task file (--task) < flags.
A YAML key is `section.key`; a flag is the key's own name. Every mistake is one line that names the file and the line.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from utils.errors import UserError
from utils.files import YamlFile, read_yaml

ROOT = Path(__file__).resolve().parents[1]
LOCAL_FILE = "configs/local.yaml"
DEFAULT_FILES = {"model": "configs/models/llama-tiny.yaml", "task": "configs/tasks/finqa_mini.yaml"}
_FOLDERS = {"model": "configs/models", "algorithm": "configs/algorithms", "task": "configs/tasks"}
_FLAGS = {"model": "config", "algorithm": "algo_config", "task": "task"}
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
C = TypeVar("C")


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
class Resolved(Generic[C]):
    """A Config, the source of each value (`default`, a file or `flag`), and each tier's file with the reason for it."""

    config: C
    sources: dict[str, str]
    files: dict[str, str]
    reasons: dict[str, str]


@dataclass(frozen=True)
class Key:
    """One setting of one section of a Config."""

    section: str
    name: str
    kind: Any
    field: dataclasses.Field[Any]

    @property
    def dotted(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        """The name on the command line, without dashes; empty when there is none."""
        given = self.field.metadata.get("flag")
        return self.name if given is None else str(given)


def tier(section_class: type) -> str:
    """Which file may set a section; sections that a script declares itself are set by flags alone."""
    return str(vars(section_class).get("TIER", "flag"))


def sections_of(config_class: type) -> dict[str, type]:
    """The sections of a Config class by name."""
    hints = typing.get_type_hints(config_class)
    return {item.name: hints[item.name] for item in dataclasses.fields(config_class)}


def keys_of(section: str, section_class: type) -> dict[str, Key]:
    """The settings of one section by name."""
    hints = typing.get_type_hints(section_class)
    return {item.name: Key(section, item.name, hints[item.name], item) for item in dataclasses.fields(section_class)}


def flags_of(config_class: type) -> dict[str, Key]:
    """The flags of a script. A flag name in two sections belongs to the algorithm's; any other clash is a bug.

    (GRPO's `--temperature` is `rollout.temperature`, which must be 1, and not stage 04's `generation.temperature`.)
    """
    flags: dict[str, Key] = {}
    sections = sections_of(config_class)
    for section, section_class in sections.items():
        for key in keys_of(section, section_class).values():
            other = flags.get(key.flag)
            if not key.flag or (other and tier(sections[other.section]) == "algorithm"):
                continue
            if other and tier(section_class) != "algorithm":
                raise TypeError(f"{config_class.__module__}: --{key.flag} is both {other.dotted} and {key.dotted}")
            flags[key.flag] = key
    return flags


def to_dict(config: Any) -> dict[str, Any]:
    """The Config as nested plain values: tuples become lists."""
    return {
        section.name: {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(getattr(config, section.name)).items()
        }
        for section in dataclasses.fields(config)
    }


def resolve(config_class: type[C], argv: Sequence[str], *, doc: str, script: str) -> Resolved[C]:
    """Read files and flags into a Config. UserError for every mistake; `--help` prints and exits."""
    sections = sections_of(config_class)
    flags = flags_of(config_class)
    given, files = _read_flags(sections, flags, argv, doc, script)
    chosen, reasons = _choose_files(sections, files)
    values: dict[str, dict[str, Any]] = {name: {} for name in sections}
    sources = {key.dotted: "default" for name, cls in sections.items() for key in keys_of(name, cls).values()}

    def put(dotted: str, value: Any, source: str) -> None:
        section, name = dotted.split(".", 1)
        if dotted in sources:
            values[section][name] = value
            sources[dotted] = source

    for level in ("model", "algorithm", "task"):
        if level in chosen:
            for dotted, value in _read_file(level, chosen[level], sections, script).items():
                put(dotted, value, chosen[level])
    if data_root := _local_data_root(chosen.get("task")):
        put("task.data_root", data_root, LOCAL_FILE)
    for flag, value in given.items():
        put(flags[flag].dotted, value, "flag")
    built = {name: _build(section_class, name, values[name]) for name, section_class in sections.items()}
    return Resolved(_build(config_class, "settings", built), sources, chosen, reasons)


def _build(cls: Any, name: str, values: Mapping[str, Any]) -> Any:
    """Make the dataclass; what its __post_init__ refuses is the user's mistake."""
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` for the known name most like `name`, or nothing."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


# --- values ----------------------------------------------------------------------------------------------------------


def coerce(value: Any, key: Key, where: str) -> Any:
    """The value as the key's type, within its range and choices. `where` begins the UserError's line."""
    kind, optional = _strip_none(key.kind)
    if optional and (value is None or value in ("none", "null")):
        return None
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: {key.name} must be a list, got {value!r}")
        return tuple(_check(_scalar(one, item, key, where), key, where) for one in value)
    return _check(_scalar(value, kind, key, where), key, where)


def _strip_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(kind) if one is not type(None)]
        return inner[0], True
    return kind, False


def _scalar(value: Any, kind: type, key: Key, where: str) -> Any:
    """YAML gives numbers as numbers, flags give text, and PyYAML gives `5e-7` as text: all three are read alike."""
    text = value.strip() if isinstance(value, str) else None
    if kind is bool:
        if isinstance(value, bool):
            return value
        if text is not None and text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif kind is str and text is not None:
        return value
    elif kind is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if text is not None and re.fullmatch(r"[-+]?\d{1,18}", text):
            return int(text)
    elif kind is float and not isinstance(value, bool):
        if isinstance(value, (int, float)):
            return float(value)
        if text is not None and _NUMBER.fullmatch(text):
            return float(text)
    expected = {bool: "true or false", str: "text (in quotes)", int: "a whole number", float: "a number"}[kind]
    raise UserError(f"{where}: {key.name} must be {expected}, got {_shown(value)}")


def _check(value: Any, key: Key, where: str) -> Any:
    rules = key.field.metadata
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {key.name} must be a finite number, got {value}")
    if rules["choices"] and value not in rules["choices"]:
        known = ", ".join(rules["choices"])
        raise UserError(f"{where}: {key.name} must be one of {known}; got {value!r}{nearest(str(value), rules['choices'])}")
    if rules["minimum"] is not None and value < rules["minimum"]:
        raise UserError(f"{where}: {key.name} must be at least {rules['minimum']:g}, got {value:g}")
    if rules["maximum"] is not None and value > rules["maximum"]:
        raise UserError(f"{where}: {key.name} must be at most {rules['maximum']:g}, got {value:g}")
    return value


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "nothing" if value is None else repr(value)


# --- files -----------------------------------------------------------------------------------------------------------


def find_file(level: str, name: str) -> str:
    """A settings file by path or, without folder and ending, by name in the tier's folder. UserError when missing."""
    folder = _FOLDERS[level]
    bare = "/" not in name and not name.endswith((".yaml", ".yml"))
    for candidate in ([f"{folder}/{name}.yaml"] if bare else [name]):
        for path in (Path(candidate), ROOT / candidate):
            if path.is_file():
                return str(path.relative_to(ROOT) if path.is_absolute() and Path.cwd() == ROOT else path)
    known = sorted(path.stem for path in (ROOT / folder).glob("*.yaml"))
    hint = nearest(Path(name).stem, known) or (f"; {folder} has {', '.join(known)}" if known else "")
    raise UserError(f"--{_FLAGS[level]}: no such file: {name}{hint}")


def _local() -> dict[str, str]:
    """What download.sh chose: `task`, `model` and `data_root`; empty where it has not run."""
    path = ROOT / LOCAL_FILE
    if not path.is_file():
        return {}
    file = read_yaml(path)
    for name, value in file.data.items():
        if name not in ("task", "model", "data_root"):
            raise UserError(f"{file.where(str(name))}: unknown key {name}; expected task, model, data_root")
        if not isinstance(value, str):
            raise UserError(f"{file.where(name)}: {name} must be text, got {_shown(value)}")
    return file.data


def _local_data_root(task_file: str | None) -> str | None:
    """Where download.sh put the data of its task; another task's data lies elsewhere."""
    local = _local()
    if task_file is None or "data_root" not in local or "task" not in local:
        return None
    return local["data_root"] if find_file("task", local["task"]) == task_file else None


def _choose_files(sections: Mapping[str, type], given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Each tier's file and why it was taken."""
    tiers = {tier(section_class) for section_class in sections.values()}
    local = _local()
    files: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for level in ("model", "algorithm", "task"):
        if level not in tiers:
            continue
        if level in given:
            name, reasons[level] = given[level], f"--{_FLAGS[level]}"
        elif level == "algorithm":
            name, reasons[level] = f"{_FOLDERS[level]}/{method_of(sections)}.yaml", "the default"
        elif level in local:
            name, reasons[level] = local[level], LOCAL_FILE
        else:
            name, reasons[level] = DEFAULT_FILES[level], "the default"
        if reasons[level] == "the default" and not (ROOT / name).is_file():
            continue
        files[level] = find_file(level, name)
    return files, reasons


def method_of(sections: Mapping[str, type]) -> str:
    """The method whose settings a Config holds in its section `algorithm`."""
    return str(vars(sections["algorithm"])["METHOD"])


def _read_file(level: str, path: str, sections: Mapping[str, type], script: str) -> dict[str, Any]:
    """Every key of one file, checked whether this script uses it or not: dotted name -> value."""
    file = read_yaml(path)
    known = _known_sections(level, file, sections, script)
    values: dict[str, Any] = {}
    for name, content in file.data.items():
        if name == "metadata" or (name == "method" and level == "algorithm"):
            continue
        if name not in known:
            raise UserError(f"{file.where(str(name))}: {_wrong_section(level, str(name), known)}")
        if not isinstance(content, dict):
            raise UserError(f"{file.where(name)}: section {name} must hold `key: value` lines, got {_shown(content)}")
        for leaf, value in content.items():
            dotted = f"{name}.{leaf}"
            if leaf not in known[name]:
                raise UserError(f"{file.where(dotted)}: {_wrong_key(level, name, str(leaf), known[name])}")
            values[dotted] = coerce(value, known[name][leaf], f"{file.where(dotted)}: {name}")
    return values


def _known_sections(level: str, file: YamlFile, sections: Mapping[str, type], script: str) -> dict[str, dict[str, Key]]:
    """Sections and keys that a file of this tier may set."""
    from utils.settings import ALGORITHMS, SECTIONS, TASK_MAY_ALSO_SET

    known = {name: keys_of(name, cls) for name, cls in SECTIONS.items() if tier(cls) == level}
    if level == "algorithm":
        method = file.data.get("method")
        if method not in ALGORITHMS:
            hint = nearest(str(method), ALGORITHMS)
            raise UserError(f"{file.where('method')}: `method:` must be one of {', '.join(ALGORITHMS)}; got {method!r}{hint}")
        if method != method_of(sections):
            right = f"{_FOLDERS[level]}/{method_of(sections)}.yaml"
            raise UserError(f"{file.path}: is for {method}, but {Path(script).name} trains {method_of(sections)}; use {right}")
        known["algorithm"] = keys_of("algorithm", ALGORITHMS[str(method)])
    if level == "task":
        for dotted in TASK_MAY_ALSO_SET:
            section, leaf = dotted.split(".")
            owners = ALGORITHMS.values() if section == "algorithm" else [SECTIONS[section]]
            keys = {leaf: keys[leaf] for keys in (keys_of(section, cls) for cls in owners) if leaf in keys}
            known.setdefault(section, {}).update(keys)
    return known


def _wrong_section(level: str, name: str, known: Collection[str]) -> str:
    from utils.settings import SECTIONS

    owner = "algorithm" if name == "algorithm" else tier(SECTIONS[name]) if name in SECTIONS else None
    if owner:
        return f"section {name} belongs in the {owner} file (--{_FLAGS[owner]}), this is a {level} file"
    return f"unknown section {name}; expected {', '.join(known)}{nearest(name, known)}"


def _wrong_key(level: str, section: str, leaf: str, known: Collection[str]) -> str:
    from utils.settings import ALGORITHMS, SECTIONS

    everywhere: dict[str, str] = {}
    for name, cls in [*SECTIONS.items(), *(("algorithm", cls) for cls in ALGORITHMS.values())]:
        for key in keys_of(name, cls).values():
            everywhere.setdefault(key.name, name)
            if name == section and key.name == leaf:
                return f"{section}.{leaf} belongs in the {tier(cls)} file (--{_FLAGS[tier(cls)]}), this is a {level} file"
    elsewhere = f"; it belongs to section {everywhere[leaf]}" if leaf in everywhere else ""
    return f"unknown key {section}.{leaf}{elsewhere or nearest(leaf, known)}"


# --- flags -----------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _read_flags(
    sections: Mapping[str, type], flags: Mapping[str, Key], argv: Sequence[str], doc: str, script: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Flags given on the command line, and the files named there."""
    tiers = {tier(cls) for cls in sections.values()}
    levels = {_FLAGS[level]: level for level in ("task", "model", "algorithm") if level in tiers}
    parser = make_parser(doc, script)
    for name, level in levels.items():
        parser.add_argument(f"--{name}", metavar="NAME|FILE", help=f"settings of the {level} ({_FOLDERS[level]})")
    add_flags(parser, flags.values(), {name: cls.__doc__ or "" for name, cls in sections.items()})
    given = parse_flags(parser, flags, argv)
    return given, {levels[name]: str(given.pop(name)) for name in levels if name in given}


def make_parser(doc: str, script: str) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, takes no abbreviations and raises UserError."""
    return _Parser(
        prog=f"python {Path(script).name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )


def add_flags(parser: argparse.ArgumentParser, keys: Iterable[Key], titles: Mapping[str, str]) -> None:
    """Declare one flag per key, grouped by section."""
    groups: dict[str, Any] = {}
    for key in keys:
        if key.section not in groups:
            groups[key.section] = parser.add_argument_group(key.section, " ".join(titles.get(key.section, "").split()))
        kind, _ = _strip_none(key.kind)
        many = typing.get_origin(kind) is tuple
        default = key.field.default
        text = key.field.metadata["help"].replace("%", "%%")
        if default not in ("", None, ()):
            text += f" [{' '.join(map(str, default)) if many else str(default).lower() if kind is bool else default}]"
        metavar = "|".join(key.field.metadata["choices"]) or ("true|false" if kind is bool else key.name[:1].upper())
        if key.field.metadata["positional"]:
            groups[key.section].add_argument(key.flag, nargs="*", metavar=key.name, help=text)
        elif kind is bool:
            groups[key.section].add_argument(f"--{key.flag}", f"--no_{key.flag}", nargs="?", metavar=metavar, help=text)
        else:
            groups[key.section].add_argument(f"--{key.flag}", nargs="+" if many else None, metavar=metavar, help=text)


def parse_flags(parser: argparse.ArgumentParser, flags: Mapping[str, Key], argv: Sequence[str]) -> dict[str, Any]:
    """The flags that were given, coerced; names that the parser knows beside `flags` stay text."""
    bools = {name for name, key in flags.items() if _strip_none(key.kind)[0] is bool}
    namespace, unknown = parser.parse_known_args(_spell_bools(argv, bools))
    if unknown:
        first = next((word for word in unknown if word.startswith("-")), unknown[0])
        known = [option for action in parser._actions for option in action.option_strings]
        raise UserError(f"unknown {'flag' if first.startswith('-') else 'argument'} {first}{nearest(first.split('=')[0], known)}")
    given = {}
    for name, value in vars(namespace).items():
        if name in flags and flags[name].field.metadata["positional"] and not value:
            continue
        given[name] = coerce(value, flags[name], f"--{name}") if name in flags else value
    return given


def _spell_bools(argv: Sequence[str], bools: Collection[str]) -> list[str]:
    """`--x`, `--no_x` and `--x true` all become `--x=…`, so that a positional may follow a bare flag."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name = word[2:] if word.startswith("--") else ""
        if name in bools:
            follows = rest and rest[0].lower() in ("true", "false")
            word = f"{word}={rest.pop(0)}" if follows else f"{word}=true"
        elif name.startswith("no_") and name[3:] in bools:
            word = f"--{name[3:]}=false"
        words.append(word)
    return words


def split_scoped(argv: Sequence[str], scopes: Collection[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Part `--sft.learning_rate 1e-4` from the rest: (rest, {"sft": ["--learning_rate", "1e-4"]})."""
    rest: list[str] = []
    scoped: dict[str, list[str]] = {}
    into = rest
    for word in argv:
        if word.startswith("--"):
            into = rest
            scope, dot, flag = word[2:].partition(".")
            if dot and "=" not in scope:
                if scope not in scopes:
                    raise UserError(f"{word}: no stage is called {scope}; known: {', '.join(scopes)}{nearest(scope, scopes)}")
                into = scoped.setdefault(scope, [])
                word = f"--{flag}"
        into.append(word)
    return rest, scoped
