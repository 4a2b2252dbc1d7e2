"""How long until a script's --help answers, and what importing the settings costs?

Every script of the project is called with --help, in turn, each time as a fresh process; the slowest counts. Beside
it: `import utils.config`, which must not load torch; an interpreter that does nothing; `trl grpo --help`.

    python -m benchmarks.startup
    python -m benchmarks.startup --repeats 9 --json benchmarks/results/startup.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.measure import Figures, alternate, command, compared
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
IMPORT = "import sys, utils.config; sys.exit('torch' in sys.modules)"
OTHERS = {
    "import utils.config": ["-c", IMPORT],
    "an empty program": ["-c", ""],
    "trl grpo --help": ["-c", "from trl.cli import main; main()", "grpo", "--help"],
}


def run(flags: argparse.Namespace) -> Figures:
    """Measure and name the slowest script."""
    scripts = sorted(path.name for path in ROOT.glob("*.py"))
    commands = {name: [name, "--help"] for name in scripts} | OTHERS
    values = alternate({name: partial(call, arguments) for name, arguments in commands.items()}, flags.repeats)
    every = compared(values)
    slowest = max(scripts, key=every["median"].__getitem__)
    shown = {f"{slowest} --help": values[slowest]} | {name: values[name] for name in OTHERS}
    notes = [f"each script's --help, s: { {name: round(every['median'][name], 3) for name in scripts} }"]
    notes.append("import utils.config loads no torch")
    title = f"startup, slowest of {len(scripts)} scripts"
    return {"title": title, **compared(shown), "scripts": {name: values[name] for name in scripts}, "notes": notes}


def call(arguments: Sequence[str]) -> None:
    """A fresh process in the project's root. UserError when it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        why = "utils.config loads torch" if arguments[-1] == IMPORT else last
        raise UserError(f"python {' '.join(arguments)}: {why}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command("benchmarks.startup", __doc__, argv, lambda parser: None, run, ("trl",))


if __name__ == "__main__":
    raise SystemExit(main())
