"""Writes docs/status.md: what stands behind each of the features that the project set out to have.

Reads: docs/checklist_ids.txt (id, kind, item; one line each) and docs/status.yaml, which gives each id one of
    tests/unit/test_house.py::test_name     the test that shows it (several: a list)
    planned                                 not there yet
    declined, because ...                   will not come, and why
Writes: docs/status.md

    venv/bin/python -m tools.make_status            write it
    venv/bin/python -m tools.make_status --check    say what is wrong and exit 2, write nothing
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from utils.errors import UserError
from utils.files import write_text

IDS = Path("docs/checklist_ids.txt")
MAPPING = Path("docs/status.yaml")
PAGE = Path("docs/status.md")
DECLINED = "declined, because "
TITLES = {
    "F": "FinQA pipeline",
    "G": "Generation aligned by a classifier (GenAlign)",
    "D": "Synthetic data sets (DataGen)",
    "R": "Small RLHF core (rlhf_core)",
}


@dataclass(frozen=True)
class Item:
    """One line of the checklist with what stands behind it."""

    id: str
    kind: str
    text: str
    evidence: tuple[str, ...]  # test node ids; or one of "planned", "declined, because ..."

    @property
    def state(self) -> str:
        """`tested`, `planned` or `declined`."""
        if self.evidence == ("planned",):
            return "planned"
        return "declined" if self.evidence[0].startswith(DECLINED) else "tested"


def read_items(ids: Path = IDS, mapping: Path = MAPPING) -> list[Item]:
    """Join the checklist with the mapping.

    Raises:
        UserError: an id without an entry, an entry without an id, an empty entry.
    """
    lines = [line.split("\t") for line in ids.read_text(encoding="utf-8").splitlines() if line]
    entries = yaml.safe_load(mapping.read_text(encoding="utf-8"))
    known = [line[0] for line in lines]
    missing = [name for name in known if not entries.get(name)]
    unknown = [name for name in entries if name not in known]
    if missing:
        raise UserError(f"{mapping}: no entry for {', '.join(missing[:5])}; expected a test, planned or {DECLINED}…")
    if unknown:
        raise UserError(f"{mapping}: {', '.join(unknown[:5])}: not in {ids}")
    return [
        Item(name, kind, text, tuple(entries[name] if isinstance(entries[name], list) else [entries[name]]))
        for name, kind, text in lines
    ]


def test_names(path: Path) -> set[str]:
    """Names of the tests of a file: `test_x` and `TestY::test_z`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names.update(f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))
    return {name for name in names if name.split("::")[-1].startswith("test_")}


def problems(items: list[Item], root: Path = Path()) -> list[str]:
    """What is wrong with the evidence: one line for each test that does not exist and each word that is not allowed."""
    found: list[str] = []
    cache: dict[Path, set[str]] = {}
    for item in items:
        if item.state != "tested":
            continue
        for node in item.evidence:
            file, separator, name = node.partition("::")
            path = root / file
            if not separator or not file.startswith("tests/"):
                found.append(f"{item.id}: {node!r} is neither a test nor `planned` nor {DECLINED}…")
            elif not path.is_file():
                found.append(f"{item.id}: {file} does not exist")
            elif name.partition("[")[0] not in cache.setdefault(path, test_names(path)):
                found.append(f"{item.id}: {file} has no test {name}")
    return found


def render(items: list[Item]) -> str:
    """The page in markdown."""
    counts = Counter(item.state for item in items)
    lines = [
        "# Status",
        "",
        "Written by `make status` from docs/checklist_ids.txt and docs/status.yaml; a test fails when an id has no",
        "entry, when a named test does not exist, and when this page is not what the tool writes.",
        "",
        f"{len(items)} features: {counts['tested']} shown by a test, {counts['planned']} planned, "
        f"{counts['declined']} declined.",
    ]
    for letter, title in TITLES.items():
        section = [item for item in items if item.id.startswith(letter)]
        here = Counter(item.state for item in section)
        lines += ["", f"## {title}", "", f"{here['tested']} of {len(section)} shown by a test.", ""]
        lines += ["| id | kind | feature | shown by |", "|---|---|---|---|"]
        for item in section:
            shown = "<br>".join(f"`{node}`" if item.state == "tested" else node for node in item.evidence)
            lines.append(f"| {item.id} | {item.kind} | {item.text.replace('|', chr(92) + '|')} | {shown} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line per problem on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 2 when the page is not up to date")
    args = parser.parse_args(argv)
    try:
        items = read_items()
        wrong = problems(items)
    except UserError as error:
        items, wrong = [], [str(error)]
    if not wrong and args.check and (not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != render(items)):
        wrong = [f"{PAGE} is not up to date; run `make status`"]
    if wrong:
        print("\n".join(f"make_status: {line}" for line in wrong), file=sys.stderr)
        return 2
    if not args.check:
        write_text(PAGE, render(items))
        print(f"make_status: wrote {PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
