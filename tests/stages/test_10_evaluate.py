"""Stage 10 on llama-tiny and a few records: files, controls, pass@k, and every refusal in one line."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from utils.files import read_json, read_jsonl, write_json, write_jsonl
from utils.finqa.answers import write_answer
from utils.rewards.scoring import judge, score_text
from utils.rewards.spec import load_spec
from utils.stage import main
from utils.tasks.base import Example

PROMPT = (
    "answer the question with a program .\nthe sales of 2019 is {} ; the sales of 2018 is {} ;\nquestion: {}\nanswer:"
)


def example(index: int, split: str) -> Example:
    a, b = 100 + 7 * index, 60 + index
    program, value = (f"subtract({a}, {b})", float(a - b)) if index % 3 else (f"greater({a}, {b})", "yes")
    return Example(
        f"{split}-{index}", PROMPT.format(a, b, "what is the change ?"), str(value), program, "what is the change ?",
        value, write_answer(program, value), f"{split}/page", (("", "2019", "2018"), ("sales", str(a), str(b))),
    )  # fmt: skip


def stage(*flags: str) -> int:
    script = importlib.import_module("10_evaluate")
    return main(script.Config, script.run, script.__doc__, script.__file__, argv=["--device", "cpu", "--quiet", *flags])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ten test records and six training records in a folder like stage 01's, and a reward specification."""
    folder = tmp_path_factory.mktemp("run_001") / "01_preprocessing"
    write_jsonl(folder / "test.jsonl", [example(index, "test").to_dict() for index in range(10)])
    write_jsonl(folder / "train.jsonl", [example(index, "train").to_dict() for index in range(6)])
    rewards = importlib.import_module("02_build_rewards")
    argv = ["--quiet", "--output_dir", str(folder.parent / "02_rewards")]
    assert main(rewards.Config, rewards.run, rewards.__doc__, rewards.__file__, argv=argv) == 0
    yield folder


def evaluate(data: Path, name: str, *flags: str) -> Path:
    target = data.parent / name
    common = ["--data_dir", str(data), "--max_new_tokens", "12", "--output_dir", str(target)]
    assert stage(*common, *flags) == 0
    return target


@pytest.fixture(scope="module")
def base(data: Path) -> Path:
    return evaluate(
        data, "10_evaluation_base", "--baseline", "base", "--pass_k", "1,2", "--pass_records", "4", "--seed", "3"
    )


