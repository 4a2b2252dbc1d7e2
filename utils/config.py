"""Settings from files and flags: one typed, frozen Config per script, and the source of every value.

Precedence: default < model file (--config) < algorithm file (--algo_config) < task file (--task) < flags.
A YAML key is `section.key`; a flag is the key's own name. Every mistake is one line that names the file and the line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from utils.errors import UserError
from utils.files import YamlFile, read_yaml
from utils.flags import add_flags, make_parser, parse_flags
from utils.keys import TIER_FLAGS, Key, coerce, flags_of, keys_of, nearest, sections_of, setting, shown, tier
from utils.machine import fast_precision

__all__ = ["Resolved", "build", "find_file", "resolve", "setting", "to_dict"]

ROOT = Path(__file__).resolve().parents[1]
LOCAL_FILE = "configs/local.yaml"
DEFAULT_FILES = {"model": "configs/models/llama-tiny.yaml", "task": "configs/tasks/finqa_mini.yaml"}
_FOLDERS = {"model": "configs/models", "algorithm": "configs/algorithms", "task": "configs/tasks"}
C = TypeVar("C")


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """A Config; the source of each value (`default`, a file or `flag`); each tier's file and why it was taken."""

    config: C
    sources: dict[str, str]
    files: dict[str, str]
    reasons: dict[str, str]


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
    given, named = _read_flags(sections, flags, argv, doc, script)
    files, reasons = _choose_files(sections, named)
    values: dict[str, dict[str, Any]] = {name: {} for name in sections}
    sources = {key.dotted: "default" for name, cls in sections.items() for key in keys_of(name, cls).values()}

    def put(dotted: str, value: Any, source: str) -> None:
        section, name = dotted.split(".", 1)
        if dotted in sources:
            values[section][name] = value
            sources[dotted] = source

    for level in TIER_FLAGS:
        if level in files:
            for dotted, value in _read_file(level, files[level], sections, script).items():
                put(dotted, value, files[level])
    if data_root := _local_data_root(files.get("task")):
        put("task.data_root", data_root, LOCAL_FILE)
    for flag, value in given.items():
        put(flags[flag].dotted, value, "flag")
    if values.get("model", {}).get("precision") == "auto":
        device = values["run"].get("device", "auto")
        put("model.precision", fast_precision(device), f"auto of {sources['model.precision']}")
    parts = {name: build(section_class, name, values[name]) for name, section_class in sections.items()}
    return Resolved(build(config_class, "settings", parts), sources, files, reasons)


