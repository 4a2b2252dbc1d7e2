"""The driver, over stages that are the real scripts with their work taken out: real flags, processes and manifests."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from utils.config import resolve
from utils.driver import METHODS, NO_VARIANTS, methods_in, sweep_of, trials_of
from utils.errors import UserError
from utils.folders import is_held
from utils.jobs import needs_of
from utils.pipeline import Variant, choose_run, known_flags, select, split_flags
from utils.run_record import verify

ROOT = Path(__file__).resolve().parents[2]
driver = importlib.import_module("12_driver")
PLAN = driver.plan_of(["grpo"])
FOLDERS = [step.folder for step in PLAN]

NO_WORK = """
def run(cfg, stage):
    import csv, os, time
    from utils.errors import UserError
    from utils.files import write_json, write_text
    name = stage.dir.name
    with open("calls.txt", "a") as calls:
        calls.write(name + ("+" if stage.resuming else "") + "\\n")
    flags = vars(getattr(cfg, "inputs", None) or getattr(cfg, "evaluation", None) or object) if name > "03" else {}
    for flag in ("policy_ckpt", "init_from", "match_compute", "match_samples", "accepted"):
        if flags.get(flag):
            for path in (flags[flag],) if isinstance(flags[flag], str) else flags[flag]:
                stage.input(os.path.join(path, "out.txt") if os.path.isdir(path) else path)
    write_text(stage.path("out.txt"), f"{name} {cfg.run.seed} {os.environ.get('OMP_NUM_THREADS')}")
    if os.environ.get("FAIL_IN") == name:
        raise UserError("records.json:3: no question")
    if os.environ.get("WAIT_IN") == name and not stage.resuming:
        write_text(stage.path("waiting.txt"), "")
        time.sleep(300)
    stage.report({"parse_rate": 0.75})
    if name.startswith("10"):
        policies = list(flags["policy_ckpt"])
        rates = [float(policy.rpartition("_")[2]) for policy in policies] if len(policies) > 1 else []
        trials = [{"folder": p, "learning_rate": r, "chosen": r == max(rates)} for p, r in zip(policies, rates)]
        write_json(stage.path("metrics.json"), {"method": name, "trials": trials})
    if name.startswith("11"):
        row = {"method": "sft", "seed": cfg.run.seed, "n": 20, "completions": "", "gradient_tokens": 1200}
        for name in ("execution_accuracy", "program_accuracy", "exact_match", "numeric_1pct"):
            row[name] = 0.4321
        row |= {"format_valid": 1.0, "program_valid": 1.0, "mean_reward": 0.5}
        row |= {"execution_accuracy_low": 0.2, "execution_accuracy_high": 0.6}
        with open(stage.path("summary.csv"), "w", newline="") as file:
            table = csv.DictWriter(file, list(row))
            table.writeheader()
            table.writerow(row)
        stage.input(cfg.comparison.evaluations[-1])


"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project whose stages do nothing but leave files."""
    for folder in ("utils", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "local.yaml"))
    shutil.copy(ROOT / "12_driver.py", tmp_path)
    for script in {step.script for step in driver.plan_of(METHODS)}:
        source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
        head, main, tail = source.rpartition('if __name__ == "__main__":')
        (tmp_path / f"{script}.py").write_text(head + NO_WORK + main + tail, encoding="utf-8")
    return tmp_path


