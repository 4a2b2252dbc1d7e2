"""What the user sees: a live bar on a terminal, a plain line every few seconds elsewhere, little when quiet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

_SECONDS_BETWEEN_LINES = 5.0


class Terminal:
    """Output of one program. `quiet` leaves warnings, errors and result tables; NO_COLOR is respected."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stream = stream if stream is not None else sys.stdout
        self._live: Any = None

    @property
    def interactive(self) -> bool:
        """Whether a person watches: bars and colours make sense."""
        return self.stream.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, line: str) -> None:
        """One line of information."""
        if not self.quiet:
            self._print(line, self.stream)

    def warn(self, line: str) -> None:
        """One line on stderr, also when quiet."""
        self._print(f"warning: {line}", sys.stderr)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A result: text in columns, numbers to the right; printed also when quiet."""
        cells = [[_cell(value) for value in row] for row in rows]
        right = [all(isinstance(row[i], (int, float)) for row in rows) and bool(rows) for i in range(len(columns))]
        widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
        lines = [list(columns), ["-" * width for width in widths], *cells]
        self._print(title, self.stream)
        for line in lines:
            padded = (text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right, strict=True))
            self._print("  " + "  ".join(padded).rstrip(), self.stream)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        """Show how far `total` units of work are, from the moment of entering."""
        bar = _LiveBar(label, total, self) if self.interactive and not self.quiet else _PlainLines(label, total, self)
        try:
            yield bar
        finally:
            bar.finish()

    def _print(self, line: str, stream: TextIO) -> None:
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=stream, flush=True)


class Progress:
    """How far some work is; `update(done, reward=0.31, …)` also shows figures."""

    def __init__(self, label: str, total: int, terminal: Terminal) -> None:
        self.label, self.total, self.terminal = label, total, terminal
        self.start = time.monotonic()

    def update(self, done: int, **shown: float | str) -> None:
        """`done` of `total` units are finished."""

    def finish(self) -> None:
        """The work has ended, whole or not."""


class _PlainLines(Progress):
    def __init__(self, label: str, total: int, terminal: Terminal) -> None:
        super().__init__(label, total, terminal)
        self._printed_at = self.start
        self._first: int | None = None

    def update(self, done: int, **shown: float | str) -> None:
        now = time.monotonic()
        if now - self._printed_at < _SECONDS_BETWEEN_LINES and done < self.total:
            return
        self._printed_at = now
        seconds = now - self.start
        left = seconds / done * (self.total - done) if done else 0.0
        figures = "".join(f"  {name} {_cell(value)}" for name, value in shown.items())
        times = f"{clock(seconds)} so far, {clock(left)} left" if done < self.total else f"{clock(seconds)}"
        self.terminal.say(f"{self.label} {done}/{self.total}  {times}{figures}")


class _LiveBar(Progress):
    def __init__(self, label: str, total: int, terminal: Terminal) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        super().__init__(label, total, terminal)
        name, figures = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[shown]}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        columns = (name, BarColumn(), MofNCompleteColumn(), *times, figures)
        self._rich = Rich(*columns, console=Console(file=terminal.stream))
        self._task = self._rich.add_task(label, total=total, shown="")
        self._rich.start()
        self.terminal._live = self._rich

    def update(self, done: int, **shown: float | str) -> None:
        figures = "  ".join(f"{name} {_cell(value)}" for name, value in shown.items())
        self._rich.update(self._task, completed=done, shown=figures)

    def finish(self) -> None:
        self._rich.stop()
        self.terminal._live = None


def clock(seconds: float) -> str:
    """`42s`, `3m05s`, `2h07m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
