"""One training run of 05, 06 or 07 around its loop: inputs, sampling, validation, selection, logs, checkpoints.

The loop itself, what an algorithm is, stands in the scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import torch

from utils.candidates import read_scores
from utils.errors import UserError
from utils.files import read_jsonl, write_json
from utils.inputs import records_file, reward_spec_file
from utils.logs import TrainLog
from utils.machine import give_back_memory
from utils.ranks import check_division, from_first, gather, rank, size
from utils.rl.backends import make_backend
from utils.rl.checkpoints import resume_point
from utils.rl.finite import check_figures, check_rewards, named
from utils.rl.health import online_alarms
from utils.rl.importance import importance_figures
from utils.rl.learner import Learner
from utils.rl.memory import with_largest
from utils.rl.rollouts import RolloutBatch, Sampler, examples_of_step, training_figures, validate
from utils.runs import resolve_checkpoint
from utils.seeds import uniforms
from utils.settings import (
    GenerationSettings,
    LoraSettings,
    ModelSettings,
    OnlineRunSettings,
    OnlineSettings,
    PathSettings,
    RLSettings,
    RolloutSettings,
    TaskSettings,
    ValidationSettings,
)
from utils.stage import Stage
from utils.tasks import make_task
from utils.tasks.base import Example, Reward

GIVE_BACK_SECONDS = 2.0
"""Between two steps after which freed memory goes back to the system: some 3 percent of the time at most. Else what the
largest step since a validation took stays, and what came between its pieces."""


class Inputs(Protocol):
    """Flags of the scripts that name files; empty means: this run's."""

    @property
    def policy_ckpt(self) -> str: ...
    @property
    def train_jsonl(self) -> str: ...
    @property
    def val_jsonl(self) -> str: ...
    @property
    def warm_start(self) -> str: ...


class Config(Protocol):
    """The sections that every online RL script has."""

    @property
    def run(self) -> OnlineRunSettings: ...
    @property
    def task(self) -> TaskSettings: ...
    @property
    def model(self) -> ModelSettings: ...
    @property
    def lora(self) -> LoraSettings: ...
    @property
    def rl(self) -> RLSettings: ...
    @property
    def rollout(self) -> RolloutSettings: ...
    @property
    def generation(self) -> GenerationSettings: ...
    @property
    def validation(self) -> ValidationSettings: ...
    @property
    def paths(self) -> PathSettings: ...
    @property
    def algorithm(self) -> OnlineSettings: ...
    @property
    def inputs(self) -> Inputs: ...


