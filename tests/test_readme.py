"""The README's commands work: each ```bash block is executed, each ```bash network block is checked against --help."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from utils.files import read_json, sha256

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECONDS_PER_COMMAND = 900
NAMED = re.compile(r"`(\d\d_\w+\.py|configs/[\w./-]+\.\w+|docs/[\w./-]+|\w+\.sh)`")


def commands(kind: str) -> list[str]:
    """The commands of all blocks opened with ```<kind>, in order, one per line."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def shortened(command: str) -> str:
    """The command with a small workload: the same program and flags, fewer records, steps or tests."""
    if command == "make demo":
        return "make demo FLAGS=--quick_test"
    if command == "make shootout":
        return "make shootout SEEDS=0 FLAGS=--quick_test"
    if command.startswith("make ") and command.endswith("test"):
        return f"{command} TESTS=tests/unit/test_statistics.py"
    whole = ("--dry_run", " verify ", " doctor", " export ")
    if command.startswith("python ") and not any(word in command for word in whole):
        return f"{command} --quick_test"
    return command


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a fresh clone would be, with venv/ in place."""
    folder = tmp_path_factory.mktemp("readme") / "clone"
    left_out = shutil.ignore_patterns("venv", "outputs", "datasets", "local.yaml", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=left_out)
    (folder / "venv").symlink_to(ROOT / "venv")
    return folder


@pytest.mark.slow
def test_every_command_works_in_the_order_of_the_readme(clone: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "MAKEFLAGS")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    for command in commands("bash"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"set +u; source activate.sh; {shortened(command)}"],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS_PER_COMMAND,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr, command
    stage_by_stage_is_the_driver(clone / "outputs" / "run_002", clone / "outputs" / "run_001")


def stage_by_stage_is_the_driver(by_hand: Path, driven: Path) -> None:
    """The stages one by one write the driver's policies, logs and figures, byte for byte."""
    for name in (
        "03_sft/ckpt_sft/best",
        "03_sft/logs/train.jsonl",
        "06_grpo/ckpt_grpo/best",
        "06_grpo/logs/train.jsonl",
    ):
        assert sha256(by_hand / name) == sha256(driven / name), name
    for name in ("10_evaluation_sft", "10_evaluation"):
        assert sha256(by_hand / name / "breakdown.csv") == sha256(driven / name / "breakdown.csv"), name
        assert figures(by_hand / name) == figures(driven / name), name


def figures(folder: Path) -> dict[str, object]:
    """metrics.json without what names the run's folder."""
    return {name: value for name, value in read_json(folder / "metrics.json").items() if "run_0" not in str(value)}


@pytest.mark.parametrize("command", commands("bash network"))
def test_commands_for_the_network_name_programs_and_flags_that_exist(command: str) -> None:
    words = shlex.split(command)
    program = [word for word in words[:2] if word.endswith((".sh", ".py"))][0]
    assert (ROOT / program).is_file()
    if words[0] == "source":  # it takes no flags, and the other test calls it
        assert len(words) == 2
        return
    runner = [ROOT / "venv/bin/python"] if program.endswith(".py") else ["bash"]
    shown = subprocess.run([*runner, program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for flag in [word for word in words if word.startswith("--")]:
        assert re.search(rf"{flag}\b", shown), flag


def test_every_shell_block_is_tested() -> None:
    kinds = set(re.findall(r"^```(\S.*)$", README, flags=re.MULTILINE))
    assert kinds <= {"bash", "bash network"}


def test_every_file_the_readme_names_exists_or_is_called_planned() -> None:
    for line in README.splitlines():
        for name in re.findall(NAMED, line):
            elsewhere = name in ("configs/local.yaml", "configs/finqa.sha256") or line.startswith("| FinQA pipeline")
            assert elsewhere or "planned" in line or (ROOT / name).exists(), name
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "words",
    [
        ("manifest.json", "valid_samples/", "When you ask for help"),
        ("few answers parse", "NaN or infinity", "out of memory", "all rewards are zero", "--batch_size 1"),
        ("run_001", "run_002", "one thing per run"),
        ("batch_size x gradient_accumulation_steps x GPUs", "between 16 and 32"),
        ("datasets/ ─►", "| stage | does | reads | writes"),
        ("more capacity", "a quick look"),
        ("quick iterations on a GPU", "Llama's code paths without a licence", "final results"),
    ],
    ids=["help", "troubleshooting", "runs", "batch", "data flow", "tips", "models"],
)
def test_advice_that_people_look_for_is_there(words: tuple[str, ...]) -> None:
    assert [word for word in words if word not in README] == []


def test_contributing_has_the_four_rules() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for word in ("Module first", "manifest stays whole", "Settings live", "can be verified"):
        assert word in text
