"""Stage 11 on fabricated evaluations: its files, its refusals, and equal reports for equal inputs."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

from tests.unit.fabricated import make_evaluation, make_study
from utils.files import read_json, write_json, write_jsonl
from utils.reporting.tables import read_table
from utils.stage import main


def stage(*flags: str) -> int:
    script = importlib.import_module("11_compare_runs")
    return main(script.Config, script.run, script.__doc__, script.__file__, argv=["--quiet", *flags])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    make_study(root, n=120, seeds=(0, 1))
    for seed in (0, 1):
        trained = root / f"run_{seed:03d}" / "06_grpo"
        write_json(trained / "manifest.json", {"schema": 1, "stage": "06_grpo", "status": "completed"})
        write_jsonl(trained / "logs" / "train.jsonl", [{"step": step, "reward_mean": 0.1 * step} for step in (1, 2)])
    assert stage(str(root / "run_*"), "--output_dir", str(root / "compare_001" / "11_comparison")) == 0
    return root


def test_it_writes_what_it_promises(study: Path) -> None:
    folder = study / "compare_001" / "11_comparison"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    pictures = {
        f"plots/{name}.png"
        for name in (
            "reward_vs_method",
            "efficiency_vs_quality",
            "accuracy_by_group",
            "score_vs_seed",
            "training_curves",
        )
    }
    assert {"summary.csv", "differences.csv", "groups.csv", "report.md", "manifest.json"} | pictures <= names
    report = (folder / "report.md").read_text()
    for picture in pictures:
        assert f"]({picture})" in report
    manifest = read_json(folder / "manifest.json")
    assert manifest["status"] == "completed" and len(manifest["inputs"]) == 2 * 2 * 7 + 2


def test_summary_equals_the_metrics_files(study: Path) -> None:
    rows = read_table(study / "compare_001" / "11_comparison" / "summary.csv")
    assert len(rows) == 14
    for row in rows:
        source = read_json(study / f"run_{int(row['seed']):03d}" / f"10_evaluation_{row['method']}" / "metrics.json")
        for name in ("execution_accuracy", "exact_match", "format_valid", "program_valid", "mean_reward"):
            assert float(row[name]) == source[name]
        assert row["policy"] == source["policy"]["path"]


def test_differences_lead_with_the_main_controls(study: Path) -> None:
    with (study / "compare_001" / "11_comparison" / "differences.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["control"]) for row in rows[:3]] == [
        ("sft_more", "sft"), ("rejection_sampling", "sft"), ("grpo", "sft"),
    ]  # fmt: skip
    assert all(float(row["mcnemar_p"]) <= float(row["holm_p"]) for row in rows) and rows[0]["seeds"] == "0 1"


def test_files_in_any_order_give_the_same_bytes(study: Path) -> None:
    files = sorted(str(path) for path in study.glob("run_*/10_evaluation_*/metrics.json"))
    target = study / "compare_002" / "11_comparison"
    assert stage(*reversed(files), "--output_dir", str(target)) == 0
    first = study / "compare_001" / "11_comparison"
    for name in (
        "summary.csv",
        "differences.csv",
        "groups.csv",
        "report.md",
        "plots/reward_vs_method.png",
        "plots/accuracy_by_group.png",
        "plots/training_curves.png",
    ):
        assert (target / name).read_bytes() == (first / name).read_bytes(), name


def test_without_arguments_it_compares_the_run_it_lies_in(study: Path) -> None:
    target = study / "run_000" / "11_comparison"
    assert stage("--output_dir", str(target)) == 0
    rows = read_table(target / "summary.csv")
    assert len(rows) == 7 and {row["seed"] for row in rows} == {"0"}
    assert not (target / "plots" / "score_vs_seed.png").exists()


def test_one_evaluation_is_reported_without_comparison(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "10_evaluation", "sft", [1, 0, 1, 1])
    assert stage(str(folder), "--output_dir", str(tmp_path / "11_comparison")) == 0
    report = (tmp_path / "11_comparison" / "report.md").read_text()
    assert "no other trained method" in report and "There is one method only." in report
    assert (tmp_path / "11_comparison" / "differences.csv").read_text().startswith("method,control,")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("other ids", "do not hold the same records: 2 ids only in the first"),
        ("no breakdown", "breakdown.csv: no such file"),
        ("broken json", "not valid JSON"),
        ("no such path", "no metrics.json there"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, message: str) -> None:
    a = make_evaluation(tmp_path / "a", "sft", [1, 0, 1, 1])
    b = make_evaluation(tmp_path / "b", "grpo", [1, 1] if damage == "other ids" else [1, 1, 1, 0])
    if damage == "no breakdown":
        (b / "breakdown.csv").unlink()
    if damage == "broken json":
        (b / "metrics.json").write_text("{")
    names = [str(a), str(b if damage != "no such path" else tmp_path / "c")]
    assert stage(*names, "--output_dir", str(tmp_path / "11_comparison")) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
