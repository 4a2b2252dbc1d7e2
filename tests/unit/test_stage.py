"""A stage's folder and manifest: what is kept, refused, continued and replaced, and how an end is recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from utils import manifest
from utils.config import resolve, setting
from utils.errors import UserError
from utils.files import sha256
from utils.folders import is_held
from utils.logs import TrainLog
from utils.process import Terminated, signals_raise
from utils.settings import LoraSettings, ModelSettings, RunSettings, TaskSettings
from utils.stage import Stage, _follow, main

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Inputs:
    """Flags of this stage."""

    size: int = setting(1, "how much")


@dataclass(frozen=True)
class Config:
    run: RunSettings
    task: TaskSettings
    inputs: Inputs


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


FOLDER = Path("outputs/run_001/03_sft")


def work(cfg: Config, stage: Stage) -> None:
    """A stage that reads a file and writes one."""
    if Path("data.txt").exists():
        stage.input("data.txt")
    stage.path("deep", "out.txt").write_text(str(cfg.inputs.size))
    stage.report({"score": cfg.inputs.size})
    stage.spent(completions=3)


def fail(cfg: Config, stage: Stage) -> None:
    stage.path("half.txt").write_text("half")
    raise UserError("the data are broken (data.txt:3)")


def call(run: Callable[[Config, Stage], None], *argv: str, folder: Path = FOLDER) -> int:
    return main(Config, run, "A stage.", "03_sft_train.py", argv=["--output_dir", str(folder), *argv])


def facts(folder: Path = FOLDER) -> dict[str, Any]:
    return manifest.read(folder)


def test_a_finished_manifest_tells_the_whole_story(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.txt").write_text("data")
    assert call(work, "--size", "2") == 0
    found = facts()
    assert (found["status"], found["stage"], found["seed"], found["error"]) == ("completed", "03_sft", 0, None)
    assert found["command"] == f"python 03_sft_train.py --output_dir {FOLDER} --size 2"
    assert found["config"]["inputs"] == {"size": 2} and found["sources"]["inputs.size"] == "flag"
    assert found["inputs"] == {"data.txt": sha256("data.txt")}
    assert found["outputs"] == {"deep/out.txt": sha256(FOLDER / "deep/out.txt")}
    assert found["metrics"] == {"score": 2} and found["spent"] == {"completions": 3}
    assert found["libraries"]["torch"].startswith("2.") and found["hardware"]["cores"] >= 1
    assert len(found["code"]["commit"]) == 40
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("03_sft_train: task finqa_mini (") and "the default" in first and str(FOLDER) in first


def test_no_environment_value_is_ever_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    assert call(work) == 0
    assert "very_secret" not in (FOLDER / manifest.NAME).read_text()


def test_a_finished_stage_is_not_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(work) == 0
    before = sha256(FOLDER)
    assert call(work) == 2
    assert "is finished; --overwrite replaces it, --resume keeps it" in capsys.readouterr().err
    assert sha256(FOLDER) == before
    (FOLDER / "deep/out.txt").write_text("edited")
    (FOLDER / "deep/old.txt").write_text("old")
    assert call(work, "--overwrite", "--size", "5") == 0
    assert not (FOLDER / "deep/old.txt").exists() and (FOLDER / "deep/out.txt").read_text() == "5"


def test_another_program_s_manifest_is_none_of_ours() -> None:
    for content in ("[]", '{"name": "app", "icons": []}'):
        Path("manifest.json").write_text(content)
        Path("data.txt").write_text("data")
        assert call(work, "--overwrite") == 0 and facts()["parents"] == []


def test_runs_lie_where_output_root_says() -> None:
    assert main(Config, work, "", "03_sft_train.py", argv=["--output_root", "big"]) == 0
    assert Path("big/run_001/03_sft/manifest.json").is_file() and not Path("outputs").exists()

    def reads_the_run(cfg: Config, stage: Stage) -> None:
        stage.previous("03_sft_train", "deep", "out.txt")

    argv = ["--output_root", "big", "--output_dir", "far/away"]
    assert main(Config, reads_the_run, "", "04_generate_candidates.py", argv=argv) == 0
    assert list(manifest.read(Path("far/away"))["inputs"]) == ["big/run_001/03_sft/deep/out.txt"]


def test_a_folder_that_no_system_takes_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(work, folder=Path("x" * 300)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "name too long" in error and error.count("\n") == 1


def test_a_reader_that_goes_away_fails_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(cfg: Config, stage: Stage) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("utils.stage.os.dup2", lambda *given: 0)
    assert call(gone) == 128 + 13 and facts()["status"] == "failed" and "reader" in facts()["error"]


def test_a_mistake_in_the_new_command_costs_no_finished_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(work) == 0
    before = {path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file() and path.name != manifest.LOCK}

    def mistaken(cfg: Config, stage: Stage) -> None:
        assert not (FOLDER / "deep").exists()
        stage.report({"seen": 1})
        stage.input("nowhere.txt")

    assert call(mistaken, "--overwrite") == 2 and "nowhere.txt" in capsys.readouterr().err
    assert {
        path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file() and path.name != manifest.LOCK
    } == before
    assert call(work, "--resume") == 0 and "kept" in capsys.readouterr().out

    def stopped(cfg: Config, stage: Stage) -> None:
        raise KeyboardInterrupt

    def full(cfg: Config, stage: Stage) -> None:
        raise OSError(28, "No space left on device")

    for end, code in ((stopped, 130), (full, 2)):
        assert call(end, "--overwrite") == code
        assert {p: p.read_bytes() for p in FOLDER.rglob("*") if p.is_file() and p.name != manifest.LOCK} == before
    # a log makes room, and once something new stands there the old has gone
    assert call(lambda cfg, stage: TrainLog(stage.dir).close() or stage.path("x"), "--overwrite") == 0
    assert not (FOLDER / "deep").exists() and (FOLDER / "logs" / "train.jsonl").is_file()
    assert call(fail, "--overwrite") == 2
    assert facts()["status"] == "failed" and list(facts()["outputs"]) == ["half.txt"] and not (FOLDER / "deep").exists()
    assert [path.name for path in FOLDER.iterdir() if path.name.startswith(".") and path.name != manifest.LOCK] == []


def test_if_needed_keeps_only_what_is_equal(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.txt").write_text("data")
    assert call(work) == 0
    before = (FOLDER / manifest.NAME).read_bytes()
    assert call(work, "--if_needed", "--quiet") == 0 and (FOLDER / manifest.NAME).read_bytes() == before
    assert call(work, "--if_needed") == 0 and "kept outputs/run_001/03_sft" in capsys.readouterr().out
    assert call(work, "--resume") == 0 and "kept outputs/run_001/03_sft" in capsys.readouterr().out
    assert call(work, "--if_needed", "--size", "9") == 2
    assert "is finished, but inputs.size was 1 and is now 9; --overwrite replaces it" in capsys.readouterr().err
    Path("data.txt").write_text("other")
    assert call(work, "--if_needed") == 2 and "input data.txt has changed since" in capsys.readouterr().err
    assert call(work, "--if_needed", "--overwrite") == 0
    (FOLDER / "deep/out.txt").unlink()
    assert call(work, "--if_needed") == 2 and "output deep/out.txt is gone" in capsys.readouterr().err


def test_a_failed_stage_says_so_and_continues(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(fail) == 2
    assert capsys.readouterr().err == "error: the data are broken (data.txt:3)\n"
    assert (facts()["status"], facts()["error"]) == ("failed", "the data are broken (data.txt:3)")
    assert list(facts()["outputs"]) == ["half.txt"]
    assert call(work) == 2
    assert "is unfinished (failed); --resume continues it, --overwrite starts again" in capsys.readouterr().err
    assert call(work, "--resume", "--size", "2") == 2
    assert "cannot be continued, because inputs.size was 1 and is now 2" in capsys.readouterr().err
    seen: list[bool] = []
    assert call(lambda cfg, stage: seen.append(stage.resuming), "--if_needed") == 0
    assert seen == [True] and (FOLDER / "half.txt").exists()


def test_what_was_begun_is_not_continued_with_other_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.txt").write_text("data")

    def interrupted(cfg: Config, stage: Stage) -> None:
        work(cfg, stage)
        stage.path("ckpt_sft", "step_1").write_text("learned")
        raise KeyboardInterrupt

    assert call(interrupted) == 130
    Path("data.txt").write_text("other")
    for flag in ("--resume", "--if_needed"):
        capsys.readouterr()
        assert call(work, flag) == 2
        said = "cannot be continued, because input data.txt has changed since; --overwrite starts again"
        assert said in capsys.readouterr().err
    Path("data.txt").write_text("data")
    assert call(interrupted, "--resume") == 130 and call(work, "--resume") == 0
    assert facts()["inputs"] == {"data.txt": sha256("data.txt")}
    assert call(interrupted, "--overwrite") == 130
    Path("data.txt").write_text("other")
    seen: list[bool] = []
    assert call(lambda cfg, stage: seen.append(stage.resuming), "--if_needed", "--overwrite") == 0
    assert seen == [False] and not (FOLDER / "deep").exists()


def test_files_that_made_a_stage_fail_may_be_mended() -> None:
    def fails_on(cfg: Config, stage: Stage) -> None:
        stage.input("data.txt")
        stage.path("problems.jsonl").write_text("line 3")
        if Path("data.txt").read_text() == "broken":
            raise UserError("data.txt:3 is broken")

    for trained, code in ((False, 0), (True, 2)):
        Path("data.txt").write_text("broken")
        assert call(fails_on, "--overwrite") == 2
        if trained:
            (FOLDER / "ckpt_sft").mkdir()
        Path("data.txt").write_text("mended")
        assert call(fails_on, "--if_needed") == code


def test_a_stage_that_wrote_nothing_leaves_nothing_and_may_be_called_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def nothing(cfg: Config, stage: Stage) -> None:
        stage.previous("01_prepare_dataset", "train.jsonl")

    assert call(nothing) == 2
    expected = "run first: python 01_prepare_dataset.py --output_dir outputs/run_001/01_preprocessing\n"
    assert capsys.readouterr().err.endswith(expected)
    assert not Path("outputs").exists()
    assert call(work) == 0


def test_under_the_driver_a_stage_that_wrote_nothing_keeps_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(cfg: Config, stage: Stage) -> None:
        raise UserError("no such thing")

    monkeypatch.setattr("utils.folders.has_living_driver", lambda: True)
    assert call(nothing) == 2
    assert (facts()["status"], facts()["error"]) == ("failed", "no such thing")


def test_a_bug_keeps_its_traceback_and_is_recorded() -> None:
    def bug(cfg: Config, stage: Stage) -> None:
        raise KeyError("oops")

    with pytest.raises(KeyError):
        call(bug)
    assert (facts()["status"], facts()["error"]) == ("failed", "KeyError: 'oops'")


def test_a_python_without_the_packages_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def without(cfg: Config, stage: Stage) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert main(Config, without, "", "03_sft_train.py", argv=[]) == 2
    expected = f"torch is not installed in this Python ({sys.executable}); run ./setup.sh once, then source activate.sh"
    assert capsys.readouterr().err == f"error: {expected}\n"
    bare = subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
                           "import utils.config"], capture_output=True, text=True)  # fmt: skip
    assert (bare.returncode, bare.stderr) == (2, f"error: {expected.replace('torch', 'pyyaml')}\n")


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def full(cfg: Config, stage: Stage) -> None:
        raise OSError(28, "No space left on device", "weights.bin")

    assert call(full) == 2
    assert capsys.readouterr().err == "error: weights.bin: No space left on device\n"


def test_foreign_folders_are_never_emptied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    assert call(work, "--overwrite", folder=Path("mine")) == 2
    assert "mine: holds files but no manifest.json" in capsys.readouterr().err
    assert call(work) == 0
    assert main(Config, work, "", "04_generate_candidates.py", argv=["--output_dir", str(FOLDER), "--overwrite"]) == 2
    assert "belongs to stage 03_sft, not to 04_generate_candidates" in capsys.readouterr().err
    assert Path("mine/thesis.txt").exists() and facts()["status"] == "completed"
    Path("file").write_text("")
    assert call(work, folder=Path("file/x")) == 2 and "cannot be written" in capsys.readouterr().err


def test_the_default_folder_is_in_the_newest_run() -> None:
    assert main(Config, work, "", "03_sft_train.py", argv=[]) == 0
    assert (Path("outputs/run_001/03_sft/manifest.json")).is_file()
    Path("outputs/run_007").mkdir()
    assert main(Config, work, "", "03_sft_train.py", argv=[]) == 0
    assert Path("outputs/run_007/03_sft/manifest.json").is_file()


def test_dry_run_prints_settings_and_plan_and_touches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--dry_run", "--size", "4"]
    assert main(Config, work, "", "03_sft_train.py", argv=argv, plan=lambda cfg: [f"{cfg.inputs.size} pieces"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  size: 4  # flag" in lines and "  seed: 0  # default" in lines and lines[-1] == "4 pieces"
    assert not Path("outputs").exists()


@dataclass(frozen=True)
class TrainingConfig(Config):
    model: ModelSettings
    lora: LoraSettings


def test_arithmetic_that_is_slow_here_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "model.precision: bf16 (flag) is slower than fp32 on this processor"
    for slow in (True, False):
        monkeypatch.setattr("utils.stage.slow_in_bf16", lambda device, slow=slow: slow)
        for precision in ("bf16", "fp32"):
            argv = ["--output_dir", str(FOLDER), "--precision", precision]
            expected = int(slow and precision == "bf16")
            for more in (["--dry_run"], ["--overwrite"]):
                assert main(TrainingConfig, work, "", "03_sft_train.py", argv=[*argv, *more]) == 0
                printed = capsys.readouterr()
                assert (printed.out + printed.err).count(said) == expected
            assert [line.startswith(said) for line in facts()["warnings"]] == [True] * expected


def test_inputs_lead_to_their_stage(capsys: pytest.CaptureFixture[str]) -> None:
    first = ["--output_dir", "outputs/run_001/02_rewards"]
    assert main(Config, work, "", "02_build_rewards.py", argv=first) == 0
    unfinished = ["--output_dir", "outputs/run_001/04_candidates"]
    assert main(Config, fail, "", "04_generate_candidates.py", argv=unfinished) == 2

    def reads(cfg: Config, stage: Stage) -> None:
        assert stage.run_dir == Path("outputs/run_001")
        assert stage.previous("02_build_rewards", "deep", "out.txt").read_text() == "1"
        stage.input("outputs/run_001/04_candidates/half.txt")
        with pytest.raises(UserError, match=r"04_candidates: has not finished \(failed\); run first: .* --resume"):
            stage.previous("04_generate_candidates", "half.txt")
        with pytest.raises(UserError, match=r"absent: no such file or folder; 03_sft_train.py reads it"):
            stage.input("absent")

    assert call(reads) == 0
    assert [(one["stage"], one["status"]) for one in facts()["parents"]] == [
        ("02_rewards", "completed"),
        ("04_candidates", "failed"),
    ]
    assert list(facts()["inputs"]) == [
        "outputs/run_001/02_rewards/deep/out.txt",
        "outputs/run_001/04_candidates/half.txt",
    ]
    assert facts()["warnings"] == [
        "outputs/run_001/04_candidates/half.txt comes from a stage that has not finished (its manifest says failed)"
    ]


def test_what_does_not_change_the_result_is_not_compared() -> None:
    assert call(work, "--report_to", "tensorboard") == 0
    assert call(work, "--if_needed", "--quiet") == 0


def test_broken_manifests_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(work) == 0
    (FOLDER / manifest.NAME).write_text("{")
    assert call(work) == 2 and "manifest.json:1: not valid JSON" in capsys.readouterr().err
    (FOLDER / manifest.NAME).write_text('{"schema": 99}')
    assert call(work) == 2 and "expected a manifest of schema 1" in capsys.readouterr().err


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with Ctrl-C ignored
sys.path.insert(0, {root!r})
from tests.unit.test_stage import Config
from utils.stage import main

def run(cfg, stage):
    before = stage.path("begun.txt").exists()
    stage.path("begun.txt").write_text("begun")
    print("begun", flush=True)
    while not before:
        time.sleep(0.02)

raise SystemExit(main(Config, run, "", "03_sft_train.py"))
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    def begin(*argv: str) -> subprocess.Popen[str]:
        code = SCRIPT.format(root=str(ROOT))
        command = [sys.executable, "-c", code, "--output_dir", str(FOLDER), *argv]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        assert process.stdout is not None
        for line in process.stdout:
            if line == "begun\n":
                break
        return process

    return begin


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signals_are_recorded(start: Callable[..., subprocess.Popen[str]], number: int, code: int) -> None:
    process = start()
    process.send_signal(number)
    error = process.communicate(timeout=600)[1]
    assert process.returncode == code
    assert error == "interrupted: outputs/run_001/03_sft; the same command with --resume continues\n"
    assert (facts()["status"], facts()["error"]) == ("interrupted", signal.Signals(number).name)
    assert list(facts()["outputs"]) == ["begun.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_finalizer_swallows_comes_again(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the `__del__` of a library that is being loaded."""

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    expected = KeyboardInterrupt if number == signal.SIGINT else Terminated
    before = sys.unraisablehook
    with pytest.raises(expected), signals_raise():
        thing = Finalized()
        del thing
        time.sleep(20)
    assert capsys.readouterr().err == "" and sys.unraisablehook is before


