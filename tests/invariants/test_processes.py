"""Two processes do what one does: real ones, started by --num_processes and by torchrun."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.invariants.tiny import letter_prompts, save_letter_model
from tests.invariants.watched import watch
from utils.files import read_json, read_jsonl, sha256, write_jsonl, write_text
from utils.rl.session import Session
from utils.stage import main

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"ppo": "05_train_ppo", "grpo": "06_train_grpo", "rloo": "07_train_rloo"}
SAMPLES = {"ppo": "--group_size", "grpo": "--group_size", "rloo": "--num_samples"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
TWO = ["--num_processes", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--config_file"]
ONE_MACHINE = [*ACCELERATE, "configs/accelerate/one_machine.yaml"]
MACHINES = {
    "accelerate": (
        [*ACCELERATE, "configs/accelerate/two_machines.yaml", "--main_process_ip", "127.0.0.1", "--num_processes", "2"],
        "--main_process_port", "--machine_rank",
    ),
    "torchrun": (
        ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1"],
        "--master_port", "--node_rank",
    ),
}  # fmt: skip
"""What starts a machine's processes, and what it calls the port and the machine's number."""
PATIENCE = 900.0
pytestmark = pytest.mark.slow


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Flags of a small run on the letter task; five prompts, so that the processes' shares differ."""
    save_letter_model(tmp_path / "start")
    write_jsonl(tmp_path / "train.jsonl", letter_prompts(11, seed=1))
    write_jsonl(tmp_path / "val.jsonl", letter_prompts(7, seed=2))
    write_text(tmp_path / "reward_spec.yaml", "none: 0\n")
    rates = {"learning_rate": 3e-3, "critic_learning_rate": 1e-2, "micro_batch_tokens": 128}
    write_text(tmp_path / "model.yaml", json.dumps({"model": {"name": str(tmp_path / "start")}, "rl": rates}))
    return [
        "--config", str(tmp_path / "model.yaml"), "--seed", "3", "--eval_every", "2", "--prompts_per_step", "5",
        "--max_new_tokens", "3", "--policy_ckpt", str(tmp_path / "start"),
        "--train_jsonl", str(tmp_path / "train.jsonl"), "--val_jsonl", str(tmp_path / "val.jsonl"),
        "--reward_spec", str(tmp_path / "reward_spec.yaml"), "--device", "cpu",
    ]  # fmt: skip


def flags_of(method: str, folder: Path, inputs: list[str], *more: str) -> list[str]:
    return ["--output_dir", str(folder), SAMPLES[method], "4", *inputs, *more]


def alone(method: str, flags: list[str], seen: Path) -> dict[str, Any]:
    """The script in this process; what it wrote down."""
    script = importlib.import_module(SCRIPTS[method])
    with pytest.MonkeyPatch.context() as patch:
        watch(patch.setattr, seen)
        assert main(script.Config, script.run, script.__doc__, str(script.__file__), argv=flags) == 0
    found: dict[str, Any] = torch.load(seen / "0.pt")
    return found


def start(method: str, flags: list[str], seen: Path, launcher: list[str] | None = None, **extra: str) -> Any:
    """The script as two processes."""
    variables = {"WATCHED_SCRIPT": SCRIPTS[method], "WATCHED_FOLDER": str(seen)} | extra
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, *(launcher or []), "-m", "tests.invariants.watched", *flags, *([] if launcher else TWO)]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hear_ctrl_c
    )


