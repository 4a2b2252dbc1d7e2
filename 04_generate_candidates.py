"""Stage 04: K candidate answers per prompt, sampled from a policy and scored.

Invalid candidates are kept and flagged. The files feed preference pairs (08), the rejection-sampling control of 03 and
a look at what the policy does: parse rate, share of prompts with at least one correct candidate, reward histogram.

Reads:  a checkpoint (--policy_ckpt), 01_preprocessing/{train,val,test}.jsonl, 02_rewards/reward_spec.yaml
Writes: outputs/run_XXX/04_candidates/{candidates.jsonl, scores.jsonl, summary.txt, manifest.json}
        candidates.jsonl: {"id", "prompt", "cands": [{"text", "parsed_json", "parse_ok", "correct"} x K]}
        scores.jsonl:     {"id", "scores": [{"total", "components", "failure"} x K]}

    python 04_generate_candidates.py --policy_ckpt outputs/run_001/03_sft --num_candidates 4 --temperature 0.8
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from utils.config import setting
from utils.errors import UserError
from utils.files import read_json, write_jsonl, write_text
from utils.inputs import records_file, reward_spec_file
from utils.runs import resolve_checkpoint
from utils.settings import GenerationSettings, LoraSettings, ModelSettings, PathSettings, RunSettings, TaskSettings
from utils.stage import Stage, main
from utils.tasks.base import Example, Judgement, Reward, Rollout, Task

QUICK_RECORDS = 32
RECORDS_PER_CALL = 64
MORE_SAMPLES = 0.05
"""By which part --match_samples may draw more, so that no record is left out for the sake of a few."""
PARSE_RATE_EXPECTED = 0.7


@dataclass(frozen=True)
class Inputs:
    """Which policy answers which prompts."""

    policy_ckpt: str = setting(
        "", "policy: a stage folder, a ckpt_* folder or one checkpoint (default: this run's 03_sft)"
    )
    split: str = setting("train", "which records", choices=("train", "val", "test"))
    ids: tuple[str, ...] = setting((), "only these records (default: all of the split)")
    match_samples: str = setting(
        "",
        "manifest.json of an RL stage: as many completions in total as it sampled, to within 5 %: of fewer"
        " records, or more of each",
    )


@dataclass(frozen=True)
class Config:
    """Settings of stage 04."""

    run: RunSettings
    task: TaskSettings
    model: ModelSettings
    lora: LoraSettings
    generation: GenerationSettings
    paths: PathSettings
    inputs: Inputs


def run(cfg: Config, stage: Stage) -> None:
    """Sample, score, write."""
    from utils.models.load import autocast, load_model, resolve_device
    from utils.models.tokens import load_tokenizer
    from utils.rl.backends import make_backend
    from utils.rl.rollouts import Sampler
    from utils.seeds import uniforms
    from utils.tasks import make_task

    spec = reward_spec_file(stage, cfg.paths)
    task = make_task(cfg.task, spec)
    examples = chosen(task.load(records_file(stage, cfg.paths, f"{cfg.inputs.split}.jsonl")), cfg)
    examples, samples = spread(cfg, stage, examples)
    checkpoint = stage.input(
        resolve_checkpoint(cfg.inputs.policy_ckpt)
        if cfg.inputs.policy_ckpt
        else stage.previous("03_sft_train", "ckpt_sft", "best")
    )
    device = resolve_device(cfg.run.device)
    generation = cfg.generation
    sampler = Sampler(
        load_model(cfg.model, cfg.lora, checkpoint=checkpoint, trainable=False, device=device),
        load_tokenizer(cfg.model, checkpoint),
        generation.max_new_tokens,
        generation.tokens_per_batch,
        lambda: autocast(cfg.model, device),
        generation.temperature,
        generation.top_p,
        make_backend(generation),
        stage.warn,
    )
    rollouts: list[Rollout] = []
    forward = 0
    with stage.terminal.progress(f"{samples} candidates each", len(examples)) as progress:
        for start in range(0, len(examples), RECORDS_PER_CALL):
            part = examples[start : start + RECORDS_PER_CALL]
            numbers = uniforms(cfg.run.seed, 0, [example.id for example in part], samples, generation.max_new_tokens)
            batch = sampler.draw(part, samples, numbers)
            rollouts += batch.rollouts()
            forward += batch.sampling_tokens
            progress.update(start + len(part))
    rewards = task.score(rollouts)
    verdicts = [task.judge(rollout.example, rollout.text) for rollout in rollouts]
    groups = [range(i, i + samples) for i in range(0, len(rollouts), samples)]
    write_jsonl(
        stage.path("candidates.jsonl"),
        [candidate_row(task, [(rollouts[i], verdicts[i]) for i in group]) for group in groups],
    )
    write_jsonl(
        stage.path("scores.jsonl"),
        [score_row([(rollouts[i], rewards[i], verdicts[i]) for i in group]) for group in groups],
    )
    figures = summary(verdicts, rewards, groups)
    text = "\n".join([*(f"{name}: {value:.4g}" for name, value in figures.items()), "", *histogram(rewards)])
    write_text(stage.path("summary.txt"), text + "\n")
    stage.terminal.say(text)
    stage.report({**figures, "num_candidates": samples})
    generated = sum(rollout.tokens for rollout in rollouts)
    stage.spent(completions=len(rollouts), generated_tokens=generated, forward_tokens=forward)
    if figures["parse_rate"] < PARSE_RATE_EXPECTED:
        stage.warn(
            f"only {figures['parse_rate']:.0%} of the candidates parse (expected {PARSE_RATE_EXPECTED:.0%}): "
            "train 03 longer, or lower --temperature"
        )


def chosen(examples: list[Example], cfg: Config) -> list[Example]:
    """The records asked for. UserError names an id that is not in the split."""
    if cfg.inputs.ids:
        by_id = {example.id: example for example in examples}
        missing = [name for name in cfg.inputs.ids if name not in by_id]
        if missing:
            raise UserError(
                f"--ids {missing[0]}: no such record in split {cfg.inputs.split}; ids stand in 01_preprocessing"
            )
        examples = [by_id[name] for name in cfg.inputs.ids]
    return examples[: QUICK_RECORDS if cfg.run.quick_test else None]


def spread(cfg: Config, stage: Stage, examples: list[Example]) -> tuple[list[Example], int]:
    """The records to draw for, and how many samples of each.

    With --match_samples: --num_candidates of as many records as make up the other stage's completions, which stand
    evenly in the split; more of each where that takes more records than there are. All records as long as this draws
    no more than MORE_SAMPLES too many.
    """
    if not cfg.inputs.match_samples:
        return examples, cfg.generation.num_candidates
    record: Any = read_json(stage.input(cfg.inputs.match_samples))
    spent = record.get("spent") if isinstance(record, dict) else None
    completions = spent.get("completions") if isinstance(spent, dict) else None
    if not isinstance(completions, int) or completions < 1:
        raise UserError(
            f"{cfg.inputs.match_samples}: spent.completions is missing; expected the manifest of a finished RL stage"
        )
    samples = max(cfg.generation.num_candidates, math.ceil(completions / len(examples)))
    if samples * len(examples) <= (1 + MORE_SAMPLES) * completions:
        return examples, samples
    wanted = math.ceil(completions / samples)
    return [examples[i * len(examples) // wanted] for i in range(wanted)], samples


def candidate_row(task: Task, group: Sequence[tuple[Rollout, Judgement]]) -> dict[str, Any]:
    """One line of candidates.jsonl."""
    cands = [
        {
            "text": rollout.text,
            "parsed_json": task.parsed(rollout.text),
            "parse_ok": verdict.format_valid,
            "correct": verdict.correct,
        }
        for rollout, verdict in group
    ]
    example = group[0][0].example
    return {"id": example.id, "prompt": example.input_text, "cands": cands}


def score_row(group: Sequence[tuple[Rollout, Reward, Judgement]]) -> dict[str, Any]:
    """One line of scores.jsonl."""
    scores = [
        {"total": reward.total, "components": dict(reward.components), "failure": verdict.failure}
        for _, reward, verdict in group
    ]
    return {"id": group[0][0].example.id, "scores": scores}


def summary(verdicts: Sequence[Judgement], rewards: Sequence[Reward], groups: Sequence[range]) -> dict[str, float]:
    """Rates over all candidates, and over prompts."""
    count = len(verdicts)
    return {
        "prompts": len(groups),
        "candidates": count,
        "parse_rate": sum(verdict.format_valid for verdict in verdicts) / count,
        "accuracy": sum(verdict.correct for verdict in verdicts) / count,
        "prompts_with_a_correct_candidate": sum(any(verdicts[i].correct for i in g) for g in groups) / len(groups),
        "prompts_with_differing_rewards": sum(len({rewards[i].total for i in g}) > 1 for g in groups) / len(groups),
        "mean_reward": sum(reward.total for reward in rewards) / count,
    }


def histogram(rewards: Sequence[Reward], width: int = 50) -> list[str]:
    """Rewards rounded to 0.1, one bar each."""
    counts = Counter(round(reward.total, 1) for reward in rewards)
    most = max(counts.values())
    return [
        f"reward {value:5.1f} {count:7d} {'#' * math.ceil(width * count / most)}"
        for value, count in sorted(counts.items())
    ]


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__))
