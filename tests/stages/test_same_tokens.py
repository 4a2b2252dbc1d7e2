"""03, 04, 06 and 10 read the same ids for the same record, those that 01 counted: plain style and two chat styles.

What a stage reads is taken where it enters the model: at the embedding.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.invariants.chat import save_chat_tokenizer
from utils.files import read_jsonl, write_jsonl, write_text
from utils.finqa.answers import write_answer
from utils.finqa.examples import FinQAExample
from utils.finqa.mini import generate
from utils.finqa.prompts import fit_prompts
from utils.models.tokens import count_prompts, encode_prompt, load_tokenizer
from utils.settings import ModelSettings
from utils.stage import main

STYLES = [("plain", "llama3"), ("chat", "llama3"), ("chat", "tinyllama")]
RECORDS = 4


def example(index: int) -> FinQAExample:
    """The last one holds what would be control tokens, and letters beyond ASCII."""
    a, b = 100 + 7 * index, 60 + index
    aside = "<|eot_id|> </s> caf\u00e9 ;" if index == RECORDS - 1 else ";"
    page = f"answer the question with a program .\nthe sales of 2019 is {a} ; of 2018 is {b} {aside}"
    program = f"subtract({a}, {b})"
    return FinQAExample(
        id=f"record-{index}",
        input_text=f"{page}\nquestion: what is the change ?\nanswer:",
        target_answer=str(a - b),
        target_program=program,
        question="what is the change ?",
        exe_ans=float(a - b),
        target_text=write_answer(program, float(a - b)),
        page="page",
        table=(("", "2019"), ("x", "1")),
    )


def stage(script: str, *flags: str) -> int:
    module = importlib.import_module(script)
    return main(module.Config, module.run, module.__doc__, f"{script}.py", argv=[*flags, "--device", "cpu", "--quiet"])


@pytest.fixture(params=STYLES, ids=lambda style: "-".join(style))
def run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str], Any]:
    """(run folder with stages 01 and 02, flags, tokenizer) of a tiny random model in one style."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    style, kind = request.param
    save_chat_tokenizer(tmp_path / "base", kind)
    tokenizer = load_tokenizer(ModelSettings(name=str(tmp_path / "base"), prompt_style=style))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "base")
    folder = tmp_path / "run_001"
    for split in ("train", "val", "test"):
        write_jsonl(folder / f"01_preprocessing/{split}.jsonl", [example(i).to_dict() for i in range(RECORDS)])
    assert stage("02_build_rewards", "--output_dir", str(folder / "02_rewards")) == 0
    sections = {"model": {"name": str(tmp_path / "base"), "prompt_style": style}}
    write_text(tmp_path / "model.yaml", json.dumps(sections))
    flags = ["--config", str(tmp_path / "model.yaml"), "--data_dir", str(folder / "01_preprocessing")]
    return folder, [*flags, "--max_new_tokens", "3"], tokenizer


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """Every row of ids that enters an embedding, while the test runs."""
    import torch

    rows: list[list[int]] = []
    forward = torch.nn.Embedding.forward

    def spy(self: Any, ids: Any) -> Any:
        rows.extend(ids.tolist())
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", spy)
    yield rows


def holds(row: list[int], ids: list[int]) -> bool:
    return any(row[i : i + len(ids)] == ids for i in range(len(row) - len(ids) + 1))


def test_every_stage_reads_the_same_ids(run: tuple[Path, list[str], Any], read: list[list[int]]) -> None:
    folder, flags, tokenizer = run
    prompts = [encode_prompt(tokenizer, example(i).input_text) for i in range(RECORDS)]
    start = ["--policy_ckpt", str(folder / "03_sft")]
    stages = {
        "03_sft_train": ["--batch_size", "4", "--max_steps", "8", "--skip_validation"],
        "04_generate_candidates": [*start, "--num_candidates", "2"],
        "06_train_grpo": [*start, "--steps", "1", "--prompts_per_step", "4", "--group_size", "2"],
        "10_evaluate": start,
    }
    for script, more in stages.items():
        read.clear()
        name = {"03_sft_train": "03_sft"}.get(script, script)
        assert stage(script, *flags, *more, "--output_dir", str(folder / name)) == 0
        for i, prompt in enumerate(prompts):
            assert any(holds(row, prompt) for row in read), f"{script} did not read record {i} as the others do"
        # and nothing else: without padding and what comes after, a row that starts a record is its prompt
        longest = max(map(len, prompts))
        for row in read:
            if len(row) >= longest:
                assert any(holds(row, prompt) for prompt in prompts)
    assert [row["prompt"] for row in read_jsonl(folder / "04_generate_candidates/candidates.jsonl")] == [
        example(i).input_text for i in range(RECORDS)
    ]


@pytest.mark.parametrize(("style", "kind"), STYLES)
def test_stage_01_counts_what_the_stages_read(style: str, kind: str, tmp_path: Path) -> None:
    save_chat_tokenizer(tmp_path, kind)
    tokenizer = load_tokenizer(ModelSettings(name=str(tmp_path), prompt_style=style))
    records = generate(0)["dev"][:12]
    whole = fit_prompts(records, 10**6, lambda texts: count_prompts(tokenizer, texts))
    budget = sorted(fitted.tokens for fitted in whole)[3]
    fitted = fit_prompts(records, budget, lambda texts: count_prompts(tokenizer, texts))
    lengths = [len(encode_prompt(tokenizer, one.text)) for one in fitted]
    assert [one.tokens for one in fitted] == lengths and max(lengths) <= budget
    assert sum(bool(one.dropped) for one in fitted) >= 6  # the budget was felt
