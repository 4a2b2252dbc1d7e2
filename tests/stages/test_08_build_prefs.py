"""Stage 08 as a program: pairs from stage 04's files, worked by hand, and one line for what cannot be paired."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from utils.files import read_json, read_jsonl, sha256, write_jsonl
from utils.finqa.answers import write_answer
from utils.finqa.examples import FinQAExample
from utils.stage import main

SCRIPT = importlib.import_module("08_build_prefs")
RIGHT, ALSO_RIGHT = write_answer("add(1, 2)", 3.0), write_answer("subtract(5, 2)", 3.0)
WRONG, BROKEN = write_answer("add(1, 3)", 4.0), '{"program": "add(1, 3'


def example(name: str, program: str | None) -> FinQAExample:
    target = None if program is None else write_answer(program, 3.0)
    return FinQAExample(
        id=name,
        input_text=f"question of {name}\nanswer:",
        target_answer="3",
        target_program=program,
        question="question",
        exe_ans=3.0,
        target_text=target,
        page="page",
    )


def candidate(text: str) -> dict[str, Any]:
    return {"text": text, "correct": text in (RIGHT, ALSO_RIGHT), "parse_ok": text != BROKEN}


def total(text: str) -> float:
    return {RIGHT: 1.0, ALSO_RIGHT: 1.0, WRONG: 0.1, BROKEN: 0.0}[text]


GROUPS = {
    "mixed": [RIGHT, WRONG, RIGHT],
    "none-gold": [WRONG, BROKEN, WRONG],
    "none": [WRONG, BROKEN, BROKEN],
    "all": [RIGHT, ALSO_RIGHT, RIGHT],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with what 01, 02 and 04 would have written for GROUPS."""
    folder = tmp_path / "outputs" / "run_001"
    rows = [example(name, "subtract(5, 2)" if name == "none-gold" else None).to_dict() for name in GROUPS]
    write_jsonl(folder / "01_preprocessing" / "train.jsonl", rows)
    spec = importlib.import_module("02_build_rewards")
    flags = ["--output_dir", str(folder / "02_rewards"), "--quiet"]
    assert main(spec.Config, spec.run, spec.__doc__, "02_build_rewards.py", argv=flags) == 0
    write_candidates(folder, GROUPS)
    return folder


def write_candidates(folder: Path, groups: dict[str, list[str]]) -> None:
    rows = [
        {"id": name, "prompt": example(name, None).input_text, "cands": [candidate(text) for text in texts]}
        for name, texts in groups.items()
    ]
    write_jsonl(folder / "04_candidates" / "candidates.jsonl", rows)
    scores = [{"id": name, "scores": [{"total": total(text)} for text in texts]} for name, texts in groups.items()]
    write_jsonl(folder / "04_candidates" / "scores.jsonl", scores)


def build(folder: Path, *flags: str, name: str = "08_preferences") -> int:
    arguments = ["--output_dir", str(folder / name), "--quiet", "--max_length_bias", "1", *flags]
    return main(SCRIPT.Config, SCRIPT.run, SCRIPT.__doc__, "08_build_prefs.py", argv=arguments)


def pairs_in(folder: Path) -> dict[str, tuple[str, str, str]]:
    return {row["id"]: (row["rule"], row["chosen"], row["rejected"]) for row in read_jsonl(folder / "pairs.jsonl")}


