"""One stage as several processes: how they start, what they tell each other, how they end.

`--num_processes N` starts a script N times (`launch`), or the user's torchrun does; RANK and WORLD_SIZE then say who is
who. The first process (rank 0) holds the folder, writes and prints; the others compute beside it. When one fails, all
end: the first says why in one line and records it. With one process nothing here does anything, nor loads torch.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from utils import manifest
from utils.config import Resolved, to_dict
from utils.errors import UserError
from utils.machine import cores, is_out_of_memory
from utils.process import LAUNCHER_VARIABLE, Terminated, end, signals_raise
from utils.settings import OnlineRunSettings

C = TypeVar("C")
T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others, one of which may be writing a large checkpoint; and how long the others
may go on after one has gone: until they next need it."""
STARTING = timedelta(minutes=1)
"""How long the others may go on after one has failed before all had met: they wait for it, and cannot notice."""
STORE_VARIABLE = "STAGE_STORE_FILE"
"""Where processes of one machine meet; without it at torchrun's MASTER_ADDR and MASTER_PORT."""
MET = ".met"
"""Ending of the file beside it that says that all have met: from now on each notices when another is gone."""
_ERROR = "error"


class LostError(UserError):
    """Another process is gone or too late; in the first process the message is what that one said."""


@dataclass(frozen=True)
class _Group:
    rank: int = 0
    size: int = 1
    store: Any = None


_group = _Group()
_leaving: list[Callable[[], None]] = []


def rank() -> int:
    """This process's number within its group; 0 is the one that writes and prints."""
    return _group.rank


def size() -> int:
    """How many processes the group has."""
    return _group.size


def started() -> tuple[int, int]:
    """(rank, number) among the processes that `launch` or torchrun started; (0, 1) without them."""
    if not {"RANK", "WORLD_SIZE"} <= set(os.environ):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def processes_of(resolved: Resolved[Any]) -> int:
    """How many processes the settings ask for."""
    run = resolved.config.run
    return run.num_processes if isinstance(run, OnlineRunSettings) else 1


def counted(resolved: Resolved[C], started: int) -> Resolved[C]:
    """The settings with the number of processes that torchrun started. UserError where it cannot be."""
    if started in (1, processes_of(resolved)):
        return resolved
    config: Any = resolved.config
    if not isinstance(config.run, OnlineRunSettings):
        raise UserError(f"this stage runs as one process, and torchrun started {started}; call it with python")
    if resolved.sources["run.num_processes"] == "flag":
        raise UserError(f"--num_processes {config.run.num_processes}: torchrun started {started}; leave the flag out")
    config = replace(config, run=replace(config.run, num_processes=started))
    return replace(resolved, config=config, sources={**resolved.sources, "run.num_processes": "torchrun"})


def check_division(config: Any, processes: int, *, more_may_start: bool = False) -> None:
    """UserError where so many processes cannot divide a step's work as the settings say.

    `more_may_start`: one process is not the last word, as torchrun may start others.
    """
    if not isinstance(config.run, OnlineRunSettings):
        return
    per_step, updates = config.rollout.prompts_per_step, config.algorithm.mini_batches
    if not config.run.fsdp:
        if processes > max(1, per_step // updates):
            few = f"an update has only {per_step // updates} prompts to share; start fewer"
            raise UserError(f"--num_processes {processes}: {few}")
        return
    if config.lora.use_lora:
        raise UserError("--fsdp is for policies that train whole: leave it out, or give --no_use_lora")
    if processes == 1 and more_may_start:
        return
    if processes == 1:
        raise UserError("--fsdp: one process has nobody to share with; give --num_processes, or start it by torchrun")
    if per_step % (updates * processes):
        raise UserError(
            f"--fsdp: all processes make as many passes, so that --prompts_per_step {per_step} must be a multiple of "
            f"{updates * processes} (--mini_batches {updates} x {processes} processes)"
        )


def check_settings_agree(resolved: Resolved[Any]) -> None:
    """UserError when torchrun's commands on several machines, or their files, say different things."""
    first, *others = gather(to_dict(resolved.config))
    for number, other in enumerate(others, start=1):
        if difference := manifest.difference(first, other, ()):
            raise UserError(f"process {number} has other settings than process 0: {difference}")


def launch(count: int, command: Sequence[str]) -> int:
    """Run a command `count` times on this machine, as one group; the exit code of the first process.

    torchrun's variables, but not its agent, which needs torch itself and, when one process fails, ends the first one
    before that can say why. UserError when the first was killed: then nobody else could say it.
    """
    processes: list[subprocess.Popen[bytes]] = []
    culprit = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            with signals_raise():
                for number in range(count):
                    environment = _environment(number, count, os.path.join(folder, "store"))
                    # a session of its own: Ctrl-C reaches this process alone, which passes it on once
                    processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
                culprit = _wait(processes, Path(folder, "store" + MET))
        except (KeyboardInterrupt, Terminated) as error:
            received = error.number if isinstance(error, Terminated) else signal.SIGINT
            for process in processes:
                process.send_signal(received)
            for process in processes:
                end(process, patience=50.0)
            return 128 + received
        finally:
            for process in processes:
                process.kill()
    codes = [process.returncode for process in processes]
    if codes[0] < 0:
        code = codes[culprit]
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise UserError(f"process {culprit} {how}; the same command with --resume continues")
    return codes[0] or next((abs(code) for code in codes if code), 0)


def _environment(number: int, count: int, store: str) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))}
    places = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    ours = {STORE_VARIABLE: store, LAUNCHER_VARIABLE: str(os.getpid())}
    return threads | os.environ | {name: str(value) for name, value in places.items()} | ours


