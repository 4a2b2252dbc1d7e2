"""The stages with another back end: they generate with it, repeat and resume byte by byte, and log its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stages.test_03_sft_train import run_folder, sft, stage  # noqa: F401 - a fixture
from tests.stages.test_05_07_online import Killed, inputs, killed_at, results, rows, settle, train  # noqa: F401
from tests.stages.test_09_train_dpo import full  # noqa: F401
from tests.stages.test_09_train_dpo import train as train_dpo
from utils.files import read_jsonl

OTHER = ["--backend", "transformers"]


@pytest.mark.parametrize(("method", "lora"), [("ppo", False), ("grpo", True), ("rloo", False)])
def test_online_training_with_generate_repeats_and_resumes(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, method: str, lora: bool  # noqa: F811
) -> None:  # fmt: skip
    settle(tmp_path, lora=lora)
    assert train(method, tmp_path / "whole", [*inputs, *OTHER]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("utils.rl.session.Session.record", killed_at(3))
        with pytest.raises(Killed):
            train(method, tmp_path / "cut", [*inputs, *OTHER])
    assert train(method, tmp_path / "cut", [*inputs, *OTHER, "--resume"]) == 0
    assert results(method, tmp_path / "cut") == results(method, tmp_path / "whole")
    assert train(method, tmp_path / "native", inputs) == 0
    # the same policy, so that nothing has to be weighed; native reports no weights, and draws other samples
    for row in rows(tmp_path / "whole"):
        assert row["importance_mean"] == pytest.approx(1, abs=1e-4) and row["importance_max"] < 1.001
    native = rows(tmp_path / "native")
    assert not {"importance_mean", "importance_max"} & set(native[0])
    assert native[0]["completion_length"] != rows(tmp_path / "whole")[0]["completion_length"]
    start = [rows(tmp_path / name, "validation")[0] for name in ("native", "whole")]
    assert start[0] == start[1]  # greedy answers of the same policy


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call of transformers' `generate` got."""
    from utils.rl import transformers_backend

    calls: list[int] = []
    original = transformers_backend.generate

    def noted(model: Any, request: Any) -> Any:
        calls.append(len(request.prompts))
        return original(model, request)

    monkeypatch.setattr(transformers_backend, "generate", noted)
    return calls


def test_every_stage_that_generates_asks_the_back_end(run_folder: Path, asked: list[int]) -> None:  # noqa: F811
    start = sft(run_folder, "03_other", "--max_steps", "2", "--patience", "0", *OTHER)
    assert asked
    policy = ["--policy_ckpt", str(start), "--quick_test", "--max_new_tokens", "24"]
    for script, more in (
        ("04_generate_candidates", ["--num_candidates", "3"]),
        ("10_evaluate", ["--pass_k", "2", "--pass_records", "8"]),
    ):
        first, second = run_folder / f"{script}_other", run_folder / f"{script}_again"
        for folder in (first, second):
            asked.clear()
            assert stage(script, *policy, *more, *OTHER, "--output_dir", str(folder)) == 0
            assert sum(asked) >= 32
        if script.startswith("04"):
            assert read_jsonl(first / "candidates.jsonl") == read_jsonl(second / "candidates.jsonl")


def test_dpo_validates_and_measures_its_kl_with_it(tmp_path: Path, full: list[str], asked: list[int]) -> None:  # noqa: F811
    assert train_dpo(tmp_path / "dpo", [*full, *OTHER]) == 0
    assert asked.count(8) == 6  # eight records, greedy and sampled, after 0, 2 and 4 steps
