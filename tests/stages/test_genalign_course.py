"""The genalign task through the stages: sets of texts are scored together, and training makes them teach more."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from utils.files import read_json, read_jsonl, sha256
from utils.stage import main

pytestmark = pytest.mark.slow


def call(script: str, *flags: str) -> int:
    module = importlib.import_module(script)
    arguments = ["--task", "genalign", "--device", "cpu", "--quiet", *flags]
    plan = getattr(module, "plan", None)
    return main(module.Config, module.run, module.__doc__, str(module.__file__), argv=arguments, plan=plan)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to SFT, which has learned the form and most of the labels in 260 steps."""
    folder = tmp_path_factory.mktemp("genalign")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("00_check_data") == 0
        assert call("01_prepare_dataset", "--icl_examples", "2") == 0
        assert call("02_build_rewards") == 0
        assert call("03_sft_train", "--max_steps", "260", "--skip_validation") == 0
    return folder


@pytest.fixture(autouse=True)
def inside(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)


def test_golden_texts_lie_beside_the_rows_and_are_inputs(run: Path) -> None:
    folder = run / "outputs/run_001/01_preprocessing"
    names = {f"golden_{part}.jsonl" for part in ("pool", "reward", "dev", "test")}
    assert names <= {path.name for path in folder.iterdir()}
    assert names <= {path.name for path in (run / "datasets/genalign_processed").iterdir()}
    inputs = {Path(name).name for name in read_json(run / "outputs/run_001/03_sft/manifest.json")["inputs"]}
    assert names <= inputs
    pool = {row["text"] for row in read_jsonl(folder / "golden_pool.jsonl")}
    held_out = {row["text"] for name in names - {"golden_pool.jsonl"} for row in read_jsonl(folder / name)}
    shown = [line[6:] for row in read_jsonl(folder / "test.jsonl") for line in row["input_text"].splitlines()]
    assert not pool & held_out and not set(shown) & held_out


def train(folder: str, steps: int, *flags: str) -> list[dict[str, Any]]:
    """Rows of a training with 256 texts a step, validated before and after."""
    few = ["--steps", str(steps), "--eval_every", str(steps), "--warmup_steps", "1", "--kl_coef", "0.02"]
    assert call("06_train_grpo", "--output_dir", folder, *few, *flags) == 0
    return read_jsonl(Path(folder) / "logs" / "train.jsonl")


def test_training_moves_the_policy_and_says_what_its_texts_are_like() -> None:
    """That the reward leads to better sets is shown in tests/unit/test_genalign.py, on a policy without a model."""
    rows = train("outputs/grpo", 4)
    start, end = (row for row in rows if row["phase"] == "validation")
    assert end["val_reward"] != start["val_reward"] and 0 < end["val_golden_loss"] < 2
    steps = [row for row in rows if row["phase"] == "train"]
    assert {"reward_golden", "reward_credit", "golden_loss", "label_fidelity", "distinct_2"} <= set(steps[0])
    assert steps[-1]["kl"] > 0 < steps[-1]["grad_norm"]


def test_the_same_seed_gives_the_same_log_and_no_rate_no_rise() -> None:
    few = ("--prompts_per_step", "16", "--group_size", "4", "--eval_records", "64")
    train("outputs/one", 2, *few)
    train("outputs/two", 2, *few)
    assert sha256(Path("outputs/one/logs/train.jsonl")) == sha256(Path("outputs/two/logs/train.jsonl"))
    still = train("outputs/still", 2, *few, "--learning_rate", "0")
    start, end = (row for row in still if row["phase"] == "validation")
    assert end | {"step": 0} == start