def breakdown(folder: Path) -> list[dict[str, str]]:
    with (folder / "breakdown.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_have_what_the_readme_names(base: Path) -> None:
    metrics = read_json(base / "metrics.json")
    assert metrics["n"] == 10 and metrics["method"] == "base" and metrics["seed"] == 3 and metrics["split"] == "test"
    rates = ("execution_accuracy", "program_accuracy", "exact_match", "numeric_1pct", "program_valid", "format_valid")
    for name in (*rates, "mean_reward"):
        low, high = metrics[f"{name}_ci95"]
        assert low <= metrics[name] <= high
    assert set(metrics["policy"]) == {"path", "sha256"} and "untrained" not in metrics
    rows = breakdown(base)
    assert list(rows[0])[:5] == ["id", "execution_correct", "program_correct", "format_valid", "failure"]
    assert [row["id"] for row in rows] == [f"test-{index}" for index in range(10)]
    assert sum(int(row["execution_correct"]) for row in rows) == pytest.approx(10 * metrics["execution_accuracy"])
    assert sum(metrics["failures"].values()) == sum(row["failure"] != "" for row in rows)
    assert "seconds" not in json.dumps(metrics)


def test_predictions_score_as_stage_02_scores_them(base: Path, data: Path) -> None:
    spec = load_spec(data.parent / "02_rewards" / "reward_spec.yaml")
    rows, records = read_jsonl(base / "samples" / "predictions.jsonl"), read_jsonl(data / "test.jsonl")
    assert len(rows) == 10
    for row, record, line in zip(rows, records, breakdown(base), strict=True):
        asked = Example.from_dict(record, "test")
        reward, verdict = score_text(row["text"], asked, spec), judge(row["text"], asked, spec)
        assert row["reward"] == reward.total == float(line["reward"])
        assert row["components"] == dict(reward.components)
        assert row["failure"] == verdict.failure == line["failure"]
        assert row["target_program"] == asked.target_program and row["tokens"] <= 12


def test_pass_at_k_counts_the_samples_on_disk(base: Path) -> None:
    found = read_json(base / "metrics.json")["pass_at_k"]
    assert (found["records"], found["samples"]) == (4, 2)
    rows = read_jsonl(base / "samples" / "pass_k.jsonl")
    assert [row["id"] for row in rows] == [f"test-{index}" for index in range(4)]
    assert all(len(row["texts"]) == len(row["correct"]) == 2 for row in rows)
    assert found["pass@2"] == sum(any(row["correct"]) for row in rows) / 4
    assert len({text for row in rows for text in row["texts"]}) > 4  # sampled, not greedy


def test_equal_seeds_give_equal_bytes_and_order_does_not_matter(base: Path, data: Path) -> None:
    flags = ("--baseline", "base", "--pass_k", "1,2", "--pass_records", "4", "--seed", "3")
    again = evaluate(data, "10_evaluation_again", *flags)
    for name in ("metrics.json", "breakdown.csv", "samples/predictions.jsonl", "samples/pass_k.jsonl"):
        assert (again / name).read_bytes() == (base / name).read_bytes(), name
    shuffled = data.parent / "shuffled.jsonl"
    write_jsonl(shuffled, list(reversed(read_jsonl(data / "test.jsonl"))))
    spec = str(data.parent / "02_rewards" / "reward_spec.yaml")
    other = evaluate(data, "10_evaluation_shuffled", "--test_jsonl", str(shuffled), "--reward_spec", spec, *flags)
    texts = [
        {row["id"]: row["text"] for row in read_jsonl(folder / "samples" / "predictions.jsonl")}
        for folder in (base, other)
    ]
    assert texts[0] == texts[1]
    assert read_json(other / "metrics.json")["split"] == "shuffled"


def test_gold_is_right_everywhere_and_majority_where_it_is(data: Path) -> None:
    gold = read_json(evaluate(data, "10_evaluation_gold", "--baseline", "gold") / "metrics.json")
    assert gold["execution_accuracy"] == gold["program_accuracy"] == gold["format_valid"] == 1.0
    assert gold["failures"] == {} and "upper bound" in gold["note"]
    majority = read_json(evaluate(data, "10_evaluation_majority", "--baseline", "majority") / "metrics.json")
    assert majority["execution_accuracy"] == 4 / 10  # yes: indices 0, 3, 6, 9
    assert majority["program_valid"] == 0.0 and "typed answer" in majority["note"]


def test_a_checkpoint_is_named_by_its_stage_and_counted_by_its_manifests(data: Path) -> None:
    run, records = data.parent, ("01_preprocessing", "train.jsonl")
    made: dict[str, Any] = {"schema": 1, "status": "completed", "seed": 7, "seconds": 4.0, "inputs": {}, "parents": []}
    write_json(run / "03_sft" / "manifest.json", made | {"stage": "03_sft", "spent": {"gradient_tokens": 50}})
    parents = [{"path": str(run / "03_sft"), "stage": "03_sft", "status": "completed"}]
    inputs = {str(run / "03_sft" / "ckpt_sft" / "best"): "0", str(run.joinpath(*records)): "0"}
    spent = {"completions": 8, "generated_tokens": 90, "gradient_tokens": 10}
    entry = made | {"stage": "06_grpo", "spent": spent, "parents": parents, "inputs": inputs}
    write_json(run / "06_grpo" / "manifest.json", entry)
    best = run / "06_grpo" / "ckpt_grpo" / "best"
    best.mkdir(parents=True)
    for file in Path("assets/llama-tiny").iterdir():
        (best / file.name).write_bytes(file.read_bytes())
    target = evaluate(data, "10_evaluation_grpo", "--policy_ckpt", str(run / "06_grpo"))
    metrics = read_json(target / "metrics.json")
    assert metrics["method"] == "grpo" and metrics["seed"] == 7
    assert metrics["policy"]["path"].endswith("06_grpo/ckpt_grpo/best") and len(metrics["policy"]["sha256"]) == 64
    assert metrics["compute"]["stages"] == ["03_sft", "06_grpo"] and metrics["compute"]["gradient_tokens"] == 60
    assert read_json(target / "manifest.json")["metrics"]["trained_seconds"] == 8.0
    named = evaluate(data, "10_evaluation_named", "--policy_ckpt", str(best), "--method", "mine", "--quick_test")
    assert read_json(named / "metrics.json")["method"] == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --policy_ckpt PATH"),
        (["--policy_ckpt", "x", "--baseline", "gold"], "give one of --policy_ckpt PATH"),
        (
            ["--baseline", "goldd"],
            "--baseline: baseline must be one of base, majority, gold; got 'goldd'; did you mean gold?",
        ),
        (["--policy_ckpt", "no/such"], "no/such: no such folder"),
        (["--baseline", "base", "--pass_records", "4", "--pass_k", "0,4"], "--pass_k must be whole numbers from 1"),
        (
            ["--baseline", "base", "--pass_records", "4", "--pass_samples", "2"],
            "--pass_samples 2 is less than the largest k",
        ),
        (["--baseline", "gold", "--pass_records", "4"], "--pass_records needs a model to sample from"),
        (["--baseline", "gold", "--test_jsonl", "none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_mistakes_are_one_line(data: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    target = data.parent / "10_mistake"
    spec = str(data.parent / "02_rewards" / "reward_spec.yaml")
    assert (
        stage("--data_dir", str(data), "--reward_spec", spec, "--overwrite", "--output_dir", str(target), *flags) == 2
    )
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


@pytest.mark.parametrize("rows", [[], [0, 1, 0]])
def test_no_record_and_a_repeated_record_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[int]
) -> None:
    write_jsonl(tmp_path / "test.jsonl", [example(index, "test").to_dict() for index in rows])
    spec = str(data.parent / "02_rewards" / "reward_spec.yaml")
    flags = ["--baseline", "gold", "--test_jsonl", str(tmp_path / "test.jsonl"), "--reward_spec", spec]
    assert stage(*flags, "--output_dir", str(tmp_path / "10_evaluation")) == 2
    error = capsys.readouterr().err
    assert "test.jsonl" in error and error.count("\n") == 1, error
    assert not (tmp_path / "10_evaluation" / "metrics.json").exists()
