"""DPO's loss and gradient against the paper's formulas in float64, and its beginning at ln 2 exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from tests.invariants.tiny import MODELS, VOCAB, letter_tokenizer, tiny_completions, tiny_model, tiny_prompts
from utils.errors import UserError
from utils.models.load import trainable_parameters
from utils.models.tokens import encode_prompt, encode_target
from utils.rl import logprobs
from utils.rl.dpo import Preferences, TokenPair, tokenise_pairs
from utils.rl.rollouts import Sampler
from utils.settings import DPOSettings, ModelSettings, PreferenceSettings, ValidationSettings
from utils.terminal import Terminal

BETA = 0.3
LN2 = float(torch.tensor(2.0).log())
PRECISIONS = {"fp32": ModelSettings(), "bf16": ModelSettings(precision="bf16")}


def test_pairs_become_the_ids_that_sampling_and_sft_read() -> None:
    tokenizer = letter_tokenizer()
    row = {"id": "a", "prompt": "ab?", "chosen": "B", "rejected": "A."}
    assert tokenise_pairs(tokenizer, [row], 7) == [TokenPair([1, 4, 5, 13], [9, 2], [8, 12, 2])]  # with <s> and </s>
    assert encode_prompt(tokenizer, "ab?") == [1, 4, 5, 13] and encode_target(tokenizer, "B") == [9, 2]
    with pytest.raises(UserError, match="record a: prompt [+] answer have 7 tokens, preference.max_length is 6"):
        tokenise_pairs(tokenizer, [row], 6)


def test_an_adapter_on_the_output_layer_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match="leave lm_head out"):
        make(tmp_path, policy, DPOSettings(), ModelSettings())


def token_pairs(count: int, seed: int = 0) -> list[TokenPair]:
    prompts = tiny_prompts(count, seed)
    groups = tiny_completions(prompts, seed, largest_group=1), tiny_completions(prompts, seed + 1, largest_group=1)
    return [TokenPair(p, [*a[0], 2], [*b[0], 2]) for p, a, b in zip(prompts, *groups, strict=True)]


def make(
    folder: Path,
    policy: Any,
    algorithm: DPOSettings,
    settings: ModelSettings,
    rate: float = 1e-3,
    held_out: Sequence[TokenPair] = (),
) -> Preferences:
    """A run of one step on four pairs; `held_out` pairs are measured at its beginning, as validation does."""
    tokenizer = letter_tokenizer()
    measure = (lambda: ({}, [])) if held_out else None
    return Preferences(
        policy, tokenizer, folder, token_pairs(4), held_out, settings=settings,
        preference=PreferenceSettings(learning_rate=rate, batch_size=4, gradient_accumulation_steps=1),
        algorithm=algorithm, validation=ValidationSettings(), seed=0, steps=1, validate=measure,
        sampler=Sampler(policy, tokenizer, 4, 4096, nullcontext), kl_examples=[], device=torch.device("cpu"),
        report_to="none",
    )  # fmt: skip


def batch_of(run: Preferences) -> list[TokenPair]:
    """The pairs of the only batch."""
    return [TokenPair(**row) for row in run.trainer.train_dataset]


def loss_of(run: Preferences) -> torch.Tensor:
    trainer = run.trainer
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss: torch.Tensor = trainer.compute_loss(trainer.model, batch)
    return loss


def push(policy: Any, seed: int = 5) -> None:
    """Move the policy away from its reference."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable_parameters(policy).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("chunk", [logprobs.CHUNK, 5 * VOCAB])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_first_loss_is_ln_2_exactly(
    kind: str, precision: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    settings = PRECISIONS[precision]
    run = make(tmp_path, tiny_model(kind), DPOSettings(beta=BETA), settings)
    run.trainer.accelerator.prepare_model(run.model)  # as training does: bf16 begins here
    assert loss_of(run).item() == LN2
    push(run.model)
    assert loss_of(run).item() != LN2  # and the reference has not moved with it
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("kind", [*MODELS, "mistral"])
def test_packed_pairs_give_trl_s_own_numbers(kind: str, tmp_path: Path) -> None:
    """Log-probs and entropies of the policy and of the reference, at the same places, by TRL's separate rows."""
    run = make(tmp_path, tiny_model(kind), DPOSettings(beta=BETA), ModelSettings())
    push(run.model)
    batch = run.trainer._prepare_inputs(next(iter(run.trainer.get_train_dataloader())))
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    ours = run.model(**inputs, fused_lm_head=True)
    base = run.model.get_base_model() if hasattr(run.model, "peft_config") else run.model
    del base.forward
    add_fused_lm_head(base, outputs=("log_probs", "entropy"))
    theirs = run.model(**inputs, fused_lm_head=True)
    for name in ("log_probs", "entropy"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5), name
    assert (ours.log_probs != 0).sum() == batch["completion_mask"].sum()


