"""Stage 04: K candidates per prompt, kept whether valid or not, scored as stage 02 scores."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.stages.test_03_sft_train import run_folder, sft, stage  # noqa: F401 - a fixture

SCRIPT = importlib.import_module("04_generate_candidates")


@pytest.fixture(scope="module")
def candidates(run_folder: Path) -> Path:  # noqa: F811
    start = sft(run_folder, "03_for_candidates", "--max_steps", "2", "--patience", "0")
    target = run_folder / "04_candidates"
    flags = ["--policy_ckpt", str(start), "--num_candidates", "3", "--max_new_tokens", "24", "--quick_test"]
    assert stage("04_generate_candidates", *flags, "--output_dir", str(target)) == 0
    return target


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_k_candidates_each_with_scores(candidates: Path) -> None:
    made, scored = rows(candidates / "candidates.jsonl"), rows(candidates / "scores.jsonl")
    assert [row["id"] for row in made] == [row["id"] for row in scored] and len(made) == 32
    assert all(len(row["cands"]) == 3 for row in made) and all(len(row["scores"]) == 3 for row in scored)
    for row in scored:
        for score in row["scores"]:
            assert score["total"] == pytest.approx(sum(score["components"].values()))
    for row in made:
        for cand in row["cands"]:
            assert set(cand) == {"text", "parsed_json", "parse_ok", "correct"}
            assert cand["parsed_json"] is not None or not cand["parse_ok"]
    manifest = json.loads((candidates / "manifest.json").read_text())
    assert manifest["spent"]["completions"] == 96
    assert manifest["metrics"]["parse_rate"] == pytest.approx(
        sum(cand["parse_ok"] for row in made for cand in row["cands"]) / 96
    )
    assert "reward" in (candidates / "summary.txt").read_text()


def test_same_seed_same_candidates_and_a_subset_draws_the_same(candidates: Path) -> None:
    run = candidates.parent
    name = rows(candidates / "candidates.jsonl")[5]["id"]
    flags = ["--policy_ckpt", str(run / "03_for_candidates"), "--num_candidates", "3", "--max_new_tokens", "24"]
    assert stage("04_generate_candidates", *flags, "--ids", name, "--output_dir", str(run / "04_one")) == 0
    assert rows(run / "04_one" / "candidates.jsonl") == rows(candidates / "candidates.jsonl")[5:6]


@pytest.mark.parametrize(
    "completions, records, samples",
    [(40, 10, 4), (33, 9, 4), (122, 32, 4), (121, 31, 4), (128, 32, 4), (256, 32, 8), (129, 26, 5), (3, 1, 4)],
)
def test_match_samples_draws_as_many(tmp_path: Path, completions: int, records: int, samples: int) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"spent": {"completions": completions}}))
    inputs = SimpleNamespace(match_samples=tmp_path / "manifest.json")
    cfg = SimpleNamespace(inputs=inputs, generation=SimpleNamespace(num_candidates=4))
    chosen, each = SCRIPT.spread(cfg, SimpleNamespace(input=Path), list(range(32)))
    assert (len(chosen), each) == (records, samples) and chosen == sorted(set(chosen)) and chosen[0] == 0
    assert max(b - a for a, b in zip(chosen, [*chosen[1:], 32], strict=True)) <= -(-32 // records)
    assert records == 1 or completions <= records * samples <= max(1.05 * completions, completions + samples)


def test_match_samples_stands_in_the_files(candidates: Path) -> None:
    run = candidates.parent
    (run / "06_made_up_samples").mkdir()
    spent = {"schema": 1, "spent": {"completions": 33}, "stage": "06_train_grpo", "status": "completed"}
    (run / "06_made_up_samples" / "manifest.json").write_text(json.dumps(spent))
    flags = ["--policy_ckpt", str(run / "03_for_candidates"), "--max_new_tokens", "8", "--quick_test"]
    match = ["--match_samples", str(run / "06_made_up_samples" / "manifest.json")]
    assert stage("04_generate_candidates", *flags, *match, "--output_dir", str(run / "04_matched")) == 0
    assert [len(row["cands"]) for row in rows(run / "04_matched" / "candidates.jsonl")] == 9 * [4]


def test_an_unknown_id_is_one_line(candidates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = candidates.parent
    flags = ["--policy_ckpt", str(run / "03_for_candidates"), "--ids", "nobody", "--output_dir", str(run / "04_none")]
    assert stage("04_generate_candidates", *flags) == 2
    assert "nobody" in capsys.readouterr().err
