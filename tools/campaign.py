"""Kill -9 at random moments of every trainer, then --resume: are the bytes those of a run that was left alone?

The runs are tiny: the letter task of the tests, a few steps with a checkpoint every two; GRPO also as two processes
(grpo_two), PPO also with an adapter as its critic on a 4-bit base (ppo_4bit). Each trainer is left alone once, in an
interpreter of its own, and watched once more. Then it is killed at moments that the seed chooses (a share of its time,
or the appearance of a file; a temporary one means in the middle of its writing) and continued with --resume; every
third run is killed twice. Of several processes any one is killed: that which starts the others, or one of these. Every
file that a stage leaves is compared with the run left alone, as `12_driver.py rerun` compares, and metrics, spent and
warnings of the manifests.

    python -m tools.campaign --kills 20 --trainers sft ppo grpo_two --seed 0

What is done stays in --dir: the same command goes on where it was stopped; changed code begins again. Exit code 1 when
bytes differ: the first file that does is named, and both folders stay.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.campaign_runs import ALONE, FORKED, TRAINERS, Context, Trainer, write_inputs
from utils import manifest
from utils.errors import UserError
from utils.files import is_temporary, read_json, read_jsonl, read_text, write_json, write_jsonl
from utils.rerun import compare
from utils.seeds import generator

if TYPE_CHECKING:
    import numpy as np

KINDS = {
    "start": "before the first step",
    "step": "in a step or validation",
    "checkpoint": "writing a checkpoint",
    "policy": "writing best or final",
    "file": "writing another file",
    "end": "after final",
}
"""What a kill can interrupt."""
LOG = "logs/train.jsonl"
TICK = 0.001
"""Seconds between two looks at a run."""
LONGEST_DELAY = 0.01
"""Seconds at most from the appearance of a file to the kill."""

# --- one run, killed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """An uninterrupted run: its seconds from the first line logged, and the names that appeared, in their order."""

    seconds: float
    names: list[str]


def names_in(folder: Path) -> list[str]:
    """Relative names of all files and folders, process ids taken out of temporary ones."""
    start, found = len(str(folder)) + 1, []
    for place, folders, files in os.walk(folder):
        found += [re.sub(r"\.\d+\.tmp", ".tmp", f"{place}/{name}"[start:]) for name in folders + files]
    return found


def watch(process: BaseProcess, folder: Path) -> Watched:
    """Look on until the process ends."""
    start, seen = 0.0, dict[str, None]()
    while process.is_alive():
        seen.update(dict.fromkeys(names_in(folder)))
        if not start and LOG in seen:
            start = time.monotonic()
        time.sleep(TICK)
    return Watched(time.monotonic() - start, list(seen))


def wait_for_moment(rng: np.random.Generator, watched: Watched, process: BaseProcess, folder: Path) -> None:
    """Return at a random moment, or when the process has ended: some time after the first line is logged, or a little
    after a name appears; times and names are drawn from those of the uninterrupted run."""
    name, delay = LOG, watched.seconds
    if rng.random() < 0.5:
        name, delay = watched.names[rng.integers(len(watched.names))], LONGEST_DELAY
    while process.is_alive() and name not in names_in(folder):
        time.sleep(TICK)
    process.join(delay * rng.random())


def kill(process: BaseProcess, rng: np.random.Generator) -> bool:
    """Kill -9 a run, or of several processes any one: the others end by themselves. False when it had ended before."""
    started = processes_of(process.pid)
    victim = rng.integers(1 + len(started))
    if victim:
        with suppress(ProcessLookupError):
            os.kill(started[victim - 1], signal.SIGKILL)
    else:
        process.kill()
    process.join()
    while any(map(is_running, started)):
        time.sleep(TICK)
    return process.exitcode != 0 if victim else process.exitcode == -signal.SIGKILL


def processes_of(pid: int | None) -> list[int]:
    """Those that a process has started. Linux tells; elsewhere it is killed alone."""
    try:
        return [int(number) for number in read_text(Path(f"/proc/{pid}/task/{pid}/children")).split()]
    except UserError:
        return []


def is_running(pid: int) -> bool:
    """Whether it is there and has not ended (a zombie has)."""
    try:
        return read_text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()[0] != "Z"
    except UserError:
        return False


def interrupted(folder: Path) -> str:
    """What a kill interrupted (a key of KINDS), by what it left."""
    left = [name for name in names_in(folder) if is_temporary(Path(name)) or "/checkpoint-" in name]
    if left:
        in_ckpt = [name.split("/")[1] for name in left if name.startswith("ckpt_")]
        policy = any(name.startswith((".best", ".final")) for name in in_ckpt)
        return "policy" if policy else "checkpoint" if in_ckpt else "file"
    if any(folder.glob("ckpt_*/final")):
        return "end"
    log = folder / LOG
    return "step" if log.is_file() and '"train"' in read_text(log) else "start"


def attempt(trainer: Trainer, watched: Watched, kills: int, rng: np.random.Generator) -> dict[str, Any]:
    """A run from its beginning, killed up to `kills` times, then continued to its end: {"kills", "difference"}."""
    folder = trainer.folder("cut")
    shutil.rmtree(folder, ignore_errors=True)
    found: list[str] = []
    for _ in range(kills):
        process = trainer.start("cut", FORKED)
        wait_for_moment(rng, watched, process, folder)
        if not kill(process, rng):
            break
        found.append(interrupted(folder))
    return {"kills": found, "difference": finish(trainer, "cut", FORKED) or difference(trainer)}


def finish(trainer: Trainer, run: str, context: Context) -> str:
    """Let a run come to its end; what went wrong, in words."""
    process = trainer.start(run, context)
    process.join()
    last = [line for line in read_text(trainer.log).splitlines() if line.strip()][-1:]
    return f"{trainer.stage} ends with exit code {process.exitcode}: {' '.join(last)}" if process.exitcode else ""


def difference(trainer: Trainer) -> str:
    """The first thing that the killed run has otherwise than the one left alone; empty when nothing is."""
    line, agree = compare(trainer.folder("whole").parent, trainer.folder("cut").parent, [trainer.stage])
    if not agree:
        return line.removeprefix("rerun: ")
    before, after = (manifest.read(trainer.folder(run)) for run in ("whole", "cut"))
    wrong = [key for key in ("metrics", "spent", "warnings") if before[key] != after[key]]
    return f"{trainer.stage}/manifest.json differs: {wrong[0]} {before[wrong[0]]} → {after[wrong[0]]}" if wrong else ""


# --- all of them -----------------------------------------------------------------------------------------------------


def prepare(trainer: Trainer) -> Watched:
    """The run left alone, once, and the same again under watch. UserError when those two differ already."""
    file = trainer.root / f"{trainer.name}.json"
    if not file.is_file():
        for run in ("whole", "cut"):
            shutil.rmtree(trainer.folder(run), ignore_errors=True)
        wrong = finish(trainer, "whole", ALONE)
        watched = watch(trainer.start("cut", FORKED), trainer.folder("cut"))
        if wrong := wrong or difference(trainer):
            raise UserError(f"{trainer.name}, without any kill: {wrong}; see {trainer.root}")
        write_json(file, vars(watched))
    return Watched(**read_json(file))


def campaign(trainer: Trainer, kills: int, seed: int) -> list[dict[str, Any]]:
    """Runs until there were `kills` kills, or a difference; those that were made before are taken as they are."""
    watched, file = prepare(trainer), trainer.root / f"{trainer.name}_seed_{seed}.jsonl"
    rows = read_jsonl(file) if file.is_file() else []
    rows = [row for row in rows if not row["difference"]]
    while (left := kills - sum(len(row["kills"]) for row in rows)) > 0:
        number = len(rows)
        if number > 10 + 3 * kills:
            raise UserError(
                f"{trainer.name}: {number} runs ended before they could be killed; is the machine too busy?"
            )
        rng = generator(seed, "campaign", trainer.name, number)
        rows.append(attempt(trainer, watched, min(left, 1 if number % 3 else 2), rng))
        write_jsonl(file, rows)
        if rows[-1]["difference"]:
            break
    return rows


def begin(root: Path) -> None:
    """Make the folder ready: kept when the same code made it, else begun again. UserError for a folder of others."""
    mark, now = root / "campaign.json", {"code": manifest.code_version(), "libraries": manifest.library_versions()}
    if mark.is_file():
        if read_json(mark) == now:
            return
        print(f"{root}: made by other code, begins again")
        shutil.rmtree(root)
    elif root.is_dir() and any(root.iterdir()):
        raise UserError(f"{root}: holds other files; name another --dir")
    root.mkdir(parents=True, exist_ok=True)
    process = FORKED.Process(target=write_inputs, args=(root / "inputs",))
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(f"{root}: the inputs cannot be made; see {root}/inputs.log")
    write_json(mark, now)


def table(results: dict[str, list[dict[str, Any]]], root: Path) -> str:
    """A line per trainer: how many kills interrupted what, and what became of the runs."""
    widths = [len(words) for words in KINDS.values()]
    lines = ["  ".join(["trainer ", "runs", "kills", *KINDS.values(), "files", "bytes"])]
    for name, rows in results.items():
        kinds = [kind for row in rows for kind in row["kills"]]
        counts = [f"{kinds.count(kind):{width}}" for kind, width in zip(KINDS, widths, strict=True)]
        files = len(manifest.read(Trainer(name, root).folder("whole"))["outputs"])
        verdict = "differ" if any(row["difference"] for row in rows) else "equal"
        lines.append("  ".join([f"{name:8}", f"{len(rows):4}", f"{len(kinds):5}", *counts, f"{files:5}", verdict]))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit code 1 when bytes differ, 2 with one line for what cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each trainer (default: 20)")
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS), help="which (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--dir", type=Path, default=Path("outputs/campaign"), help="where the runs lie")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # equal sums on every machine, and no waiting for cores
    results: dict[str, list[dict[str, Any]]] = {}
    try:
        begin(arguments.dir)
        for name in arguments.trainers:
            results[name] = campaign(Trainer(name, arguments.dir), arguments.kills, arguments.seed)
            for number, row in enumerate(results[name]):
                if row["difference"]:
                    where = ", ".join(KINDS[kind] for kind in row["kills"])
                    print(f"{name}, run {number}, killed {where}: {row['difference']}; see {arguments.dir}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(results, arguments.dir))
    return 1 if any(row["difference"] for rows in results.values() for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
