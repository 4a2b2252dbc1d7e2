"""Whole steps of training, one at each call: the project's scripts 05 to 07 and TRL's trainers on the same work.

The loop that is measured is the script's own: its `run` is called with a session that lasts and hands out one step at
a time. Sampling, rewards, reference, update, figures and logs are in a step; validation and checkpoints are not.
Prompts are made-up words. What a random model writes says nothing, so both sides are paid for the same prepared
answers to questions of finqa_mini: programs that are parsed, executed and compared.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import trl_trainer
from benchmarks.measure import quickest
from benchmarks.rollouts import Work, context
from benchmarks.sampler import FEW, generate
from benchmarks.trl_trainer import KL, LORA, RATE, TrainerStep, word
from benchmarks.updates import of_project, of_trl
from tools.mutations import mutate_program
from utils import manifest
from utils.config import resolve
from utils.files import write_json, write_jsonl
from utils.finqa import mini
from utils.finqa.answers import write_answer
from utils.finqa.examples import FinQAExample, FinQAJudgement
from utils.rewards.spec import PROFILES
from utils.rl.session import Session
from utils.stage import Stage
from utils.tasks.base import Reward, Rollout
from utils.tasks.finqa import FinQATask, make_examples, own
from utils.terminal import Terminal

SCRIPTS = {"grpo": "06_train_grpo", "rloo": "07_train_rloo", "ppo": "05_train_ppo"}
FLAGS = {
    "grpo": ["--kl_coef", str(KL), "--group_size"],
    "rloo": ["--kl_coef", str(KL), "--variance_prompts", "0", "--num_samples"],
    "ppo": ["--kl_coef", str(KL), "--ppo_epochs", "1", "--group_size"],
}
"""One pass over each rollout; the number of samples follows."""
WRONG = 2
"""Wrong answers for each right one."""
CACHES: tuple[str | None, ...] = (None, "static")
"""What `generate` keeps keys and values in; None is its dynamic cache."""


class GivenAnswers(FinQATask):
    """Pays prepared answers instead of the text that was sampled."""

    def __init__(self, work: Work) -> None:
        super().__init__(PROFILES["strict"])
        records = [record for record in mini.generate(0)["dev"] if record.program]
        chosen = list(itertools.islice(itertools.cycle(records), len(work.prompts)))
        examples, _ = make_examples(chosen, 0, lambda texts: [0] * len(texts))
        self.examples = [
            replace(example, id=str(number), input_text=" ".join(map(word, prompt)))
            for number, (example, prompt) in enumerate(zip(examples, work.prompts, strict=True))
        ]

    def score(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        return super().score([replace(rollout, text=_answer(rollout)) for rollout in rollouts])

    def judge(self, example: FinQAExample, text: str) -> FinQAJudgement:
        return super().judge(example, str(example.target_text))

    def reward(self, completions: list[str], record: list[int], **_: Any) -> list[float]:
        """The same for TRL, whose completions come group by group."""
        sample = dict.fromkeys(record, -1)
        rollouts = []
        for text, number in zip(completions, record, strict=True):
            sample[number] += 1
            rollouts.append(Rollout(self.examples[number], sample[number], text, False, 0))
        return [reward.total for reward in self.score(rollouts)]


def _answer(rollout: Rollout) -> str:
    """Answer number `sample` to a question: the gold program, or that with a random change."""
    example = own(rollout.example)
    program = str(example.target_program)
    if rollout.sample % (WRONG + 1):
        program = mutate_program(random.Random(f"{example.id} {rollout.sample}"), program)
    return write_answer(program, example.exe_ans)


class SilentStage(Stage):
    """A random model's answers are cut off and wrong; nobody needs to be told."""

    def warn(self, line: str) -> None:
        pass


