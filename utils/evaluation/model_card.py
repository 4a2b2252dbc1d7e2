"""The README.md of an exported policy: what it is, how it was made, and the numbers that its run measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils import manifest
from utils.evaluation.lineage import lineage, method_of
from utils.files import read_json, sha256
from utils.tasks.words import WORDS, words_of

LICENCES = {
    "assets/": ("mit", "The base model is part of this project and under its MIT licence."),
    "meta-llama/Llama-3.2": (
        "llama3.2",
        "The base model is under the Llama 3.2 Community License, which goes with every copy and derivative: hand on "
        'the licence, show "Built with Llama", begin the name of a published derivative with "Llama", and keep to its '
        "acceptable use policy.",
    ),
    "meta-llama/Meta-Llama-3-": (
        "llama3",
        "The base model is under the Meta Llama 3 Community License, which goes with every copy and derivative: hand "
        'on the licence, show "Built with Meta Llama 3", begin the name of a published derivative with "Llama 3", and '
        "keep to its acceptable use policy.",
    ),
    "TinyLlama/": ("apache-2.0", "The base model is under the Apache 2.0 licence."),
    "microsoft/DialoGPT": ("mit", "The base model is under the MIT licence."),
}
UNKNOWN_LICENCE = ("other", "Look up the base model's licence before passing this on; it holds for derivatives too.")
DATA_LICENCE = {
    "files": "FinQA (Chen et al. 2021, https://github.com/czyssrs/FinQA) is under the MIT licence.",
    "others": "The training data were brought by the user; look up their licence before passing this on.",
    "generated": "The training data were made by this project's seeded generator and are under its MIT licence.",
}


def model_card(checkpoint: Path, form: str, dtype: str) -> str:
    """Markdown with Hugging Face's front matter. `form`: merged, adapter or whole (trained without an adapter)."""
    stage = manifest.stage_above(checkpoint)
    assert stage is not None
    record = manifest.read(stage)
    config, method = record["config"], method_of(checkpoint)
    base = config["model"]["name"]
    own, controls = evaluations(stage, sha256(checkpoint))
    tag, licence = next((known for start, known in LICENCES.items() if base.startswith(start)), UNKNOWN_LICENCE)
    task = config["task"]
    kind = {"adapter": "LoRA adapter", "merged": f"LoRA adapter merged into its base ({dtype})"}.get(
        form, "all weights"
    )
    lines = [
        "---",
        f"license: {tag}",
        *([] if base.startswith("assets/") else [f"base_model: {base}"]),
        f"library_name: {'peft' if form == 'adapter' else 'transformers'}",
        "pipeline_tag: text-generation",
        f"tags: [{task['kind']}, reinforcement-learning, {method}]",
        "---",
        "",
        f"# {method} on {task['name']}",
        "",
        WORDS[task["kind"]].purpose,
        "",
        f"* base model: `{base}`",
        f"* method: {method}, {kind}; stages: {' → '.join(_stages(checkpoint))}",
        f"* data: {_data(task, own)}",
        f"* reward profile: {task['reward_profile']}",
        f"* seeds: training {record['seed']}, data {task['data_seed']}",
        f"* prompt style: {config['model']['prompt_style']}, at most {task['max_prompt_tokens']} tokens of prompt",
        f"* code: commit {record['code']['commit'] or 'unknown'}{', with changes' if record['code']['dirty'] else ''}",
        f"* made from: `{manifest.shown(checkpoint)}`, sha256 {sha256(checkpoint)}",
        "",
        "## Results",
        "",
        *_results(own),
        "",
        *_controls(own, controls),
        "## Use",
        "",
        "```python",
        *_usage(form, base),
        "```",
        "",
        f"Prompts must be built as in training ({WORDS[task['kind']].prompts}); measured were "
        f"{WORDS[task['kind']].drawn}.",
        "",
        "## Limits and licence",
        "",
        "One seed, one data set: the interval holds over records, not over seeds. Check every figure before using it.",
        *_quantised(config["model"], form),
        "",
        licence,
        DATA_LICENCE[task["source"] if task["source"] == "generated" or task["kind"] == "finqa" else "others"],
    ]
    return "\n".join(lines) + "\n"


