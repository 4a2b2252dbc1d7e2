"""A training script that is killed while it trains, then the same command with --resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def kill_9_and_resume(folder: Path, script: str, task_maker: str, inputs: list[str], marker: str) -> tuple[Path, Path]:
    """Folders of a run on the letter task that was left alone and of one that was killed when `marker` appeared.

    `task_maker` is the dotted name of the `make_task` that the script calls.
    """
    module, _, function = task_maker.rpartition(".")
    runner = folder / "train.py"
    runner.write_text(
        f"import importlib, {module}, tests.invariants.tiny as tiny\n"
        f"{module}.{function} = lambda settings, spec: tiny.LetterTask()\n"
        f"script = importlib.import_module('{script}')\n"
        "raise SystemExit(script.main(script.Config, script.run, script.__doc__, script.__file__))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(name: str, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(runner), "--output_dir", str(folder / name), *inputs, *flags]
        return subprocess.Popen(command, env=environment, cwd=ROOT)

    assert start("whole").wait() == 0
    process = start("cut")
    while not (folder / "cut" / marker).exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start("cut", "--resume").wait() == 0
    return folder / "whole", folder / "cut"