class ProjectStep:
    """One step of a script at each call; its run lies in `folder` beside `start`, the policy to begin with."""

    def __init__(self, flags: argparse.Namespace, work: Work, folder: Path) -> None:
        self.flags, self.work, self.task = flags, work, GivenAnswers(work)
        self.script = importlib.import_module(SCRIPTS[flags.method])
        file, arguments = str(self.script.__file__), _arguments(flags, self.task.examples, folder)
        resolved = resolve(self.script.Config, arguments, doc="", script=file)
        self.config: Any = resolved.config
        target = folder / SCRIPTS[flags.method]
        target.mkdir()
        record = manifest.begin(resolved, file, arguments, None)
        self.stage = SilentStage(target, file, Terminal(quiet=True), False, record)
        self.session: Session | None = None
        self.numbers = itertools.count(1)
        self.coming: Iterator[int] = iter(())
        self._run()  # makes the session, takes no step

    def __call__(self) -> None:
        self.coming = iter([next(self.numbers)])
        self._run()

    def _run(self) -> None:
        tasks = patch("utils.rl.session.make_task", lambda *_: self.task)
        with tasks, patch("utils.rl.session.Session", self._lasting):
            self.script.run(self.config, self.stage)

    def _lasting(self, *arguments: Any) -> Session:
        if self.session is None:
            self.session = Session(*arguments)
            vars(self.session)["steps"] = lambda *_: self.coming
        return self.session

    @property
    def policy(self) -> Any:
        """What it trains."""
        assert self.session is not None
        return self.session.learner.policy

    def tune(self) -> dict[str, Any]:
        """Take the micro-batch that is fastest here; how many prompts it holds."""
        assert self.session is not None
        learner = self.session.learner
        chosen = of_project(self.flags, self.work, shared=True, model=self.policy).tune()
        row = self.flags.prompt + self.flags.group * self.flags.completion
        learner.rl = replace(learner.rl, micro_batch_tokens=max(64, chosen["micro_batch"] * row))
        return chosen


def _arguments(flags: argparse.Namespace, examples: Sequence[FinQAExample], folder: Path) -> list[str]:
    """The flags of the script; writes the files that they name."""
    rows, spec, model = folder / "rows.jsonl", folder / "reward_spec.yaml", folder / "model.json"
    write_jsonl(rows, [example.to_dict() for example in examples])
    PROFILES["strict"].save(spec)
    lora = {"use_lora": flags.lora, **LORA}
    settings = {"name": str(folder / "start"), "precision": flags.dtype, "load_in_4bit": flags.load_in_4bit}
    write_json(model, {"model": settings, "lora": lora, "rl": {"learning_rate": RATE}})
    return [
        "--config", str(model), "--task", "finqa_mini", "--device", flags.device, "--quiet",
        "--policy_ckpt", str(folder / "start"), "--train_jsonl", str(rows), "--val_jsonl", str(rows),
        "--reward_spec", str(spec), "--max_new_tokens", str(flags.completion), "--warmup_steps", "0",
        "--prompts_per_step", str(flags.prompts), *FLAGS[flags.method], str(flags.group),
    ]  # fmt: skip


def trl_step(flags: argparse.Namespace, work: Work, folder: Path) -> tuple[TrainerStep, dict[str, Any]]:
    """One step of TRL's trainer at each call, and the settings that are fastest for it here."""
    task = GivenAnswers(work)
    texts = [example.input_text for example in task.examples]
    kind = {"lora": flags.lora, "load_in_4bit": flags.load_in_4bit}
    make = partial(trl_trainer.trainer, flags, folder / "start", texts, task.reward, **kind)
    first = make(rows=1)
    chosen = of_trl(flags, work, trainer=first).tune()
    attend, model = chosen["attention"], first.accelerator.unwrap_model(first.model)
    # the static cache takes the weights' dtype, and autocast's keys and values of fp32 weights are bf16
    caches = CACHES if flags.dtype == "fp32" or flags.lora else CACHES[:1]
    few = {str(cache): partial(_a_few_tokens, model, attend, cache, work, flags) for cache in caches}
    chosen["cache"] = {str(cache): cache for cache in caches}[quickest(few)]
    del first, model, few
    settings = {"rows": chosen["micro_batch"], "attention": attend, "cache": chosen["cache"]}
    return TrainerStep(make(method=flags.method, **settings)), chosen


def _a_few_tokens(model: Any, attention: str, cache: str | None, work: Work, flags: argparse.Namespace) -> None:
    with context(flags):
        generate(model, attention, cache, work, flags, FEW)


def save_start(flags: argparse.Namespace, folder: Path) -> None:
    """The policy that both begin with. The base under an adapter is stored in the dtype that it is computed in."""
    half = flags.dtype == "bf16" and (flags.lora or flags.load_in_4bit)
    trl_trainer.save_start(flags, folder / "start", torch.bfloat16 if half else torch.float32)
