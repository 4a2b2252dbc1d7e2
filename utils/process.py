"""A stage's process: signals become exceptions, and it does not outlive the driver that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PARENT_VARIABLE = "STAGE_DIES_WITH_PROCESS"
"""Set by the driver to its process id: a stage that it started ends when it ends."""
LAUNCHER_VARIABLE = "RANK_DIES_WITH_PROCESS"
"""The same between a stage and the processes that it starts for itself (`utils.ranks`)."""


class Terminated(BaseException):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated, so that `finally` blocks run and the manifest is written.

    What they and Ctrl-C raise in a `__del__` Python would print and forget: there the signal comes once more.
    """

    def on_signal(number: int, _frame: object) -> None:
        raise Terminated(number)

    def on_unraisable(what: Any) -> None:
        error = what.exc_value
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else getattr(error, "number", None)
        if isinstance(error, (KeyboardInterrupt, Terminated)):
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
        else:
            hook(what)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGHUP)}
    hook, sys.unraisablehook = sys.unraisablehook, on_unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def signals_ignored() -> Iterator[None]:
    """A second Ctrl-C or SIGTERM does not disturb the writing of the manifest."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Wait for a process that was asked to end; insist after `patience` seconds."""
    for insist in (process.terminate, process.kill):
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            insist()
    process.wait()


def _has_living_parent() -> bool:
    return str(os.getppid()) in (os.environ.get(PARENT_VARIABLE), os.environ.get(LAUNCHER_VARIABLE))


def has_living_driver() -> bool:
    """Whether the driver started this process as a stage (or as one process of a stage) and is still there."""
    return PARENT_VARIABLE in os.environ and _has_living_parent()


def die_with_parent() -> None:
    """Ask Linux to kill this process when the driver or stage that started it dies, by whatever signal.

    SIGKILL, not SIGTERM: a stage deep in a kernel call would otherwise go on writing while the next driver starts,
    and what it leaves is whole at every moment. SystemExit in one of several processes whose launcher is gone already:
    they would train on beside the run that continues them.
    """
    if os.environ.get(LAUNCHER_VARIABLE, str(os.getppid())) != str(os.getppid()):
        raise SystemExit(1)
    if not _has_living_parent() or not sys.platform.startswith("linux"):
        return
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG in <linux/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if not _has_living_parent():  # it died in between
        raise SystemExit(1)
