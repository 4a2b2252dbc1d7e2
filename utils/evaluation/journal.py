"""Pieces of a long computation, on the disk as soon as each is finished, and taken up again after an interruption.

The first line of the file says what the pieces were computed from, each further line is one piece as JSON. A piece is
whole or absent: a line without its end is what a kill left, and is dropped. Pieces of another origin are never reused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils import manifest
from utils.files import write_text

Origin = Mapping[str, Mapping[str, Any]]


class Journal:
    """The pieces kept in `path`, in the order they were finished; `append` adds one.

    `origin` is everything the pieces depend on, by section and name. When the file holds pieces of another origin they
    are dropped, and `say` is told what differs.
    """

    def __init__(self, path: Path, origin: Origin, say: Callable[[str], None]) -> None:
        self.path = path
        header = json.dumps(origin)
        lines = _complete_lines(path)
        if lines and (changed := _difference(lines[0], json.loads(header))):
            say(f"{manifest.shown(path)}: what an interrupted run left is not used, because {changed}")
            lines = []
        kept = _readable(lines[1:])
        self.pieces = [piece for _, piece in kept]
        write_text(path, "".join(f"{line}\n" for line in [header, *(line for line, _ in kept)]))

    def append(self, piece: Any) -> None:
        """Add a finished piece; on return it is on the disk."""
        self.pieces.append(piece)
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(json.dumps(piece) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _complete_lines(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8", "replace").split("\n")[:-1] if path.is_file() else []


def _readable(lines: list[str]) -> list[tuple[str, Any]]:
    """Lines with what they say, up to the first that is no JSON."""
    read = []
    for line in lines:
        try:
            read.append((line, json.loads(line)))
        except ValueError:
            break
    return read


def _difference(header: str, origin: dict[str, Any]) -> str:
    """What differs between the origin in a header and another, in words; empty when nothing does."""
    found = _readable([header])
    was = found[0][1] if found else None
    if not isinstance(was, dict) or not all(isinstance(section, dict) for section in was.values()):
        return "its first line does not say what it was made from"
    return manifest.difference(was, origin, ())