def test_kill_leaves_a_running_manifest_that_nobody_holds(
    start: Callable[..., subprocess.Popen[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.folders._LOCK_SECONDS", 0.1)
    process = start()
    assert is_held(FOLDER)
    assert call(work, "--overwrite") == 2
    assert f"process {process.pid} is writing it" in capsys.readouterr().err
    process.kill()
    process.communicate()
    (FOLDER / ".best.123.tmp").mkdir()
    assert facts()["status"] == "running" and not is_held(FOLDER)
    assert call(work) == 2 and "is unfinished (was killed); --resume continues it" in capsys.readouterr().err
    second = start("--if_needed")
    out = second.communicate(timeout=600)[0]
    assert second.returncode == 0 and "done in" in out
    assert facts()["status"] == "completed" and not (FOLDER / ".best.123.tmp").exists()


def test_a_stage_dies_with_the_driver_that_asked_for_it(tmp_path: Path) -> None:
    driver = (
        "import os, subprocess, sys\n"
        "environment = {**os.environ, 'STAGE_DIES_WITH_PROCESS': str(os.getpid())}\n"
        "process = subprocess.Popen(sys.argv[1:], env=environment)\n"
        "print(process.pid, flush=True)\n"
        "process.wait()\n"
    )
    stage = [sys.executable, "-c", SCRIPT.format(root=str(ROOT)), "--output_dir", str(FOLDER)]
    command = [sys.executable, "-c", driver, *stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        while process.stdout.readline() != "begun\n":
            pass
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 200
    while is_held(FOLDER) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_held(FOLDER)
    assert json.loads((FOLDER / manifest.NAME).read_text())["status"] == "running"
    assert not Path(f"/proc/{child}/cmdline").exists() or Path(f"/proc/{child}/cmdline").read_bytes() == b""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory: lower batch_size"),
        (ModuleNotFoundError("No module named 'trl'", name="trl"), "trl"),
    ],
)
def test_a_process_beside_the_first_ends_in_one_line_too(error: Exception, line: str) -> None:
    def fails(config: Config, stage: Stage) -> None:
        raise error

    resolved = resolve(Config, [], doc="", script="05_own.py")
    with pytest.raises(UserError, match=line):
        _follow(resolved, fails, "05_own.py", [])
