"""Stage 10: how good is a policy?

Greedy answers of any checkpoint on a split that training never saw, judged one by one: the program is executed and its
value compared with the gold value; program, typed answer and format are judged beside it. Every rate has a 95 %
bootstrap interval. `--baseline` puts a control in the policy's place: `base` (the untrained model), `majority` (the
most frequent training answer), `gold` (the gold programs, the upper bound). `--pass_k 4,8 --pass_records 200` adds
pass@k from samples at temperature 1, unbiased (Chen et al. 2021, arXiv:2107.03374, eq. 1).

Reads:  a checkpoint (--policy_ckpt), 01_preprocessing/{test,val}.jsonl or --test_jsonl, 02_rewards/reward_spec.yaml
Writes: outputs/run_XXX/10_evaluation/{metrics.json, breakdown.csv, samples/predictions.jsonl, manifest.json}
        (samples/pass_k.jsonl with --pass_records)

    python 10_evaluate.py --policy_ckpt outputs/run_001/06_grpo
    python 10_evaluate.py --baseline gold --output_dir outputs/run_001/10_evaluation_gold
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import setting
from utils.files import write_json, write_jsonl
from utils.runs import resolve_checkpoint
from utils.settings import GenerationSettings, LoraSettings, ModelSettings, PathSettings, RunSettings, TaskSettings
from utils.stage import Stage, main
from utils.tasks.base import Example, Judgement, Rollout, Task

QUICK_RECORDS = 128
SHOWN_RATES = ("execution_accuracy", "program_accuracy", "exact_match", "numeric_1pct", "program_valid", "format_valid")
Answers = tuple[list[Rollout], list[Judgement], dict[str, Any]]  # and further figures for metrics.json


@dataclass(frozen=True)
class Inputs:
    """What is evaluated, and on which records."""

    policy_ckpt: str = setting("", "policy: a stage folder, a ckpt_* folder or one checkpoint")
    baseline: str = setting("", "a control instead of a policy", choices=("base", "majority", "gold"))
    split: str = setting("test", "which records", choices=("test", "val"))
    test_jsonl: str = setting("", "file of records instead of the split's (its name becomes the split)")
    method: str = setting("", "name in tables (default: from the stage that made the checkpoint)")
    pass_k: str = setting("1,4,8", "every k of pass@k, separated by commas")
    pass_records: int = setting(0, "first records that pass@k is measured on (0: not at all)", minimum=0)
    pass_samples: int = setting(0, "samples per record for pass@k (0: the largest k)", minimum=0)

    def __post_init__(self) -> None:
        if bool(self.policy_ckpt) == bool(self.baseline):
            raise ValueError(
                "give one of --policy_ckpt PATH (say outputs/run_001/06_grpo) and --baseline base|majority|gold"
            )
        largest = max(self.ks())
        if self.pass_records and 0 < self.pass_samples < largest:
            raise ValueError(f"--pass_samples {self.pass_samples} is less than the largest k of --pass_k {self.pass_k}")
        if self.pass_records and self.baseline in ("majority", "gold"):
            raise ValueError(f"--pass_records needs a model to sample from; --baseline {self.baseline} has none")

    def ks(self) -> tuple[int, ...]:
        """Every k of pass@k, ascending, each once. ValueError unless they are whole numbers from 1."""
        words = self.pass_k.split(",")
        if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
            raise ValueError(f"--pass_k must be whole numbers from 1, separated by commas; got {self.pass_k!r}")
        return tuple(sorted({int(word) for word in words}))


@dataclass(frozen=True)
class Config:
    """Settings of stage 10."""

    run: RunSettings
    task: TaskSettings
    model: ModelSettings
    lora: LoraSettings
    generation: GenerationSettings
    paths: PathSettings
    evaluation: Inputs


def run(cfg: Config, stage: Stage) -> None:
    """Answer, judge, summarise, write."""
    from utils.evaluation import outputs
    from utils.evaluation.metrics import check_ids, summarise, write_breakdown
    from utils.tasks import make_task

    inputs = cfg.evaluation
    data = stage.input(inputs.test_jsonl) if inputs.test_jsonl else _split_file(cfg, stage, inputs.split)
    spec = (
        stage.input(cfg.paths.reward_spec)
        if cfg.paths.reward_spec
        else stage.previous("02_build_rewards", "reward_spec.yaml")
    )
    task = make_task(cfg.task, spec)
    examples = task.load(data)[: QUICK_RECORDS if cfg.run.quick_test else None]
    check_ids([example.id for example in examples], str(data))

    if inputs.policy_ckpt:
        checkpoint = stage.input(resolve_checkpoint(inputs.policy_ckpt))
        metrics = outputs.describe_policy(stage, checkpoint, inputs.method)
        rollouts, judgements, extra = _policy_answers(cfg, stage, task, examples, checkpoint)
    else:
        metrics = outputs.describe_baseline(stage, inputs.baseline, cfg.model.name, inputs.method)
        answers = _policy_answers if inputs.baseline == "base" else _constant_answers
        rollouts, judgements, extra = answers(cfg, stage, task, examples, None)

    metrics |= {"task": cfg.task.name, "split": Path(inputs.test_jsonl).stem if inputs.test_jsonl else inputs.split}
    metrics |= outputs.describe_inputs(stage, data, spec, examples) | summarise(judgements, cfg.run.seed) | extra
    metrics["generated_tokens"] = sum(one.tokens for one in rollouts)
    metrics["truncated"] = sum(one.truncated for one in rollouts)
    write_json(stage.path("metrics.json"), metrics)
    write_breakdown(stage.path("breakdown.csv"), judgements)
    write_jsonl(stage.path("samples", "predictions.jsonl"), outputs.prediction_rows(task, rollouts, judgements))
    stage.report({name: metrics[name] for name in ("method", "n", *SHOWN_RATES, "mean_reward")})
    stage.spent(completions=len(rollouts), generated_tokens=metrics["generated_tokens"])
    _show(stage, metrics)


def _policy_answers(cfg: Config, stage: Stage, task: Task, examples: list[Example], checkpoint: Path | None) -> Answers:
    """Greedy answers of a checkpoint, or of the base model when there is none; pass@k where it is asked for."""
    from utils.evaluation.metrics import summarise_pass_k
    from utils.evaluation.outputs import sample_rows
    from utils.evaluation.policies import answer, load_policy

    inputs = cfg.evaluation
    policy = load_policy(cfg.model, cfg.lora, cfg.generation, cfg.run.device, checkpoint)
    with stage.terminal.progress("greedy answers", len(examples)) as progress:
        rollouts = [group[0] for group in answer(policy, examples, progress)]
    judgements = [task.judge(one.example, one.text) for one in rollouts]
    first = examples[: inputs.pass_records]
    if not first:
        return rollouts, judgements, {}
    samples = inputs.pass_samples or max(inputs.ks())
    with stage.terminal.progress(f"{samples} samples each", len(first)) as progress:
        groups = answer(policy, first, progress, samples=samples, seed=cfg.run.seed)
    correct = [[task.judge(one.example, one.text).execution_correct for one in group] for group in groups]
    write_jsonl(stage.path("samples", "pass_k.jsonl"), sample_rows(groups, correct))
    stage.spent(pass_k_tokens=sum(one.tokens for group in groups for one in group))
    return rollouts, judgements, {"pass_at_k": summarise_pass_k(correct, inputs.ks(), cfg.run.seed)}


def _constant_answers(cfg: Config, stage: Stage, task: Task, examples: list[Example], _: Path | None) -> Answers:
    """Answers that need no model: the gold programs, or the most frequent training answer."""
    from utils.evaluation.baselines import judge_constant, judge_gold, majority_answer

    if cfg.evaluation.baseline == "gold":
        judged = judge_gold(task, examples)
    else:
        beside = Path(cfg.evaluation.test_jsonl).parent / "train.jsonl"
        train = task.load(stage.input(beside) if cfg.evaluation.test_jsonl else _split_file(cfg, stage, "train"))
        judged = judge_constant(task, examples, majority_answer(train))
    rollouts = [Rollout(example, 0, text, False, 0) for example, (text, _) in zip(examples, judged, strict=True)]
    return rollouts, [judgement for _, judgement in judged], {}


def _split_file(cfg: Config, stage: Stage, split: str) -> Path:
    """The file of a split that stage 01 wrote."""
    if cfg.paths.data_dir:
        return stage.input(Path(cfg.paths.data_dir) / f"{split}.jsonl")
    return stage.previous("01_prepare_dataset", f"{split}.jsonl")


def _show(stage: Stage, metrics: dict[str, Any]) -> None:
    """The result on the terminal."""
    rows = [
        [name, *(f"{100 * value:.1f}" for value in (metrics[name], *metrics[f"{name}_ci95"]))] for name in SHOWN_RATES
    ]
    title = f"{metrics['method']}, seed {metrics['seed']}: {metrics['n']} {metrics['split']} records, in %"
    stage.terminal.table(title, ["", "rate", "low", "high"], rows)
    failures = ", ".join(f"{name} {number}" for name, number in metrics["failures"].items())
    stage.terminal.say(f"failures: {failures or 'none'}")


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__))
