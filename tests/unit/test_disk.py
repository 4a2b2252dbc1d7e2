"""The disk that training needs is foretold in numbers that can be worked out by hand, and close to what is written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from utils.disk import Need, course_line, critic_parameters, disk_line, gigabytes, need_of
from utils.errors import UserError
from utils.models.load import load_model
from utils.models.tokens import load_tokenizer
from utils.rl.checkpoints import save_checkpoint
from utils.rl.learner import Learner
from utils.settings import GRPOSettings, LoraSettings, ModelSettings, PPOSettings, RLSettings, ValidationSettings

SMALL = ModelSettings(name="absent/small", hidden_size=6, num_layers=1, vocab_size=10)


@dataclass(frozen=True)
class Training:
    """As much of a stage's settings as decides its disk."""

    model: ModelSettings = SMALL
    lora: LoraSettings = LoraSettings()
    validation: ValidationSettings = ValidationSettings()


@dataclass(frozen=True)
class Online(Training):
    algorithm: GRPOSettings = field(default_factory=GRPOSettings)


@dataclass(frozen=True)
class WithCritic(Training):
    algorithm: PPOSettings = field(default_factory=PPOSettings)


def test_sizes_by_hand() -> None:
    weights = 10 * 6 + 4 * 6 * 6 + 3 * 16 * 6  # embedding, four projections, MLP of width 6 x 8 / 3
    assert need_of(Training()) == Need(policy=4 * weights, step=12 * weights, steps=2)
    assert Need(10, 30, 2).total == 2 * 10 + 2 * 30
    adapters = LoraSettings(use_lora=True, r=2, target_modules=("q_proj", "v_proj"))
    assert need_of(Training(lora=adapters)) == Need(policy=4 * 48, step=12 * 48, steps=2)  # 2 x (6 + 6) x 2
    assert need_of(Training(model=ModelSettings(name="absent/small"))) is None
    assert need_of(object()) is None


def test_a_critic_is_saved_to_go_on_from() -> None:
    adapters = LoraSettings(use_lora=True, r=2, target_modules=("q_proj", "lm_head"))
    trained = {"head": 7, "trunk": 7, "adapter": 7 + 24}  # width and bias; 2 x (6 + 6)
    for kind, weights in trained.items():
        config = WithCritic(lora=adapters, algorithm=PPOSettings(critic=kind))
        assert critic_parameters(config) == weights
        assert need_of(config) == Need(policy=4 * 24, step=12 * (24 + weights), steps=2)
    assert critic_parameters(Training()) == critic_parameters(Online()) == 0


def test_step_folders_are_counted() -> None:
    steps = {}
    for keep in (0, 1, 2, 9):
        online = Online(validation=ValidationSettings(keep_checkpoints=keep))
        need = need_of(replace(online, algorithm=GRPOSettings(steps=25, eval_every=10)))  # saves at 10, 20 and 25
        assert need is not None
        steps[keep] = need.steps
    assert steps == {0: 3, 1: 2, 2: 3, 9: 3}
    every = Training(validation=ValidationSettings(keep_checkpoints=0))
    assert "at least" in disk_line(every) and "every one kept" in disk_line(every)


def test_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [gigabytes(n) for n in (3.14e9, 52.4e6, 1.2e6, 0)] == ["3.1 GB", "52 MB", "1.2 MB", "0 MB"]
    assert "not estimated" in disk_line(Training(model=ModelSettings(name="absent/small")))
    monkeypatch.setattr("utils.disk.free_bytes", lambda path: 1000)
    unknown = Training(model=ModelSettings(name="absent/small"))
    words, enough = course_line([Training(), unknown, object()], tmp_path)
    assert words == "checkpoints about 0.016 MB (1 of unknown size left out); 0.001 MB are free"
    assert not enough
    assert course_line([object()], tmp_path) == ("no checkpoints; 0.001 MB are free", True)


def test_the_estimate_for_llama_tiny_is_what_a_checkpoint_takes(tmp_path: Path) -> None:
    settings = ModelSettings()
    model = load_model(settings, LoraSettings(), checkpoint=None, trainable=True, device=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    step = save_checkpoint(tmp_path, 1, model, load_tokenizer(settings, None), {"optimizer": optimizer.state_dict()})
    written = sum(file.stat().st_size for file in step.iterdir())
    need = need_of(Training(model=settings))
    assert need is not None and 0.98 < need.step / written <= 1.0
    assert 0.99 < need.policy / (step / "model.safetensors").stat().st_size <= 1.0


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_the_estimate_of_a_critic_is_what_its_checkpoint_takes(tmp_path: Path, critic: str) -> None:
    settings = ModelSettings(hidden_size=192)
    lora = LoraSettings(use_lora=True, r=64, target_modules=("q_proj", "v_proj", "down_proj"))
    learner = Learner(settings, lora, RLSettings(), start=Path(settings.name), device="cpu", seed=0, critic=critic)
    assert learner.critic is not None
    for parameter in (*learner.parameters.values(), *learner.critic.parameters.values()):
        parameter.grad = torch.zeros_like(parameter)
    learner.update(1, 0, 1.0)
    learner.save(tmp_path, 1, {})
    config = WithCritic(settings, lora, algorithm=PPOSettings(critic=critic))
    tokenizer = sum(file.stat().st_size for file in (tmp_path / "step_1").glob("*.json"))
    written = sum(file.stat().st_size for file in (tmp_path / "step_1").iterdir()) - tokenizer
    need = need_of(config)
    assert need is not None and 0.97 < need.step / written <= 1.0
    assert sum(parameter.numel() for parameter in learner.critic.parameters.values()) == critic_parameters(config)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1", b"x", b"\x02" + bytes(7) + b"[]"])
def test_what_is_no_safetensors_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="model.safetensors: .* no safetensors file .*git lfs pull"):
        disk_line(Training(model=ModelSettings(name=str(tmp_path))))