def hear_ctrl_c() -> None:
    """Also where the tests are a background job of a shell, which is deaf to it and passes that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """(exit code, stderr without the warnings of training)."""
    _, error = process.communicate(timeout=PATIENCE)
    lines = error.decode().splitlines(keepends=True)
    return process.returncode, "".join(line for line in lines if not line.startswith("warning: "))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("method", "launcher", "more"),
    [
        ("ppo", ONE_MACHINE, ["--ppo_epochs", "2", "--mini_batches", "2", "--kl_target", "0.01", "--stop_kl", "0.05"]),
        ("grpo", [], ["--num_iterations", "2", "--mini_batches", "2", "--loss_type", "dapo"]),
        ("rloo", TORCHRUN, []),
    ],
)
def test_two_processes_equal_one_on_recorded_rollouts(
    tmp_path: Path, inputs: list[str], method: str, launcher: list[str], more: list[str]
) -> None:
    """Loss, gradients and weights of 20 steps, and every other figure, within 1e-4 in fp32."""
    flags = [*inputs, "--steps", "20", "--eval_every", "20", *more]
    one = alone(method, flags_of(method, tmp_path / "one", flags), tmp_path / "seen_one")
    seen, replay = tmp_path / "seen_two", str(tmp_path / "seen_one" / "0.pt")
    process = start(method, flags_of(method, tmp_path / "two", flags), seen, launcher, WATCHED_REPLAY=replay)
    code, error = finish(process)
    assert code == 0, error
    first, second = torch.load(seen / "0.pt"), torch.load(seen / "1.pt")
    assert len({first["pid"], second["pid"], process.pid}) == 3
    assert len(first["weights"]) == len(one["weights"]) >= 20
    for name in ("weights", "gradients"):
        for ours, other, lone in zip(first[name], second[name], one[name], strict=True):
            assert torch.equal(ours, other), "the processes drift apart"
            assert torch.allclose(ours, lone, rtol=0, atol=1e-4), f"{name} off by {float((ours - lone).abs().max())}"
    assert float((one["weights"][-1] - one["weights"][0]).abs().max()) > 1e-2
    rows, lone_rows = (read_jsonl(tmp_path / name / "logs" / "train.jsonl") for name in ("two", "one"))
    assert [list(row) for row in rows] == [list(row) for row in lone_rows]
    for row, lone_row in zip(rows, lone_rows, strict=True):
        assert row == {name: pytest.approx(value, abs=1e-4) for name, value in lone_row.items()}, "figures differ"
    manifests = [read_json(tmp_path / name / "manifest.json") for name in ("one", "two")]
    assert manifests[0]["spent"] == manifests[1]["spent"]
    assert [one["config"]["run"]["num_processes"] for one in manifests] == [1, 2]
    if method == "rloo":
        samples = [read_json(tmp_path / name / "logs" / "samples" / "step_20.json") for name in ("one", "two")]
        assert {row["record"] for row in samples[0]} == {row["record"] for row in samples[1]}
        variances = [read_json(tmp_path / name / "gradient_variance.json")["variance"] for name in ("one", "two")]
        assert variances[1] == pytest.approx(variances[0], rel=1e-4)


@pytest.mark.parametrize(("launcher", "lora"), [("accelerate", False), ("torchrun", True)])
def test_two_machines_equal_one_process(tmp_path: Path, inputs: list[str], launcher: str, lora: bool) -> None:
    """A command for each, here on one machine, in the same folder; whole policies and adapters."""
    flags = [*inputs, "--steps", "3", *(["--use_lora"] if lora else [])]
    one = alone("grpo", flags_of("grpo", tmp_path / "one", flags), tmp_path / "seen_one")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    seen, replay = tmp_path / "seen_two", str(tmp_path / "seen_one" / "0.pt")
    command, port_flag, number_flag = MACHINES[launcher]
    two = flags_of("grpo", tmp_path / "two", flags)
    commands = [[*command, port_flag, port, number_flag, number] for number in "01"]
    machines = [start("grpo", two, seen, one_of_them, WATCHED_REPLAY=replay) for one_of_them in commands]
    ends = [finish(machine) for machine in machines]
    assert [code for code, _ in ends] == [0, 0], ends
    both = [torch.load(seen / f"{rank}.pt") for rank in (0, 1)]
    assert torch.equal(both[0]["weights"][-1], both[1]["weights"][-1])
    assert torch.allclose(both[0]["weights"][-1], one["weights"][-1], rtol=0, atol=1e-4)


def test_killed_live_runs_go_on_with_the_same_and_another_number_of_processes(
    tmp_path: Path, inputs: list[str]
) -> None:
    """Tokens of the first rollout are those of one process. kill -9 of what the user started ends every process."""
    flags = [*inputs, "--steps", "4"]
    one = alone("grpo", flags_of("grpo", tmp_path / "one", flags), tmp_path / "seen_one")
    whole = start("grpo", flags_of("grpo", tmp_path / "whole", flags), tmp_path / "seen_whole")
    assert finish(whole)[0] == 0
    two = [torch.load(tmp_path / "seen_whole" / f"{rank}.pt") for rank in (0, 1)]
    assert two[0]["tokens"][1] == two[1]["tokens"][1] == one["tokens"][1]
    cut = start("grpo", flags_of("grpo", tmp_path / "cut", flags), tmp_path / "seen_cut")
    wait_for(lambda: (tmp_path / "cut" / "ckpt_grpo" / "last_complete").exists() or cut.poll() is not None)
    cut.send_signal(signal.SIGKILL)
    finish(cut)
    pids = [torch.load(tmp_path / "seen_cut" / f"{rank}.pt")["pid"] for rank in (0, 1)]
    wait_for(lambda: not any(map(is_running, pids)))
    shutil.copytree(tmp_path / "cut", tmp_path / "cut_one")
    again = start("grpo", flags_of("grpo", tmp_path / "cut", flags, "--resume"), tmp_path / "seen_again")
    assert finish(again)[0] == 0
    for name in ("ckpt_grpo/final", "ckpt_grpo/step_4/model.safetensors", "logs/train.jsonl", "val_generations"):
        assert sha256(tmp_path / "cut" / name) == sha256(tmp_path / "whole" / name), name
    alone("grpo", flags_of("grpo", tmp_path / "cut_one", flags, "--resume"), tmp_path / "seen_cut_one")
    ends = [load_file(tmp_path / name / "ckpt_grpo" / "final" / "model.safetensors") for name in ("cut_one", "one")]
    for name, weight in ends[0].items():
        assert torch.allclose(weight, ends[1][name], rtol=0, atol=1e-4), name
    resumed = read_json(tmp_path / "cut_one" / "manifest.json")
    assert resumed["config"]["run"]["num_processes"] == 1 and resumed["spent"] == read_json(
        tmp_path / "one" / "manifest.json")["spent"]  # fmt: skip
    assert "goes on with --num_processes 1, was 2" in " ".join(resumed["warnings"])
    # and the other way: stopped in the third step as one process, gone on with as two
    record = Session.record

    def stop(self: Session, step: int, *rest: Any) -> None:
        record(self, step, *rest)
        if step == 3:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Session, "record", stop)
        alone("grpo", flags_of("grpo", tmp_path / "one_cut", flags), tmp_path / "seen_one_cut")
    more = start("grpo", flags_of("grpo", tmp_path / "one_cut", flags, "--resume"), tmp_path / "seen_more")
    assert finish(more)[0] == 0
    gone_on = load_file(tmp_path / "one_cut" / "ckpt_grpo" / "final" / "model.safetensors")
    for name, weight in gone_on.items():
        assert torch.allclose(weight, ends[1][name], rtol=0, atol=1e-4), name
    warnings = read_json(tmp_path / "one_cut" / "manifest.json")["warnings"]
    assert "goes on with --num_processes 2, was 1" in " ".join(warnings)


class StoppedError(Exception):
    """Ends a run."""


def test_an_error_in_the_second_process_ends_both_in_one_line(tmp_path: Path, inputs: list[str]) -> None:
    flags = flags_of("grpo", tmp_path / "run", [*inputs, "--steps", "4"])
    code, error = finish(start("grpo", flags, tmp_path / "seen", WATCHED_NAN="1,2"))
    assert code == 2 and error.count("\n") == 1
    assert re.match(r"error: step 2: record 1-\d+ \(sample \d\): the loss is nan at token 1", error)
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert (manifest["status"], manifest["error"]) == ("failed", error.removeprefix("error: ").strip())


def test_every_process_needs_a_prompt_of_each_update(
    tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module(SCRIPTS["grpo"])
    flags = flags_of("grpo", tmp_path / "run", [*inputs, "--mini_batches", "2", "--num_processes", "3"])
    assert main(script.Config, script.run, script.__doc__, str(script.__file__), argv=flags) == 2
    assert "--num_processes 3: an update has only 2 prompts to share; start fewer" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["a process", "all"])
def test_signals_end_all(tmp_path: Path, inputs: list[str], which: str) -> None:
    """One process is killed, as for want of memory; or Ctrl-C is pressed, which only the first call gets."""
    flags = flags_of("grpo", tmp_path / "run", [*inputs, "--steps", "1000"])
    process = start("grpo", flags, tmp_path / "seen")
    written = [tmp_path / "run" / "ckpt_grpo" / "last_complete", *(tmp_path / "seen" / f"{r}.pt" for r in (0, 1))]
    wait_for(lambda: all(path.exists() for path in written) or process.poll() is not None)
    pids = [torch.load(path)["pid"] for path in written[1:]]
    os.kill(*((pids[1], signal.SIGKILL) if which == "a process" else (process.pid, signal.SIGINT)))
    code, error = finish(process)
    assert error.count("\n") == 1 and not any(map(is_running, pids))
    status = read_json(tmp_path / "run" / "manifest.json")["status"]
    if which == "all":
        assert (code, status) == (130, "interrupted") and "with --resume continues" in error
    else:
        assert (code, status) == (2, "failed")
        assert error.startswith("error: one of the 2 processes ended without a word")
