"""Programs side by side: the stages of a run, or whole runs. Each begins when what it needs is done."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from utils.machine import cores
from utils.pipeline import Child, Step, exit_code, running


@dataclass(frozen=True)
class Job:
    """One program: what it is given, the file that takes what it prints, and the names of those it waits for."""

    step: Step
    arguments: Sequence[str]
    log: Path
    needs: frozenset[str] = frozenset()


def side_by_side(jobs: Mapping[str, Job], at_once: int) -> Generator[tuple[str, int]]:
    """(name, exit code) of each job as it ends; at most `at_once` at a time, in the order given where they may choose.

    A job that can have no other beside it computes with all cores, every other with its share, however the others are
    timed: arithmetic depends on the number of threads. Closing the iterator asks those at work to end, and waits.
    """
    alone = without_company(jobs)
    waiting, done = dict(jobs), set[str]()
    with ExitStack() as stack:
        at_work: dict[str, Child] = {}
        try:
            while waiting or at_work:
                ready = [name for name, job in waiting.items() if job.needs <= done]
                for name in ready[: at_once - len(at_work)]:
                    job = waiting.pop(name)
                    log = stack.enter_context(job.log.open("ab"))
                    threads = max(1, threads_here() // (1 if name in alone else at_once))
                    at_work[name] = stack.enter_context(running(job.step, job.arguments, log, threads))
                time.sleep(0.1)
                for name in [name for name, process in at_work.items() if process.poll() is not None]:
                    code = exit_code(at_work.pop(name).returncode)
                    done.add(name)
                    yield name, code
        finally:
            for process in at_work.values():
                process.terminate()


def threads_here() -> int:
    """How many threads this process's programs may compute with: its share where it is itself one of several."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list is one number for each nesting
    return int(given) if given.isdecimal() and int(given) else cores()


def needs_of(plan: Sequence[Step]) -> dict[str, frozenset[str]]:
    """Folder -> folders that must be finished before.

    Steps up to the first that another one names (SFT) follow one another; each later one needs these and what its own
    arguments name.
    """
    named = {step.folder: {word.split("/")[1] for word in step.arguments if word.startswith("{run}/")} for step in plan}
    all_named = set().union(*named.values())
    last = next((i for i, step in enumerate(plan) if step.folder in all_named), len(plan) - 1)
    trunk = [step.folder for step in plan[: last + 1]]
    return {
        step.folder: frozenset(trunk[:i] if i <= last else {*trunk, *named[step.folder]}) for i, step in enumerate(plan)
    }


def without_company(jobs: Mapping[str, Job]) -> set[str]:
    """Those beside which no other can be at work: each of the others comes before or after."""
    before: dict[str, set[str]] = {}
    for name, job in jobs.items():  # what a job needs stands before it
        before[name] = {*job.needs, *(earlier for needed in job.needs for earlier in before[needed])}
    return {name for name in jobs if all(name in before[other] | {other} or other in before[name] for other in jobs)}
