"""The sentiment task through the stages: it learns, the same seed gives the same log, and time can be bounded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from utils.files import read_json, read_jsonl
from utils.rewards.spec import PROFILES
from utils.rl import session
from utils.stage import main

ROOT = Path(__file__).resolve().parents[2]
ONLINE = {"ppo": "05_train_ppo", "grpo": "06_train_grpo", "rloo": "07_train_rloo"}
pytestmark = pytest.mark.slow


def call(script: str, *flags: str) -> int:
    module = importlib.import_module(script)
    arguments = ["--task", "sentiment", "--device", "cpu", "--quiet", *flags]
    plan = getattr(module, "plan", None)
    return main(module.Config, module.run, module.__doc__, str(module.__file__), argv=arguments, plan=plan)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to SFT, which has learned how the texts go on, in 60 steps."""
    folder = tmp_path_factory.mktemp("sentiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for script in ("00_check_data", "01_prepare_dataset", "02_build_rewards"):
            assert call(script) == 0
        assert call("03_sft_train", "--max_steps", "60", "--eval_steps", "60", "--save_steps", "60") == 0
    return folder


@pytest.fixture(autouse=True)
def inside(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)


def train(method: str, folder: str, *flags: str) -> list[dict[str, Any]]:
    """Rows of a training of six steps with eight prompts."""
    samples = "--num_samples" if method == "rloo" else "--group_size"
    few = ["--steps", "6", "--prompts_per_step", "8", samples, "8", "--eval_every", "3", "--warmup_steps", "1"]
    few += ["--learning_rate", "5e-4", "--eval_records", "48"]
    assert call(ONLINE[method], "--output_dir", folder, *few, *flags) == 0
    return read_jsonl(Path(folder) / "logs" / "train.jsonl")


@pytest.mark.parametrize("method", ONLINE)
def test_a_method_makes_continuations_positive_and_repeats_itself(method: str) -> None:
    """Six steps of 64 samples: held-out reward rises by half a point at least, and the log comes out again."""
    rows = train(method, f"outputs/{method}")
    held_out = [row for row in rows if row["phase"] == "validation"]
    assert held_out[-1]["val_reward"] > held_out[0]["val_reward"] + 0.5
    assert held_out[-1]["val_accuracy"] > held_out[0]["val_accuracy"] + 0.2
    steps = [row for row in rows if row["phase"] == "train"]
    assert steps[-1]["reward_sentiment"] > steps[0]["reward_sentiment"] + 0.3
    assert steps[-1]["negative"] < steps[0]["negative"] and steps[-1]["kl"] > 0 < steps[-1]["grad_norm"]
    if method != "ppo":
        return
    assert train(method, f"outputs/{method}_again") == rows
    log = Path("logs/train.jsonl")
    assert (Path(f"outputs/{method}_again") / log).read_bytes() == (Path(f"outputs/{method}") / log).read_bytes()


def test_the_step_that_ends_too_late_is_the_last(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A clock that goes on a minute whenever it is looked at."""
    minutes = iter(range(1000))
    monkeypatch.setattr(session, "monotonic", lambda: 60.0 * next(minutes))
    rows = train("grpo", "outputs/late", "--max_minutes", "5", "--steps", "30")
    last = max(row["step"] for row in rows)
    assert 1 <= last < 6 and rows[-1]["phase"] == "validation" and rows[-1]["step"] == last
    said = f"--max_minutes 5: ends after step {last} of 30; a faster or slower machine ends after another"
    manifest = read_json(Path("outputs/late/manifest.json"))
    assert manifest["status"] == "completed" and manifest["metrics"]["steps"] == last
    assert any(said in line for line in manifest["warnings"]) and said in capfd.readouterr().err
    names = {path.name for path in Path("outputs/late/ckpt_grpo").iterdir()}
    assert {"best", "final", f"step_{last}"} <= names


def test_evaluation_and_report_speak_of_positive_texts() -> None:
    for name in ("gold", "majority"):
        assert call("10_evaluate", "--baseline", name, "--output_dir", f"outputs/run_001/10_evaluation_{name}") == 0
    policy = ["--policy_ckpt", "outputs/run_001/03_sft", "--output_dir", "outputs/run_001/10_evaluation_sft"]
    assert call("10_evaluate", *policy, "--quick_test") == 0
    metrics = read_json(Path("outputs/run_001/10_evaluation_sft/metrics.json"))
    assert (metrics["kind"], metrics["n"]) == ("sentiment", 128)
    assert set(metrics["groups"]) == {"opening", "subject_kind", "seen"} and "execution_accuracy" not in metrics
    assert metrics["positive_rate"] + metrics["negative_rate"] <= 1
    first = Path("outputs/run_001/10_evaluation_sft/breakdown.csv").read_text().splitlines()[0]
    assert first.startswith("id,positive,negative,format_valid,failure")
    module = importlib.import_module("11_compare_runs")
    folders = [f"outputs/run_001/10_evaluation_{name}" for name in ("gold", "majority")]
    flags = [*folders, "--output_dir", "outputs/compared", "--quiet"]
    assert main(module.Config, module.run, module.__doc__, str(module.__file__), argv=flags) == 0
    report = Path("outputs/compared/report.md").read_text()
    assert "| positive rate [95 %] |" in report and "Positive rate: share of records" in report
    assert "xecution accuracy" not in report and "The judge counts keywords" in report
    assert "kind of subject" in report and "Two judges" not in report


def test_another_reward_than_the_policy_s_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """Evaluations by other criteria are not compared either: 11 sees another judge."""
    own = Path("outputs/own.yaml")
    text = Path("outputs/run_001/02_rewards/reward_spec.yaml").read_text()
    own.write_text("\n".join(line for line in text.replace("- good\n", "- fine\n").splitlines() if "hash:" not in line))
    policy = ["--policy_ckpt", "outputs/run_001/03_sft", "--quick_test"]
    assert (
        call("10_evaluate", *policy, "--reward_spec", str(own), "--output_dir", "outputs/own_10", "--method", "own")
        == 0
    )
    assert "was made under another reward" in capfd.readouterr().err
    assert call("10_evaluate", *policy, "--output_dir", "outputs/usual_10") == 0
    assert "another reward" not in capfd.readouterr().err
    module = importlib.import_module("11_compare_runs")
    flags = ["outputs/own_10", "outputs/usual_10", "--output_dir", "outputs/unfair", "--quiet"]
    assert main(module.Config, module.run, module.__doc__, str(module.__file__), argv=flags) == 2
    assert "another judge" in capfd.readouterr().err


def test_candidates_become_pairs() -> None:
    flags = ["--num_candidates", "4", "--quick_test", "--policy_ckpt", "outputs/run_001/03_sft"]
    assert call("04_generate_candidates", *flags) == 0
    rows = read_jsonl(Path("outputs/run_001/04_candidates/candidates.jsonl"))
    assert {type(cand["parsed_json"]) for row in rows for cand in row["cands"]} <= {str, type(None)}
    assert call("08_build_prefs") == 0
    pairs = read_jsonl(Path("outputs/run_001/08_preferences/pairs.jsonl"))
    assert pairs and all(pair["chosen"] != pair["rejected"] for pair in pairs)


@pytest.mark.parametrize(
    ("script", "flags", "said"),
    [
        (
            "00_check_data",
            ["--source", "files", "--data_root", "nowhere"],
            "train.json is missing (task sentiment); name",
        ),
        (
            "01_prepare_dataset",
            ["--context", "retrieved"],
            "--context retrieved: prompts of task sentiment hold no page",
        ),
        ("02_build_rewards", ["--weights", "exact=1"], "unknown weight exact; expected sentiment, ending"),
        ("05_train_ppo", ["--reward_spec", "finqa.yaml"], "kind is None, this task is of kind 'sentiment'"),
    ],
)
def test_mistakes_are_one_line(script: str, flags: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    PROFILES["strict"].save(Path("finqa.yaml"))
    assert call(script, *flags, "--output_dir", "outputs/mistake", "--overwrite") == 2
    err = capfd.readouterr().err
    assert said in err and "Traceback" not in err
