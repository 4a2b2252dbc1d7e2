"""Replayed rewards: every kind of saved completions is read, and the differences are those worked out by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tools.replay_rewards import main, read_completions, turned_prompts
from utils.finqa.answers import write_answer
from utils.rewards import PROFILES
from utils.rewards.corpus import case_example
from utils.rewards.spec import override

EXAMPLE = dataclasses.replace(case_example(), page="p")
GOLD = str(EXAMPLE.target_text)
NEAR = write_answer("divide(98.35, 5735)", 0.01715)  # strict 0.1, seed 0.8
WRONG = write_answer("add(1, 1)", 2.0)  # strict 0.1, seed 0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one record and one of each file that holds completions."""
    folder = tmp_path / "run_001"
    write(folder / "01_preprocessing" / "train.jsonl", [EXAMPLE.to_dict()])
    cands = [{"text": text} for text in (GOLD, NEAR, WRONG)]
    write(folder / "04_candidates" / "candidates.jsonl", [{"id": "case", "prompt": "", "cands": cands}])
    totals = [{"total": total} for total in (1.0, 0.1, 0.1)]
    write(folder / "04_candidates" / "scores.jsonl", [{"id": "case", "scores": totals}])
    write(folder / "10_evaluation/samples/predictions.jsonl", [{"id": "case", "text": NEAR, "reward": 0.1}])
    write(
        folder / "10_evaluation/samples/pass_k.jsonl", [{"id": "case", "texts": [GOLD, ""], "correct": [True, False]}]
    )
    rows = [{"id": "case", "text": GOLD, "reward": 0.9, "failure": ""}]
    (folder / "06_grpo/val_generations").mkdir(parents=True)
    (folder / "06_grpo/val_generations/step_10.json").write_text(json.dumps(rows))
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_two_profiles_differ_where_they_should(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "differences.jsonl"
    command = [str(run / "04_candidates"), "--reward", "strict", "--reward", "seed", "--out", str(out)]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "3 completions, mean 0.4000 under strict, 0.6000 under seed" in printed
    assert "2 are paid differently, 1 prompts order theirs differently" in printed
    assert "+0.700" in printed and "-0.100" in printed
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["sample"], row["totals"]) for row in rows] == [(1, [0.1, 0.8]), (2, [0.1, 0.0])]
    assert rows[0]["components"][1]["numeric"] == 0.8 and rows[0]["reasons"] == ["wrong_result"]


def test_a_changed_spec_against_the_old_one(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = {"old.yaml": PROFILES["strict"], "new.yaml": override(PROFILES["strict"], "exact=2")}
    for name, spec in specs.items():
        spec.save(tmp_path / name)
    old, new = (str(tmp_path / name) for name in specs)
    assert main([str(run), "--reward", old, "--reward", new, "--limit", "0"]) == 1
    printed = capsys.readouterr().out
    assert "7 completions" in printed and "3 are paid differently, 0 prompts" in printed and "correct" in printed
    assert main([str(run), "--reward", old, "--reward", "strict"]) == 0
    assert "0 are paid differently" in capsys.readouterr().out


def test_what_was_recorded_is_the_second_reward(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run / "04_candidates"), "--reward", "strict"]) == 0
    assert main([str(run / "10_evaluation/samples/predictions.jsonl"), "--reward", "strict"]) == 0
    capsys.readouterr()
    assert main([str(run / "06_grpo"), "--reward", "strict"]) == 1
    assert "sample 0: +1.000 -> +0.900" in capsys.readouterr().out


def test_orders_are_compared_pair_by_pair() -> None:
    def rows(*totals: list[float]) -> list[dict[str, Any]]:
        return [{"where": "f", "id": "a", "totals": both} for both in totals]

    assert turned_prompts(rows([1.0, 2.0], [0.0, 0.5])) == []
    assert turned_prompts(rows([1.0, 0.0], [0.0, 0.5])) == ["a"]
    assert turned_prompts(rows([1.0, 0.5], [0.0, 0.5])) == ["a"]  # a tie under the second only


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there is none"),
        ([{"id": "case"}], "row 0: expected id and text, texts or cands"),
        ([{"text": GOLD}], "row 0: expected id and text"),
        ([{"id": "case", "texts": [1]}], "row 0: expected id and text"),
        ([{"id": "case", "cands": [GOLD]}], "row 0: expected id and text"),
        ([{"id": "other", "text": GOLD, "reward": 1.0}], "no record 'other' in the data"),
        ([{"id": "case", "text": GOLD}], "records no reward to compare with"),
        ([{"id": "case", "text": GOLD, "reward": 1.0, "components": {"exact": 0.5}}], "do not sum to"),
    ],
)
def test_rows_that_hold_no_completion(
    rows: list[dict[str, Any]], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "10_evaluation/samples/predictions.jsonl"
    write(file, rows)
    assert main([str(file), "--reward", "strict"]) == 2
    error = capsys.readouterr().err
    assert message in error and str(file) in error and error.count("\n") == 1


def test_rows_and_scores_must_match(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run / "04_candidates" / "scores.jsonl", [{"id": "case", "scores": [{"total": 1.0}]}])
    assert main([str(run / "04_candidates"), "--reward", "strict"]) == 2
    assert "3 completions and 1 scores" in capsys.readouterr().err
    file = run / "step_1.json"
    file.write_text('["text"]')
    assert main([str(file), "--reward", "strict"]) == 2
    assert "row 0: expected id and text" in capsys.readouterr().err
    (run / "04_candidates" / "scores.jsonl").unlink()
    assert [one.paid for one in read_completions(run / "04_candidates" / "candidates.jsonl")] == [None] * 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reward", "strikt"], "did you mean strict"),
        (["--reward", "strict", "--reward", "seed", "--reward", "seed"], "expected one or two, got 3"),
        (["--reward", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--reward", "strict", "--data", "nowhere"], "nowhere: no train.jsonl"),
    ],
)
def test_mistakes_in_the_command(flags: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run / "04_candidates"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_folders_must_hold_completions_and_lie_in_a_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run / "01_preprocessing"), "--reward", "strict"]) == 2
    assert "no completions in this folder" in capsys.readouterr().err
    elsewhere = tmp_path / "step_5.json"
    elsewhere.write_text(json.dumps([{"id": "case", "text": GOLD, "reward": 1.0}]))
    assert main([str(elsewhere), "--reward", "strict"]) == 2
    assert "lies in no run with a 01_preprocessing folder" in capsys.readouterr().err
    assert main([str(elsewhere), "--reward", "strict", "--data", str(run / "01_preprocessing")]) == 0