def test_pairs_by_every_rule(run: Path) -> None:
    assert build(run) == 0
    folder = run / "08_preferences"
    rows = read_jsonl(folder / "pairs.jsonl")
    expected = {
        ("mixed", "correct", RIGHT, WRONG, 0.9),
        ("none-gold", "gold", ALSO_RIGHT, WRONG, 0.9),
        ("none-gold", "gold", ALSO_RIGHT, BROKEN, 1.0),
        ("none", "score", WRONG, BROKEN, 0.1),
    }
    keys = ("id", "rule", "chosen", "rejected", "margin")
    assert {tuple(row[key] for key in keys) for row in rows} == expected
    assert {row["prompt"] for row in rows if row["id"] == "mixed"} == {example("mixed", None).input_text}
    assert all(row["chosen_score"] > row["rejected_score"] and row["chosen_tokens"] > 5 for row in rows)
    assert {row["split"] for row in rows} == {"train", "held_out"}
    assert len({row["id"] for row in rows if row["split"] == "held_out"}) == 1
    text = (folder / "stats.txt").read_text()
    assert "pairs: 4\n" in text and "a smaller scale than the usual 10,000 pairs: 4" in text
    assert "every candidate correct: 1" in text and "margin: reward" in text and "tokens by which" in text
    assert (folder / "pairs.png").stat().st_size > 1000
    metrics = read_json(folder / "manifest.json")["metrics"]
    assert metrics["pairs"] == 4 and metrics["prompts"] == 4 and metrics["prompts_with_pairs"] == 3


def test_equal_seeds_write_equal_bytes_and_files_may_lie_elsewhere(run: Path) -> None:
    assert build(run, name="08_a") == 0
    moved = run.parent / "elsewhere"
    (run / "04_candidates").rename(moved)
    assert build(run, "--candidates", str(moved / "candidates.jsonl"), name="08_b") == 0
    for name in ("pairs.jsonl", "stats.txt", "pairs.png"):
        assert sha256(run / "08_a" / name) == sha256(run / "08_b" / name)


def test_gold_programs_are_left_out_when_asked(run: Path) -> None:
    assert build(run, "--rules", "correct", "--held_out_share", "0") == 0
    assert pairs_in(run / "08_preferences") == {"mixed": ("correct", RIGHT, WRONG)}


def test_a_reward_that_is_named_pays_the_candidates_anew(run: Path) -> None:
    scores = read_jsonl(run / "04_candidates" / "scores.jsonl")
    unpaid = [{"id": row["id"], "scores": [{"total": 0.0} for _ in row["scores"]]} for row in scores]
    write_jsonl(run / "04_candidates" / "scores.jsonl", unpaid)
    assert build(run, "--rules", "correct", name="08_old") == 2
    spec = ["--reward_spec", str(run / "02_rewards" / "reward_spec.yaml")]
    assert build(run, "--rules", "correct", *spec, name="08_new") == 0
    assert pairs_in(run / "08_new") == {"mixed": ("correct", RIGHT, WRONG)}


def test_lengths_are_evened_out(run: Path) -> None:
    assert build(run, "--max_length_bias", "0.02") == 0
    metrics = read_json(run / "08_preferences" / "manifest.json")["metrics"]
    assert abs(metrics["length_bias"]) <= 0.02 < abs(metrics["length_bias_before"])
    assert metrics["dropped_for_length"] > 0 and metrics["pairs"] + metrics["dropped_for_length"] == 4


def test_what_cannot_be_paired_is_one_line_and_leaves_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*flags: str) -> str:
        assert build(run, *flags) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and not (run / "08_preferences").exists()
        return error

    write_candidates(run, {"mixed": [RIGHT, RIGHT], "none": [WRONG, WRONG], "all": [RIGHT, ALSO_RIGHT]})
    assert (
        "no pair can be made from 3 prompts (2 with every candidate correct, 1 with no candidate correct)" in refused()
    )
    write_candidates(run, {"none": [WRONG, BROKEN]})
    assert "no pair is left of 1" in refused("--max_length_bias", "0")
    assert "--rules: rules must be one of correct, gold, score; got 'gild'; did you mean gold?" in refused(
        "--rules", "gild"
    )
    write_candidates(run, {"stranger": [RIGHT, WRONG]})
    assert "candidates.jsonl:1: record stranger is not in" in refused()
    (run / "04_candidates" / "scores.jsonl").unlink()
    assert "not there yet; run first: python 04_generate_candidates.py" in refused()
