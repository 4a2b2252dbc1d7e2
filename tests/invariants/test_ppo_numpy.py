"""PPO through its script equals an independent PPO in float64 NumPy: figures of two steps, and the weights they leave.

The policy is a Llama without layers (embedding, norm, output), whose gradient can be written down. The reference gets
the sampled tokens and rewards, nothing else: log-probs, values, KL, GAE, whitening, losses, AdamW are its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.invariants import letters
from tests.invariants.letters import trainer
from tests.invariants.tiny import letter_tokenizer
from utils.files import read_jsonl

Array = np.ndarray[Any, Any]
RATE, CRITIC_RATE, EPSILON = 2e-2, 5e-2, 1e-6
FLAGS = {
    "group_size": 3, "prompts_per_step": 8, "ppo_epochs": 3, "mini_batches": 2, "gamma": 0.9, "gae_lambda": 0.8,
    "clip_range": 0.1, "clip_range_high": 0.15, "value_clip_range": 0.05, "value_coef": 0.7, "entropy_coef": 0.02,
    "kl_coef": 0.3, "kl_target": 0.05, "kl_gain": 0.5, "max_grad_norm": 0.5, "warmup_steps": 3, "max_new_tokens": 4,
}  # fmt: skip


class Policy:
    """logits = output (norm (embedding[token]) scale), value = head (the same hidden); with its gradient."""

    def __init__(self, weights: dict[str, Array], trunk: bool) -> None:
        self.w = {name: value.astype(np.float64) for name, value in weights.items()}
        self.trunk = trunk

    def forward(self, source: Array, target: Array) -> dict[str, Array]:
        e = self.w["embed"][source]
        inverse = 1 / np.sqrt((e**2).mean(1, keepdims=True) + EPSILON)
        unit = e * inverse
        hidden = unit * self.w["norm"]
        logits = hidden @ self.w["output"].T
        log_p = logits - logits.max(1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
        p = np.exp(log_p)
        logp = log_p[np.arange(len(target)), target]
        entropy = -(p * log_p).sum(1)
        value = hidden @ self.w["head"] + self.w["bias"]
        return {"logp": logp, "entropy": entropy, "value": value, "p": p, "log_p": log_p, "hidden": hidden,
                "unit": unit, "inverse": inverse}  # fmt: skip

    def backward(
        self, source: Array, target: Array, f: dict[str, Array], of_logp: Array, of_entropy: Array, of_value: Array
    ) -> dict[str, Array]:
        one_hot = np.eye(f["p"].shape[1])[target]
        of_logits = of_logp[:, None] * (one_hot - f["p"])
        of_logits += of_entropy[:, None] * -f["p"] * (f["log_p"] + f["entropy"][:, None])
        of_hidden = of_logits @ self.w["output"]
        if self.trunk:
            of_hidden = of_hidden + of_value[:, None] * self.w["head"]
        of_unit = of_hidden * self.w["norm"]
        of_e = f["inverse"] * (of_unit - f["unit"] * (of_unit * f["unit"]).mean(1, keepdims=True))
        embed = np.zeros_like(self.w["embed"])
        np.add.at(embed, source, of_e)
        embed[0] = 0  # the padding token's row is not trained, sampled or not
        return {
            "embed": embed, "norm": (of_hidden * f["unit"]).sum(0), "output": of_logits.T @ f["hidden"],
            "head": of_value @ f["hidden"], "bias": of_value.sum(),
        }  # fmt: skip


class Adam:
    """AdamW without decay; the policy's and the critic's gradients are clipped by their own norms."""

    def __init__(self) -> None:
        self.moments: dict[str, tuple[Any, Any]] = {}
        self.count = 0

    def step(self, w: dict[str, Array], gradient: dict[str, Array]) -> float:
        self.count += 1
        norms = {}
        for names, rate in ((("embed", "norm", "output"), RATE), (("head", "bias"), CRITIC_RATE)):
            norm = np.sqrt(sum((gradient[name] ** 2).sum() for name in names))
            norms[names[0]] = norm
            rate *= min(1.0, self.count / FLAGS["warmup_steps"])
            for name in names:
                g = gradient[name] * min(1.0, FLAGS["max_grad_norm"] / (norm + 1e-6))
                first, second = self.moments.get(name, (0.0, 0.0))
                first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
                self.moments[name] = first, second
                corrected = np.sqrt(second / (1 - 0.999**self.count)) + 1e-8
                w[name] = w[name] - rate * first / (1 - 0.9**self.count) / corrected
        return float(norms["embed"])


def advantages_of(old: dict[str, Array], reference: Array, spans: list[slice], totals: Array, kl_coef: float) -> Any:
    """(advantages, returns, explained variance, KL per completion) from the definitions, one completion at a time."""
    gamma, decay = FLAGS["gamma"], FLAGS["gamma"] * FLAGS["gae_lambda"]
    advantages, returns, to_come = (np.zeros(spans[-1].stop) for _ in range(3))
    kls = []
    for span, total in zip(spans, totals, strict=True):
        kl = old["logp"][span] - reference[span]
        kls.append(kl.sum())
        rewards, values = -kl_coef * kl, [*old["value"][span], 0.0]
        rewards[-1] += total
        deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(len(rewards))]
        for t in range(len(rewards)):
            advantages[span.start + t] = sum(decay**k * d for k, d in enumerate(deltas[t:]))
            to_come[span.start + t] = sum(gamma**k * r for k, r in enumerate(rewards[t:]))
    returns = advantages + old["value"]
    explained = 1 - np.var(to_come - old["value"]) / np.var(to_come)
    return (advantages - advantages.mean()) / advantages.std(), returns, explained, float(np.mean(kls))


def ppo(policy: Policy, rollouts: list[Any]) -> list[dict[str, float]]:
    """PPO on recorded rollouts; the figures of each step."""
    reference_policy = Policy(policy.w, False)
    optimizer, kl_coef, rows = Adam(), float(FLAGS["kl_coef"]), []
    for prompts, groups, totals in rollouts:
        flat = [(prompt, sample) for prompt, group in zip(prompts, groups, strict=True) for sample in group]
        edges = np.cumsum([0, *(len(sample) for _, sample in flat)])
        spans = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
        source = np.array([token for prompt, sample in flat for token in [prompt[-1], *sample[:-1]]])
        target = np.array([token for _, sample in flat for token in sample])
        reference = reference_policy.forward(source, target)["logp"]
        old = policy.forward(source, target)
        advantage, returns, explained, kl = advantages_of(old, reference, spans, totals.flatten(), kl_coef)
        figures: dict[str, list[float]] = {}
        updates = []
        middle = edges[len(flat) // 2]
        for _ in range(FLAGS["ppo_epochs"]):
            for part in (slice(0, middle), slice(middle, edges[-1])):
                values = losses(policy, source[part], target[part], advantage[part], returns[part],
                                old["logp"][part], old["value"][part], reference[part])  # fmt: skip
                grad_norm = optimizer.step(policy.w, values.pop("gradient"))
                updates.append((float(values["loss"].mean()), grad_norm))
                for name, value in values.items():
                    figures.setdefault(name, []).extend(value)
        means = {name: float(np.mean(value)) for name, value in figures.items()}
        loss, grad_norm = np.mean(updates, axis=0)
        rows.append(means | {"loss": loss, "grad_norm": grad_norm, "explained_variance": explained,
                             "kl_completion": kl, "kl_coef": kl_coef})  # fmt: skip
        kl_coef *= 1 + FLAGS["kl_gain"] * np.clip(kl / FLAGS["kl_target"] - 1, -0.2, 0.2)
    return rows


def losses(
    policy: Policy, source: Array, target: Array, advantage: Array, returns: Array, old_logp: Array, old_value: Array,
    reference: Array,
) -> dict[str, Any]:  # fmt: skip
    """Figures per token of one mini-batch, and the gradient of the mean loss."""
    f = policy.forward(source, target)
    ratio = np.exp(f["logp"] - old_logp)
    low, high = 1 - FLAGS["clip_range"], 1 + FLAGS["clip_range_high"]
    objective = np.minimum(ratio * advantage, np.clip(ratio, low, high) * advantage)
    active = ~((ratio < low) & (advantage < 0) | (ratio > high) & (advantage > 0))
    near = old_value + np.clip(f["value"] - old_value, -FLAGS["value_clip_range"], FLAGS["value_clip_range"])
    squares, near_squares = (f["value"] - returns) ** 2, (near - returns) ** 2
    value_active = (near == f["value"]) | (squares >= near_squares)
    # where the clip does not bind both squares are the same but for rounding
    value_active |= np.abs(f["value"] - old_value) <= FLAGS["value_clip_range"]
    value_loss = np.maximum(squares, near_squares) / 2
    count = len(source)
    gradient = policy.backward(
        source, target, f, -advantage * ratio * active / count, np.full(count, -FLAGS["entropy_coef"] / count),
        FLAGS["value_coef"] * (f["value"] - returns) * value_active / count,
    )  # fmt: skip
    difference = reference - f["logp"]
    loss = -objective + FLAGS["value_coef"] * value_loss - FLAGS["entropy_coef"] * f["entropy"]
    return {"loss": loss, "gradient": gradient, "ratio_mean": ratio, "clip_frac": ~active, "value_loss": value_loss,
            "value_clip_frac": ~value_active, "entropy": f["entropy"],
            "kl": np.exp(difference) - difference - 1}  # fmt: skip


def save_layerless_model(folder: Any, seed: int = 0) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = letter_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=0, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=False, rms_norm_eps=EPSILON,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def weights_of(folder: Path) -> dict[str, Array]:
    names = {"model.embed_tokens.weight": "embed", "model.norm.weight": "norm", "lm_head.weight": "output"}
    return {names[name]: value.numpy() for name, value in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("kind", ["head", "trunk"])
def test_ppo_equals_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from utils.rl.session import Session

    rollouts = []
    score = Session.score

    def recorded(self: Session, batch: Any) -> Any:
        rewards, totals = score(self, batch)
        groups = [[completion.tokens for completion in group] for group in batch.groups]
        rollouts.append((batch.prompts, groups, totals.double().numpy()))
        return rewards, totals

    monkeypatch.setattr(Session, "score", recorded)
    monkeypatch.setattr(letters, "save_letter_model", save_layerless_model)
    train = trainer("05_train_ppo", tmp_path, monkeypatch)
    flags = [word for name, value in FLAGS.items() for word in (f"--{name}", str(value))]
    folder = train("run", 5, RATE, 2, *flags, "--critic", kind, "--critic_learning_rate", str(CRITIC_RATE))

    start = weights_of(tmp_path / "start")
    policy = Policy(start | {"head": np.zeros(16), "bias": np.zeros(())}, trunk=kind == "trunk")
    expected = ppo(policy, rollouts)
    logged = [row for row in read_jsonl(folder / "logs" / "train.jsonl") if row["phase"] == "train"]
    assert 0 < logged[0]["clip_frac"] < 0.9 and 0 < logged[0]["value_clip_frac"] < 0.9
    assert logged[0]["kl_coef"] != logged[1]["kl_coef"] and logged[1]["kl_completion"] != 0
    for row, values in zip(logged, expected, strict=True):
        found = {name: row[name] for name in values}
        assert found == pytest.approx(values, rel=2e-4, abs=2e-6), json.dumps(values)
    found_weights = weights_of(folder / "ckpt_ppo" / "final")
    for name, weight in found_weights.items():
        np.testing.assert_allclose(weight, policy.w[name], atol=2e-4)
        assert np.abs(weight - start[name]).max() > 1e-2
    state = torch.load(folder / "ckpt_ppo" / "step_2" / "training_state.pt", weights_only=True)["learner"]["critic"]
    np.testing.assert_allclose(state["value_linear.weight"].numpy()[0], policy.w["head"], atol=5e-4)
