"""How long do stages 00 to 02 take on as many records as FinQA has, and how much memory?

The records are made up by repeating: those of finqa_mini, or with --data those of a folder of FinQA's files, under new
ids and pages until each split has FinQA's size (6,251, 883 and 1,147 records). Each stage is a fresh process; its
seconds are wall time, start included, its memory the highest resident size. There is no opponent: the targets are in
seconds and bytes.

    python -m benchmarks.data
    python -m benchmarks.data --data datasets/finqa --json benchmarks/results/data-finqa.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Figures, at_least_one, command, compared, shown
from utils.errors import UserError
from utils.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    "00_check_data": "00_data_validation",
    "01_prepare_dataset": "01_preprocessing",
    "02_build_rewards": "02_rewards",
}
SIZES = {"train": 6251, "dev": 883, "test": 1147}
ALL = "stages 00 to 02"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where the records come from, how many there shall be."""
    parser.add_argument("--data", type=Path, help="folder of FinQA's {train,dev,test}.json (default: finqa_mini)")
    parser.add_argument(
        "--records", type=int, default=sum(SIZES.values()), help="of all splits (default: FinQA's 8281)"
    )


def run(flags: argparse.Namespace) -> Figures:
    """Measure."""
    at_least_one(flags, "records")
    seconds: dict[str, list[float]] = {name: [] for name in (ALL, *STAGES)}
    memory: dict[str, list[int]] = {name: [] for name in STAGES}
    with tempfile.TemporaryDirectory() as folder:
        written = make_up(flags, Path(folder) / "data")
        for repeat in range(flags.repeats):
            for name in STAGES:
                taken, highest = stage(name, Path(folder), repeat)
                seconds[name].append(taken)
                memory[name].append(highest)
            seconds[ALL].append(sum(seconds[name][-1] for name in STAGES))
    source = "finqa_mini" if flags.data is None else "FinQA"
    peak = max(max(found) for found in memory.values())
    facts = {"ratio": {}, "also": f"highest memory {shown(peak, 'bytes')}", "peak_bytes": peak, "memory": memory}
    return {"title": f"data, {written} records by repeating {source}", **compared(seconds), **facts}


def make_up(flags: argparse.Namespace, folder: Path) -> int:
    """Write the three splits; how many records they hold."""
    sizes = {split: max(1, size * flags.records // sum(SIZES.values())) for split, size in SIZES.items()}
    sizes["train"] = max(1, flags.records - sizes["dev"] - sizes["test"])
    for split, size in sizes.items():
        records = _records(split, flags.data)
        write_json(
            folder / f"{split}.json", [copied(records[i % len(records)], i // len(records)) for i in range(size)]
        )
    return sum(sizes.values())


def _records(split: str, data: Path | None) -> list[dict[str, Any]]:
    """FinQA's JSON objects. UserError for a file that holds none."""
    if data is None:
        from utils.finqa.mini import generate
        from utils.finqa.records import format_records

        return list(json.loads(format_records(generate(0)[split], split)))
    found = read_json(data / f"{split}.json")
    if not isinstance(found, list) or not found:
        raise UserError(f"{data / split}.json: expected a list of FinQA's records")
    return found


def copied(record: dict[str, Any], number: int) -> dict[str, Any]:
    """The record as one of another report; the first copy is the record itself."""
    if not number:
        return record
    return {**record, "id": f"copy{number}/{record['id']}", "filename": f"copy{number}/{record['filename']}"}


def stage(name: str, folder: Path, repeat: int) -> tuple[float, int]:
    """Wall seconds of a stage and its highest resident bytes. UserError when it fails."""
    run_folder = folder / "outputs" / f"run_{repeat + 1:03d}" / STAGES[name]
    model = ["--config", str(ROOT / "configs" / "models" / "llama-tiny.yaml")] if name == "01_prepare_dataset" else []
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / f"{name}.py"), "--task", "finqa", "--data_root", str(folder / "data"), *model,
         "--output_dir", str(run_folder), "--quiet"],
        cwd=folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    taken = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{name} ended with code {process.returncode}; its message stands above")
    return taken, usage.ru_maxrss * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command("benchmarks.data", __doc__, argv, add_flags, run, ("scikit-learn", "tokenizers"))


if __name__ == "__main__":
    raise SystemExit(main())