def evaluations(stage: Path, policy: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """metrics.json of a stage's policy, and of the run's other evaluations.

    Its files' sha256 alone does not tell: where training did not help, `best` is the policy it started from.
    """

    def is_own(metrics: Mapping[str, Any]) -> bool:
        made_by = metrics["policy"]
        return made_by["sha256"] == policy and stage.name in Path(made_by["path"]).parts

    found = [read_json(path) for path in sorted(stage.parent.glob("10_evaluation*/metrics.json"))]
    return [one for one in found if is_own(one)], [one for one in found if not is_own(one)]


def _stages(checkpoint: Path) -> list[str]:
    return [one.folder.name for one in lineage(checkpoint).stages] or [method_of(checkpoint)]


def _data(task: Mapping[str, Any], own: list[dict[str, Any]]) -> str:
    origin = (
        f"made from data seed {task['data_seed']}" if task["source"] == "generated" else f"from {task['data_root']}"
    )
    tested = f"; tested on {own[0]['n']} {own[0]['split']} records, sha256 {own[0]['data']['sha256']}" if own else ""
    return f"{task['name']}, {origin}{tested}"


def _rate(metrics: Mapping[str, Any], name: str) -> str:
    """`43.2 [40.1, 46.3]`, in percent where it is a share."""
    scale, digits = (1, 3) if name == "mean_reward" else (100, 1)
    low, high = metrics[f"{name}_ci95"]
    return f"{scale * metrics[name]:.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def in_full(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Every rate that a card may state, and what it is."""
    return {**words_of(metrics).in_full, "mean_reward": "mean reward"}


def _results(own: list[dict[str, Any]]) -> list[str]:
    if not own:
        return ["This policy was not evaluated in its run."]
    lines = []
    for metrics in own:
        words = words_of(metrics)
        lines += [
            f"{words.drawn[0].upper()}{words.drawn[1:]}, {metrics['n']} {metrics['split']} records of "
            f"{metrics['task']}, in percent (the mean reward: as paid), with 95 % bootstrap intervals over records:",
            "",
            "| measure | value |",
            "| :-- | --: |",
            *(f"| {said} | {_rate(metrics, name)} |" for name, said in in_full(metrics).items() if name in metrics),
            "",
        ]
    return lines[:-1]


def _controls(own: list[dict[str, Any]], controls: list[dict[str, Any]]) -> list[str]:
    """Only evaluations of the same records stand beside this policy's."""
    same = {metrics["data"]["targets_sha256"] for metrics in own}
    rows = [metrics for metrics in controls if metrics["data"]["targets_sha256"] in same]
    if not rows:
        return []
    words = words_of(rows[0])
    lines = [f"Controls on the same records, {words.accuracy} in percent:", "", "| control | value |", "| :-- | --: |"]
    lines += [f"| {one['method']} (seed {one['seed']}) | {_rate(one, words.decides)} |" for one in rows]
    equal = [one["method"] for one in rows if one["policy"]["sha256"] == own[0]["policy"]["sha256"]]
    if equal:
        lines += ["", f"Same weights as {', '.join(equal)}: no later step did better on the validation records."]
    return [*lines, ""]


def _quantised(model: Mapping[str, Any], form: str) -> list[str]:
    """A merged model has the full base's weights, whatever stood under the adapter in training."""
    bits = [bits for bits in ("4bit", "8bit") if model.get(f"load_in_{bits}")]
    if not bits or form != "merged":
        return []
    return [f"Trained and measured over a base in {bits[0][0]} bits, merged into the full one: answers may differ."]


def _usage(form: str, base: str) -> list[str]:
    if form == "adapter":
        return [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        ]
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
    ]