def double(model: Any, kind: str) -> Any:
    """The same weights in float64, in a model that no trainer has seen."""
    fresh = tiny_model(kind)
    weights = model.state_dict()
    fresh.load_state_dict({name: weights[name] for name in fresh.state_dict()})
    return fresh.double()


def logp(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log pi(answer | prompt), one sequence without padding."""
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(answer)[:, None]).sum()


@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradient_are_those_of_the_paper(kind: str, tmp_path: Path) -> None:
    """Equation 7, and its gradient as the paper writes it below: -beta sigma(r_l - r_w) grad (log pi_w - log pi_l)."""
    policy = tiny_model(kind)
    reference = double(policy, kind)
    run = make(tmp_path, policy, DPOSettings(beta=BETA), ModelSettings())
    push(policy)
    exact, parameters = double(policy, kind), trainable_parameters(policy)
    exact_parameters = {name: weight for name, weight in exact.named_parameters() if name in parameters}
    expected = {name: torch.zeros_like(weight) for name, weight in exact_parameters.items()}
    losses, pairs = [], batch_of(run)
    for pair in pairs:
        ratios, gradients = [], []
        for answer in (pair.chosen_ids, pair.rejected_ids):
            ours = logp(exact, pair.prompt_ids, answer)
            gradients.append(torch.autograd.grad(ours, list(exact_parameters.values())))
            ratios.append(ours.item() - logp(reference, pair.prompt_ids, answer).item())
        margin = BETA * (ratios[0] - ratios[1])
        losses.append(math.log1p(math.exp(-margin)))
        weight = -BETA / (1 + math.exp(margin)) / len(pairs)
        for name, chosen, rejected in zip(expected, *gradients, strict=True):
            expected[name] += weight * (chosen - rejected)
    loss = loss_of(run)
    assert loss.item() == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert abs(loss.item() - LN2) > 0.01
    loss.backward()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in parameters.items():
        assert parameter.grad is not None and expected[name].abs().max() > 0, name
        assert torch.allclose(parameter.grad.double(), expected[name], rtol=1e-4, atol=1e-5 * largest), name


@pytest.mark.parametrize("kind", ["llama", "gpt2-lora"])
def test_figures_of_held_out_pairs_by_hand(kind: str, tmp_path: Path) -> None:
    """Implicit rewards beta log(pi / ref) against the policy as it began, wherever it has gone since."""
    policy, held_out = tiny_model(kind), token_pairs(8, seed=8)
    run = make(tmp_path, policy, DPOSettings(beta=BETA), ModelSettings(), held_out=held_out)
    reference = double(policy, kind)
    push(policy)
    exact, rewards = double(policy, kind), []
    for pair in held_out:
        answers = [(pair.prompt_ids, answer) for answer in (pair.chosen_ids, pair.rejected_ids)]
        rewards.append([BETA * (logp(exact, *one) - logp(reference, *one)).item() for one in answers])
    margins = [chosen - rejected for chosen, rejected in rewards]
    assert 0 < sum(margin > 0 for margin in margins) < 8
    assert run._held_out_figures() == pytest.approx({
        "val_preference_accuracy": sum(margin > 0 for margin in margins) / 8,
        "val_preference_margin": sum(margins) / 8,
        "val_implicit_reward_chosen": sum(chosen for chosen, _ in rewards) / 8,
        "val_implicit_reward_rejected": sum(rejected for _, rejected in rewards) / 8,
    }, rel=1e-4)  # fmt: skip


def test_other_losses_by_hand(tmp_path: Path) -> None:
    """From the same log-ratios: Azar et al. 2024 (IPO, per token as TRL has it), hinge, and the chosen answers' NLL."""
    kind = "llama"
    policy = tiny_model(kind)
    reference = double(policy, kind)
    run = make(tmp_path, policy, DPOSettings(beta=BETA), ModelSettings())
    push(policy)
    exact, pairs = double(policy, kind), batch_of(run)
    with torch.no_grad():
        ours = [[logp(exact, p.prompt_ids, a).item() for a in (p.chosen_ids, p.rejected_ids)] for p in pairs]
        theirs = [[logp(reference, p.prompt_ids, a).item() for a in (p.chosen_ids, p.rejected_ids)] for p in pairs]
    ratios = [[a - b for a, b in zip(*two, strict=True)] for two in zip(ours, theirs, strict=True)]
    lengths = [(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
    margins = [chosen - rejected for chosen, rejected in ratios]
    per_token = [a / n - b / m for (a, b), (n, m) in zip(ratios, lengths, strict=True)]
    expected = {
        "hinge": sum(max(0.0, 1 - BETA * margin) for margin in margins) / 4,
        "ipo": sum((value - 1 / (2 * BETA)) ** 2 for value in per_token) / 4,
        "sft": -sum(chosen for chosen, _ in ours) / sum(n for n, _ in lengths),
    }
    sigmoid = sum(math.log1p(math.exp(-BETA * margin)) for margin in margins) / 4
    for name in ("hinge", "ipo"):
        run.trainer.loss_types = [name]
        assert loss_of(run).item() == pytest.approx(expected[name], rel=1e-5), name
    both = make(tmp_path, tiny_model(kind), DPOSettings(beta=BETA, sft_coef=0.2), ModelSettings())
    push(both.model)
    assert loss_of(both).item() == pytest.approx(sigmoid + 0.2 * expected["sft"], rel=1e-5)


def test_every_loss_type_of_the_settings_is_one_of_trl_s(tmp_path: Path) -> None:
    policy = tiny_model("llama-lora")
    run = make(tmp_path, policy, DPOSettings(), ModelSettings())
    choices = DPOSettings.__dataclass_fields__["loss_type"].metadata["choices"]
    run.trainer.label_smoothing = 0.1
    for name in choices:
        run.trainer.loss_types = [name]
        loss = loss_of(run)
        gradient = torch.autograd.grad(loss, list(trainable_parameters(policy).values()))
        assert math.isfinite(loss.item()) and any(part.abs().max() > 0 for part in gradient), name


@pytest.mark.parametrize("rate", [1e-3, 0.0])
@pytest.mark.parametrize("kind", MODELS)
def test_a_step_moves_every_tensor_that_trains_and_nothing_else(kind: str, rate: float, tmp_path: Path) -> None:
    policy = tiny_model(kind)
    names = list(trainable_parameters(policy))
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    run = make(tmp_path, policy, replace(DPOSettings(), warmup_steps=0), ModelSettings(), rate)
    assert list(trainable_parameters(policy)) == names
    with Terminal(quiet=True).progress("", 1) as progress:
        run.train(False, progress)
    moved = [name for name, weight in before.items() if not torch.equal(policy.get_parameter(name), weight)]
    assert moved == (names if rate else [])
    assert run.spent()["gradient_tokens"] == sum(pair.computed(True) for pair in batch_of(run))