def _wait(processes: Sequence[subprocess.Popen[bytes]], met: Path) -> int:
    """Until all have ended; the number of the first that failed (0: none, or that one).

    Once one has failed, the others have TIMEOUT to notice. Before all have met they cannot: they have STARTING to fail
    by themselves, for the same reason, and no time when one was killed.
    """
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        if failed := [number for number, process in enumerate(processes) if process.poll()]:
            killed = processes[failed[0]].returncode < 0
            patience = TIMEOUT if met.exists() else timedelta() if killed else STARTING
            for process in processes:
                end(process, patience.total_seconds())
            return failed[0]
    return 0


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Inside, the processes that were started together are a group. One that fails leaves word for the first."""
    global _group
    if started()[1] == 1:
        yield
        return
    import torch

    on_gpu = device != "cpu" and torch.cuda.is_available()
    _join("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        if on_gpu:
            _take_gpu(torch.cuda.device_count())
        yield
        leave()
    except LostError:
        raise
    except Exception as error:  # the others notice when this process has ended and its connections are closed
        said = str(error) if isinstance(error, UserError) else f"process {rank()}: {type(error).__name__}: {error}"
        _group.store.set(_ERROR, said)
        raise
    finally:
        _group = _Group()


def on_leaving(call: Callable[[], None]) -> None:
    """Have something called before the group ends: what holds it must let go, or its threads outlive it (`_join`)."""
    _leaving.append(call)


def leave() -> None:
    """End the group."""
    import torch.distributed as dist

    while _leaving:
        _leaving.pop()()
    gc.collect()
    dist.destroy_process_group()


def _join(backend: str) -> None:
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    global _group
    # imported later, by another library, its default arguments would hold the group beyond its end: its threads would
    # then live until Python is gone, and now and then abort the process
    importlib.import_module("torch.distributed.nn.functional")
    number, count = started()
    url = f"file://{os.environ[STORE_VARIABLE]}" if STORE_VARIABLE in os.environ else "env://"
    store, _, _ = next(rendezvous(url, number, count, timeout=TIMEOUT))
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
    if number == 0 and STORE_VARIABLE in os.environ:
        Path(os.environ[STORE_VARIABLE] + MET).touch()
    _group = _Group(number, count, store)
    found = len(set(gather((socket.gethostname(), os.getpid()))))
    if found != count:
        raise UserError(f"{count} processes were asked for, but {found} run")


def _take_gpu(gpus: int) -> None:
    """Each process of a machine computes on a GPU of its own. UserError when there are too few."""
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here > gpus:
        raise UserError(f"{here} processes need a GPU each and this machine has {gpus}; start fewer, or --device cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def heeding_others(run: Callable[[], None]) -> None:
    """Call `run`. LostError when torchrun ends this process because another one has failed, and said why."""
    try:
        run()
    except Terminated as error:
        if words := _last_words():
            raise LostError(words) from error
        raise


def collective(call: Callable[..., T], *arguments: Any) -> T:
    """A call of torch.distributed, which all processes make. LostError when another is gone or late."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise _lost(error) from error


def meeting(call: Callable[[], T]) -> T:
    """A call in which the processes meet again and again: a pass of a model in shares. LostError as of `collective`.

    They meet here first, by gloo, which notices when one is gone, where nccl would wait. Errors of the call's own stay
    what they are.
    """
    import torch.distributed as dist

    gather(None)
    try:
        return call()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise _lost(error) from error


def _lost(error: RuntimeError) -> LostError:
    late = "imed out" in str(error)
    what = f"kept the others waiting for {TIMEOUT}" if late else "ended without a word (killed? out of memory?)"
    silent = f"one of the {size()} processes {what}; the same command with --resume continues"
    # nccl's own failures look the same from here: what torch says is the only trace
    said = " ".join(str(error).split())[:200]
    return LostError(_last_words() or f"{silent} (torch: {said})")


def _last_words() -> str:
    """What a process that failed said; only the first asks."""
    if rank() or _group.store is None or not _group.store.check([_ERROR]):
        return ""
    return str(_group.store.get(_ERROR).decode())


def gather(value: T) -> list[T]:
    """Each process's value (anything that can be pickled), by rank."""
    if size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * size()
    collective(dist.all_gather_object, values, value)
    return values


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, the only one that calls it."""
    if size() == 1:
        return make()
    import torch.distributed as dist

    values = [None if rank() else make()]
    collective(dist.broadcast_object_list, values)
    return values[0]  # type: ignore[return-value]
