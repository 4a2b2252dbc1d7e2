"""One training run of 05, 06 or 07 around its loop: inputs, sampling, validation, selection, logs, checkpoints.

The loop itself, what an algorithm is, stands in the scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from utils.files import write_json
from utils.inputs import records_file, reward_spec_file
from utils.logs import TrainLog
from utils.models.load import save_model
from utils.rl.checkpoints import last_checkpoint
from utils.rl.health import NonFiniteError, warnings
from utils.rl.learner import Learner
from utils.rl.packing import unpackable
from utils.rl.rollouts import RolloutBatch, Sampler, examples_of_step, training_figures, validate
from utils.runs import resolve_checkpoint
from utils.seeds import uniforms
from utils.settings import (
    GenerationSettings,
    LoraSettings,
    ModelSettings,
    PathSettings,
    RLSettings,
    RolloutSettings,
    RunSettings,
    TaskSettings,
    ValidationSettings,
)
from utils.stage import Stage
from utils.tasks import make_task
from utils.tasks.base import Example, Reward


class Inputs(Protocol):
    """Flags of the scripts that name files; empty means: this run's."""

    @property
    def policy_ckpt(self) -> str: ...
    @property
    def train_jsonl(self) -> str: ...
    @property
    def val_jsonl(self) -> str: ...


class Config(Protocol):
    """The sections that every online RL script has."""

    @property
    def run(self) -> RunSettings: ...
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
    def inputs(self) -> Inputs: ...


class Session:
    """Everything around the loop. `method` names the checkpoint folder; `group_size` samples are drawn per prompt."""

    def __init__(self, cfg: Config, stage: Stage, method: str, group_size: int) -> None:
        self.cfg, self.stage, self.group_size = cfg, stage, group_size
        self.folder = stage.path(f"ckpt_{method}")
        self.task = make_task(cfg.task, reward_spec_file(stage, cfg.paths))
        self.train = self.task.load(records_file(stage, cfg.paths, "train.jsonl", cfg.inputs.train_jsonl))
        held_out = self.task.load(records_file(stage, cfg.paths, "val.jsonl", cfg.inputs.val_jsonl))
        self.held_out = held_out[: cfg.validation.eval_records or None]
        self.learner = Learner(
            cfg.model, cfg.lora, cfg.rl, start=self._start(), device=cfg.run.device, seed=cfg.run.seed
        )
        self.sampler = Sampler(
            self.learner.policy,
            self.learner.tokenizer,
            cfg.generation.max_new_tokens,
            cfg.generation.tokens_per_batch,
            self.learner.context,
        )
        self.counts = {"completions": 0, "generated_tokens": 0}
        self.best: dict[str, Any] = {}
        self.warned: list[str] = []
        checkpoint = last_checkpoint(self.folder) if stage.resuming else None
        self.first_step = 1
        if checkpoint is not None:
            self._restore(checkpoint)
        resume_step = None if checkpoint is None else self.first_step - 1
        self.log = TrainLog(stage.dir, resume_step, cfg.run.report_to)
        if reason := unpackable(self.learner.policy):
            stage.warn(f"{reason}: prompts are computed once per sample instead of once per group")

    def steps(self, total: int, eval_every: int) -> Iterator[int]:
        """The steps still to do; around them validation (before the first, then every `eval_every`) and checkpoints."""
        if not self.best:
            self._validate(0)
        with self.stage.terminal.progress(Path(self.stage.script).stem, total) as progress:
            for step in range(self.first_step, total + 1):
                yield step
                progress.update(step, **self.shown)
                if step % eval_every == 0 or step == total:
                    self._validate(step)
                    self._checkpoint(step)
        save_model(self.learner.policy, self.learner.tokenizer, self.folder / "final")
        self.log.close()
        self._report(total)

    def draw(self, step: int) -> RolloutBatch:
        """The completions of a step: its prompts, its random numbers, the present policy."""
        seed = self.cfg.run.seed
        examples = examples_of_step(self.train, step, self.cfg.rollout.prompts_per_step, seed)
        records = [example.id for example in examples]
        numbers = uniforms(seed, step, records, self.group_size, self.sampler.max_new_tokens)
        batch = self._sampled(examples, self.group_size, numbers, step)
        self.counts["completions"] += len(examples) * self.group_size
        self.counts["generated_tokens"] += batch.generated_tokens
        # each prompt once, and every token of a completion but its last
        self.learner.forward_tokens += batch.prompt_tokens + batch.generated_tokens - len(examples) * self.group_size
        return batch

    def score(self, batch: RolloutBatch) -> tuple[list[Reward], torch.Tensor]:
        """The task's rewards of a rollout, and their totals [_B, _G] in fp32."""
        rewards = self.task.score(batch.rollouts())
        return rewards, torch.tensor([reward.total for reward in rewards]).view(-1, self.group_size)

    def record(self, step: int, batch: RolloutBatch, rewards: list[Reward], figures: Mapping[str, float]) -> None:
        """One line of train.jsonl, warnings for what is out of its healthy range, totals for the manifest."""
        row = {**training_figures(self.task, batch, rewards), **figures}
        self.log.write(step, {"phase": "train", **row})
        self.shown = {name: row[name] for name in ("reward_mean", "execution_accuracy", "parse_rate", "kl")}
        for name, line in warnings(row, step).items():
            if name not in self.warned:
                self.warned.append(name)
                self.stage.warn(line)

    def _sampled(self, examples: list[Example], group_size: int, numbers: Any, step: int) -> RolloutBatch:
        try:
            return self.sampler.draw(examples, group_size, numbers)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {step}: {error}") from error

    def _validate(self, step: int) -> None:
        """Greedy accuracy; the first step of the highest one becomes ckpt_*/best (step 0 is the start itself)."""
        figures, rows = validate(self.sampler, self.task, self.held_out)
        self.log.write(step, {"phase": "validation", **figures})
        write_json(self.stage.path("val_generations", f"step_{step}.json"), rows)
        accuracy = figures["val_execution_accuracy"]
        self.stage.terminal.say(f"step {step}: validation accuracy {accuracy:.3f}, reward {figures['val_reward']:.3f}")
        if not self.best or accuracy > self.best["val_execution_accuracy"]:
            self.best = {"step": step, **figures}
            save_model(self.learner.policy, self.learner.tokenizer, self.folder / "best")

    def _checkpoint(self, step: int) -> None:
        state = {"best": self.best, "counts": self.counts, "warned": self.warned, "task": self.task.state_dict()}
        self.learner.save(self.folder, step, state, self.cfg.validation.keep_checkpoints)
        self._report(step)

    def _restore(self, checkpoint: Path) -> None:
        state = self.learner.restore(checkpoint)
        self.first_step = state["step"] + 1
        self.best, self.counts, self.warned = state["best"], state["counts"], state["warned"]
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
