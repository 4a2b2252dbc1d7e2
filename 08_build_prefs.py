"""Stage 08: preference pairs (chosen, rejected) from scored candidates, for DPO.

A correct candidate is preferred to a wrong one; where no candidate is correct, the target to a wrong candidate
(`--rules correct score` leaves it out); else a candidate to one that pays less. Chosen answers are always valid JSON
and pay at least `min_margin` more. Pairs that would teach length instead of correctness are dropped, and the pairs of
a share of the prompts are held out. `utils.rl.preferences` has the rules.

Reads:  04_candidates/{candidates,scores}.jsonl, 01_preprocessing/train.jsonl, 02_rewards/reward_spec.yaml (pays the
        gold programs; given as --reward_spec, it pays the candidates anew, too)
Writes: outputs/run_XXX/08_preferences/{pairs.jsonl, stats.txt, pairs.png, manifest.json}
        pairs.jsonl: {"id", "prompt", "chosen", "rejected", "split", "rule", "chosen_score", "rejected_score", "margin",
                      "chosen_tokens", "rejected_tokens", "rejected_valid"}

    python 08_build_prefs.py --candidates outputs/run_001/04_candidates/candidates.jsonl --min_margin 0.05
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.config import setting
from utils.errors import UserError
from utils.files import write_jsonl, write_text
from utils.inputs import records_file, reward_spec_file
from utils.settings import ModelSettings, PairSettings, PathSettings, RunSettings, TaskSettings
from utils.stage import Stage, main
from utils.tasks.base import Example, Rollout, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.rl.preferences import Answer

QUICK_PROMPTS = 64


@dataclass(frozen=True)
class Inputs:
    """Files, where they are not this run's."""

    candidates: str = setting("", "candidates.jsonl of stage 04, with scores.jsonl beside it (default: this run's)")
    train_jsonl: str = setting(
        "", "the records that 04 answered (default: train.jsonl of --data_dir, else of this run)"
    )


@dataclass(frozen=True)
class Config:
    """Settings of stage 08."""

    run: RunSettings
    task: TaskSettings
    model: ModelSettings
    paths: PathSettings
    pairs: PairSettings
    inputs: Inputs


def run(cfg: Config, stage: Stage) -> None:
    """Read, pair, balance, split, write."""
    from utils.models.tokens import load_tokenizer
    from utils.reporting.preferences import pair_plots
    from utils.rl import preferences
    from utils.tasks import make_task

    candidates, scores = candidate_files(cfg, stage)
    records = records_file(stage, cfg.paths, "train.jsonl", cfg.inputs.train_jsonl)
    task = make_task(cfg.task, reward_spec_file(stage, cfg.paths))
    examples = {example.id: example for example in task.load(records)}
    if task.sampled and cfg.paths.reward_spec:
        raise UserError(
            f"--reward_spec: task {cfg.task.name} pays its answers together; draw them under that reward with 04"
        )
    rows = preferences.read_scored(candidates, scores)[: QUICK_PROMPTS if cfg.run.quick_test else None]
    tokenizer = load_tokenizer(cfg.model)
    made: list[preferences.Pair] = []
    outcomes = Counter[str]()
    for row in rows:
        if row["id"] not in examples:
            raise UserError(
                f"{candidates}:{row['line']}: record {row['id']} is not in {records}; pairs are made of training "
                "records: run 04 with --split train, or give its records as --train_jsonl"
            )
        example = examples[row["id"]]
        answers = answers_of(task, tokenizer, example, row, paid_anew=bool(cfg.paths.reward_spec))
        found = preferences.pairs_of(
            example.id, row["prompt"], answers, gold_answer(task, tokenizer, example), cfg.pairs, cfg.run.seed
        )
        made += found
        outcomes[found[0].rule if found else preferences.why_none(answers)] += 1
    kept = preferences.balanced(made, cfg.pairs.max_length_bias)
    if not kept:
        raise UserError(no_pairs(candidates, len(rows), len(made), outcomes))
    pairs = preferences.split_by_prompt(kept, cfg.pairs.held_out_share, cfg.run.seed)
    report = preferences.figures(pairs, made)
    text = preferences.statistics(pairs, report, outcomes)
    write_jsonl(stage.path("pairs.jsonl"), [pair.to_dict() for pair in pairs])
    write_text(stage.path("stats.txt"), text)
    pair_plots(stage.path("pairs.png"), pairs)
    stage.terminal.say(text.rstrip())
    stage.report({"prompts": len(rows), **report})


def candidate_files(cfg: Config, stage: Stage) -> tuple[Path, Path]:
    """candidates.jsonl and the scores.jsonl beside it."""
    if cfg.inputs.candidates:
        path = stage.input(cfg.inputs.candidates)
        return path, stage.input(path.with_name("scores.jsonl"))
    first, second = (stage.previous("04_generate_candidates", f"{name}.jsonl") for name in ("candidates", "scores"))
    return first, second


def answers_of(
    task: Task, tokenizer: PreTrainedTokenizerBase, example: Example, row: dict[str, Any], paid_anew: bool
) -> list[Answer]:
    """The candidates of one prompt, with stage 04's rewards or, `paid_anew`, with the task's."""
    from utils.models.tokens import encode_target
    from utils.rl.preferences import Answer

    lengths = [len(encode_target(tokenizer, cand["text"])) for cand in row["cands"]]
    totals, cands = row["totals"], row["cands"]
    if paid_anew:
        texts = [cand["text"] for cand in row["cands"]]
        drawn = [Rollout(example, i, text, False, lengths[i]) for i, text in enumerate(texts)]
        totals = [reward.total for reward in task.score(drawn)]
        verdicts = [task.judge(example, text) for text in texts]
        cands = [
            {"text": text, "correct": verdict.correct, "parse_ok": verdict.format_valid}
            for text, verdict in zip(texts, verdicts, strict=True)
        ]
    return [
        Answer(cand["text"], length, total, cand["correct"], cand["parse_ok"])
        for cand, length, total in zip(cands, lengths, totals, strict=True)
    ]


def gold_answer(task: Task, tokenizer: PreTrainedTokenizerBase, example: Example) -> Answer | None:
    """The record's target as an answer; None where none is known, or where it is not right."""
    from utils.models.tokens import encode_target
    from utils.rl.preferences import Answer

    text = task.target(example)
    if text is None or task.sampled:  # a text of a set is worth nothing by itself
        return None
    tokens, verdict = len(encode_target(tokenizer, text)), task.judge(example, text)
    reward = task.score([Rollout(example, 0, text, False, tokens)])[0]
    return Answer(text, tokens, reward.total, True, verdict.format_valid) if verdict.correct else None


def no_pairs(candidates: Path, prompts: int, made: int, outcomes: Counter[str]) -> str:
    """The UserError of a stage that has nothing to write."""
    if made:
        return (
            f"{candidates}: no pair is left of {made}, since chosen answers are longer (or shorter) than rejected ones "
            "throughout; raise --max_length_bias, or sample more candidates (04 --num_candidates)"
        )
    reasons = ", ".join(f"{count} with {reason}" for reason, count in sorted(outcomes.items()))
    return (
        f"{candidates}: no pair can be made from {prompts} prompts ({reasons}); sample more or hotter candidates "
        "(04 --num_candidates --temperature), lower --min_margin, or allow all --rules"
    )


if __name__ == "__main__":
    raise SystemExit(main(Config, run, __doc__, __file__))