class Session:
    """Everything around the loop. `method` names the checkpoint folder; `group_size` samples are drawn per prompt.

    `critic`: the kind of critic, where the method has one. `kept`: numbers of the script that survive a resume.
    Of several processes each has a session, and all hold the same; the first one's writes and prints.
    """

    def __init__(self, cfg: Config, stage: Stage, method: str, group_size: int, critic: str = "") -> None:
        if cfg.rollout.prompts_per_step * group_size < 2:
            raise UserError("--prompts_per_step 1 with one completion: a step needs at least 2 completions")
        per_update = cfg.rollout.prompts_per_step // cfg.algorithm.mini_batches
        if not per_update:
            raise UserError(
                f"--mini_batches {cfg.algorithm.mini_batches}: a step has only {cfg.rollout.prompts_per_step} prompts "
                "(--prompts_per_step), and each update needs one"
            )
        check_division(cfg, size())
        self.cfg, self.stage, self.method, self.group_size = cfg, stage, method, group_size
        self.folder = stage.path(f"ckpt_{method}")
        self.task = make_task(cfg.task, reward_spec_file(stage, cfg.paths))
        self.train = self.task.load(records_file(stage, cfg.paths, "train.jsonl", cfg.inputs.train_jsonl))
        held_out = self.task.load(records_file(stage, cfg.paths, "val.jsonl", cfg.inputs.val_jsonl))
        self.warm = self._paid_differently() if cfg.inputs.warm_start else []
        self.held_out = held_out[: cfg.validation.eval_records or None]
        rl = with_largest(cfg, group_size, stage.warn) if cfg.rl.auto_batch else cfg.rl
        self.learner = Learner(
            cfg.model, cfg.lora, rl, start=self._start(), device=cfg.run.device, seed=cfg.run.seed, critic=critic,
            fsdp=cfg.run.fsdp, warn=stage.warn,
        )  # fmt: skip
        self.sampler = Sampler(
            self.learner.policy,
            self.learner.tokenizer,
            cfg.generation.max_new_tokens,
            cfg.generation.tokens_per_batch,
            self.learner.context,
            backend=make_backend(cfg.generation),
            warn=stage.warn,
        )
        self.counts = {"completions": 0, "generated_tokens": 0}
        self.best: dict[str, Any] = {}
        self.kept: dict[str, float] = {}
        self.warned: list[str] = []
        self.shown: dict[str, float] = {}
        keep = cfg.validation.keep_checkpoints
        checkpoint = from_first(lambda: resume_point(self.folder, keep)) if stage.resuming else None
        self.first_step = 1
        self.given_back = self.begun = monotonic()
        if checkpoint is not None:
            self._restore(checkpoint)
        if cfg.rl.auto_batch:
            taken = self.learner.rl.micro_batch_tokens
            stage.report({"micro_batch_tokens": taken})
            stage.terminal.say(f"--auto_batch: micro_batch_tokens {taken}")
        resume_step = None if checkpoint is None else self.first_step - 1
        # the process that has a log is the one that writes
        self.log = None if rank() else TrainLog(stage.dir, resume_step, cfg.run.report_to)
        self.rows = [row for row in read_jsonl(self.log.path) if row["phase"] == "train"] if self.log else []

    def steps(self, total: int, eval_every: int, patience: int) -> Iterator[int]:
        """The steps still to do; around them validation (before the first, then every `eval_every`) and checkpoints.

        They end early when accuracy has not risen in `patience` validations (0: never), and when time is up.
        """
        if patience and total <= (patience + 1) * eval_every:  # the first best is that of step eval_every
            often = f"--patience {patience} with a validation every {eval_every} steps"
            self.stage.warn(f"{often} ends no run of {total} steps early; lower --eval_every, or --patience")
        if self.first_step == 1:
            self._validate(0)
        done = self.first_step - 1
        with self.stage.terminal.progress(Path(self.stage.script).stem, total) as progress:
            for step in range(self.first_step, total + 1):
                if patience and self.best and done - self.best["step"] >= patience * eval_every:
                    self.stage.terminal.say(f"stops after step {done}: the best was step {self.best['step']}")
                    break
                yield step
                done = step
                if monotonic() - self.given_back >= GIVE_BACK_SECONDS:
                    self._give_back()
                progress.update(step, **self.shown)
                late = self._late()
                if step % eval_every == 0 or step == total or late:
                    self._validate(step)
                    self._checkpoint(step)
                if late and step < total:
                    limit = f"--max_minutes {self.cfg.run.max_minutes:g}: ends after step {step} of {total}"
                    self.stage.warn(f"{limit}; a faster or slower machine ends after another")
                    break
        self.learner.save_policy(self.folder / "final")
        if self.log is not None:
            self.log.close()
            chosen_among = [row for row in read_jsonl(self.log.path) if row["phase"] == "validation" and row["step"]]
            self.stage.report({"validations": len(chosen_among)})
        self._report(done)

    def _late(self) -> bool:
        """Whether --max_minutes have passed since this program began to train, by the first process's clock."""
        limit = 60 * self.cfg.run.max_minutes
        return bool(limit) and from_first(lambda: monotonic() - self.begun >= limit)

    def draw(self, step: int) -> RolloutBatch:
        """The completions of a step: its prompts, its random numbers, the present policy."""
        seed = self.cfg.run.seed
        examples = self._examples(step)
        records = [example.id for example in examples]
        numbers = uniforms(seed, step, records, self.group_size, self.sampler.max_new_tokens)
        batch = self._sampled(examples, self.group_size, numbers, step)
        self.counts["completions"] += len(examples) * self.group_size
        self.counts["generated_tokens"] += batch.generated_tokens
        self.learner.forward_tokens += batch.sampling_tokens
        return batch

    def score(self, batch: RolloutBatch) -> tuple[list[Reward], torch.Tensor]:
        """The task's rewards of a rollout, of all processes' prompts at once, and their totals [_B, _G] in fp32.

        UserError for one that is not finite.
        """
        rollouts = batch.rollouts()
        rewards = from_first(lambda: self.task.score(rollouts))
        check_rewards(f"step {batch.step}", rollouts, rewards)
        return rewards, torch.tensor([reward.total for reward in rewards]).view(-1, self.group_size)

    def record(self, step: int, batch: RolloutBatch, rewards: list[Reward], figures: Mapping[str, float]) -> None:
        """One line of train.jsonl, and one line of warning for each guard that it is the first to set off."""
        figures = {**figures, **importance_figures(self.learner.rollout)}
        if self.log is None:
            return
        row = {**training_figures(self.task, batch, rewards), **figures}
        check_figures(f"step {step}", row)
        self.log.write(step, {"phase": "train", **row})
        self.shown = {name: row[name] for name in ("reward_mean", "accuracy", "parse_rate", "kl")}
        self.rows.append({"step": step, **row})
        lines = online_alarms(self.rows, self.method, self.cfg.rollout.prompts_per_step, self.group_size)
        for name, line in lines.items():
            if name not in self.warned:
                self.warned.append(name)
                self.stage.warn(line)

    def _examples(self, step: int) -> list[Example]:
        """The prompts of a step: one pass over those of the warm start, then passes over all."""
        per_step, seed = self.cfg.rollout.prompts_per_step, self.cfg.run.seed
        warm_steps = len(self.warm) // per_step
        if step <= warm_steps:
            return examples_of_step(self.warm, step, per_step, seed)
        return examples_of_step(self.train, step - warm_steps, per_step, seed)

    def _paid_differently(self) -> list[Example]:
        """Training records whose candidates in stage 04 earned different rewards: there a group has something to learn.

        UserError when they do not fill a step.
        """
        path = self.stage.input(Path(self.cfg.inputs.warm_start) / "scores.jsonl")
        differing = {row["id"] for _, row in read_scores(path) if len(set(row["totals"])) > 1}
        found = [example for example in self.train if example.id in differing]
        if len(found) < self.cfg.rollout.prompts_per_step:
            raise UserError(
                f"--warm_start {path}: only {len(found)} training records have candidates with different rewards, "
                f"fewer than --prompts_per_step {self.cfg.rollout.prompts_per_step}; sample more with 04"
            )
        return found

    def record_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """What there is to say about each sample of a step, in a file of its own beside train.jsonl."""
        if self.log is not None:
            write_json(self.stage.path("logs", "samples", f"step_{step}.json"), rows)

    def _sampled(self, examples: list[Example], group_size: int, numbers: Any, step: int) -> RolloutBatch:
        with named(f"step {step}"), self.learner.whole():
            return replace(self.sampler.draw(examples, group_size, numbers), step=step)

    def _validate(self, step: int) -> None:
        """Greedy accuracy; the first step of the highest one becomes ckpt_*/best.

        Step 0, the start, is measured but never chosen: it was chosen on these records, so its accuracy there is the
        highest of many (docs/LOG.md).
        """
        with named(f"validation of step {step}"), self.learner.whole():
            figures, rows = validate(self.sampler, self.task, self.held_out)
        self._give_back()
        if self.log is not None:
            self.log.write(step, {"phase": "validation", **figures})
            write_json(self.stage.path("val_generations", f"step_{step}.json"), rows)
        accuracy = figures["val_accuracy"]
        self.stage.terminal.say(f"step {step}: validation accuracy {accuracy:.3f}, reward {figures['val_reward']:.3f}")
        if step and (not self.best or accuracy > self.best["val_accuracy"]):
            self.best = {"step": step, **figures}
            self.learner.save_policy(self.folder / "best")

    def _give_back(self) -> None:
        give_back_memory()
        self.given_back = monotonic()

    def _agree_on_memory(self) -> None:
        """A limit that one process has run into holds for all, as it will for all that go on from this checkpoint."""
        passes, sampler = self.learner.passes, self.sampler
        room = min((room for room in gather(passes.room) if room), default=0)
        if room != passes.room:
            self.stage.warn(f"another process ran out of memory: passes have at most {room} tokens from now on")
        tokens = min(gather(sampler.tokens_per_batch))
        if tokens != sampler.tokens_per_batch:
            self.stage.warn(f"another process ran out of memory: samples at most {tokens} tokens at once from now on")
        passes.room, sampler.tokens_per_batch = room, tokens

    def _checkpoint(self, step: int) -> None:
        self._agree_on_memory()
        state: dict[str, Any] = {"best": self.best, "counts": self.counts, "kept": self.kept, "warned": self.warned}
        state["tokens_per_batch"] = self.sampler.tokens_per_batch
        state["task"] = self.task.state_dict()
        if self.log is not None:
            self.log.sync()
        self.learner.save(self.folder, step, state, self.cfg.validation.keep_checkpoints)
        self._report(step)

    def _restore(self, checkpoint: Path) -> None:
        state = self.learner.restore(checkpoint)
        self.first_step = state["step"] + 1
        self.best, self.counts, self.warned = state["best"], state["counts"], state["warned"]
        self.kept, self.sampler.tokens_per_batch = state["kept"], state["tokens_per_batch"]
        self.task.load_state_dict(state["task"])
        self.stage.terminal.say(f"continues after step {state['step']}")

    def _report(self, step: int) -> None:
        learner = self.learner
        self.stage.spent(**self.counts, gradient_tokens=learner.gradient_tokens, forward_tokens=learner.forward_tokens)
        best = {f"best_{name}": value for name, value in self.best.items()}
        self.stage.report({"steps": step, "updates": learner.updates, **best})

    def _start(self) -> Path:
        given = self.cfg.inputs.policy_ckpt
        if given:
            return self.stage.input(resolve_checkpoint(given))
        return self.stage.previous("03_sft_train", "ckpt_sft", "best")
