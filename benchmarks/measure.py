"""What all benchmarks share: alternating measurements in one process, medians and ratios, the machine, a table row."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import write_json

Figures = dict[str, Any]


def alternate(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of every way, `repeats` times in turn, after one call of each that is not counted."""
    for call in ways.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compared(seconds: Mapping[str, Sequence[float]], own: str) -> Figures:
    """Medians, and how many times longer every other way takes than `own`."""
    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = {name: median[name] / median[own] for name in median if name != own}
    return {"seconds": dict(seconds), "median_seconds": median, "ratio": ratio}


def machine(*libraries: str) -> Figures:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def described(figures: Mapping[str, Any]) -> str:
    """A machine in a line."""
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def row(name: str, figures: Figures) -> str:
    """The table row: each way's median and the ratios."""
    medians = [f"{way} {seconds:.3g} s" for way, seconds in figures["median_seconds"].items()]
    ratios = [f"{ratio:.2f} x {way}" for way, ratio in figures["ratio"].items()]
    return f"| {name} | {', '.join(medians)} | {', '.join(ratios)} |"


def command(
    doc: str,
    argv: Sequence[str] | None,
    add_flags: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], Figures],
) -> int:
    """A benchmark as a program: --repeats, --json and its own flags; exit code 2 with one line for bad input."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args(argv)
    try:
        if arguments.repeats < 1:
            raise UserError(f"--repeats must be 1 or more, got {arguments.repeats}")
        figures = run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        write_json(arguments.json, figures)
    return 0