def drive(project: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "12_driver.py", *argv]
    return subprocess.run(
        command, cwd=project, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def calls(project: Path) -> list[str]:
    """Names of the stages that worked since the last look; `+`: continued."""
    path = project / "calls.txt"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run_manifest.json").read_text())
    return found


def test_a_whole_run_leaves_every_folder_and_says_where_the_report_is(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = drive(project, "--method", "grpo", "--seed", "7", "--grpo.kl_coef", "0.1", "--epochs", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert calls(project) == FOLDERS
    run = project / "outputs/run_001"
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == sorted(FOLDERS)
    assert (
        done.stdout.splitlines()[-1]
        == "report: outputs/run_001/11_comparison/report.md, run: outputs/run_001/README.md"
    )
    found = record(run)
    assert found["status"] == "completed" and [stage["folder"] for stage in found["stages"]] == FOLDERS
    assert {stage["status"] for stage in found["stages"]} == {"completed"}
    configs = {name: json.loads((run / name / "manifest.json").read_text())["config"] for name in FOLDERS}
    assert {config["run"]["seed"] for config in configs.values()} == {7}
    assert configs["06_grpo"]["algorithm"]["kl_coef"] == 0.1
    assert {configs[name]["training"]["epochs"] for name in ("03_sft", "03_sft_more", "03_sft_rejection")} == {3}
    monkeypatch.chdir(project)
    intact = f"outputs/run_001: 16 stages with {count_outputs(run)} files are as recorded"
    assert verify(Path("outputs/run_001")) == (intact, True)

    readme = (run / "README.md").read_text()
    for part in (
        "## Goal",
        "Does GRPO beat",
        "--seed 7",
        "43.2 [20.0, 60.0]",
        "* 03_sft: parse_rate 0.75",
        "at most 3 epochs",
    ):
        assert part in readme
    assert "| 11_comparison | completed | " in readme

    model_file = project / "configs/models/llama-tiny.yaml"  # what has changed since is not what is repeated
    model_file.write_text(model_file.read_text().replace("patience: 3", "patience: 9"))
    same = drive(project, "rerun", "outputs/run_001", "--run_id", "run_001")
    assert same.returncode == 2 and "is the run that is repeated" in same.stderr
    again = drive(project, "rerun", "outputs/run_001")
    assert (again.returncode, again.stderr) == (0, "")
    assert sorted(calls(project)) == sorted(FOLDERS)
    files = count_outputs(run)
    expected = f"rerun: 16 stages, {files} files: the bytes of outputs/run_001 came out again"
    assert again.stdout.splitlines()[-1] == expected
    repeated = json.loads((project / "outputs/run_002/03_sft_more/manifest.json").read_text())
    assert repeated["config"]["training"] == configs["03_sft_more"]["training"]
    assert repeated["config"]["inputs"]["init_from"] == "outputs/run_002/03_sft"
    assert verify(Path("outputs/run_002"))[1]


def count_outputs(run: Path) -> int:
    return sum(len(json.loads(path.read_text())["outputs"]) for path in run.glob("*/manifest.json"))


def test_a_failed_stage_ends_the_run_and_the_named_command_continues_it(project: Path) -> None:
    failed = drive(project, "--quick_test", "--to_stage", "04", FAIL_IN="02_rewards")
    assert failed.returncode == 2
    assert calls(project) == FOLDERS[:3]
    stage_says, driver_says = failed.stderr.splitlines()
    assert stage_says == "error: records.json:3: no question"
    expected = "python 12_driver.py --quick_test --to_stage 04 --run_id run_001"
    assert driver_says == f"error: stage 02_rewards ended with exit code 2; continue with: {expected}"
    run = project / "outputs/run_001"
    assert record(run)["status"] == "failed" and record(run)["stages"][2]["error"] == "records.json:3: no question"
    readme = run / "README.md"
    readme.write_text(readme.read_text().replace("Nothing noted yet.", "The first try.\n\nMore | to come."))

    again = drive(project, *expected.split()[2:])
    assert again.returncode == 0 and calls(project) == ["02_rewards+", *FOLDERS[3:6]]
    assert "keeps what is finished and unchanged: 00_data_validation 01_preprocessing\n" in again.stdout
    assert "continues: 02_rewards\n" in again.stdout
    assert (
        "00_check_data: kept outputs/run_001/00_data_validation (finished, same settings, same inputs)" in again.stdout
    )
    assert record(run)["status"] == "partial" and len(record(run)["commands"]) == 2
    assert "The first try.\n\nMore | to come.\n" in readme.read_text()

    other = drive(project, "--quick_test", "--to_stage", "00", "--seed", "1")
    assert "outputs/run_002 (a new run)" in other.stdout and calls(project) == ["00_data_validation"]
    changed = drive(project, "--quick_test", "--run_id", "run_001", "--to_stage", "00", "--seed", "1")
    assert changed.returncode == 2 and "run.seed was 0 and is now 1; --overwrite replaces it" in changed.stderr
    replaced = drive(project, "--quick_test", "--run_id", "run_001", "--to_stage", "00", "--seed", "1", "--overwrite")
    assert replaced.returncode == 0 and calls(project) == ["00_data_validation"]


@pytest.mark.parametrize("folder", ["03_sft", "06_grpo"])
def test_after_kill_nine_the_next_call_says_what_it_keeps_and_continues(project: Path, folder: str) -> None:
    argv = ["--method", "grpo", "--to_stage", folder]
    with started(project, folder, *argv) as process:
        os.kill(process.pid, signal.SIGKILL)
    stage = project / "outputs/run_001" / folder
    until(lambda: not is_held(stage))
    before = FOLDERS[: FOLDERS.index(folder)]
    assert calls(project) == [*before, folder]
    assert json.loads((stage / "manifest.json").read_text())["status"] == "running"
    assert record(stage.parent)["status"] == "running"

    again = drive(project, *argv)
    assert again.returncode == 0, again.stderr
    assert calls(project) == [f"{folder}+"]
    assert "→ outputs/run_001 (it is unfinished (was killed) and has the same settings)" in again.stdout
    assert f"keeps what is finished and unchanged: {' '.join(before)}\ncontinues: {folder}\n" in again.stdout
    assert sorted(path.name for path in stage.parent.parent.iterdir()) == ["run_001"]


def test_sigterm_reaches_the_stage_and_both_record_it(project: Path) -> None:
    with started(project, "01_preprocessing", "--method", "grpo") as process:
        process.terminate()
        error = process.communicate(timeout=600)[1]
    assert process.returncode == 143
    assert error.splitlines()[-1] == "interrupted; continue with: python 12_driver.py --method grpo --run_id run_001"
    run = project / "outputs/run_001"
    assert record(run)["status"] == "interrupted"
    assert [stage["status"] for stage in record(run)["stages"]][:3] == ["completed", "interrupted", "not run"]


def started(project: Path, folder: str, *argv: str) -> subprocess.Popen[str]:
    """A driver whose stage `folder` is at work and will not end by itself."""
    command = [sys.executable, "12_driver.py", *argv]
    environment = os.environ | {"WAIT_IN": folder}
    process = subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: (project / "outputs/run_001" / folder / "waiting.txt").exists() or process.poll() is not None)
    assert process.poll() is None
    return process


def until(condition: Any) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_verify_names_the_first_thing_that_differs(project: Path) -> None:
    assert drive(project, "--to_stage", "1").returncode == 0
    run = project / "outputs/run_001"
    (run / "01_preprocessing/extra.txt").write_text("")
    assert verify(run) == (f"{run}/01_preprocessing: file extra.txt is not in the manifest", False)
    (run / "00_data_validation/out.txt").write_text("edited")
    assert verify(run) == (f"{run}/00_data_validation: output out.txt has changed since", False)
    told = drive(project, "verify", "outputs/run_001")
    assert told.returncode == 1
    assert told.stdout == "outputs/run_001/00_data_validation: output out.txt has changed since\n"
    manifest = run / "00_data_validation/manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    assert verify(run)[0] == f"{manifest}: differs from what run_manifest.json recorded"
    assert drive(project, "verify").stderr.startswith("error: verify: expected one run folder")
    assert drive(project, "verify", "nowhere").returncode == 2
    refused = drive(project, "rerun", "outputs/run_001")
    assert refused.returncode == 2 and "has nothing to compare with" in refused.stderr
    assert not (project / "outputs/run_002").exists()


def test_dry_run_prints_every_command_and_touches_nothing(project: Path) -> None:
    shown = drive(project, "--dry_run", "--seed", "3", "--from_stage", "10", "--run_id", "run_004").stdout.splitlines()
    commands = [line for line in shown if line.startswith("python ")]
    assert len(commands) == 8
    gold = "python 10_evaluate.py --seed 3 --baseline gold --output_dir outputs/run_004/10_evaluation_gold --if_needed"
    assert gold in commands and commands[-1].startswith(
        "python 11_compare_runs.py --seed 3 outputs/run_004/10_evaluation_base/metrics.json"
    )
    assert shown[-1].startswith("disk: no checkpoints; ")
    assert not (project / "outputs").exists() and calls(project) == []
    assert methods_in([]) == ("grpo",) and methods_in(["--method=all"]) == METHODS == tuple(driver.TRAINERS)


# --- several methods, several seeds ----------------------------------------------------------------------------------


def seeds_of(project: Path, name: str = "compare_001") -> dict[str, str]:
    found: dict[str, str] = json.loads((project / "outputs" / name / "compare_manifest.json").read_text())["runs"]
    return found


def test_a_run_per_seed_with_the_rates_that_the_first_has_chosen(project: Path) -> None:
    argv = ["--method", "all", "--seeds", "3", "5", "--trials", "0.5", "2", "--quick_test"]
    failed = drive(project, *argv, FAIL_IN="03_sft_more")
    assert failed.returncode == 2 and failed.stderr.splitlines()[-1] == (
        "continue with: python 12_driver.py --method all --seeds 3 5 --trials 0.5 2 --quick_test"
    )
    assert seeds_of(project) == {"3": "run_001", "5": "run_002"} and len(calls(project)) == 15
    done = drive(project, *argv)
    assert done.returncode == 0, done.stderr
    assert "→ outputs/compare_001 (it is unfinished and has the same settings)" in done.stdout
    assert done.stdout.splitlines()[-1] == "report: outputs/compare_001/11_comparison/report.md"
    first, second = (project / "outputs" / name for name in ("run_001", "run_002"))
    for method, script, rate in (("ppo", "05", "0.0005"), ("grpo", "06", "0.0005"), ("dpo", "09", "0.0001")):
        assert len(list(first.glob(f"{script}_{method}_learning_rate_*"))) == 2
        assert f"--{method}.learning_rate {rate}" in done.stdout
        config = json.loads((second / f"{script}_{method}" / "manifest.json").read_text())["config"]
        assert config.get("rl", config.get("preference"))["learning_rate"] == float(rate) and config["run"]["seed"] == 5
    compared = json.loads((project / "outputs/compare_001/11_comparison/manifest.json").read_text())["config"]
    assert compared["comparison"]["evaluations"] == ["outputs/run_001", "outputs/run_002"]
    assert "compare_002" in drive(project, *argv, "--dry_run").stdout


def test_runs_side_by_side_print_into_files_and_one_failure_ends_the_others(project: Path) -> None:
    argv = ["--method", "rloo", "--seeds", "0", "1", "2", "--jobs", "3"]
    failed = drive(project, *argv, FAIL_IN="07_rloo")
    assert failed.returncode == 2 and "ended with exit code 2, see outputs/compare_001/run_00" in failed.stderr
    done = drive(project, *argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert {record(project / "outputs" / name)["status"] for name in seeds_of(project).values()} == {"completed"}
    assert "report: outputs/run_003" in (project / "outputs/compare_001/run_003.log").read_text()


def test_stages_side_by_side_wait_for_what_they_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    argv = ["--method", "all", "--seeds", "0", "1", "--trials", "1", "2", "--jobs", "3"]
    failed = drive(project, *argv, FAIL_IN="03_sft_rejection")
    assert failed.returncode == 2, failed.stderr
    assert "stage 03_sft_rejection ended with exit code 2, see outputs/run_001/03_sft_rejection.log" in failed.stderr
    assert "records.json:3: no question" in (project / "outputs/run_001/03_sft_rejection.log").read_text()
    assert {stage["status"] for stage in record(project / "outputs/run_001")["stages"]} <= {
        "completed", "failed", "interrupted", "not run",
    }  # fmt: skip
    calls(project)
    done = drive(project, *argv, OMP_NUM_THREADS="6")
    assert (done.returncode, done.stderr) == (0, "")
    assert "up to 3 stages at a time, which print into outputs/run_002/STAGE.log" in done.stdout
    for run in (Path("outputs/run_001"), Path("outputs/run_002")):
        assert record(run)["status"] == "completed" and verify(run)[1]
    steps = driver.plan_of(METHODS)
    *order, joint = calls(project)[-len(steps) - 1 :]
    assert joint == "11_comparison"
    assert set(order) == {step.folder for step in steps}
    for step in steps:
        for needed in needs_of(steps)[step.folder]:
            assert order.index(needed) < order.index(step.folder)
    again = drive(project, "rerun", "outputs/run_002", OMP_NUM_THREADS="7")
    assert again.returncode == 0, again.stdout  # one after the other, with as many threads as they had


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_ends_the_stages_side_by_side(project: Path, number: int) -> None:
    argv = ["--method", "all", "--jobs", "2"]
    with started(project, "06_grpo", *argv) as process:
        os.kill(process.pid, number)
        error = process.communicate(timeout=600)[1]
    assert "Traceback" not in error
    until(lambda: not is_held(project / "outputs/run_001/06_grpo") and not is_held(project / "outputs/run_001"))
    again = drive(project, *argv)
    assert (again.returncode, again.stderr) == (0, "") and record(project / "outputs/run_001")["status"] == "completed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_comparison_ends_its_runs(project: Path, number: int) -> None:
    argv = ["--method", "grpo", "--seeds", "0", "1"]
    with started(project, "03_sft", *argv) as process:
        os.kill(process.pid, number)
        error = process.communicate(timeout=600)[1]
    if number == signal.SIGTERM:
        assert process.returncode == 143 and "Traceback" not in error
        told = "continue with: python 12_driver.py --method grpo --seeds 0 1"
        assert error.splitlines()[-1] == told
    begun = time.monotonic()
    until(lambda: not is_held(project / "outputs/run_001/03_sft") and not is_held(project / "outputs/run_001"))
    assert time.monotonic() - begun < 60  # the stage itself would have gone on for minutes
    again = drive(project, *argv)
    assert (again.returncode, again.stderr) == (0, "")
    assert calls(project).count("03_sft") == 2  # the killed one, and seed 1's; seed 0's is continued


# --- without processes -----------------------------------------------------------------------------------------------


def test_dpo_learns_from_candidates_whose_compute_its_controls_get_too() -> None:
    steps = {step.folder: step for step in driver.plan_of(["dpo"])}
    folders = list(steps)
    assert folders.index("04_candidates") < folders.index("08_preferences") < folders.index("09_dpo")
    assert folders.index("09_dpo") < folders.index("03_sft_more") and len(folders) == len(driver.plan_of(["dpo"]))
    for control in ("03_sft_more", "03_sft_rejection"):
        given = steps[control].arguments
        assert given[given.index("--match_compute") + 1] == "{run}/09_dpo/manifest.json"
    assert "--match_samples" not in steps["04_candidates"].arguments


def test_all_methods_share_one_start_and_one_budget() -> None:
    plan = driver.plan_of(METHODS)
    folders = [step.folder for step in plan]
    trained = ["05_ppo", "06_grpo", "07_rloo", "09_dpo"]
    assert [folder for folder in folders if folder in trained] == trained
    steps = {step.folder: step.arguments for step in plan}
    assert {steps[folder][:2] for folder in trained} == {("--policy_ckpt", "{run}/03_sft")}
    assert steps["04_candidates"][-1] == "{run}/05_ppo/manifest.json"
    assert steps["03_sft_more"][3:] == tuple(f"{{run}}/{folder}/manifest.json" for folder in trained)
    assert [f"10_evaluation_{method}" for method in METHODS] == folders[-5:-1]


def test_trials_are_one_method_and_variants_of_a_sweep_are_others() -> None:
    config = resolved("06_train_grpo").config
    trials = {"grpo": trials_of(config, [0.5, 2])}
    assert trials["grpo"][0] == Variant("_learning_rate_0.000125", ("--learning_rate", "0.000125"))
    usual = {"grpo": resolved("06_train_grpo"), "rloo": resolved("07_train_rloo")}
    assert sweep_of("group_size=4,8,16", usual) == {
        "grpo": [Variant(f"_group_size_{size}", ("--group_size", size)) for size in ("4", "16")]
    }
    sweep = sweep_of("clip_range=0.1", usual)
    plan = {step.folder: step for step in driver.plan_of(["grpo"], trials, sweep)}
    both = ("{run}/06_grpo_learning_rate_0.000125", "{run}/06_grpo_learning_rate_0.0005")
    assert plan["10_evaluation"].arguments == ("--policy_ckpt", *both)
    variant = ("--policy_ckpt", "{run}/06_grpo_clip_range_0.1", "--method", "grpo_clip_range_0.1")
    assert plan["10_evaluation_grpo_clip_range_0.1"].arguments == variant
    assert NO_VARIANTS == {} and len(sweep) == 2
    # the controls match the dearest of all that was trained, and a part of the plan ends with what was swept
    trained = (*both, "{run}/06_grpo_clip_range_0.1")
    assert plan["03_sft_more"].arguments[3:] == tuple(f"{folder}/manifest.json" for folder in trained)
    steps = driver.plan_of(["grpo"], sweep=sweep)
    evaluated = [step.folder for step in select(steps, "10", "10")][-2:]
    assert evaluated == ["10_evaluation", "10_evaluation_grpo_clip_range_0.1"]
    assert [step.folder for step in select(steps, "06", "06")] == ["06_grpo", "06_grpo_clip_range_0.1"]
    assert [step.folder for step in select(steps, "06", "06_grpo")] == ["06_grpo"]
    # a value twice is one, whatever its spelling
    assert sweep_of("learning_rate=1e-3,0.001", usual)["grpo"] == [
        Variant("_learning_rate_0.001", ("--learning_rate", "0.001"))
    ]


def resolved(script: str) -> Any:
    return resolve(importlib.import_module(script).Config, [], doc="", script=script)


def test_the_plan_finishes_what_others_build_on() -> None:
    assert FOLDERS.index("03_sft") < FOLDERS.index("06_grpo") < FOLDERS.index("03_sft_more")
    assert FOLDERS.index("06_grpo") < FOLDERS.index("04_candidates") < FOLDERS.index("03_sft_rejection")
    assert FOLDERS[-2:] == ["10_evaluation", "11_comparison"]
    for step in PLAN:
        flags = {word[2:] for word in step.arguments if word.startswith("--")}
        assert flags <= known_flags(step.script), step.folder
    compared = [word.split("/")[1] for word in PLAN[-1].arguments]
    assert compared == [name for name in FOLDERS if name.startswith("10")]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ("", "", FOLDERS),
        ("", "3", FOLDERS[:4]),
        ("", "03_sft_more", FOLDERS[:7]),
        ("06", "06_train_grpo.py", ["06_grpo"]),
        ("grpo", "candidates", ["06_grpo", "04_candidates"]),
        ("10", "", FOLDERS[8:]),
        ("10", "10", FOLDERS[8:15]),
        ("10_evaluation", "", FOLDERS[14:]),
        ("10_evaluation_sft", "10_evaluation_sft", ["10_evaluation_sft"]),
    ],
)
def test_parts_of_the_plan(first: str, last: str, expected: list[str]) -> None:
    assert [step.folder for step in select(PLAN, first, last)] == expected


def test_wrong_parts_of_the_plan() -> None:
    with pytest.raises(UserError, match="--from_stage 17: no such stage; order: 00_data_validation"):
        select(PLAN, "17", "")
    with pytest.raises(UserError, match="did you mean 06_grpo"):
        select(PLAN, "", "6_grpo")
    with pytest.raises(UserError, match="--from_stage 10 comes after --to_stage 3"):
        select(PLAN, "10", "3")


def test_flags_go_to_the_one_stage_that_knows_them() -> None:
    own = {"seed", "quick_test", "task"}
    mine, scoped = split_flags(["--seed", "3", "--group_size", "4", "--no_quick_test", "--sft.epochs=2"], own, PLAN)
    assert mine == ["--seed", "3", "--no_quick_test"]
    assert scoped == {"grpo": ["--group_size", "4"], "sft": ["--epochs=2"]}
    cases = {
        "--learning_rate": "more than one stage knows it; write --sft.learning_rate or --grpo.learning_rate",
        "--grup_size": "unknown flag --grup_size; did you mean --group_size",
        "--sft.init_from": "--sft.init_from: is set by the driver; to set it, run 03_sft_train.py by itself",
        "--ppo.kl_coef": "no stage is called ppo",
    }
    for flag, message in cases.items():
        with pytest.raises(UserError) as caught:
            split_flags([flag, "1"], own, PLAN)
        assert message in str(caught.value)


def test_which_run(tmp_path: Path) -> None:
    def with_status(name: str, status: str, settings: str = "same") -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "run_manifest.json").write_text(json.dumps({"status": status, "settings": settings}))

    def chosen(run_id: str = "", continuing: bool = False) -> str:
        return choose_run(tmp_path, run_id, "same", continuing)[0].name

    with pytest.raises(UserError, match="there is no run in"):
        chosen(continuing=True)
    assert chosen() == "run_001"
    with_status("run_001", "failed")
    assert chosen() == "run_001"
    with_status("run_002", "completed")
    assert chosen() == "run_003" and chosen(continuing=True) == "run_002"
    with_status("run_002", "running", settings="other")
    assert chosen() == "run_003"
    (tmp_path / "run_009").mkdir()
    assert chosen() == "run_010" and chosen("mine") == "mine"
    with pytest.raises(UserError, match="a plain name is expected"):
        chosen("../elsewhere")


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "--method=grop": "one of ppo, grpo, rloo, dpo, all; got 'grop'; did you mean grpo?",
        "--seeds 0 0": "--seeds 0 0: a seed twice would count as two",
        "--seeds 0 1 --run_id mine": "--run_id is of one run, and --seeds makes several",
        "--seeds 0 1 --seed 2": "--seed and --seeds: give one of them",
        "--sweep group_size": "--sweep group_size: expected FLAG=VALUE,VALUE,...",
        "--sweep grup_size=2": "no trained method knows --grup_size; did you mean group_size?",
        "--sweep group_size=4,x": "--sweep: group_size must be a whole number, got 'x'",
        "--trials 1 1.0": "a factor twice would count as two choices",
        "--sweep reward_spec=a.yaml,specs/b.yaml": "'specs/b.yaml' would name a folder; values are names or numbers",
        "--trials 0.5": "--trials with one factor leaves nothing to choose",
        "--seeds 0 1 --trials 1 2 --sweep group_size=4": "would compare values at different rates",
        "--trials 0.5 -1": "--trials: trials must be at least 0, got -1",
        "--seed x": "--seed: seed must be a whole number, got 'x'",
        "--sft.epochs 0": "03_sft_train: --epochs: epochs must be at least 1, got 0",
        "--task nowhere": "00_check_data: --task: no such file: nowhere",
        "--temperature 0.7": "more than one stage knows it",
        "--grpo.temperature 0.7": "06_train_grpo: --temperature: temperature must be at least 1, got 0.7",
    }
    for argv, message in cases.items():
        assert driver.main([*argv.split(), "--dry_run"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_what_ends_a_command_from_outside_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(error: BaseException) -> int:
        def raises(argv: object) -> int:
            raise error

        monkeypatch.setattr(driver, "verify", raises)
        return int(driver.main(["verify", "outputs/run_001"]))

    assert ends(KeyboardInterrupt()) == 130 and capsys.readouterr().err == ""
    assert ends(PermissionError(13, "Permission denied", "/exports")) == 2
    assert capsys.readouterr().err == "error: /exports: Permission denied\n"
    read, write = os.pipe()
    os.close(read)
    shown = subprocess.run(
        [sys.executable, "12_driver.py", "--dry_run"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (shown.returncode, shown.stderr) == (128 + signal.SIGPIPE, b"")
