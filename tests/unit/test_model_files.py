"""Every shipped model file in small: it builds, trains a step with LoRA on plain, 4-bit and 8-bit bases, comes back.

The model is the file's own (`metadata.config`) with two layers of width 64 and random weights;
tests/stages/test_every_model_file.py takes it through the trainers.
"""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariants.small import FILES as ALL_FILES
from tests.invariants.small import save_small_model
from utils.config import resolve
from utils.errors import UserError
from utils.files import read_yaml
from utils.finqa.examples import FinQAExample
from utils.models.architecture import file_of_model
from utils.models.load import load_model, save_model, trainable_parameters
from utils.models.reference import Reference
from utils.models.tokens import encode_prompt, load_tokenizer
from utils.rl.rollouts import Sampler

FILES = [path for path in ALL_FILES if path.stem != "llama-tiny"]
BASES = {"plain": {}, "4bit": {"load_in_4bit": True}, "8bit": {"load_in_8bit": True}}
CPU = torch.device("cpu")
EXAMPLE = FinQAExample(
    id="a",
    input_text="net revenue of 2008 is 731 ;\nanswer:",
    target_answer="731",
    target_program="add(1, 2)",
    question="how much ?",
    exe_ans=3.0,
)
SFT: Any = importlib.import_module("03_sft_train")


def resolved(path: Path, *flags: str) -> Any:
    arguments = ["--config", str(path), "--device", "cpu", *flags]
    return resolve(SFT.Config, arguments, doc="", script="03_sft_train.py").config


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder of the small model, the file's settings for it)."""
    folder = tmp_path_factory.mktemp(request.param.stem)
    return folder, resolved(request.param, *save_small_model(request.param, folder))