def build(cls: Any, name: str, values: Mapping[str, Any]) -> Any:
    """Make the dataclass; what its __post_init__ refuses is the user's mistake, a UserError."""
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def _read_flags(
    sections: Mapping[str, type], flags: Mapping[str, Key], argv: Sequence[str], doc: str, script: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Flags given on the command line, and the files named there by tier."""
    tiers = {tier(section_class) for section_class in sections.values()}
    levels = {flag: level for level, flag in TIER_FLAGS.items() if level in tiers}
    parser = make_parser(doc, script)
    for flag, level in levels.items():
        parser.add_argument(f"--{flag}", metavar="NAME|FILE", help=f"settings of the {level} ({_FOLDERS[level]})")
    found = _set_by_files(sections, levels, argv, script) if {"-h", "--help"} & set(argv) else {}
    add_flags(parser, flags.values(), {name: cls.__doc__ or "" for name, cls in sections.items()}, found)
    given = parse_flags(parser, flags, argv)
    return given, {level: str(given.pop(flag)) for flag, level in levels.items() if flag in given}


def _set_by_files(
    sections: Mapping[str, type], levels: Mapping[str, str], argv: Sequence[str], script: str
) -> dict[str, tuple[Any, str]]:
    """What `--help` shows: the values that the files named in `argv`, or else the default ones, set."""
    parser = make_parser("", script)
    for flag in levels:
        parser.add_argument(f"--{flag}")
    found: dict[str, tuple[Any, str]] = {}
    with suppress(UserError):  # help comes whatever is wrong with a file
        named = vars(parser.parse_known_args([word for word in argv if word not in ("-h", "--help")])[0])
        files, _ = _choose_files(sections, {levels[flag]: name for flag, name in named.items()})
        for level in TIER_FLAGS:
            if level in files:
                read = _read_file(level, files[level], sections, script)
                found |= {dotted: (value, Path(files[level]).name) for dotted, value in read.items()}
        if data_root := _local_data_root(files.get("task")):
            found["task.data_root"] = (data_root, Path(LOCAL_FILE).name)
    return found


# --- which files -----------------------------------------------------------------------------------------------------


def find_file(level: str, name: str, named_by: str = "") -> str:
    """A settings file by path or, without folder and ending, by name in the tier's folder.

    UserError when it is missing, with what names it (the tier's flag, if nothing else is said).
    """
    folder = _FOLDERS[level]
    bare = "/" not in name and not name.endswith((".yaml", ".yml"))
    candidate = f"{folder}/{name}.yaml" if bare else name
    for path in (Path(candidate), ROOT / candidate):
        if path.is_file():
            return str(path)
    known = sorted(path.stem for path in (ROOT / folder).glob("*.yaml"))
    hint = nearest(Path(name).stem, known) or (f"; {folder} has {', '.join(known)}" if known else "")
    raise UserError(f"{named_by or f'--{TIER_FLAGS[level]}'}: no such file: {name}{hint}")


def _choose_files(sections: Mapping[str, type], named: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Each tier's file and why it was taken."""
    tiers = {tier(section_class) for section_class in sections.values()}
    local = _local()
    files: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for level, flag in TIER_FLAGS.items():
        if level not in tiers:
            continue
        if level in named:
            name, reasons[level] = named[level], f"--{flag}"
        elif level == "algorithm":
            name, reasons[level] = f"{_FOLDERS[level]}/{_method_of(sections)}.yaml", "the default"
        elif level in local:
            name, reasons[level] = local[level], LOCAL_FILE
        else:
            name, reasons[level] = DEFAULT_FILES[level], "the default"
        from_local = reasons[level] == LOCAL_FILE
        files[level] = find_file(level, name, f"{LOCAL_FILE}, key {level!r}" if from_local else "")
    return files, reasons


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
            raise UserError(f"{file.where(name)}: {name} must be text, got {shown(value)}")
    return file.data


def _local_data_root(task_file: str | None) -> str | None:
    """Where download.sh put the data of its task; another task's data lies elsewhere."""
    local = _local()
    if task_file is None or "data_root" not in local or "task" not in local:
        return None
    with suppress(UserError):  # a task file that is gone is not this one
        if Path(find_file("task", local["task"])).samefile(task_file):
            return local["data_root"]
    return None


def _method_of(sections: Mapping[str, type]) -> str:
    """The method whose settings a Config holds in its section `algorithm`."""
    return str(vars(sections["algorithm"])["METHOD"])


# --- what is in them -------------------------------------------------------------------------------------------------


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
            raise UserError(f"{file.where(name)}: section {name} must hold `key: value` lines, got {shown(content)}")
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
        known["algorithm"] = keys_of("algorithm", ALGORITHMS[_check_method(file, _method_of(sections), script)])
    if level == "task":
        for dotted in TASK_MAY_ALSO_SET:
            section, leaf = dotted.split(".")
            owners = [cls for name, cls in _all_sections() if name == section]
            key = next(keys[leaf] for keys in (keys_of(section, cls) for cls in owners) if leaf in keys)
            known.setdefault(section, {})[leaf] = key
    return known


def _check_method(file: YamlFile, expected: str, script: str) -> str:
    """The `method:` of an algorithm file, which must be the script's."""
    from utils.settings import ALGORITHMS

    method = file.data.get("method")
    if method not in ALGORITHMS:
        hint = f"one of {', '.join(ALGORITHMS)}; got {shown(method)}{nearest(str(method), ALGORITHMS)}"
        raise UserError(f"{file.where('method')}: `method:` must be {hint}")
    if method != expected:
        right = f"{Path(script).name} trains {expected}; use {_FOLDERS['algorithm']}/{expected}.yaml"
        raise UserError(f"{file.where('method')}: is for {method}, but {right}")
    return expected


def _all_sections() -> list[tuple[str, type]]:
    from utils.settings import ALGORITHMS, SECTIONS

    return [*SECTIONS.items(), *(("algorithm", cls) for cls in ALGORITHMS.values())]


def _wrong_section(level: str, name: str, known: Collection[str]) -> str:
    owner = next((tier(cls) for section, cls in _all_sections() if section == name), None)
    if owner:
        return f"section {name} belongs in the {owner} file (--{TIER_FLAGS[owner]}), this is a {level} file"
    return f"unknown section {name}; expected {', '.join(known)}{nearest(name, known)}"


def _wrong_key(level: str, section: str, leaf: str, known: Collection[str]) -> str:
    from utils.settings import RunSettings

    homes = {key.dotted: tier(cls) for name, cls in _all_sections() for key in keys_of(name, cls).values()}
    owner = homes.get(f"{section}.{leaf}")
    if owner:
        return f"{section}.{leaf} belongs in the {owner} file (--{TIER_FLAGS[owner]}), this is a {level} file"
    section_of = next((dotted.split(".")[0] for dotted in homes if dotted.split(".")[1] == leaf), None)
    hint = f"; it belongs to section {section_of}" if section_of else nearest(leaf, known)
    if leaf in keys_of("run", RunSettings):
        hint = f"; it is a flag, --{leaf}, and no key of a file"
    return f"unknown key {section}.{leaf}{hint}"
