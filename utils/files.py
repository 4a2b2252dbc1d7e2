"""Files: every write is whole or absent, every read says file and line when something is wrong.

A write goes to a temporary file in the same folder, is flushed to the disk and then renamed, so that a kill at any
moment leaves either the old content or the new one.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from utils.errors import UserError, not_installed

try:
    import yaml
except ModuleNotFoundError:  # the first import of every script that is not Python's own
    print(f"error: {not_installed('pyyaml')}", file=sys.stderr)
    raise SystemExit(2) from None

_TEMPORARY = ".tmp"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def is_temporary(path: Path) -> bool:
    """Whether an interrupted write left this file or folder behind."""
    return any(part.startswith(".") and part.endswith(_TEMPORARY) for part in path.parts)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text as it is (no newline translation), whole or not at all; the folder is made.

    Half of a surrogate pair, which a model may write into JSON, and UTF-8 has no bytes for, becomes its escape there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_json(path: str | Path, obj: Any) -> None:
    """Write one JSON document, indented, keys in their order; NaN and infinity are refused with ValueError."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line; NaN and infinity are refused with ValueError."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_text(path: str | Path) -> str:
    """The file's text (UTF-8, a byte order mark is dropped). UserError when missing or not text."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: str | Path) -> Any:
    """The JSON document in a file. UserError with file:line when it is missing or broken."""
    return _parse_json(read_text(path), path, 1)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """One object per line; empty lines are passed over. UserError with file:line for anything else."""
    return [row for _, row in read_numbered_jsonl(path)]


def read_numbered_jsonl(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The same with the number of each object's line, from 1."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = _parse_json(line, path, number)
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        rows.append((number, row))
    return rows


def _parse_json(text: str, path: str | Path, first_line: int) -> Any:
    def refuse(name: str) -> NoReturn:
        raise UserError(f"{path}:{first_line}: {name} is not a JSON number")

    def finite(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(digits)

    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}:{line}: not valid JSON: {error.msg} (column {error.colno})") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}:{first_line}: not readable as JSON: {error}") from None


@dataclass(frozen=True)
class YamlFile:
    """A mapping read from YAML. `lines` has the line of every key, by dotted name."""

    path: str
    data: dict[str, Any]
    lines: dict[str, int]

    def where(self, name: str) -> str:
        """`file:line` of a dotted key, for messages."""
        return f"{self.path}:{self.lines[name]}" if name in self.lines else self.path


def read_yaml(path: str | Path) -> YamlFile:
    """A YAML mapping; repeated keys, other documents than a mapping and broken YAML are UserErrors with file:line."""
    text = read_text(path)
    lines: dict[str, int] = {}
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _check_keys(node, "", str(path), lines)
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise UserError(f"{path}: expected a mapping `section: {{key: value}}`, got {found}")
    return YamlFile(str(path), data, lines)


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader. `_check_keys` sees the tree before it is built, since building keeps the last of equals."""


def _check_keys(node: yaml.Node, prefix: str, path: str, lines: dict[str, int]) -> None:
    """Refuse a key that stands twice in one mapping; note every key's line."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_keys(child, prefix, path, {})
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[Hashable, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{path}:{key.start_mark.line + 1}: a key must be a plain name")
        line = key.start_mark.line + 1
        name = f"{prefix}{key.value}"
        if key.value in seen:
            raise UserError(f"{path}:{line}: `{name}` stands twice (first in line {seen[key.value]}); keep one")
        seen[key.value] = lines[name] = line
        _check_keys(value, f"{name}.", path, lines)


def sha256(path: str | Path) -> str:
    """Hex digest of a file, or of a folder: of its files' sorted relative names and digests, one per line."""
    path = Path(path)
    if path.is_dir():
        files = (p for p in path.rglob("*") if p.is_file() and not is_temporary(p.relative_to(path)))
        return digest_of_files({file.relative_to(path).as_posix(): sha256(file) for file in files})
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of_files(files: Mapping[str, str]) -> str:
    """A folder's `sha256` from relative name -> digest of its files."""
    digest = hashlib.sha256()
    for name in sorted(files, key=PurePosixPath):
        digest.update(f"{name}\0{files[name]}\n".encode())
    return digest.hexdigest()


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; at a clean exit it takes the place of `path`, otherwise it is removed.

    Where the system can exchange two names in one step (Linux), `path` exists at every moment, old or new.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:  # a folder is the list of its names
            _sync(written)
        if path.exists():
            _exchange(temporary, path)
        else:
            os.rename(temporary, path)
        _sync_folder(path.parent)  # before the old content goes
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(new: Path, old: Path) -> None:
    """Swap two names; afterwards `new` is the old content, to be removed by the caller."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old))
        if libc.renameat2(*names, _RENAME_EXCHANGE) == 0:
            return
    aside = old.with_name(f".{old.name}.old{_TEMPORARY}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)


def temporary_name(path: Path) -> Path:
    """Beside `path`, a name of this process's that `is_temporary`."""
    return path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    """Make a rename durable."""
    _sync(path)
