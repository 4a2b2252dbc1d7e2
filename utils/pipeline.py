"""Stages in a row, as programs: which flags each gets, which run they write, and how one of them is run."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from utils.config import ROOT, Resolved, resolve, to_dict
from utils.errors import UserError
from utils.files import read_json
from utils.flags import split_scoped
from utils.folders import NOT_COMPARED, is_held
from utils.keys import TIER_FLAGS, flags_of, nearest, sections_of, tier
from utils.process import PARENT_VARIABLE, Terminated, end
from utils.runs import STAGES, newest_run, next_run

RUN_MANIFEST = "run_manifest.json"
Child: TypeAlias = "subprocess.Popen[bytes]"


@dataclass(frozen=True)
class Variant:
    """One way of training a method: what its folders' names end in, and the flags it is given."""

    suffix: str = ""
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One call of a stage script: its folder in the run and the arguments that the plan gives it."""

    script: str
    folder: str
    arguments: tuple[str, ...] = ()

    @property
    def scope(self) -> str:
        """The name before the dot in `--sft.learning_rate`."""
        return scope_of(self.script)


def scope_of(script: str) -> str:
    """`sft` for 03_sft_train."""
    return STAGES[script].split("_", 1)[1]


def load_script(script: str) -> Any:
    """A stage script as a module. UserError when it is not there."""
    if not (ROOT / f"{script}.py").is_file():
        raise UserError(f"{script}.py: no such stage script in {ROOT}")
    return importlib.import_module(script)


def known_flags(script: str) -> set[str]:
    """Every flag that a stage script takes, those that name settings files included."""
    config_class = load_script(script).Config
    tiers = {tier(section_class) for section_class in sections_of(config_class).values()}
    return set(flags_of(config_class)) | {flag for level, flag in TIER_FLAGS.items() if level in tiers}


# --- flags -----------------------------------------------------------------------------------------------------------


def split_flags(argv: Sequence[str], own: set[str], plan: Sequence[Step]) -> tuple[list[str], dict[str, list[str]]]:
    """Part the driver's own flags from those of single stages: (own, flags by scope).

    A flag that one script alone knows needs no scope; where several know it, UserError names the scoped spellings.
    """
    scripts = {step.scope: step.script for step in plan}
    rest, scoped = split_scoped(argv, list(scripts))
    known = {scope: known_flags(script) for scope, script in scripts.items()}
    mine: list[str] = []
    into = mine
    for word in rest:
        if word.startswith("--"):
            name = word[2:].split("=")[0]
            bare = name.removeprefix("no_")
            scopes = [scope for scope, flags in known.items() if name in flags or bare in flags]
            if name in own or bare in own or name == "help":
                into = mine
            elif len(scopes) == 1:
                into = scoped.setdefault(scopes[0], [])
            elif scopes:
                spellings = " or ".join(f"--{scope}.{name}" for scope in scopes)
                raise UserError(f"--{name}: more than one stage knows it; write {spellings}")
            else:
                everything = {f"--{flag}" for flags in known.values() for flag in flags} | {f"--{flag}" for flag in own}
                raise UserError(f"unknown flag --{name}{nearest(word, sorted(everything))}")
        into.append(word)
    for step in plan:
        fixed = {word for word in step.arguments if word.startswith("--")} | {"--output_dir", "--if_needed", "--resume"}
        for word in scoped.get(step.scope, []):
            if word.split("=")[0] in fixed:
                flag = f"--{step.scope}.{word[2:].split('=')[0]}"
                raise UserError(f"{flag}: is set by the driver; to set it, run {step.script}.py by itself")
    return mine, scoped


def arguments_of(step: Step, shared: Mapping[str, Any], scoped: Mapping[str, Sequence[str]], run: Path) -> list[str]:
    """The command line of a step: the shared flags its script knows, its own, the plan's arguments, and its folder."""
    known = known_flags(step.script)
    words: list[str] = []
    for name, value in shared.items():
        if name in known:
            words += [f"--{'' if value else 'no_'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    fixed = [word.format(run=run.as_posix()) for word in step.arguments]
    return [*words, *scoped.get(step.scope, ()), *fixed, "--output_dir", (run / step.folder).as_posix(), "--if_needed"]


def resolve_step(step: Step, arguments: Sequence[str]) -> Resolved[Any]:
    """The settings a step would run with. UserError begins with the script's name."""
    module = load_script(step.script)
    try:
        return resolve(module.Config, arguments, doc=module.__doc__ or "", script=f"{step.script}.py")
    except UserError as error:
        raise UserError(f"{step.script}: {error}") from None


def fingerprint(plan: Sequence[Step], shared: Mapping[str, Any], scoped: Mapping[str, Sequence[str]]) -> str:
    """A hash of every resolved setting of a plan, without the run's name and without how it is run."""
    settings: dict[str, Any] = {}
    for step in plan:
        found = to_dict(resolve_step(step, arguments_of(step, shared, scoped, Path("RUN"))).config)
        settings[step.folder] = {
            section: {name: value for name, value in values.items() if f"{section}.{name}" not in NOT_COMPARED}
            for section, values in found.items()
        }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


# --- which stages, which run -----------------------------------------------------------------------------------------


def select(plan: Sequence[Step], first: str, last: str) -> list[Step]:
    """The steps from `first` to `last`, each a folder, a script, a scope or a number; empty means the end of the plan.

    Where a name means several steps (`10`, `sft`), the part begins with the first and ends with the plain folder's and
    those of the same script that directly follow it.
    """
    begin = _matching(plan, first, "from_stage")[0] if first else 0
    end = len(plan) - 1
    if last:
        matching = _matching(plan, last, "to_stage")
        end = next((i for i in matching if plan[i].folder == STAGES[plan[i].script]), matching[-1])
        if last != plan[end].folder:  # a swept flag's further folders of the same stage
            while end + 1 < len(plan) and plan[end + 1].script == plan[end].script:
                end += 1
    if begin > end:
        raise UserError(f"--from_stage {first} comes after --to_stage {last}; order: {_folders(plan)}")
    return list(plan[begin : end + 1])


def _matching(plan: Sequence[Step], name: str, flag: str) -> list[int]:
    if name in [step.folder for step in plan]:
        return [next(i for i, step in enumerate(plan) if step.folder == name)]
    number = f"{int(name):02d}" if name.isdecimal() else ""
    names = [(step.script, step.scope, step.script[:2]) for step in plan]
    found = [i for i, known in enumerate(names) if (number or name.removesuffix(".py")) in known]
    if not found:
        raise UserError(
            f"--{flag} {name}: no such stage; order: {_folders(plan)}{nearest(name, [step.folder for step in plan])}"
        )
    return found


def _folders(plan: Sequence[Step]) -> str:
    return " ".join(step.folder for step in plan)


def choose_run(outputs: Path, run_id: str, settings: str, continuing: bool) -> tuple[Path, str]:
    """The run folder and why it was taken.

    --run_id names it; else the newest run when it is unfinished with the same settings (or when only later stages are
    asked for, `continuing`); else the next free number.
    """
    if run_id:
        if Path(run_id).name != run_id or run_id.startswith("."):
            raise UserError(f"--run_id {run_id}: a plain name is expected; --output_root says where runs lie")
        return outputs / run_id, "--run_id"
    newest = newest_run(outputs)
    if newest is None or is_held(newest):
        if newest is None and continuing:
            raise UserError(f"--from_stage: there is no run in {outputs} to continue; leave it out to begin one")
        return next_run(outputs), "a new run"
    if continuing:
        return newest, "the newest run, since --from_stage continues one"
    record = read_json(newest / RUN_MANIFEST) if (newest / RUN_MANIFEST).is_file() else {}
    if record.get("settings") == settings and record.get("status") != "completed":
        return newest, f"it is unfinished ({_ended(record['status'])}) and has the same settings"
    return next_run(outputs), "a new run"


def _ended(status: str) -> str:
    return {"running": "was killed", "partial": "later stages were left out"}.get(status, status)


# --- running ---------------------------------------------------------------------------------------------------------


def command_of(step: Step, arguments: Sequence[str]) -> str:
    """What a user would type for this step."""
    return shlex.join(["python", f"{step.script}.py", *arguments])


def print_plan(
    chosen: Sequence[Step], arguments: Mapping[str, Sequence[str]], resolved: Mapping[str, Resolved[Any]]
) -> None:
    """--dry_run: every command, and in words what the stages that can foretell it would do."""
    for step in chosen:
        print(command_of(step, arguments[step.folder]))
        plan = getattr(load_script(step.script), "plan", None)
        for line in plan(resolved[step.folder].config) if plan else ():
            print(f"    {line}")


def run_step(step: Step, arguments: Sequence[str], threads: int = 0) -> int:
    """Run a stage as a subprocess that cannot outlive this process; its exit code, 128 + n when signal n ended it."""
    with running(step, arguments, threads=threads) as process:
        code = process.wait()
    return exit_code(code)


def exit_code(code: int) -> int:
    """A subprocess's code as a shell states it."""
    return code if code >= 0 else 128 - code


@contextmanager
def running(step: Step, arguments: Sequence[str], output: IO[bytes] | None = None, threads: int = 0) -> Iterator[Child]:
    """A stage as a subprocess, which has ended when the block ends: by itself, or asked to where a signal ended that.

    `output` takes what it prints; `threads` is how many it computes with (0: as many as it likes).
    """
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, str(ROOT / f"{step.script}.py"), *arguments]
    with subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            yield process
            process.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the stage too: it writes its manifest and ends by itself
            end(process, patience=10.0)
            raise
        except Terminated:
            process.terminate()
            end(process, patience=60.0)
            raise
