"""An exported policy answers as the checkpoint does, in plain transformers, and its card says what its run measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.invariants.tiny import save_letter_model, tiny_prompts
from tests.unit.fabricated import compute, make_evaluation
from utils.errors import UserError
from utils.evaluation.export import export
from utils.files import read_json, sha256, write_json
from utils.manifest import hash_outputs
from utils.models.load import load_model, save_model
from utils.models.tokens import load_tokenizer
from utils.settings import LoraSettings, ModelSettings, TaskSettings

RUN = Path("outputs/run_003")
MODEL = ModelSettings(name="base", precision="bf16")
LORA = LoraSettings(use_lora=True, r=4, alpha=8, target_modules=("q_proj", "down_proj"))


def letter_model(lora: LoraSettings, checkpoint: Path | None) -> Any:
    exact = ModelSettings(name="base")
    return load_model(exact, lora, checkpoint=checkpoint, trainable=True, device=torch.device("cpu"))


def make_run(lora: LoraSettings = LORA) -> Path:
    """A run with a GRPO checkpoint over a random base, an evaluation of it and two controls; the checkpoint."""
    save_letter_model("base")
    policy = letter_model(lora, None)
    torch.manual_seed(3)
    for name, parameter in policy.named_parameters():
        if "lora_" in name or not lora.use_lora:
            torch.nn.init.normal_(parameter, std=0.4)
    best = RUN / "06_grpo/ckpt_grpo/best"
    save_model(policy, load_tokenizer(MODEL, None), best)
    config = {"run": {"output_dir": (RUN / "06_grpo").as_posix()}, "model": vars(MODEL), "task": vars(TaskSettings())}
    config["lora"] = {**vars(lora), "target_modules": list(lora.target_modules)}
    record = {
        "schema": 1, "stage": "06_grpo", "status": "completed", "command": "", "config": config, "seed": 7,
        "code": {"commit": "c0ffee", "dirty": None}, "inputs": {}, "parents": [], "metrics": {},
        "spent": {"completions": 64}, "seconds": 1.0, "error": None, "outputs": hash_outputs(RUN / "06_grpo"),
    }  # fmt: skip
    write_json(RUN / "06_grpo/manifest.json", record)
    write_json(RUN / "run_manifest.json", {"method": "grpo", "status": "completed"})
    data = {"data": {"targets_sha256": "t", "sha256": "d474"}}
    own = {"policy": {"path": best.as_posix(), "sha256": sha256(best)}, "compute": compute(64, 900), **data}
    make_evaluation(RUN / "10_evaluation", "grpo", [True] * 30 + [False] * 70, seed=7, **own)
    make_evaluation(RUN / "10_evaluation_sft", "sft", [True] * 20 + [False] * 80, seed=7, **data)
    same = {"policy": {"path": "outputs/sft_more", "sha256": sha256(best)}}
    make_evaluation(RUN / "10_evaluation_sft_more", "sft_more", [True] * 30 + [False] * 70, seed=7, **same, **data)
    make_evaluation(RUN / "10_evaluation_majority", "majority", [True] * 5 + [False] * 95, seed=7, **data)
    make_evaluation(RUN / "10_evaluation_val", "other", [True] * 9, seed=7, data={"targets_sha256": "else"})
    return best


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


QUERIES = "model.layers.0.self_attn.q_proj.weight"


def queries_by_hand(checkpoint: Path) -> torch.Tensor:
    """The full base's weight and alpha / r times the product of the adapter's two matrices."""
    adapter = load_file(checkpoint / "adapter_model.safetensors")
    up, down = (next(v for k, v in adapter.items() if f"0.self_attn.q_proj.lora_{ab}" in k) for ab in "BA")
    return load_file("base/model.safetensors")[QUERIES] + 8 / 4 * up @ down


def greedy(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    found = []
    for prompt in prompts:
        ids = torch.tensor([[token % 14 for token in prompt]])
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        found.append(answer[0, ids.shape[1] :].tolist())
    return found


def test_the_merged_model_answers_as_the_adapter_does(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    best = make_run()
    assert export([RUN.as_posix(), "--to", "out"]) == 0
    assert "export: outputs/run_003/06_grpo/ckpt_grpo/best → out (" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32)
    assert not (Path("out") / "adapter_config.json").exists() and type(merged).__name__ == "LlamaForCausalLM"
    prompts = tiny_prompts(12)
    expected = greedy(letter_model(LORA, best), prompts)
    assert greedy(merged, prompts) == expected
    assert greedy(AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32), prompts) != expected
    assert AutoTokenizer.from_pretrained("out")("dab")["input_ids"] == load_tokenizer(MODEL, best)("dab")["input_ids"]

    assert torch.allclose(load_file("out/model.safetensors")[QUERIES], queries_by_hand(best), atol=1e-6)
    ids = torch.tensor([[1, *(token % 14 for token in tiny_prompts(1, seed=3, longest=40)[0])]])
    ours, theirs = merged(ids).logits, letter_model(LORA, best)(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    with pytest.raises(UserError, match="out: is there already"):
        export([RUN.as_posix(), "--to", "out"])


def test_of_several_trials_the_one_that_was_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    (RUN / "06_grpo").rename(RUN / "06_grpo_x2")
    with pytest.raises(UserError, match="its method 'grpo' has no stage folder here; name a stage"):
        export([RUN.as_posix(), "--to", "out"])
    own = read_json(RUN / "10_evaluation/metrics.json")
    own["policy"]["path"] = own["policy"]["path"].replace("06_grpo", "06_grpo_x2").replace("run_003", "run_009")
    write_json(RUN / "10_evaluation/metrics.json", own | {"trials": [{"folder": "06_grpo_x2", "chosen": True}]})
    assert export([RUN.as_posix(), "--to", "out"]) == 0
    assert "export: outputs/run_003/06_grpo_x2/ckpt_grpo/best → out (" in capsys.readouterr().out


def test_the_adapter_goes_back_on_its_base() -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    best = make_run()
    assert export([best.as_posix(), "--form", "adapter"]) == 0
    out = Path("exports/run_003_grpo")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    prompts = tiny_prompts(4)
    assert greedy(PeftModel.from_pretrained(base, str(out)), prompts) == greedy(letter_model(LORA, best), prompts)
    assert "library_name: peft" in (out / "README.md").read_text()


def test_a_policy_trained_whole_is_exported_whole_also_in_bf16() -> None:
    best = make_run(LoraSettings(use_lora=False))
    with pytest.raises(UserError, match="is a whole model, trained without LoRA; use --form merged"):
        export([RUN.as_posix(), "--form", "adapter"])
    assert not Path("exports").exists()
    assert export([(RUN / "06_grpo").as_posix(), "--to", "whole", "--dtype", "bf16"]) == 0
    weights, before = load_file("whole/model.safetensors"), load_file(best / "model.safetensors")
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name].to(torch.bfloat16)) for name in before)


@pytest.mark.parametrize("quantised", ["load_in_4bit", "load_in_8bit"])
def test_a_policy_over_a_quantised_base_is_merged_into_the_full_one(quantised: str) -> None:
    best = make_run()
    record = json.loads((RUN / "06_grpo/manifest.json").read_text())
    record["config"]["model"][quantised] = True
    write_json(RUN / "06_grpo/manifest.json", record)
    assert export([RUN.as_posix(), "--to", "out"]) == 0
    assert torch.allclose(load_file("out/model.safetensors")[QUERIES], queries_by_hand(best), atol=1e-6)


def test_the_card_has_the_runs_numbers() -> None:
    best = make_run()
    record = json.loads((RUN / "06_grpo/manifest.json").read_text())
    record["config"]["model"]["load_in_4bit"] = True
    write_json(RUN / "06_grpo/manifest.json", record)
    export([RUN.as_posix(), "--to", "out"])
    card = Path("out/README.md").read_text()
    _, front, body = card.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["base_model"] == "base" and facts["license"] == "other" and facts["library_name"] == "transformers"
    metrics = json.loads((RUN / "10_evaluation/metrics.json").read_text())
    low, high = (100 * bound for bound in metrics["execution_accuracy_ci95"])
    for part in (
        "# grpo on finqa_mini",
        "* base model: `base`",
        "* method: grpo, LoRA adapter merged into its base (fp32); stages: 06_grpo",
        "* data: finqa_mini, made from data seed 0; tested on 100 test records, sha256 d474",
        "* seeds: training 7, data 0",
        f"| execution accuracy | 30.0 [{low:.1f}, {high:.1f}] |",
        "| sft (seed 7) | 20.0 [",
        "| majority (seed 7) | 5.0 [",
        "| sft_more (seed 7) | 30.0 [",
        "Same weights as sft_more: no later step did better on the validation records.",
        "* code: commit c0ffee\n",
        f"sha256 {sha256(best)}",
        "Trained and measured over a base in 4 bits, merged into the full one: answers may differ.",
        "Look up the base model's licence",
        "this project's seeded generator",
    ):
        assert part in body, part
    assert "other (seed 7)" not in body and "None" not in body and body.count("| measure | value |") == 1


def test_what_cannot_be_exported_is_one_line() -> None:
    make_run()
    write_json(RUN / "run_manifest.json", {"method": "dpo"})
    with pytest.raises(UserError, match=r"its method 'dpo' has no stage folder here; name a stage \(there: 06_grpo\)"):
        export([RUN.as_posix()])
    with pytest.raises(UserError, match="lies in no stage folder"):
        export(["base"])
    record = json.loads((RUN / "06_grpo/manifest.json").read_text())
    write_json(RUN / "06_grpo/manifest.json", {**record, "status": "interrupted"})
    with pytest.raises(UserError, match=r"has not finished \(interrupted\)"):
        export([(RUN / "06_grpo").as_posix()])
    assert not Path("exports").exists()
