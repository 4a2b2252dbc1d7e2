"""The tiny runs that `tools.campaign` kills: every trainer's script on the letter task of the tests."""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from utils.files import write_jsonl, write_text
from utils.ranks import launch
from utils.runs import STAGES

ONLINE = ["--steps", "6", "--eval_every", "2", "--prompts_per_step", "4"]
TRAINERS: dict[str, tuple[str, str, list[str]]] = {
    "sft": ("03_sft_train", "lora", ["--max_steps", "8", "--warmup_steps", "2"]),
    "ppo": ("05_train_ppo", "full", [*ONLINE, "--group_size", "6", "--mini_batches", "2", "--kl_target", "0.01"]),
    "grpo": ("06_train_grpo", "full", [*ONLINE, "--group_size", "6", "--mini_batches", "2", "--num_iterations", "2"]),
    "rloo": ("07_train_rloo", "lora", [*ONLINE, "--num_samples", "6", "--variance_prompts", "4"]),
    "dpo": ("09_train_dpo", "lora", ["--max_steps", "8", "--warmup_steps", "2"]),
    "grpo_two": ("06_train_grpo", "full", [*ONLINE, "--group_size", "6", "--num_processes", "2"]),
    "ppo_4bit": ("05_train_ppo", "4bit", [*ONLINE, "--group_size", "6", "--critic", "adapter"]),
}
"""Trainer -> script, model file, flags. PPO passes four times over each rollout; a checkpoint comes after every two."""
Context = SpawnContext | ForkServerContext
ALONE, FORKED = multiprocessing.get_context("spawn"), multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [__name__, "torch", "transformers.models.llama.modeling_llama", "utils.rl.session", "utils.rl.supervised"]
    + ["utils.rl.dpo", "tests.invariants.tiny"]
)
"""How a process begins: as a new interpreter, whose sets have their own order, or as a copy of one that is ready."""

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # before the process that is copied imports it


@dataclass(frozen=True)
class Trainer:
    """One trainer's runs below `root`/name: in whole/ the one left alone, in cut/ the one that is killed."""

    name: str
    root: Path

    @property
    def stage(self) -> str:
        """Name of its stage folder."""
        return STAGES[TRAINERS[self.name][0]]

    def folder(self, run: str) -> Path:
        """Where the run `whole` or `cut` writes."""
        return self.root / self.name / run / self.stage

    def start(self, run: str, context: Context) -> BaseProcess:
        """Start the run, or continue it."""
        script, model, flags = TRAINERS[self.name]
        files = inputs_of(self.name, model, self.root / "inputs")
        arguments = ["--output_dir", self.folder(run).as_posix(), "--resume", *files, *flags]
        process = context.Process(target=run_stage, args=(script, arguments, str(self.log)), daemon=True)
        process.start()
        return process

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.root / f"{self.name}.log"


def inputs_of(trainer: str, model: str, folder: Path) -> list[str]:
    """Flags that name the files of `write_inputs`."""
    named = {"config": f"{model}.yaml", "val_jsonl": "val.jsonl", "reward_spec": "reward_spec.yaml"}
    if trainer != "sft":
        named["policy_ckpt"] = "start"
    named |= {"pairs": "pairs.jsonl"} if trainer == "dpo" else {"train_jsonl": "train.jsonl"}
    files = [word for flag, name in named.items() for word in (f"--{flag}", (folder / name).as_posix())]
    return [*files, "--seed", "3", "--max_new_tokens", "3", "--device", "cpu", "--quiet"]


def write_inputs(folder: Path) -> None:
    """In a process of its own: a random policy, prompts and pairs of the letter task, and settings."""
    print_to(f"{folder}.log")
    from tests.invariants.tiny import letter_pairs, letter_prompts, save_letter_model

    save_letter_model(folder / "start")
    write_jsonl(folder / "train.jsonl", letter_prompts(20, seed=1))
    write_jsonl(folder / "val.jsonl", letter_prompts(8, seed=2))
    write_jsonl(folder / "pairs.jsonl", letter_pairs(20, 6))
    write_text(folder / "reward_spec.yaml", "none: 0\n")
    sizes = {"learning_rate": 1e-2, "batch_size": 2, "gradient_accumulation_steps": 2}
    model = {"name": (folder / "start").as_posix()}
    sections = {
        "model": model,
        "training": sizes,
        "preference": sizes,
        "rl": {"learning_rate": 1e-2, "critic_learning_rate": 3e-2, "micro_batch_tokens": 128},
        "validation": {"eval_steps": 4, "save_steps": 2, "logging_steps": 3, "keep_checkpoints": 2},
    }
    lora = {"lora": {"use_lora": True, "r": 4, "dropout": 0.3, "target_modules": ["q_proj", "v_proj", "down_proj"]}}
    own_sections: dict[str, dict[str, Any]] = {"full": {}, "lora": lora}
    own_sections["4bit"] = {**lora, "model": {**model, "load_in_4bit": True}}
    for name, own in own_sections.items():
        write_text(folder / f"{name}.yaml", json.dumps(sections | own))


def print_to(log: str) -> None:
    """From now on everything that this process prints goes to the end of a file."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def run_stage(script: str, arguments: list[str], log: str) -> None:
    """In a process of its own: a stage script on the letter task."""
    print_to(log)
    sys.exit(on_letters(script, arguments))


def on_letters(script: str, arguments: list[str]) -> int:
    """A stage script on the letter task; as several processes when its flags say so."""
    from tests.invariants.tiny import VariedTask

    def ours(count: int, _: Sequence[str]) -> int:
        return launch(count, [sys.executable, "-m", __name__, script, *arguments])

    stage: Any = importlib.import_module(script)
    importlib.import_module("utils.rl.session")
    letters = patch("utils.tasks.make_task", lambda *_: VariedTask())
    with letters, patch("utils.rl.session.make_task", lambda *_: VariedTask()), patch("utils.ranks.launch", ours):
        code: int = stage.main(stage.Config, stage.run, stage.__doc__, stage.__file__, argv=arguments, plan=stage.plan)
    return code


if __name__ == "__main__":
    raise SystemExit(on_letters(sys.argv[1], sys.argv[2:]))
