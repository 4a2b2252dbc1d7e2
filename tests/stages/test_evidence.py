"""Stage 01 with each context on generated data: one prompt for all stages, chosen once and not by val's labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.stages.test_00_01 import MODEL, call, check_data, prepare
from tests.unit.test_tokens import save_tokenizer
from utils.evaluation.outputs import shown_context
from utils.files import read_jsonl
from utils.finqa import mini, ranker
from utils.finqa.prompts import render_prompt
from utils.finqa.ranker import Ranker
from utils.finqa.records import Record, read_records, write_records
from utils.manifest import read as read_manifest
from utils.rewards.spec import PROFILES
from utils.stage import main
from utils.tasks.finqa import FinQATask

SPLITS = {"train": "train", "val": "dev", "test": "test"}
OUT = Path("outputs/run_001/01_preprocessing")


@pytest.fixture(scope="module")
def generated() -> dict[str, list[Record]]:
    """A small finqa_mini: 60 training records of which 9 name their evidence."""
    return {
        name: records[:count] for (name, records), count in zip(mini.generate(0).items(), (60, 12, 12), strict=True)
    }


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generated: dict[str, list[Record]]) -> Path:
    """A working directory with the generated files checked by stage 00; so few records are enough for the ranker."""
    monkeypatch.chdir(tmp_path)
    save_tokenizer(tmp_path / "tok", ["<pad>", "<s>", "</s>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    monkeypatch.setattr(mini, "generate", lambda seed: generated)
    monkeypatch.setattr(ranker, "MIN_RECORDS", 5)
    assert call(check_data) == 0
    return tmp_path


def prepared(*flags: str) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Rows by split and the manifest, after a run of 01."""
    assert call(prepare, *MODEL, *flags, "--overwrite") == 0
    return {split: read_jsonl(OUT / f"{split}.jsonl") for split in SPLITS}, read_manifest(OUT)


def sources() -> dict[str, dict[str, Record]]:
    folder = Path("datasets/finqa_mini/seed_0")
    return {split: {one.id: one for one in read_records(folder / f"{name}.json")} for split, name in SPLITS.items()}


@pytest.mark.parametrize("context", ["full", "retrieved", "gold"])
def test_the_prompt_holds_the_evidence_that_the_row_names(context: str, work: Path) -> None:
    rows, manifest = prepared("--context", context, "--evidence_units", "3")
    learned = Ranker.from_dict(json.loads((OUT / "retriever.json").read_text()))
    assert learned.kind == "linear" and learned.records == manifest["metrics"]["evidence"]["train_records"] >= 5
    for split, records in sources().items():
        for row in rows[split]:
            record = records[row["id"]]
            assert row["input_text"] == render_prompt(record, set(row["evidence"]))
            if context == "full":
                assert row["input_text"] == render_prompt(record)
            elif context == "gold" and record.gold_inds:
                assert set(row["evidence"]) == set(record.gold_inds)
            else:
                assert set(row["evidence"]) == set(learned.ranked(record)[:3])
    task = FinQATask(PROFILES["strict"])
    assert [task.prompt(example) for example in task.load(OUT / "val.jsonl")] == [
        row["input_text"] for row in rows["val"]
    ]
    assert "retriever.json" in json.dumps(manifest["outputs"])


def test_recall_is_measured_on_val_and_said(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, manifest = prepared()
    found = manifest["metrics"]["evidence"]["val"]
    assert found["records"] == 12 and 0.5 < found["at_3"] <= found["at_5"] <= 1
    said = capsys.readouterr().out
    assert f"recall on 12 val records at 3 {found['at_3']:.1%}, at 5 {found['at_5']:.1%}" in said
    assert "of programs; on the whole page 100.0%)" in said
    assert not any("GOLD" in line for line in manifest["warnings"])


def test_gold_is_called_an_upper_bound_loudly(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, manifest = prepared("--context", "gold")
    (warning,) = [line for line in manifest["warnings"] if "GOLD" in line]
    unknown = sum(not record.gold_inds for record in sources()["train"].values())
    assert unknown > 40 and f"train {unknown}, val 0, test 0" in warning and "upper bound" in warning
    assert "CONTEXT GOLD" in "".join(capsys.readouterr())
    assert manifest["metrics"]["evidence"]["context"] == "gold" and manifest["config"]["task"]["context"] == "gold"
    assert manifest["metrics"]["val"]["numbers_in_prompt"] == 12
    assert shown_context(OUT / "test.jsonl") == "gold"  # which 10 warns of and 11 says in its report


def test_other_labels_in_val_and_test_change_no_prompt(work: Path) -> None:
    """The ranker is that of the training split alone."""
    for context in ("full", "retrieved"):
        before, _ = prepared("--context", context, "--max_prompt_tokens", "600")
        saved = (OUT / "retriever.json").read_bytes()
        folder = Path(f"raw_{context}")
        for split, name in SPLITS.items():
            records = list(sources()[split].values())
            changed = [Record(**{**vars(one), "gold_inds": {"text_0": "other"}}) for one in records]
            write_records(folder / f"{name}.json", records if split == "train" else changed)
        flags = ("--source", "files", "--data_root", str(folder), "--context", context, "--max_prompt_tokens", "600")
        after, manifest = prepared(*flags)
        assert saved == (OUT / "retriever.json").read_bytes()
        for split in SPLITS:
            assert [row["input_text"] for row in after[split]] == [row["input_text"] for row in before[split]]
        assert manifest["metrics"]["train"]["prompt_tokens_max"] <= 600


def test_same_records_same_bytes_and_a_wrong_context_is_one_line(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared("--context", "retrieved")
    first = {path.name: path.read_bytes() for path in OUT.glob("*.json*") if path.name != "manifest.json"}
    prepared("--context", "retrieved", "--seed", "5")
    assert {name: (OUT / name).read_bytes() for name in first} == first and "retriever.json" in first
    capsys.readouterr()
    assert call(prepare, *MODEL, "--context", "golden", "--overwrite") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert call(prepare, *MODEL, "--context", "retrieved", "--evidence_units", "0", "--overwrite") == 2


def test_the_plan_names_the_context(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*MODEL, "--context", "retrieved", "--evidence_units", "7", "--dry_run"]
    assert (
        main(prepare.Config, prepare.run, prepare.__doc__, "01_prepare_dataset.py", plan=prepare.plan, argv=flags) == 0
    )
    assert "the 7 most relevant sentences and rows" in capsys.readouterr().out
