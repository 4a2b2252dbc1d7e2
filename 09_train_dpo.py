"""DPO: direct preference optimisation, from pairs of answers of which one is better; no sampling while it trains.

    loss = -log sigmoid(beta (log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x)))   (Rafailov et al. 2023, eq. 7)

TRL's DPOTrainer on ready token ids; the SFT policy is start and reference (an adapter's frozen copy, or a frozen copy
of all weights). Every `eval_steps` the policy answers the validation records greedily, and is measured on held-out
pairs and by its KL to the reference; `best` is the checkpoint of the highest execution accuracy among those trained.

Reads:  08_preferences/pairs.jsonl, 01_preprocessing/val.jsonl, 02_rewards/reward_spec.yaml, 03_sft/ckpt_sft/best
Writes: outputs/run_XXX/09_dpo/{ckpt_dpo/{best,final,step_N}, logs/train.jsonl, val_generations/step_N.json,
        manifest.json}

    python 09_train_dpo.py --policy_ckpt outputs/run_001/03_sft --algo_config configs/algorithms/dpo.yaml --beta 0.1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import setting
from utils.errors import UserError
from utils.files import read_numbered_jsonl
from utils.inputs import records_file, reward_spec_file
from utils.runs import resolve_checkpoint
from utils.settings import (
    DPOSettings,
    GenerationSettings,
    LoraSettings,
    ModelSettings,
    PathSettings,
    PreferenceSettings,
    RunSettings,
    TaskSettings,
    ValidationSettings,
)
from utils.stage import Stage, main

QUICK_STEPS, QUICK_RECORDS, KL_RECORDS = 4, 32, 64
PAIR_KEYS = ("id", "prompt", "chosen", "rejected", "split")


@dataclass(frozen=True)
class Inputs:
    """Files, where they are not this run's."""

    policy_ckpt: str = setting("", "checkpoint, ckpt folder or stage to start from (default: this run's 03_sft)")
    pairs: str = setting("", "pairs.jsonl of stage 08 (default: this run's)")
    val_jsonl: str = setting("", "validation records (default: val.jsonl of --data_dir, else of this run)")
    max_steps: int = setting(0, "optimiser steps at most (0: as many as epochs give)", minimum=0)


@dataclass(frozen=True)
class Config:
    """Settings of stage 09."""

    run: RunSettings
    task: TaskSettings
    model: ModelSettings
    lora: LoraSettings
    validation: ValidationSettings
    preference: PreferenceSettings
    generation: GenerationSettings
    paths: PathSettings
    algorithm: DPOSettings
    inputs: Inputs


