"""What all benchmarks share: alternating measurements in one process, medians and ratios, the machine, a table row."""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import write_json
from utils.machine import is_out_of_memory, keep_few_kernels, keep_freed_memory, matrix_units
from utils.manifest import code_version, hardware

Figures = dict[str, Any]
"""What a benchmark found: its title, `unit`, `values` by way, their `median`, `ratio` to the project's, and `notes`;
`command` adds the command, its settings, the machine, the code's commit and the table row."""

Ways = Mapping[str, Callable[[], object]]
"""What is compared, by name."""
CALLS = 3
"""Of each choice, in turn: by a single one, noise has given an opponent its slower attention (docs/LOG.md)."""


def alternate(ways: Ways, repeats: int) -> dict[str, list[float]]:
    """Wall seconds of every way, `repeats` times in turn, after one call of each that is not counted."""
    for call in ways.values():
        call()
    values: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, call in ways.items():
            values[name].append(seconds(call))
    return values


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of a call, what it leaves to a GPU included."""
    settle()
    start = time.perf_counter()
    call()
    settle()
    return time.perf_counter() - start


def settle() -> None:
    """Wait for what a GPU still computes."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def quickest(choices: Ways) -> str:
    """The choice whose shortest call is the shortest, of some in turn and after one of each that is not counted."""
    taken = alternate(choices, CALLS) if len(choices) > 1 else dict.fromkeys(choices, [0.0])
    return min(taken, key=lambda name: min(taken[name]))


def compared(values: Mapping[str, Sequence[float]], unit: str = "s") -> Figures:
    """Medians, and how many times as much every other way takes as the first, which is the project's."""
    median = {name: statistics.median(found) for name, found in values.items()}
    own, *others = median
    ratio = {name: median[name] / median[own] for name in others}
    return {"unit": unit, "values": dict(values), "median": median, "ratio": ratio}


def machine(libraries: Iterable[str], load: float) -> Figures:
    """What the figures depend on; `load` is the machine's before they were taken."""
    torch = sys.modules.get("torch")
    facts = hardware()
    facts = {
        "processor": facts["processor"],
        "units": matrix_units(),
        "cores": facts["cores"],
        "memory_gib": facts["memory_gib"],
        "gpus": ", ".join(facts["gpus"]),
    }
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
    facts["load"] = round(load, 2)
    facts["python"] = ".".join(map(str, sys.version_info[:3]))
    return {name: fact for name, fact in facts.items() if fact != ""} | {name: version(name) for name in libraries}


def described(figures: Mapping[str, Any]) -> str:
    """A machine in a line."""
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def shown(value: float, unit: str) -> str:
    """A figure with its unit; bytes as MB or GB."""
    if unit != "bytes":
        return f"{value:.3g} {unit}"
    return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.4g} MB"


def row(figures: Figures) -> str:
    """The table row: title, each way's median and what else there is to say (`also`), and the ratios."""
    medians = [f"{way} {shown(value, figures['unit'])}" for way, value in figures["median"].items()]
    medians += [figures["also"]] if "also" in figures else []
    ratios = [f"{ratio:.3g} x {way}" for way, ratio in figures["ratio"].items()]
    return f"| {figures['title']} | {', '.join(medians)} | {', '.join(ratios)} |"


def command(
    module: str,
    doc: str | None,
    argv: Sequence[str] | None,
    add_flags: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], Figures],
    libraries: Sequence[str] = (),
) -> int:
    """A benchmark as a program: --repeats, --json and its own flags; the table row is the last line that it prints.

    Exit code 2 with one line for bad input.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser)
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    flags = parser.parse_args(given)
    load = os.getloadavg()[0]
    keep_freed_memory()  # as every stage does; it serves the opponents too
    keep_few_kernels()
    try:
        at_least_one(flags, "repeats")
        figures = run(flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    kept = {name: value for name, value in vars(flags).items() if not isinstance(value, Path)}
    about = {"benchmark": module.removeprefix("benchmarks."), "command": shlex.join(["python", "-m", module, *given])}
    figures = {**about, **figures, "settings": kept, "machine": machine(libraries, load), **code_version()}
    figures["row"] = row(figures)
    print(described(figures["machine"]))
    print(*figures.get("notes", ()), figures["row"], sep="\n")
    if flags.json:
        write_json(flags.json, figures)
    return 0


def at_least_one(flags: argparse.Namespace, *names: str) -> None:
    """UserError for a flag that is no positive number."""
    for name in names:
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} must be 1 or more, got {getattr(flags, name)}")
