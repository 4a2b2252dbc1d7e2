"""How a step is cut into passes does not change its gradient: 8 x 1 is 1 x 8, with all weights, adapters and 4 bits.

03 and 09 are cut by batch_size x gradient_accumulation_steps, 05 to 07 by micro_batch_tokens.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.invariants.tiny import VariedTask, letter_pairs, letter_prompts, save_letter_model
from utils.files import write_jsonl, write_text
from utils.stage import main

ADAPTER = {"use_lora": True, "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "lora": ({}, ADAPTER),
    "4bit": ({"load_in_4bit": True}, ADAPTER),
}
ONLINE = ["--steps", "2", "--eval_every", "2", "--prompts_per_step", "8"]
SCRIPTS: dict[str, tuple[str, list[str]]] = {
    "sft": ("03_sft_train", ["--max_steps", "2"]),
    "ppo": ("05_train_ppo", [*ONLINE, "--group_size", "4", "--ppo_epochs", "2"]),
    "grpo": ("06_train_grpo", [*ONLINE, "--group_size", "4", "--num_iterations", "2"]),
    "rloo": ("07_train_rloo", [*ONLINE, "--num_samples", "4", "--variance_prompts", "0"]),
    "dpo": ("09_train_dpo", ["--max_steps", "2"]),
}
CUTS = [(8, 1, 4096), (2, 4, 96), (1, 8, 64)]
"""(batch_size, gradient_accumulation_steps, micro_batch_tokens)"""


def gradients(method: str, kind: str, cut: tuple[int, int, int], folder: Path) -> tuple[list[torch.Tensor], int]:
    """Gradients of all updates in a row, and how many passes backward they took. Every update moves the policy."""
    script_name, flags = SCRIPTS[method]
    model, lora = KINDS[kind]
    batch_size, accumulation, tokens = cut
    sizes = {"learning_rate": 1e-3, "batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    sections = {
        "model": {"name": str(folder / "start"), **model},
        "lora": lora,
        "training": sizes,
        "preference": sizes,
        "rl": {"learning_rate": 1e-3, "micro_batch_tokens": tokens},
        "validation": {"eval_steps": 2, "save_steps": 2, "logging_steps": 1},
    }
    target = folder / f"{batch_size} x {accumulation}"
    write_text(target.with_suffix(".yaml"), json.dumps(sections))
    files = {"config": target.with_suffix(".yaml"), "val_jsonl": "val.jsonl", "reward_spec": "reward_spec.yaml"}
    files |= {} if method == "sft" else {"policy_ckpt": "start"}
    files |= {"pairs": "pairs.jsonl"} if method == "dpo" else {"train_jsonl": "train.jsonl"}
    named = [word for flag, name in files.items() for word in (f"--{flag}", str(folder / name))]
    common = ["--output_dir", str(target), "--seed", "3", "--max_new_tokens", "3", "--warmup_steps", "0", "--quiet"]
    found: list[torch.Tensor] = []
    policies: list[torch.Tensor] = []
    passes, backward = 0, torch.Tensor.backward

    def noted(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        policies.append(torch.cat([weight.detach().flatten() for weight in optimizer.param_groups[0]["params"]]))
        found.extend(weight.grad.clone() for weight in weights if weight.grad is not None)

    def counted(*arguments: Any, **options: Any) -> None:
        nonlocal passes
        passes += 1
        backward(*arguments, **options)

    script = importlib.import_module(script_name)
    hook = register_optimizer_step_pre_hook(noted)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", counted)
            argv = [*common, *named, *flags]
            assert main(script.Config, script.run, script.__doc__, str(script.__file__), argv=argv) == 0
    finally:
        hook.remove()
    assert len(policies) > 1
    for before, after in zip(policies, policies[1:], strict=False):
        assert not torch.equal(before, after), "the second gradient is that of the first policy"
    return found, passes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", SCRIPTS)
def test_the_gradient_does_not_depend_on_the_cut(
    method: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("utils.tasks.make_task", "utils.rl.session.make_task"):
        monkeypatch.setattr(name, lambda settings, spec: VariedTask())
    save_letter_model(tmp_path / "start")
    write_jsonl(tmp_path / "train.jsonl", letter_prompts(12, seed=1))
    write_jsonl(tmp_path / "val.jsonl", letter_prompts(2, seed=2))
    write_jsonl(tmp_path / "pairs.jsonl", letter_pairs(12, 2))
    write_text(tmp_path / "reward_spec.yaml", "none: 0\n")
    whole, once = gradients(method, kind, CUTS[0], tmp_path)
    for cut in CUTS[1:]:
        parts, often = gradients(method, kind, cut, tmp_path)
        assert often >= 2 * once and len(parts) == len(whole) > 0
        for part, expected in zip(parts, whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-9)
