"""The command line: one flag per key, by its own name; mistakes are UserErrors of one line."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from utils.errors import UserError
from utils.keys import Key, coerce, nearest


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Names with hyphens, as those of files and models, stay whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def make_parser(doc: str, script: str) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, takes no abbreviations and raises UserError."""
    return _Parser(
        prog=f"python {Path(script).name}",
        description=doc,
        formatter_class=_Help,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )


Found = Mapping[str, tuple[Any, str]]
"""Dotted names of keys that a settings file sets -> (value, the file's name)."""


def add_flags(
    parser: argparse.ArgumentParser, keys: Iterable[Key], titles: Mapping[str, str], found: Found = MappingProxyType({})
) -> None:
    """Declare one flag per key, grouped by section; `titles` says what each section is, `found` what files set."""
    groups: dict[str, Any] = {}
    for key in keys:
        if key.section not in groups:
            groups[key.section] = parser.add_argument_group(key.section, " ".join(titles.get(key.section, "").split()))
        add, text = groups[key.section].add_argument, _help(key, *found.get(key.dotted, (key.field.default, "")))
        metavar = "|".join(key.field.metadata.get("choices", ())) or key.name.rsplit("_", 1)[-1].upper()
        if key.field.metadata.get("positional"):
            add(key.flag, nargs="*", metavar=key.name, help=text)
        elif key.kind is bool:
            add(f"--{key.flag}", f"--no_{key.flag}", nargs="?", metavar="true|false", help=text)
        else:
            add(f"--{key.flag}", nargs="+" if key.many else None, metavar=metavar, help=text)


def _help(key: Key, value: Any, file: str) -> str:
    text = str(key.field.metadata.get("help", ""))
    if value not in ("", None, ()):
        shown = " ".join(map(str, value)) if key.many else str(value).lower() if key.kind is bool else value
        text += f" [{shown}{f' in {file}' if file else ''}]"
    return text.replace("%", "%%")


def parse_flags(parser: argparse.ArgumentParser, flags: Mapping[str, Key], argv: Sequence[str]) -> dict[str, Any]:
    """The flags that were given, coerced; names that the parser knows beside `flags` stay text."""
    bools = {name for name, key in flags.items() if key.kind is bool}
    namespace, unknown = parser.parse_known_args(_spell_bools(argv, bools))
    if unknown:
        first = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
        known = [option for action in parser._actions for option in action.option_strings]
        raise UserError(f"unknown {'flag' if first.startswith('-') else 'argument'} {first}{nearest(first, known)}")
    given = {}
    for name, value in vars(namespace).items():
        if name in flags and flags[name].field.metadata.get("positional") and not value:
            continue
        given[name] = coerce(value, flags[name], f"--{name}") if name in flags else value
    return given


def _spell_bools(argv: Sequence[str], bools: Collection[str]) -> list[str]:
    """`--x`, `--no_x` and `--x true` all become `--x=…`, so that a positional may follow a bare flag."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, _, value = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        if name.startswith("no_") and name[3:] in bools and value:
            raise UserError(f"{word}: --{name} takes no value; write --{name}, or --{name[3:]} {value}")
        if word == f"--{name}" and name in bools:
            follows = rest and rest[0].lower() in ("true", "false")
            word = f"{word}={rest.pop(0)}" if follows else f"{word}=true"
        elif word == f"--{name}" and name.startswith("no_") and name[3:] in bools:
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
                    hint = nearest(scope, scopes)
                    raise UserError(f"{word}: no stage is called {scope}; known: {', '.join(scopes)}{hint}")
                into = scoped.setdefault(scope, [])
                word = f"--{flag}"
        into.append(word)
    return rest, scoped
