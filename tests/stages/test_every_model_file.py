"""Every shipped model file through every trainer: one step of 03, then one of 05, 06, 07 and 09 from what it left.

The model is the file's own in small, with random weights (tests/invariants/small.py); files that speak of
--load_in_4bit go over a base in 4 bits too. At the first step the policy is its reference: the KL is exactly 0 and
DPO's loss ln 2, in the file's own precision.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.invariants.small import FILES, save_small_model
from tests.invariants.tiny import VariedTask, letter_pairs, letter_prompts
from utils.files import read_jsonl, write_jsonl, write_text
from utils.stage import main

LN2 = float(torch.tensor(2.0).log())
ONLINE = ["--steps", "1", "--eval_every", "1", "--prompts_per_step", "2"]
PAIRWISE = ["--max_steps", "1", "--batch_size", "2", "--gradient_accumulation_steps", "1"]
ALGORITHMS: dict[str, tuple[str, list[str]]] = {
    "ppo": ("05_train_ppo", [*ONLINE, "--group_size", "4", "--ppo_epochs", "1"]),
    "grpo": ("06_train_grpo", [*ONLINE, "--group_size", "4"]),
    "rloo": ("07_train_rloo", [*ONLINE, "--num_samples", "4", "--variance_prompts", "0"]),
    "dpo": ("09_train_dpo", [*PAIRWISE, "--sft_coef", "0"]),
}
CASES = [(path, bits) for path in FILES for bits in ([], ["--load_in_4bit"]) if not bits or bits[0] in path.read_text()]


def train(script_name: str, folder: Path, flags: list[str]) -> dict[str, Any]:
    """Run a script for one step; its line of train.jsonl."""
    script = importlib.import_module(script_name)
    arguments = ["--output_dir", str(folder), "--device", "cpu", "--quiet", "--warmup_steps", "0", *flags]
    assert main(script.Config, script.run, script.__doc__, str(script.__file__), argv=arguments) == 0
    (row,) = [row for row in read_jsonl(folder / "logs" / "train.jsonl") if row["phase"] == "train"]
    return row


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0].stem + ("-4bit" if case[1] else ""))
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """(folder with 03's policy after a step, flags that all scripts take)."""
    file, bits = request.param
    folder = tmp_path_factory.mktemp(file.stem)
    write_jsonl(folder / "train.jsonl", letter_prompts(4, seed=1))
    write_jsonl(folder / "val.jsonl", letter_prompts(2, seed=2))
    write_jsonl(folder / "pairs.jsonl", letter_pairs(4, 2))
    write_text(folder / "reward_spec.yaml", "none: 0\n")
    (folder / "base").mkdir()
    flags = ["--config", str(file), *save_small_model(file, folder / "base"), *bits, "--max_new_tokens", "4"]
    flags += ["--val_jsonl", str(folder / "val.jsonl"), "--reward_spec", str(folder / "reward_spec.yaml")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.tasks.make_task", lambda settings, spec: VariedTask())
        patch.setattr("utils.rl.session.make_task", lambda settings, spec: VariedTask())
        patch.setattr("utils.config.LOCAL_FILE", "configs/local-absent-in-tests.yaml")
        row = train("03_sft_train", folder / "03", [*flags, *PAIRWISE, "--train_jsonl", str(folder / "train.jsonl")])
        assert row["loss"] > 0 and row["grad_norm"] > 0
        yield folder, flags


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(next(checkpoint.glob("*.safetensors")))


def test_supervised_training_takes_a_step(started: tuple[Path, Any]) -> None:
    """Without an adapter every tensor moves; a fresh adapter's A waits for its B to leave zero."""
    folder, _ = started
    after = weights(folder / "03" / "ckpt_sft" / "final")
    if (folder / "03" / "ckpt_sft" / "final" / "adapter_config.json").exists():
        assert all(bool(tensor.any()) for tensor in after.values()) and any("lora_B" in name for name in after)
    else:
        before = weights(folder / "base")
        assert all(not torch.equal(after[name], before[name].float()) for name in after)


@pytest.mark.parametrize("method", ALGORITHMS)
def test_takes_a_step_from_where_supervised_training_ended(started: tuple[Path, Any], method: str) -> None:
    folder, flags = started
    script, own = ALGORITHMS[method]
    start = folder / "03" / "ckpt_sft" / "final"
    data = (
        ["--pairs", str(folder / "pairs.jsonl")] if method == "dpo" else ["--train_jsonl", str(folder / "train.jsonl")]
    )
    row = train(script, folder / method, [*flags, *own, *data, "--policy_ckpt", str(start)])
    assert row["loss"] == LN2 if method == "dpo" else row["kl"] == 0.0
    assert row["grad_norm"] > 0
    before, after = weights(start), weights(folder / method / f"ckpt_{method}" / "final")
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
