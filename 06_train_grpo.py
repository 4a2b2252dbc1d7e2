"""GRPO: reinforcement learning without a critic, from the reward that the task computes.

A step draws a group of answers to each of some prompts, pays them, and makes those likelier that are better than their
group and the others less likely, held to the start by a KL term (Shao et al. 2024, arXiv:2402.03300, algorithm 1).
Left out: the iterated reward model and moving reference of that paper.

Reads   01_preprocessing/{train,val}.jsonl, 02_rewards/reward_spec.yaml, 03_sft/ckpt_sft/best (start and reference)
Writes  06_grpo/ckpt_grpo/{best,final,step_N}, logs/train.jsonl, val_generations/step_N.json, manifest.json
        python 06_train_grpo.py --config configs/models/llama-tiny.yaml --algo_config configs/algorithms/grpo.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from utils.config import setting
from utils.settings import (
    GenerationSettings,
    GRPOSettings,
    LoraSettings,
    ModelSettings,
    OnlineRunSettings,
    PathSettings,
    RLSettings,
    RolloutSettings,
    TaskSettings,
    ValidationSettings,
)
from utils.stage import Stage, main


@dataclass(frozen=True)
class Inputs:
    """Files, where they are not this run's."""

    policy_ckpt: str = setting("", "checkpoint, ckpt folder or stage to start from (default: this run's 03_sft)")
    train_jsonl: str = setting("", "training records (default: train.jsonl of --data_dir, else of this run)")
    val_jsonl: str = setting("", "validation records (default: val.jsonl of --data_dir, else of this run)")
    warm_start: str = setting("", "a stage 04: the first pass takes the prompts whose candidates were paid differently")


@dataclass(frozen=True)
class Config:
    """Settings of 06."""

    run: OnlineRunSettings
    task: TaskSettings
    model: ModelSettings
    lora: LoraSettings
    validation: ValidationSettings
    rl: RLSettings
    generation: GenerationSettings
    paths: PathSettings
    rollout: RolloutSettings
    algorithm: GRPOSettings
    inputs: Inputs


def run(cfg: Config, stage: Stage) -> None:
    """Train and leave the best, the last and the newest resumable policy in ckpt_grpo."""
    from functools import partial

    from utils.rl.advantages import group_advantages, zero_variance_share
    from utils.rl.learner import TokenFigures, mean_figures
    from utils.rl.losses import clipped_policy_loss, k3_kl, token_weights
    from utils.rl.session import Session

    cfg = quick(cfg) if cfg.run.quick_test else cfg
    algorithm = cfg.algorithm
    clip_high = algorithm.clip_range if algorithm.clip_range_high is None else algorithm.clip_range_high
    weigh = partial(token_weights, loss_type=algorithm.loss_type, max_new_tokens=cfg.generation.max_new_tokens)
    session = Session(cfg, stage, "grpo", algorithm.group_size)
    learner = session.learner
    for step in session.steps(algorithm.steps, algorithm.eval_every, algorithm.patience):
        batch = session.draw(step)
        rewards, totals = session.score(batch)
        shares = {"frac_reward_zero_std": zero_variance_share(totals)}
        figures = TokenFigures()
        advantages = group_advantages(totals, algorithm.use_batch_bonus)
        mini_batches = learner.mini_batches(
            batch, advantages, weigh, algorithm.mini_batches, algorithm.mask_truncated_completions
        )
        updates = []
        for _ in range(algorithm.num_iterations):
            for mini_batch in mini_batches:
                for micro in mini_batch:
                    logp, entropy = learner.logprobs(micro.packed)
                    old_logp = micro.sampling_logp(logp)
                    policy_loss, ratio, clipped = clipped_policy_loss(
                        logp, old_logp, micro.advantage, algorithm.clip_range, clip_high
                    )
                    kl = k3_kl(logp, micro.reference_logp)
                    learner.backward(policy_loss + algorithm.kl_coef * kl, micro)
                    figures.add(kl=kl, entropy=entropy, clip_frac=clipped, ratio_mean=ratio)
                updates.append(learner.update(step, algorithm.warmup_steps, algorithm.max_grad_norm))
        session.record(step, batch, rewards, {**shares, **figures.means(), **mean_figures(updates)})


def quick(cfg: Config) -> Config:
    """--quick_test: two small steps, each validated and saved."""
    return replace(
        cfg,
        algorithm=replace(
            cfg.algorithm,
            steps=2,
            eval_every=1,
            group_size=min(4, cfg.algorithm.group_size),
            mini_batches=min(8, cfg.algorithm.mini_batches),
        ),
        rollout=replace(cfg.rollout, prompts_per_step=min(8, cfg.rollout.prompts_per_step)),
        validation=replace(cfg.validation, eval_records=16),
    )


def plan(cfg: Config) -> list[str]:
    """What a run with these settings computes, in words (--dry_run)."""
    from utils.rl.plan import describe

    cfg = quick(cfg) if cfg.run.quick_test else cfg
    return describe(cfg, group_size=cfg.algorithm.group_size, passes=cfg.algorithm.num_iterations)


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__, plan=plan))