def test_evaluation_counts_golden_texts(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("gold", "majority"):
        assert call("10_evaluate", "--baseline", name, "--output_dir", f"outputs/run_001/10_evaluation_{name}") == 0
    gold, majority = (
        read_json(Path(f"outputs/run_001/10_evaluation_{name}/metrics.json")) for name in ("gold", "majority")
    )
    assert (gold["kind"], gold["n"], majority["n"]) == ("genalign", 420, 420)
    assert gold["golden_accuracy"] > 0.9 and majority["golden_accuracy"] == 0  # all labels equally likely: none is told
    assert gold["set"]["label_fidelity"] > 95 and majority["set"]["repeated"] > 99
    assert len(read_jsonl(Path("outputs/run_001/10_evaluation_gold/samples/predictions.jsonl"))) == 480
    first = Path("outputs/run_001/10_evaluation_gold/breakdown.csv").read_text().splitlines()[0]
    assert first.startswith("id,golden_correct,failure")
    module = importlib.import_module("11_compare_runs")
    flags = ["outputs/run_001", "--output_dir", "outputs/compared", "--quiet"]
    assert main(module.Config, module.run, module.__doc__, str(module.__file__), argv=flags) == 0
    report = Path("outputs/compared/report.md").read_text()
    trained = ["--policy_ckpt", "outputs/run_001/03_sft", "--output_dir", "outputs/run_001/10_evaluation_sft"]
    assert call("10_evaluate", *trained, "--quick_test") == 0
    sft = read_json(Path("outputs/run_001/10_evaluation_sft/metrics.json"))
    assert sft["n"] == 420 and majority["golden_accuracy"] < sft["golden_accuracy"] < gold["golden_accuracy"]
    texts = {row["text"] for row in read_jsonl(Path("outputs/run_001/10_evaluation_sft/samples/predictions.jsonl"))}
    assert len(texts) > 64  # sampled, one for each of 128 prompts
    assert "golden accuracy [95 %]" in report and "## The sets" in report and "| distinct-2 |" in report
    capfd.readouterr()
    policy = ["--policy_ckpt", "outputs/run_001/03_sft", "--pass_records", "8", "--output_dir", "outputs/pass"]
    assert call("10_evaluate", *policy) == 2
    assert "--pass_records: task genalign judges its answers together" in capfd.readouterr().err


def test_candidates_become_pairs() -> None:
    flags = ["--num_candidates", "4", "--quick_test", "--policy_ckpt", "outputs/run_001/03_sft"]
    assert call("04_generate_candidates", *flags) == 0
    assert call("08_build_prefs") == 0
    pairs = read_jsonl(Path("outputs/run_001/08_preferences/pairs.jsonl"))
    assert pairs and all(pair["chosen"] != pair["rejected"] for pair in pairs)


def test_a_csv_of_one_s_own(tmp_path: Path) -> None:
    lines = [f"text {i} about {name},{name}" for name in ("tea", "saw") for i in range(12)]
    (tmp_path / "golden.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    own = ["--source", "files", "--data_root", str(tmp_path)]
    for script in ("00_check_data", "01_prepare_dataset"):
        assert call(script, *own, "--output_dir", str(tmp_path / script)) == 0
    rows = read_jsonl(tmp_path / "01_prepare_dataset" / "train.jsonl")
    assert {row["label"] for row in rows} == {"tea", "saw"} and len(rows) == 600
    data = [
        "--data_dir",
        str(tmp_path / "01_prepare_dataset"),
        "--reward_spec",
        "outputs/run_001/02_rewards/reward_spec.yaml",
    ]
    few = ["--steps", "2", "--eval_every", "2", "--prompts_per_step", "4", "--group_size", "2", "--eval_records", "8"]
    policy = ["--policy_ckpt", "outputs/run_001/03_sft"]
    assert call("05_train_ppo", *data, *policy, *few, "--output_dir", str(tmp_path / "05")) == 0
    log = read_jsonl(tmp_path / "05" / "logs" / "train.jsonl")
    assert all(0 <= row["accuracy"] <= 1 for row in log if row["phase"] == "train") and log[-1]["step"] == 2
    last = ["--policy_ckpt", str(tmp_path / "05"), "--output_dir", str(tmp_path / "10"), "--quick_test"]
    assert call("10_evaluate", *data, *last) == 0
    assert set(read_json(tmp_path / "10" / "metrics.json")["groups"]["label"]) == {"tea", "saw"}