@pytest.mark.parametrize("base", BASES)
def test_builds_trains_a_step_saves_loads_and_generates(
    base: str, small: tuple[Path, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from utils.rl.supervised import Supervised, tokenise
    from utils.terminal import Terminal

    cfg = replace(small[1], model=replace(small[1].model, **BASES[base]))
    tokenizer = load_tokenizer(cfg.model)
    model = load_model(cfg.model, cfg.lora, checkpoint=None, trainable=True, device=CPU)
    stored = {parameter.dtype for name, parameter in model.named_parameters() if "base_layer.weight" in name}
    assert stored == {{"plain": torch.bfloat16, "4bit": torch.uint8, "8bit": torch.int8}[base]}
    assert {parameter.dtype for parameter in trainable_parameters(model).values()} == {torch.float32}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = tokenise(tokenizer, [("a", EXAMPLE.input_text, '{"program": "add(1, 2)"}')] * 2, cfg.training.max_length)
    training = replace(cfg.training, batch_size=2, gradient_accumulation_steps=1, warmup_steps=0)
    run = Supervised(
        model, tokenizer, tmp_path, rows, settings=cfg.model, training=training, validation=cfg.validation, seed=0,
        steps=1, validate=None, device=CPU, report_to="none", first=False,
    )  # fmt: skip
    with Terminal(quiet=True).progress("", 1) as progress:
        run.train(False, progress)
    assert {parameter.dtype for parameter in trainable_parameters(model).values()} == {torch.float32}
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in trainable_parameters(model) if "lora_B" in name}  # A waits for B to leave zero

    again = load_model(cfg.model, cfg.lora, checkpoint=tmp_path / "ckpt_sft/final", trainable=False, device=CPU)
    assert again.config.model_type == cfg.model.type
    first, second = (generate(policy, cfg, tmp_path / "ckpt_sft/final") for policy in (model.eval(), again))
    assert first == second and len(first[0]) > 0


def generate(policy: Any, cfg: Any, checkpoint: Path) -> list[list[int]]:
    from utils.models.load import autocast

    sampler = Sampler(policy, load_tokenizer(cfg.model, checkpoint), 6, 4096, lambda: autocast(cfg.model, CPU))
    return [completion.tokens for completion in sampler.draw([EXAMPLE], 1, None).groups[0]]


@pytest.mark.parametrize("base", ["4bit", "8bit"])
def test_gradients_reach_every_layer_after_sampling(base: str, small: tuple[Path, Any]) -> None:
    """In evaluation mode, as RL computes them; and as they are before any sampling."""
    cfg = replace(small[1], model=replace(small[1].model, **BASES[base]))
    tokenizer = load_tokenizer(cfg.model)
    ids = torch.tensor([encode_prompt(tokenizer, "net revenue")])
    policy = load_model(cfg.model, cfg.lora, checkpoint=None, trainable=True, device=CPU)
    found = []
    for _ in range(2):
        policy(ids).logits.float().logsumexp(-1).sum().backward()
        found.append({n: p.grad.clone() for n, p in trainable_parameters(policy).items() if "lora_B" in n})
        policy.zero_grad()
        Sampler(policy, tokenizer, 3, 4096, nullcontext).draw([EXAMPLE], 2, None)
    assert all(gradient.abs().sum() > 0 for gradient in found[0].values())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("base", ["4bit", "8bit"])
def test_on_a_quantised_base_the_reference_is_the_start_exactly(base: str, small: tuple[Path, Any]) -> None:
    model = replace(small[1].model, **BASES[base])
    policy = load_model(model, small[1].lora, checkpoint=None, trainable=True, device=CPU)
    for parameter in trainable_parameters(policy).values():
        torch.nn.init.normal_(parameter, std=0.1)
    reference = Reference(policy)
    ids = torch.tensor([encode_prompt(load_tokenizer(model), "net revenue")])
    start = policy(ids).logits
    with reference.model() as frozen:
        assert torch.equal(frozen(ids).logits, start)
    torch.nn.init.normal_(next(iter(trainable_parameters(policy).values())), std=0.5)
    with reference.model() as frozen:
        assert torch.equal(frozen(ids).logits, start)
    assert not torch.equal(policy(ids).logits, start)


def test_an_adapter_moves_between_plain_and_quantised_bases(small: tuple[Path, Any], tmp_path: Path) -> None:
    """Trained on one, evaluated on the other: nearly the same policy, GPT-2's transposed matrices included."""
    folder, cfg = small
    plain = replace(cfg.model, precision="fp32")
    policy = load_model(plain, cfg.lora, checkpoint=None, trainable=True, device=CPU)
    for parameter in trainable_parameters(policy).values():
        torch.nn.init.normal_(parameter, std=0.1)
    save_model(policy, load_tokenizer(plain), tmp_path / "adapter")
    ids = torch.tensor([encode_prompt(load_tokenizer(plain), "net revenue")])
    close, bare = (
        load_model(replace(plain, load_in_8bit=True), cfg.lora, checkpoint=checkpoint, trainable=False, device=CPU)(ids)
        for checkpoint in (tmp_path / "adapter", None)
    )
    expected = policy(ids).logits
    assert (close.logits - expected).norm() < 0.1 * (bare.logits - expected).norm()


def test_quantised_weights_do_not_train_alone(small: tuple[Path, Any]) -> None:
    model = replace(small[1].model, load_in_4bit=True)
    lora = replace(small[1].lora, use_lora=False)
    with pytest.raises(UserError, match="load_in_4bit: quantised weights cannot train; set lora.use_lora"):
        load_model(model, lora, checkpoint=None, trainable=True, device=CPU)
    load_model(model, lora, checkpoint=None, trainable=False, device=CPU)  # they can be evaluated


def test_four_and_eight_bits_exclude_each_other() -> None:
    flags = ["--config", str(FILES[0]), "--load_in_4bit", "--load_in_8bit"]
    with pytest.raises(UserError, match="give one of load_in_4bit and load_in_8bit"):
        resolve(SFT.Config, flags, doc="", script="03_sft_train.py")


def test_the_files_are_what_their_names_say() -> None:
    expected = {"dialogpt-medium", "llama-3-8b", "llama-3.2-1b", "llama-3.2-1b-ultrafast", "tinyllama-1.1b"}
    assert {path.stem for path in FILES} == expected
    for path in FILES:
        cfg = resolved(path)
        assert cfg.model.prompt_style == ("plain" if path.stem == "dialogpt-medium" else "chat")
        per_step = cfg.training.batch_size * cfg.training.gradient_accumulation_steps
        assert per_step == 16 and cfg.lora.use_lora and cfg.model.precision == "bf16"
        assert set(cfg.lora.target_modules) <= set(read_yaml(path).data["metadata"]["all_available_layers"])
    # what download.sh fetches by default has its file, the full one
    found = file_of_model("meta-llama/Llama-3.2-1B-Instruct")
    assert found is not None and found.stem == "llama-3.2-1b"
    assert resolved(found).lora.r == 32 and resolved(found.with_name("llama-3.2-1b-ultrafast.yaml")).lora.r == 8
