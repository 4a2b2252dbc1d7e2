"""Stage 03: supervised fine-tuning. The base model learns to write the records' targets (FinQA: gold programs).

TRL's SFTTrainer on ready token ids; the loss is taken on the target alone. Every `eval_steps` the policy answers the
validation records greedily; training stops when accuracy has not risen in `patience` evaluations, and `best`
is the checkpoint that did best. Only records with a target are used; the others are for reinforcement learning.

Two controls of every comparison run through this stage too, from a finished SFT (`--init_from`):
  03_sft_more        --match_compute MANIFEST ...: goes on for the compute of the stages with these manifests
  03_sft_rejection   --accepted 04_FOLDER: also learns the correct candidates of stage 04 (rejection sampling, Yuan et
                     al. 2023, arXiv:2308.01825)
Compute is counted in token passes (forward 1, forward + backward 3), not in seconds, so that a rerun does the same;
what drawing the candidates took is part of rejection sampling's.
With --match_compute `best` is the best of as many checkpoints as the methods' own.

Reads:  01_preprocessing/{train,val}.jsonl, 02_rewards/reward_spec.yaml
Writes: outputs/run_XXX/03_sft/{ckpt_sft/{best,final,step_N}, logs/{train.jsonl,training_log.json},
        valid_samples/step_N.json, manifest.json}

    python 03_sft_train.py --config configs/models/llama-tiny.yaml --epochs 30 --batch_size 16
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.candidates import read_candidates
from utils.config import setting
from utils.errors import UserError
from utils.files import read_jsonl, write_json
from utils.inputs import records_file, reward_spec_file, warn_of_other_reward
from utils.runs import resolve_checkpoint
from utils.settings import (
    GenerationSettings,
    LoraSettings,
    ModelSettings,
    PathSettings,
    RunSettings,
    TaskSettings,
    TrainingSettings,
    ValidationSettings,
)
from utils.stage import Stage, main

if TYPE_CHECKING:
    from utils.rl.supervised import Tokenised

QUICK_STEPS, QUICK_STEPS_MORE, QUICK_RECORDS = 75, 10, 32
MOST_FOR_DRAWING = 0.75
"""Beyond this part of the budget a control that learns its candidates is warned about."""


@dataclass(frozen=True)
class Inputs:
    """Where training starts and what it learns from."""

    train_jsonl: str = setting("", "training records (default: train.jsonl of --data_dir, else of this run)")
    val_jsonl: str = setting("", "validation records (default: val.jsonl of --data_dir, else of this run)")
    init_from: str = setting(
        "", "continue from this policy (stage folder, ckpt_* or checkpoint) instead of the base model"
    )
    match_compute: tuple[str, ...] = setting(
        (), "manifest.json of trained stages: the compute of the dearest and as many validations, no early stopping"
    )
    accepted: str = setting("", "folder of stage 04: its correct candidates are learned too")
    max_steps: int = setting(0, "optimiser steps at most (0: as many as epochs give)", minimum=0)
    skip_validation: bool = setting(
        False, "no validation during training: no early stopping, the last checkpoint is best"
    )


@dataclass(frozen=True)
class Config:
    """Settings of stage 03."""

    run: RunSettings
    task: TaskSettings
    model: ModelSettings
    lora: LoraSettings
    training: TrainingSettings
    validation: ValidationSettings
    generation: GenerationSettings
    paths: PathSettings
    inputs: Inputs


def run(cfg: Config, stage: Stage) -> None:
    """Load, train until validation accuracy stops rising, keep the best."""
    from utils.models.load import autocast, load_model, resolve_device
    from utils.models.tokens import load_tokenizer
    from utils.rl.backends import make_backend
    from utils.rl.health import SFT, last_alarms
    from utils.rl.rollouts import Sampler, validate
    from utils.rl.supervised import Supervised, tokenise
    from utils.seeds import seed_everything
    from utils.tasks import make_task

    inputs = cfg.inputs
    spec = reward_spec_file(stage, cfg.paths)
    train_file = records_file(stage, cfg.paths, "train.jsonl", inputs.train_jsonl)
    val_file = records_file(stage, cfg.paths, "val.jsonl", inputs.val_jsonl)
    task = make_task(cfg.task, spec)
    records = task.load(train_file)
    pairs = [(e.id, task.prompt(e), target) for e in records if (target := task.target(e)) is not None]
    if not pairs:
        raise UserError(
            f"{train_file}: no record has a target to learn; supervised training needs some (see 00_check_data.py)"
        )
    if inputs.accepted:
        found = accepted_candidates(stage.input(Path(inputs.accepted) / "candidates.jsonl"), {e.id for e in records})
        warn_of_other_reward(stage, Path(inputs.accepted), spec)
        stage.report({"accepted": len(found)})
        if not found:
            stage.warn("no candidate is correct: this is supervised training on the targets alone")
        pairs += found
    val = task.load(val_file)[: QUICK_RECORDS if cfg.run.quick_test else cfg.validation.eval_records or None]

    seed_everything(cfg.run.seed)
    device = resolve_device(cfg.run.device)
    start = stage.input(resolve_checkpoint(inputs.init_from)) if inputs.init_from else None
    tokenizer = load_tokenizer(cfg.model, start)
    model = load_model(cfg.model, cfg.lora, checkpoint=start, trainable=True, device=device)
    if start is None:
        stage.base_model(cfg.model.name)
    rows = tokenise(tokenizer, pairs, cfg.training.max_length)
    steps, training, validation = budget(cfg, stage, start, rows)
    sampler = Sampler(
        model,
        tokenizer,
        cfg.generation.max_new_tokens,
        cfg.generation.tokens_per_batch,
        lambda: autocast(cfg.model, device),
        backend=make_backend(cfg.generation),
        warn=stage.warn,
    )
    sft = Supervised(
        model,
        tokenizer,
        stage.dir,
        rows,
        settings=cfg.model,
        training=training,
        validation=validation,
        seed=cfg.run.seed,
        steps=steps,
        device=device,
        report_to=cfg.run.report_to,
        validate=None if inputs.skip_validation else lambda: validate(sampler, task, val),
        first=start is not None,
    )
    stage.terminal.say(f"{len(rows)} records with a target, {len(val)} for validation, at most {steps} steps")
    with stage.terminal.progress(stage.dir.name, steps) as progress:
        selection = sft.train(stage.resuming, progress)
    write_json(stage.path("logs", "training_log.json"), read_jsonl(stage.path("logs", "train.jsonl")))
    stage.spent(**sft.spent())
    for line in last_alarms(sft.validations(), len(val), SFT):
        stage.warn(line)
    stopped = sft.last_step < steps
    stage.report({"records": len(rows), "steps": sft.last_step, "stopped_by_rule": stopped})
    if selection.best_step >= 0:
        stage.report({"validations": sft.validated})
        stage.report({"best_step": selection.best_step, "best_val_accuracy": selection.best})
        why = f"no rise in {training.patience} evaluations" if stopped else "all steps done"
        stage.terminal.say(f"best: step {selection.best_step}, validation accuracy {selection.best:.3f}")
        stage.terminal.say(f"ended at step {sft.last_step}: {why}")


def budget(
    cfg: Config, stage: Stage, start: Path | None, rows: Sequence[Tokenised]
) -> tuple[int, TrainingSettings, ValidationSettings]:
    """Optimiser steps with their settings: the file's, or what matches the compute of other stages."""
    from utils.evaluation.lineage import compute_beyond, validations_of
    from utils.rl.supervised import steps_for

    inputs, training, validation = cfg.inputs, cfg.training, cfg.validation
    per_step = training.batch_size * training.gradient_accumulation_steps
    steps = inputs.max_steps or math.ceil(training.epochs * len(rows) / per_step)
    if inputs.match_compute:
        if inputs.max_steps:
            stage.warn(f"--max_steps {inputs.max_steps} has no effect: --match_compute says how many steps there are")
        matched = [stage.input(manifest) for manifest in inputs.match_compute]
        passes = max(compute_beyond(manifest, start) for manifest in matched)
        if inputs.accepted:  # drawing candidates is part of what this control spends
            drawing = compute_beyond(Path(inputs.accepted), start)
            if drawing > MOST_FOR_DRAWING * passes:
                share = f"drawing the candidates took {drawing} of the {passes} token passes to match"
                stage.warn(f"{share}: little is left for learning from them, this control is a weak one")
            passes -= drawing
        steps = steps_for(passes, rows, per_step)
        training = replace(training, patience=0)
        if chances := validations_of(matched):
            validation = replace(validation, eval_steps=math.ceil(steps / chances))
    if cfg.run.quick_test:
        steps = min(steps, QUICK_STEPS_MORE if start else QUICK_STEPS)
    return steps, training, validation


def accepted_candidates(path: Path, train: Collection[str]) -> list[tuple[str, str, str]]:
    """(id, prompt, text) of stage 04's correct candidates, each text once per prompt.

    UserError for a candidate of a record that is not among those to train on (`train`, ids).
    """
    rows = read_candidates(path)
    for line, row in rows:
        if row["id"] not in train:
            what = f"record {row['id']} is none of the training records; give a stage 04 of --split train"
            raise UserError(f"{path}:{line}: {what}")
    found = {
        (row["id"], row["prompt"], cand["text"]): None for _, row in rows for cand in row["cands"] if cand["correct"]
    }
    return list(found)


def plan(cfg: Config) -> list[str]:
    """What `--dry_run` says."""
    from utils.disk import disk_line

    size, accumulation = cfg.training.batch_size, cfg.training.gradient_accumulation_steps
    length = f"at most {cfg.training.epochs} epochs, {size} x {accumulation} records per optimiser step"
    return ["plan:", f"  {length}, validated every {cfg.validation.eval_steps} steps", f"  {disk_line(cfg)}"]


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__, plan=plan))
