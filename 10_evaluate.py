"""Stage 10: how good is a policy?

Greedy answers of any checkpoint on a split that training never saw. FinQA: the program is executed and its value
compared with the gold value, strictly and as the published evaluator does it; program, typed answer and format are
judged beside it, and every miss has a reason. Every rate has a 95 % bootstrap interval; accuracy is also given by
steps, operations, evidence and kind of answer. Of several policies, trials of one method, the one with the highest
validation accuracy is evaluated, and all are listed. In a policy's place:
  --baseline NAME     a control: `base` (the untrained model), `majority` (the most frequent training answer), `gold`
                      (the gold programs, the upper bound)
  --predictions FILE  answers made elsewhere: a line {"id": "...", "text": "..."} for every record
`--pass_k 4,8 --pass_records 200` adds pass@k from samples at temperature 1, unbiased (Chen et al. 2021,
arXiv:2107.03374, eq. 1). An interrupted stage goes on with `--resume`, after the last batch of answers.

Reads:  a checkpoint (--policy_ckpt), 01_preprocessing/{test,val}.jsonl or --test_jsonl, 02_rewards/reward_spec.yaml
Writes: outputs/run_XXX/10_evaluation/{metrics.json, breakdown.csv, breakdown_groups.csv, samples/predictions.jsonl,
        manifest.json} (samples/pass_k.jsonl with --pass_records)

    python 10_evaluate.py --policy_ckpt outputs/run_001/06_grpo
    python 10_evaluate.py --baseline gold --output_dir outputs/run_001/10_evaluation_gold
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import setting
from utils.errors import UserError
from utils.evaluation.pass_k import PassPlan, measure
from utils.files import write_json, write_jsonl
from utils.inputs import records_file, reward_spec_file, warn_of_other_reward
from utils.settings import GenerationSettings, LoraSettings, ModelSettings, PathSettings, RunSettings, TaskSettings
from utils.stage import Stage, main

QUICK_RECORDS = 128


@dataclass(frozen=True)
class Inputs:
    """What is evaluated, and on which records."""

    policy_ckpt: tuple[str, ...] = setting(
        (), "policy: a stage folder, a ckpt_* folder or one checkpoint; of several, the best on validation"
    )
    baseline: str = setting("", "a control instead of a policy", choices=("base", "majority", "gold"))
    predictions: str = setting("", "JSONL file of answers made elsewhere instead of a policy")
    split: str = setting("test", "which records", choices=("test", "val"))
    test_jsonl: str = setting("", "file of records instead of the split's (its name becomes the split)")
    method: str = setting("", "name in tables (default: from the stage that made the checkpoint)")
    pass_k: str = setting("", "every k of pass@k, separated by commas (default: 1,4,8)")
    pass_records: int = setting(0, "first records that pass@k is measured on (0: not at all)", minimum=0)
    pass_samples: int = setting(0, "samples per record for pass@k (0: the largest k)", minimum=0)

    def __post_init__(self) -> None:
        if sum(map(bool, (self.policy_ckpt, self.baseline, self.predictions))) != 1:
            raise ValueError("give one of --policy_ckpt PATH (outputs/run_001/06_grpo), --baseline NAME, --predictions")
        if self.pass_plan().records and not self.has_model():
            raise ValueError(f"--pass_records needs a model to sample from; {self.baseline or 'a file'} has none")

    def has_model(self) -> bool:
        """Whether a model writes the answers."""
        return bool(self.policy_ckpt) or self.baseline == "base"

    def pass_plan(self) -> PassPlan:
        """What pass@k is measured on."""
        return PassPlan.read(self.pass_k, self.pass_records, self.pass_samples)


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
    from utils.evaluation import baselines, outputs
    from utils.evaluation.groups import write_groups
    from utils.evaluation.metrics import check_ids, write_breakdown
    from utils.evaluation.predictions import read_predictions
    from utils.evaluation.verdicts import columns, summary
    from utils.tasks import make_task
    from utils.tasks.per_answer import PerAnswer
    from utils.tasks.words import WORDS

    inputs = cfg.evaluation
    data = records_file(stage, cfg.paths, f"{inputs.split}.jsonl", inputs.test_jsonl)
    spec = reward_spec_file(stage, cfg.paths)
    task = make_task(cfg.task, spec)
    words = WORDS[task.kind]
    records = task.load(data)
    check_ids([record.id for record in records], str(data))
    if inputs.pass_plan().records and not isinstance(task, PerAnswer):
        raise UserError(f"--pass_records: task {cfg.task.name} judges its answers together, no single one is right")
    examples = records[: QUICK_RECORDS if cfg.run.quick_test else None]

    further: dict[str, Any] = {}
    if inputs.has_model():
        from utils.evaluation.policies import Policy
        from utils.evaluation.trials import choose_trial

        checkpoint, trials = choose_trial(stage, inputs.policy_ckpt) if inputs.policy_ckpt else (None, [])
        who = outputs.describe_policy(stage, checkpoint, inputs.method, cfg.model.name)
        if trials:
            further["trials"] = trials
        if checkpoint is not None:
            warn_of_other_reward(stage, checkpoint, spec)
        policy = Policy(stage, cfg.model, cfg.lora, cfg.generation, cfg.run.device, checkpoint)
        if checkpoint is None:
            stage.base_model(cfg.model.name)
        answers = [one for (one,) in policy.sampled(examples, 1)] if task.sampled else policy.greedy(examples)
        further |= measure(policy, task, examples, inputs.pass_plan(), stage)
        stage.spent(completions=len(answers), generated_tokens=sum(one.tokens for one in answers))
    elif inputs.predictions:
        made_elsewhere = stage.input(inputs.predictions)
        who = outputs.describe_predictions(stage, made_elsewhere, inputs.method)
        answers = read_predictions(made_elsewhere, records)[: len(examples)]
    else:
        who = outputs.describe_constant(stage, inputs.baseline, inputs.method, words)
        if inputs.baseline == "gold":
            answers = baselines.gold_answers(task, examples)
        else:
            beside = inputs.test_jsonl and str(Path(inputs.test_jsonl).with_name("train.jsonl"))
            train = task.load(records_file(stage, cfg.paths, "train.jsonl", beside))
            answers = baselines.majority_answers(task, train, examples)

    found, rewards = task.evaluate(answers, constant=inputs.baseline == "majority"), task.score(answers)
    result = who | {
        "task": cfg.task.name,
        "kind": task.kind,
        "split": Path(inputs.test_jsonl).stem if inputs.test_jsonl else inputs.split,
    }
    result |= outputs.describe_inputs(stage, task, data, spec, examples)
    result |= summary(found, rewards, words, cfg.run.seed) | further | outputs.lengths(answers)
    write_jsonl(
        stage.path("samples", "predictions.jsonl"), outputs.prediction_rows(task, answers, found.verdicts, rewards)
    )
    write_breakdown(stage.path("breakdown.csv"), found.judged, words, columns(found))
    write_groups(stage.path("breakdown_groups.csv"), result["groups"])
    write_json(stage.path("metrics.json"), result)
    outputs.remove_unfinished(stage)
    stage.report({name: result[name] for name in ("method", "n", *words.rates, "mean_reward")})
    outputs.show(stage, result, words)


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__))