def run(cfg: Config, stage: Stage) -> None:
    """Load policy and pairs, train, keep the best."""
    from utils.models.load import autocast, load_model, resolve_device
    from utils.models.tokens import load_tokenizer
    from utils.rl.backends import make_backend
    from utils.rl.dpo import Preferences, tokenise_pairs
    from utils.rl.health import dpo_guards, last_alarms
    from utils.rl.rollouts import Sampler, validate
    from utils.seeds import seed_everything
    from utils.tasks import make_task

    inputs, preference, quick = cfg.inputs, cfg.preference, cfg.run.quick_test
    train, held_out = read_pairs(stage.input(inputs.pairs) if inputs.pairs else previous_pairs(stage))
    task = make_task(cfg.task, reward_spec_file(stage, cfg.paths))
    records = QUICK_RECORDS if quick else cfg.validation.eval_records or None
    val = task.load(records_file(stage, cfg.paths, "val.jsonl", inputs.val_jsonl))[:records]

    seed_everything(cfg.run.seed)
    device = resolve_device(cfg.run.device)
    given = inputs.policy_ckpt
    start = stage.input(resolve_checkpoint(given)) if given else stage.previous("03_sft_train", "ckpt_sft", "best")
    tokenizer = load_tokenizer(cfg.model, start)
    pairs = tokenise_pairs(tokenizer, train, preference.max_length)
    model = load_model(cfg.model, cfg.lora, checkpoint=start, trainable=True, device=device)
    per_step = preference.batch_size * preference.gradient_accumulation_steps
    steps = inputs.max_steps or math.ceil(cfg.algorithm.epochs * len(pairs) / per_step)
    steps = min(steps, QUICK_STEPS) if quick else steps

    def context() -> Any:
        return autocast(cfg.model, device)

    sampler = Sampler(
        model,
        tokenizer,
        cfg.generation.max_new_tokens,
        cfg.generation.tokens_per_batch,
        context,
        backend=make_backend(cfg.generation),
        warn=stage.warn,
    )
    dpo = Preferences(
        model,
        tokenizer,
        stage.dir,
        pairs,
        tokenise_pairs(tokenizer, held_out[:records], preference.max_length),
        settings=cfg.model,
        preference=preference,
        algorithm=cfg.algorithm,
        validation=cfg.validation,
        seed=cfg.run.seed,
        steps=steps,
        validate=lambda: validate(sampler, task, val),
        sampler=sampler,
        kl_examples=val[:KL_RECORDS],
        device=device,
        report_to=cfg.run.report_to,
    )
    stage.terminal.say(f"{len(pairs)} training pairs, {len(dpo.held_out)} held out, at most {steps} steps")
    with stage.terminal.progress(stage.dir.name, steps) as progress:
        selection = dpo.train(stage.resuming, progress)
    stage.spent(**dpo.spent())
    stage.report({"pairs": len(pairs), "steps": dpo.last_step, "stopped_by_rule": dpo.last_step < steps})
    stage.report({"validations": dpo.validated})
    stage.report({"best_step": selection.best_step, "best_val_accuracy": selection.best})
    validations = dpo.validations()
    stage.report({f"final_{name}": value for name, value in validations[-1].items() if name not in ("step", "phase")})
    for line in last_alarms(validations, len(val), dpo_guards(cfg.algorithm.beta)):
        stage.warn(line)
    stage.terminal.say(f"best: step {selection.best_step}, validation accuracy {selection.best:.3f}")


def previous_pairs(stage: Stage) -> Path:
    """Stage 08's pairs of this run."""
    return stage.previous("08_build_prefs", "pairs.jsonl")


def read_pairs(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out pairs. UserError with file:line for a row that is no pair, or without training pairs."""
    numbered = read_numbered_jsonl(path)
    for line, row in numbered:
        for key in PAIR_KEYS:
            if not isinstance(row.get(key), str):
                raise UserError(
                    f"{path}:{line}, key {key!r}: expected text, got {row.get(key)!r}; see 08_build_prefs.py"
                )
        if row["split"] not in ("train", "held_out"):
            raise UserError(f"{path}:{line}, key 'split': expected train or held_out, got {row['split']!r}")
    train, held_out = ([row for _, row in numbered if row["split"] == split] for split in ("train", "held_out"))
    if not train:
        raise UserError(f"{path}: no pair to train on; run 08_build_prefs.py again, with a lower --held_out_share")
    if shared := {row["prompt"] for row in train} & {row["prompt"] for row in held_out}:
        name = next(row["id"] for row in held_out if row["prompt"] in shared)
        raise UserError(f"{path}: the prompt of record {name} is in both splits; split the pairs by prompt")
    return train, held_out


def plan(cfg: Config) -> list[str]:
    """What `--dry_run` says."""
    from utils.disk import disk_line

    preference, kept = cfg.preference, "the adapter's" if cfg.lora.use_lora else "all weights'"
    per_step = f"{preference.batch_size} x {preference.gradient_accumulation_steps} pairs per optimiser step"
    passes = f"a step passes a prompt and both answers through policy and reference ({kept} frozen copy)"
    return [
        "plan:",
        f"  at most {cfg.algorithm.epochs} epochs, {per_step}, validated every {cfg.validation.eval_steps} steps",
        f"  {passes}",
        f"  {disk_line(cfg)}",
    ]


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__, plan=plan))
