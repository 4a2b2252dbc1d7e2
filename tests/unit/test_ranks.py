"""Several processes of one stage: starting them, refusing what cannot be, and nothing at all with one."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from utils import manifest, ranks
from utils.config import resolve
from utils.errors import UserError
from utils.folders import HANDLING, NOT_COMPARED, ROUNDING
from utils.process import LAUNCHER_VARIABLE
from utils.rl.distributed import everywhere, in_order, of_all, own_share, sum_gradients, summed
from utils.settings import OnlineRunSettings, RunSettings
from utils.stage import main

ROOT = Path(__file__).resolve().parents[2]
PRINTS = """
import os
numbers = (os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
os.write(1, (" ".join(numbers) + "\\n").encode())
"""
"""Says who it is in a single write: `print` makes several where PYTHONUNBUFFERED is set, and processes interleave."""


@dataclass(frozen=True)
class Online:
    """A stage that may be several processes."""

    run: OnlineRunSettings


@dataclass(frozen=True)
class Other:
    """A stage that is one."""

    run: RunSettings


def program(folder: Path, code: str) -> list[str]:
    """A command that runs some lines of Python."""
    (folder / "program.py").write_text(code)
    return [sys.executable, str(folder / "program.py")]


def test_one_process_is_a_group_of_its_own() -> None:
    assert (ranks.rank(), ranks.size(), ranks.started()) == (0, 1, (0, 1))
    assert ranks.gather("a") == ["a"] and ranks.from_first(lambda: 3) == 3
    assert list(own_share(3)) == [0, 1, 2] and in_order([4, 5]) == of_all([4, 5]) == [4, 5]
    assert summed({"loss": 0.5, "tokens": 3}) == {"loss": 0.5, "tokens": 3}
    values = torch.tensor([1.0, 2.0])
    assert everywhere(values)[0] is values
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = values
    sum_gradients([weight])
    assert weight.grad is values
    with ranks.joined("cpu"):
        assert not torch.distributed.is_initialized()


def test_shares_interleave_and_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five items on two processes: three and two, and back in order."""
    shares = []
    for number in (0, 1):
        monkeypatch.setattr(ranks, "_group", ranks._Group(number, 2))
        shares.append([f"item {i}" for i in own_share(5)])
    assert shares == [["item 0", "item 2", "item 4"], ["item 1", "item 3"]]
    monkeypatch.setattr("utils.rl.distributed.gather", lambda _: shares)
    assert in_order(shares[0]) == [f"item {i}" for i in range(5)]
    assert of_all(shares[0]) == ["item 0", "item 2", "item 4", "item 1", "item 3"]


def test_launched_processes_know_who_they_are(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ranks.launch(3, program(tmp_path, PRINTS)) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["0 0 3 3", "1 1 3 3", "2 2 3 3"]


def test_the_first_process_gives_the_exit_code(tmp_path: Path) -> None:
    exit_code = "import os; raise SystemExit({0} if os.environ['RANK'] == '0' else {1})"
    assert ranks.launch(2, program(tmp_path, exit_code.format(2, 130))) == 2
    assert ranks.launch(2, program(tmp_path, exit_code.format(0, 1))) == 1
    killed = "import os; os.kill(os.getpid(), 9) if os.environ['RANK'] == '0' else None"
    with pytest.raises(UserError, match="process 0 was ended by SIGKILL; the same command with --resume continues"):
        ranks.launch(2, program(tmp_path, killed))


@pytest.mark.parametrize("limit", ["STARTING", "TIMEOUT"])
def test_a_process_that_does_not_notice_a_failure_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Before all have met, and after."""
    monkeypatch.setattr(ranks, limit, timedelta(seconds=0.2))
    met = "open(os.environ['STAGE_STORE_FILE'] + '.met', 'w')" if limit == "TIMEOUT" else "None"
    stubborn = f"import os, time; {met}; time.sleep(60) if os.environ['RANK'] == '1' else None; raise SystemExit(2)"
    begin = time.monotonic()
    assert ranks.launch(2, program(tmp_path, stubborn)) == 2 and time.monotonic() - begin < 30


@pytest.mark.parametrize("which", [0, 1])
def test_one_that_is_killed_before_all_have_met_ends_the_others_at_once(tmp_path: Path, which: int) -> None:
    """They would wait for it in vain: nothing that could break connects them yet."""
    waits = f"import os, time; os.kill(os.getpid(), 9) if os.environ['RANK'] == '{which}' else time.sleep(60)"
    begin = time.monotonic()
    with pytest.raises(UserError, match=f"process {which} was ended by SIGKILL; the same command with --resume"):
        ranks.launch(2, program(tmp_path, waits))
    assert time.monotonic() - begin < 30


def test_a_process_whose_launcher_is_gone_already_does_not_begin(tmp_path: Path) -> None:
    """It was killed while this one was loading Python, before the system knew that they end together."""
    begins = program(tmp_path, "from utils.process import die_with_parent as d; d(); print('begins')")
    for launcher, code in ((os.getpid(), 0), (2**22 + 1, 1)):  # the second is above every process id of Linux
        environment = {**os.environ, "PYTHONPATH": str(ROOT), LAUNCHER_VARIABLE: str(launcher)}
        assert subprocess.run(begins, env=environment, capture_output=True).returncode == code


def torchrun(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(count))


def test_the_number_of_processes_comes_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, 1, 2)
    assert ranks.started() == (1, 2)
    found = ranks.counted(resolve(Online, [], doc="", script="x.py"), 2)
    assert (ranks.processes_of(found), found.sources["run.num_processes"]) == (2, "torchrun")
    agreed = resolve(Online, ["--num_processes", "2"], doc="", script="x.py")
    assert ranks.counted(agreed, 2) is agreed
    with pytest.raises(UserError, match="--num_processes 3: torchrun started 2; leave the flag out"):
        ranks.counted(resolve(Online, ["--num_processes", "3"], doc="", script="x.py"), 2)


def test_other_stages_refuse_torchrun_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(cfg: Any, stage: Any) -> None:
        raise AssertionError("not reached")

    for rank in (0, 1):
        torchrun(monkeypatch, rank, 2)
        assert main(Other, run, "", "00_check_data.py", argv=[]) == 2
    assert capsys.readouterr().err == (
        "error: this stage runs as one process, and torchrun started 2; call it with python\n"
    )


def test_settings_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [resolve(Online, ["--seed", seed], doc="", script="x.py") for seed in ("0", "1")]
    monkeypatch.setattr(ranks, "gather", lambda _: [ranks.to_dict(one.config) for one in found])
    with pytest.raises(UserError, match="process 1 has other settings than process 0: run.seed was 0 and is now 1"):
        ranks.check_settings_agree(found[0])


def test_the_number_of_processes_may_change_but_rerun_keeps_it() -> None:
    run = {"num_processes": 1, "fsdp": False, "seed": 0}
    work = {"run": run, "rl": {"micro_batch_tokens": 512, "learning_rate": 1.0}}
    for section, name, value in (("run", "num_processes", 2), ("run", "fsdp", True), ("rl", "micro_batch_tokens", 64)):
        assert manifest.difference(work, {**work, section: {**work[section], name: value}}, NOT_COMPARED) == ""
    for section, name in (("run", "seed"), ("rl", "learning_rate")):
        other = {**work, section: {**work[section], name: 7}}
        assert f"{section}.{name} was" in manifest.difference(work, other, NOT_COMPARED)
    assert not {name.partition(".")[2] for name in ROUNDING} & set(HANDLING)
    for script in ("05_train_ppo", "06_train_grpo", "07_train_rloo"):
        assert "num_processes" in OnlineRunSettings.__dataclass_fields__
        assert importlib.import_module(script).Config.__annotations__["run"] == "OnlineRunSettings"
