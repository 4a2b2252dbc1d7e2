"""Makes docs/benchmarks.md from the files that the benchmarks wrote with --json.

    python -m benchmarks.table --output docs/benchmarks.md
    python -m benchmarks.table /tmp/update.json          (to look at)

Without names it takes benchmarks/results/*.json. What the project promises stands in benchmarks/targets.py; a target
that no file speaks about is "not measured", with the command that would measure it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Figures, described
from benchmarks.targets import TARGETS, Target
from utils.errors import UserError
from utils.files import read_json, write_text

RESULTS = Path(__file__).resolve().parent / "results"
NEEDED = ("benchmark", "title", "unit", "median", "ratio", "row", "command", "settings", "machine", "commit")
HEAD = """# Benchmarks

Made by `python -m benchmarks.table` from `benchmarks/results/`. Every figure is the median of
all measurements listed below ("times": of each way), taken in turn with the opponents' in one process tree. "8 x 8" are
prompts x samples.
"""
RATIOS = "A ratio says how many times as much as the project another way takes.\n"


def page(results: Sequence[Figures]) -> str:
    """The whole page."""
    parts = [HEAD, "## Targets\n", *targets(results), "\n## Results\n", RATIOS]
    parts += ["| what | medians | ratios |\n|---|---|---|\n" + "\n".join(figures["row"] for figures in results)]
    parts += ["\n## How they were made"]
    return "\n".join([*parts, *map(account, results)]) + "\n"


def targets(results: Sequence[Figures]) -> list[str]:
    """The lines of the first table: measured ones, then those that are not."""
    head = "| target | measured on | times | measured | required | aimed | |"
    lines, missing = [head, "|---|---|--:|--:|--:|--:|---|"], []
    for target in TARGETS:
        found = [(figures, target.of(figures)) for figures in results]
        measured = [(figures, value) for figures, value in found if value is not None]
        lines += [
            _line(target, f"{figures['title']} ({_where(figures['machine'])})", value, _times(figures))
            for figures, value in measured
        ]
        missing += [] if measured else [_line(target, f"`{target.command}`", None)]
    return lines + missing


def _times(figures: Figures) -> int:
    """How often each way was measured."""
    return min(map(len, figures["values"].values()))


def _line(target: Target, where: str, value: float | None, times: int | str = "") -> str:
    measured, verdict = (target.shown(value), target.verdict(value)) if value is not None else ("not measured", "")
    goals = target.goal(target.required), target.goal(target.aimed)
    return f"| {' | '.join([target.what, where, str(times), measured, *goals, verdict])} |"


def _where(machine: Mapping[str, Any]) -> str:
    """A GPU, or a processor and what it multiplies matrices with."""
    facts = [machine["gpus"]] if "gpus" in machine else [machine.get("processor"), machine.get("units")]
    return ", ".join(str(fact) for fact in facts if fact)


def account(figures: Figures) -> str:
    """Command, code, machine, notes and single values of one result."""
    changed = " with changes" if figures.get("dirty") else ""
    values = "; ".join(f"{way} {_few(found)}" for way, found in figures["values"].items())
    facts = [f"`{figures['command']}`", f"commit {str(figures['commit'])[:12]}{changed}", described(figures["machine"])]
    lines = [*facts, *figures.get("notes", ()), f"in {figures['unit']}: {values}"]
    return f"\n### {figures['title']}\n\n" + "\n".join(f"* {line}" for line in lines)


def _few(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def read(path: Path) -> Figures:
    """One result. UserError for a file that no benchmark wrote."""
    figures: Any = read_json(path)
    missing = [name for name in NEEDED if not isinstance(figures, Mapping) or name not in figures]
    if missing:
        raise UserError(f"{path}: {missing[0]!r} is missing; expected a file that a benchmark wrote with --json")
    return dict(figures)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="files written with --json (default: benchmarks/results)")
    parser.add_argument("--output", type=Path, help="the page to write (default: print it)")
    flags = parser.parse_args(argv)
    try:
        text = page([read(path) for path in flags.results or sorted(RESULTS.glob("*.json"))])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if flags.output:
        write_text(flags.output, text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
