"""Stages 00 and 01 as programs: what they write, what they count, and every damaged input in one line."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.test_records import changed
from tests.unit.test_tokens import save_tokenizer
from utils.files import read_jsonl, sha256
from utils.finqa import mini
from utils.finqa.records import Record, read_records, write_records
from utils.manifest import read as read_manifest
from utils.rewards.spec import PROFILES
from utils.stage import main
from utils.tasks.finqa import FinQATask, check_row

check_data = importlib.import_module("00_check_data")
prepare = importlib.import_module("01_prepare_dataset")


def call(script: ModuleType, *argv: str) -> int:
    return main(script.Config, script.run, script.__doc__, str(script.__file__), argv=[*argv, "--device", "cpu"])


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a small tokenizer and a small generator."""
    monkeypatch.chdir(tmp_path)
    save_tokenizer(tmp_path / "tok", ["<pad>", "<s>", "</s>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    whole = mini.generate

    def small(seed: int) -> dict[str, list[Record]]:
        return {name: records[:count] for (name, records), count in zip(whole(seed).items(), (40, 6, 10), strict=True)}

    monkeypatch.setattr(mini, "generate", small)
    return tmp_path


def real(folder: Path, *, train: int = 4, damage: dict[int, Any] | None = None, dev: str = "dev") -> list[str]:
    """Write a small data set read as files; returns the flags that name it. `damage` replaces training records."""
    records = [changed(id=f"t{i}", filename=f"t{i}") for i in range(train)]
    for index, record in (damage or {}).items():
        records[index] = record
    write_records(folder / "train.json", records)
    write_records(folder / f"{dev}.json", [changed(id="d0", filename="d0")])
    write_records(folder / "test.json", [changed(id="e0", filename="e0"), changed(id="e1", filename="e0")])
    return ["--task", "finqa", "--data_root", str(folder)]


MODEL = ("--model", "tok", "--max_prompt_tokens", "2000")


def test_generated_data_is_written_once_and_checked(work: Path) -> None:
    assert call(check_data, "--data_seed", "3") == 0
    folder = work / "datasets/finqa_mini/seed_3"
    assert sorted(path.name for path in folder.iterdir()) == ["dev.json", "test.json", "train.json"]
    digest, out = sha256(folder), work / "outputs/run_001/00_data_validation"
    metrics = read_manifest(out)["metrics"]
    assert metrics["splits"]["train"]["records"] == 40 and metrics["splits"]["train"]["malformed"] == 0
    assert "train: 40 records on 40 pages, 0 malformed" in (out / "summary.txt").read_text()
    assert len(list((out / "examples").iterdir())) == 9
    shown = json.loads((out / "examples/val_000.json").read_text())
    assert shown["qa"]["question"] in shown["prompt"] and shown["qa"]["program"]
    assert {"train.json", "dev.json", "test.json"} == {Path(name).name for name in read_manifest(out)["inputs"]}
    shutil.rmtree(folder)
    assert call(check_data, "--data_seed", "3", "--overwrite") == 0
    assert sha256(folder) == digest
    assert call(check_data, "--data_seed", "4", "--overwrite") == 0
    assert sha256(work / "datasets/finqa_mini/seed_4") != digest


def test_a_generated_file_that_was_changed_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(check_data) == 0
    path = work / "datasets/finqa_mini/seed_0/test.json"
    path.write_text(path.read_text().replace("the ", "a ", 1))
    assert call(check_data, "--overwrite") == 2
    assert "test.json: differs from what data_seed 0 generates" in capsys.readouterr().err


def test_prepared_files_load_as_examples(work: Path) -> None:
    assert call(check_data) == 0 and call(prepare, *MODEL) == 0
    out = work / "outputs/run_001/01_preprocessing"
    task = FinQATask(PROFILES["strict"])
    splits = {split: task.load(out / f"{split}.jsonl") for split in ("train", "val", "test")}
    assert [len(splits[split]) for split in splits] == [40, 6, 10]
    source = read_records(work / "datasets/finqa_mini/seed_0/train.json")
    assert [example.id for example in splits["train"]] == [record.id for record in source]
    manifest = read_manifest(out)
    with_program = sum(record.program is not None for record in source)
    assert (
        manifest["metrics"]["train"]["with_program"]
        == with_program
        == manifest["metrics"]["train"]["numbers_in_prompt"]
    )
    schema = json.loads((out / "schema_used.json").read_text())
    for row in read_jsonl(out / "test.jsonl"):
        check_row(row, "here")
        assert set(schema["required"]) <= set(row) == set(schema["properties"])
    copy = work / "datasets/finqa_mini_processed"
    for name in ("train.jsonl", "val.jsonl", "test.jsonl", "schema_used.json"):
        assert (copy / name).read_bytes() == (out / name).read_bytes()


def test_same_seed_same_bytes(work: Path) -> None:
    assert call(check_data) == 0
    for name in ("a", "b"):
        assert call(prepare, *MODEL, "--output_dir", f"outputs/{name}") == 0
    assert (work / "outputs/a/train.jsonl").read_bytes() == (work / "outputs/b/train.jsonl").read_bytes()


def test_prompts_are_fitted_and_counted(work: Path) -> None:
    long = changed(id="long", filename="long", pre_text=["a sentence without any figure in it ."] * 60)
    flags = real(work / "raw", damage={0: long})
    assert call(check_data, *flags) == 0
    assert call(prepare, *flags, "--model", "tok", "--max_prompt_tokens", "400") == 0
    out = work / "outputs/run_001/01_preprocessing"
    counts = read_manifest(out)["metrics"]["train"]
    assert counts["shortened"] == 1 and counts["units_dropped"] > 30 and counts["examples"] == 4
    assert counts["prompt_tokens_max"] <= 400 and counts["numbers_in_prompt"] == 4
    row = read_jsonl(out / "train.jsonl")[0]
    assert row["input_text"].endswith(f"question: {row['question']}\nanswer:") and "$ 5,829" in row["input_text"]


def test_a_quick_test_is_small(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "QUICK_RECORDS", {"train": 8, "val": 2, "test": 3})
    assert call(check_data) == 0 and call(prepare, *MODEL, "--quick_test") == 0
    metrics = read_manifest(work / "outputs/run_001/01_preprocessing")["metrics"]
    assert [metrics[split]["examples"] for split in ("train", "val", "test")] == [8, 2, 3]
    assert metrics["train"]["with_program"] >= 4 and metrics["train"]["not_taken"] == 32


def test_a_target_without_a_token_is_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = real(work / "raw")
    monkeypatch.setattr("utils.models.tokens.encode_target", lambda tokenizer, text: [2])
    assert call(prepare, *flags, *MODEL) == 2
    assert "train: tok has no token for the target of t0, expected one at least" in capsys.readouterr().err
    assert not list((work / "outputs").rglob("*.jsonl")) and not (work / "datasets").exists()


def test_pages_may_be_divided_anew_and_val_is_another_name(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = real(work / "raw", train=10, dev="val")
    assert call(check_data, *flags) == 0
    assert call(prepare, *flags, *MODEL, "--split_proportions", "0.5", "0.25", "0.25") == 0
    metrics = read_manifest(work / "outputs/run_001/01_preprocessing")["metrics"]
    assert sum(metrics[split]["examples"] for split in ("train", "val", "test")) == 13
    # runs of several seeds are compared on one test set; another division has a data_seed of its own
    for name, more in (("other", ("--seed", "7")), ("anew", ("--data_seed", "7"))):
        target = work / "outputs" / name / "01_preprocessing"
        shares = ("--split_proportions", "0.5", "0.25", "0.25")
        assert call(prepare, *flags, *MODEL, *shares, *more, "--output_dir", str(target)) == 0
    first, other, anew = (
        (work / "outputs" / run / "01_preprocessing" / "test.jsonl").read_text() for run in ("run_001", "other", "anew")
    )
    assert first == other != anew
    assert call(prepare, *flags, *MODEL, "--split_proportions", "0.5", "0.5") == 2
    assert "three positive shares" in capsys.readouterr().err


def test_one_malformed_of_two_hundred_is_left_out_and_counted(work: Path) -> None:
    flags = real(work / "raw", train=200, damage={7: changed(id="bad", qa__program="add(1, 1)")})
    assert call(check_data, *flags) == 0 and call(prepare, *flags, *MODEL) == 0
    problems = read_jsonl(work / "outputs/run_001/00_data_validation/problems.jsonl")
    assert [(row["file"], row["index"], row["id"]) for row in problems if row["malformed"]] == [
        ("train.json", 7, "bad")
    ]
    prepared = read_manifest(work / "outputs/run_001/01_preprocessing")
    assert prepared["metrics"]["train"]["malformed_dropped"] == 1 and prepared["metrics"]["train"]["examples"] == 199
    assert any("1 records left out" in line for line in prepared["warnings"])


def test_more_than_one_percent_malformed_fails(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = real(work / "raw", damage={2: changed(id="bad", filename="bad", qa__question="")})
    assert call(check_data, *flags) == 2
    error = capsys.readouterr().err
    assert "1 of 4 records are malformed" in error and "record 2, id 'bad': no question" in error
    assert error.count("\n") == 1
    out = work / "outputs/run_001/00_data_validation"
    assert read_manifest(out)["status"] == "failed" and (out / "problems.jsonl").is_file()


def test_contradictions_are_reported_and_no_failure(work: Path) -> None:
    twin = changed(id="twin", filename="t0", qa__program="add(1, 4)", qa__exe_ans=5)
    assert call(check_data, *real(work / "raw", damage={1: twin})) == 0
    out = work / "outputs/run_001/00_data_validation"
    rows = {row["id"]: row["reason"] for row in read_jsonl(out / "problems.jsonl")}
    assert rows["twin"] == "contradicts record 0: same page and question, other exe_ans"
    assert rows["e1"] == "repeats record 0: same page and question"
    summary = (out / "summary.txt").read_text()
    assert "2 lines in problems.jsonl: 0 malformed, 1 contradicts, 1 repeats" in summary
    assert "  train.json, record 1, id twin: contradicts record 0" in summary
    assert "    subtract            3   42.9% #################" in summary  # 3 of the 7 steps of 4 training programs
    assert "    2                   3   75.0% " + "#" * 30 in summary


def test_a_page_in_two_splits_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = real(work / "raw", damage={0: changed(id="t0", filename="e0")})
    assert call(check_data, *flags) == 0
    assert call(prepare, *flags, *MODEL) == 2
    assert "page e0 lies in train and in test" in capsys.readouterr().err
    rows = read_jsonl(work / "outputs/run_001/00_data_validation/problems.jsonl")
    assert {
        "file": "test.json",
        "index": 0,
        "id": "e0",
        "reason": "shares page e0 with train.json",
        "malformed": False,
    } in rows


def test_what_download_noted_goes_into_the_manifest(work: Path) -> None:
    flags = real(work / "raw")
    source = {
        "origin": "here",
        "files": {"train.json": {"records": 4, "official_records": 6251}},
        "warning": "4 of 6251",
    }
    (work / "raw/SOURCE.json").write_text(json.dumps(source))
    assert call(check_data, *flags) == 0
    manifest = read_manifest(work / "outputs/run_001/00_data_validation")
    assert manifest["metrics"]["source"] == source and "4 of 6251" in manifest["warnings"]


def test_missing_files_name_the_remedy(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(check_data, "--task", "finqa", "--data_root", "nowhere") == 2
    assert "nowhere: train.json is missing (task finqa); fetch it with bash download.sh" in capsys.readouterr().err
    assert call(prepare, *MODEL) == 2
    assert "run python 00_check_data.py" in capsys.readouterr().err


def test_a_budget_below_every_question_is_an_error(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = real(work / "raw")
    assert call(prepare, *flags, "--model", "tok", "--max_prompt_tokens", "64") == 2
    assert "train: none of 4 records is usable" in capsys.readouterr().err


@pytest.mark.finqa
@pytest.mark.slow
def test_the_real_files_pass(work: Path, finqa_folder: Path) -> None:
    flags = ["--task", "finqa", "--data_root", str(finqa_folder)]
    assert call(check_data, *flags) == 0 and call(prepare, *flags, "--model", "assets/llama-tiny") == 0
    metrics = read_manifest(work / "outputs/run_001/01_preprocessing")["metrics"]
    for split in ("train", "val", "test"):
        counts = metrics[split]
        assert counts["examples"] == counts["records"] == counts["with_program"]
        assert counts["prompt_tokens_max"] <= 768 and counts["numbers_in_prompt"] > 0.9 * counts["records"]
