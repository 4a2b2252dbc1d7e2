"""PPO: reinforcement learning with a critic, from the reward that the task computes.

A step draws a group of answers to each of some prompts, pays them, and makes those tokens likelier after which more was
paid than the critic expected, held to the start by a KL term in each token's reward (Schulman et al. 2017,
arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593). Left out: mini-batches drawn anew for each epoch.

Reads   01_preprocessing/{train,val}.jsonl, 02_rewards/reward_spec.yaml, 03_sft/ckpt_sft/best (start and reference)
Writes  05_ppo/ckpt_ppo/{best,final,step_N}, logs/train.jsonl, val_generations/step_N.json, manifest.json
        python 05_train_ppo.py --config configs/models/llama-tiny.yaml --algo_config configs/algorithms/ppo.yaml
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
    PPOSettings,
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
    """Settings of 05."""

    run: OnlineRunSettings
    task: TaskSettings
    model: ModelSettings
    lora: LoraSettings
    validation: ValidationSettings
    rl: RLSettings
    generation: GenerationSettings
    paths: PathSettings
    rollout: RolloutSettings
    algorithm: PPOSettings
    inputs: Inputs


def run(cfg: Config, stage: Stage) -> None:
    """Train and leave the best, the last and the newest resumable policy in ckpt_ppo."""
    from functools import partial

    from utils.rl.advantages import adapted_kl_coef, zero_variance_share
    from utils.rl.learner import TokenFigures, mean_figures
    from utils.rl.losses import clipped_policy_loss, clipped_value_loss, k3_kl, token_weights
    from utils.rl.session import Session
    from utils.rl.values import estimate_advantages

    cfg = quick(cfg) if cfg.run.quick_test else cfg
    algorithm = cfg.algorithm
    clip_high = algorithm.clip_range if algorithm.clip_range_high is None else algorithm.clip_range_high
    weigh = partial(token_weights, loss_type=algorithm.loss_type, max_new_tokens=cfg.generation.max_new_tokens)
    session = Session(cfg, stage, "ppo", algorithm.group_size, algorithm.critic)
    learner = session.learner
    for step in session.steps(algorithm.steps, algorithm.eval_every, algorithm.patience):
        batch = session.draw(step)
        rewards, totals = session.score(batch)
        shares = {"frac_reward_zero_std": zero_variance_share(totals)}
        figures = TokenFigures()
        mini_batches = learner.mini_batches(batch, totals, weigh, algorithm.mini_batches)
        kl_coef = session.kept.setdefault("kl_coef", algorithm.kl_coef)
        critic = estimate_advantages(
            mini_batches, kl_coef, algorithm.gamma, algorithm.gae_lambda, algorithm.whiten_advantages
        )
        updates, epochs = [], 0
        for _ in range(algorithm.ppo_epochs):
            epochs += 1
            moved = TokenFigures()
            for mini_batch in mini_batches:
                for micro in mini_batch:
                    logp, entropy, value = learner.logprobs_and_values(micro.packed, algorithm.entropy_coef)
                    old_logp = micro.sampling_logp(logp)
                    policy_loss, ratio, clipped = clipped_policy_loss(
                        logp, old_logp, micro.advantage, algorithm.clip_range, clip_high
                    )
                    value_loss, value_clipped = clipped_value_loss(
                        value, micro.old_value, micro.returns, algorithm.value_clip_range
                    )
                    kl = k3_kl(logp, micro.reference_logp)
                    bonus = algorithm.entropy_coef * entropy
                    learner.backward(policy_loss + algorithm.value_coef * value_loss - bonus, micro)
                    clips = {"clip_frac": clipped, "value_clip_frac": value_clipped}
                    figures.add(kl=kl, entropy=entropy, ratio_mean=ratio, value_loss=value_loss, **clips)
                    moved.add(kl_old=k3_kl(old_logp, logp))
                updates.append(learner.update(step, algorithm.warmup_steps, algorithm.max_grad_norm))
            if algorithm.stop_kl is not None and moved.means()["kl_old"] > algorithm.stop_kl:
                break
        session.kept["kl_coef"] = adapted_kl_coef(
            kl_coef, critic["kl_completion"], algorithm.kl_target, algorithm.kl_gain
        )
        shares = {**shares, **critic, **moved.means(), "epochs": epochs}
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
    return describe(cfg, group_size=cfg.algorithm.group_size, passes=cfg.algorithm.ppo_epochs)


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__, plan=plan))
