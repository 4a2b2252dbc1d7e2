"""RLOO: reinforcement learning without a critic, from the reward that the task computes.

A step draws a group of answers to each of some prompts, pays them, and makes those likelier that are better than their
group's others and the rest less likely, held to the start by a KL term in the whole answer's reward (Ahmadian et al.
2024, arXiv:2402.14740). More than the paper: the ratio's clipping, which matters when a rollout serves several updates.

Reads   01_preprocessing/{train,val}.jsonl, 02_rewards/reward_spec.yaml, 03_sft/ckpt_sft/best (start and reference)
Writes  07_rloo/ckpt_rloo/{best,final,step_N}, logs/train.jsonl, val_generations/step_N.json, manifest.json
        python 07_train_rloo.py --config configs/models/llama-tiny.yaml --algo_config configs/algorithms/rloo.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from utils.config import setting
from utils.settings import (
    GenerationSettings,
    LoraSettings,
    ModelSettings,
    OnlineRunSettings,
    PathSettings,
    RLOOSettings,
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
    """Settings of 07."""

    run: OnlineRunSettings
    task: TaskSettings
    model: ModelSettings
    lora: LoraSettings
    validation: ValidationSettings
    rl: RLSettings
    generation: GenerationSettings
    paths: PathSettings
    rollout: RolloutSettings
    algorithm: RLOOSettings
    inputs: Inputs


def run(cfg: Config, stage: Stage) -> None:
    """Train and leave the best, the last and the newest resumable policy in ckpt_rloo."""
    from functools import partial

    from utils.rl.advantages import zero_variance_share
    from utils.rl.learner import TokenFigures, mean_figures
    from utils.rl.losses import clipped_policy_loss, k3_kl, token_weights
    from utils.rl.sequences import report_variance, sample_means, sample_rows, sequence_advantages, sequence_logp
    from utils.rl.session import Session

    cfg = quick(cfg) if cfg.run.quick_test else cfg
    algorithm = cfg.algorithm
    clip_high = algorithm.clip_range if algorithm.clip_range_high is None else algorithm.clip_range_high
    weigh = partial(token_weights, loss_type="grpo", max_new_tokens=cfg.generation.max_new_tokens)
    session = Session(cfg, stage, "rloo", algorithm.num_samples)
    learner = session.learner
    for step in session.steps(algorithm.steps, algorithm.eval_every, algorithm.patience):
        batch = session.draw(step)
        rewards, totals = session.score(batch)
        shares = {"frac_reward_zero_std": zero_variance_share(totals)}
        figures, ratios = TokenFigures(), TokenFigures()
        if step == 1 and algorithm.variance_prompts:
            report_variance(stage, learner, batch, totals, algorithm.variance_prompts)
        mini_batches = learner.mini_batches(batch, totals, weigh, algorithm.mini_batches)
        updates = []
        for _ in range(algorithm.num_iterations):
            for mini_batch in mini_batches:
                for micro in mini_batch:
                    logp, entropy = learner.logprobs(micro.packed)
                    old_logp = micro.sampling_logp(logp)
                    advantage = sequence_advantages(micro, algorithm.kl_coef, algorithm.baseline_type)
                    answer, old_answer = sequence_logp(logp, micro.packed), sequence_logp(old_logp, micro.packed)
                    policy_loss, ratio, clipped = clipped_policy_loss(
                        answer, old_answer, advantage, algorithm.clip_range, clip_high
                    )
                    kl = k3_kl(logp, micro.reference_logp)
                    learner.backward(policy_loss, micro)
                    figures.add(kl=kl, entropy=entropy)
                    first = micro.packed.time == 0  # the ratio is the answer's, the same at each of its tokens
                    ratios.add(clip_frac=clipped[first], ratio_mean=ratio[first])
                updates.append(learner.update(step, algorithm.warmup_steps, algorithm.max_grad_norm))
        samples = sample_rows(mini_batches)
        session.record_samples(step, samples)
        shares = {**shares, **sample_means(samples)}
        session.record(step, batch, rewards, {**shares, **figures.means(), **ratios.means(), **mean_figures(updates)})


def quick(cfg: Config) -> Config:
    """--quick_test: two small steps, each validated and saved."""
    return replace(
        cfg,
        algorithm=replace(
            cfg.algorithm,
            steps=2,
            eval_every=1,
            num_samples=min(4, cfg.algorithm.num_samples),
            mini_batches=min(8, cfg.algorithm.mini_batches),
        ),
        rollout=replace(cfg.rollout, prompts_per_step=min(8, cfg.rollout.prompts_per_step)),
        validation=replace(cfg.validation, eval_records=16),
    )


def plan(cfg: Config) -> list[str]:
    """What a run with these settings computes, in words (--dry_run)."""
    from utils.rl.plan import describe

    cfg = quick(cfg) if cfg.run.quick_test else cfg
    return describe(cfg, group_size=cfg.algorithm.num_samples, passes=cfg.algorithm.num_iterations)


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__, plan=plan))
