"""How much disk a training stage takes, foretold from its settings (--dry_run, doctor). No torch.

A policy is saved in fp32, all of it or its adapter; a step folder also holds PPO's critic, and AdamW's two moments of
what trains.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

from utils.config import ROOT
from utils.errors import UserError
from utils.settings import LoraSettings, ModelSettings, PPOSettings

BYTES_PER_WEIGHT = 4
BYTES_PER_MOMENTS = 8
WRITTEN_BESIDE = 1
"""A step folder is whole before the one it replaces goes."""


@dataclass(frozen=True)
class Need:
    """Bytes of one training stage: `policy` per best and final, `step` per step folder, of which `steps` lie there at
    most; `steps` 0: as many as are saved."""

    policy: int
    step: int
    steps: int

    @property
    def total(self) -> int:
        """Bytes at the fullest moment; with `steps` 0 a lower bound."""
        return 2 * self.policy + (self.steps or 1) * self.step

    def line(self) -> str:
        """One line for --dry_run."""
        kept = f"{self.steps} at most" if self.steps else "every one kept"
        about = "about" if self.steps else "at least"
        return (
            f"disk: {about} {gigabytes(self.total)} (best and final {gigabytes(self.policy)} each, a step folder "
            f"{gigabytes(self.step)}, {kept}: validation.keep_checkpoints)"
        )


def need_of(config: Any) -> Need | None:
    """What a stage with these settings writes as checkpoints; None when it trains nothing or the size is unknown."""
    if not (hasattr(config, "validation") and hasattr(config, "lora")):
        return None
    shapes = weight_shapes(config.model)
    if not shapes:
        return None
    trained = _trained(shapes, config.lora)
    keep = config.validation.keep_checkpoints
    steps = keep + WRITTEN_BESIDE if keep else 0
    if hasattr(config, "algorithm") and hasattr(config.algorithm, "eval_every"):
        saved = ceil(config.algorithm.steps / config.algorithm.eval_every)
        steps = min(steps or saved, saved)
    resumable = trained + critic_parameters(config)
    return Need(trained * BYTES_PER_WEIGHT, resumable * (BYTES_PER_WEIGHT + BYTES_PER_MOMENTS), steps)


def critic_of(config: Any) -> str:
    """The kind of critic that is trained beside the policy (05), or nothing."""
    algorithm = getattr(config, "algorithm", None)
    return algorithm.critic if isinstance(algorithm, PPOSettings) else ""


def critic_parameters(config: Any) -> int:
    """Weights of the critic: its head, with `adapter` the policy's adapter again, but for the output layer's part."""
    kind, shapes = critic_of(config), weight_shapes(config.model)
    layers = {name: shape for name, shape in shapes.items() if not name.startswith("lm_head.")}
    adapter = _trained(layers, config.lora) if kind == "adapter" else 0
    return adapter + config.model.hidden_size + 1 if kind else 0


def disk_line(config: Any) -> str:
    """`need_of` in words."""
    need = need_of(config)
    if need is None:
        return "disk: not estimated (the model file gives no hidden_size, num_layers and vocab_size)"
    return need.line()


def weight_shapes(model: ModelSettings) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight: from the files of a local model, else a Llama of the model file's sizes.

    The guess (four square projections and an MLP of width 8/3, one tied embedding) is for models not downloaded yet;
    empty where the model file names no sizes.
    """
    for folder in (Path(model.name), ROOT / model.name):
        if files := sorted(folder.glob("*.safetensors")):
            return {name: shape for file in files for name, shape in _header(file).items()}
    width, layers = model.hidden_size, model.num_layers
    if not (width and layers and model.vocab_size):
        return {}
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (model.vocab_size, width)}
    for layer in range(layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{layer}.{name}.weight"] = (width, width)
        for name in ("gate_proj", "up_proj", "down_proj"):
            shapes[f"{layer}.{name}.weight"] = (width * 8 // 3, width)
    return shapes


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes in a safetensors file: eight bytes of length, then JSON. UserError for what is none."""
    size = file.stat().st_size
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError("its header is longer than the file")
            entries = json.loads(stream.read(length))
        return {name: tuple(entry["shape"]) for name, entry in entries.items() if name != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: {size} bytes that are no safetensors file ({error}); a file cut short, or a pointer of git-lfs "
            "(`git lfs pull` in its folder)"
        ) from None


def _trained(shapes: dict[str, tuple[int, ...]], lora: LoraSettings) -> int:
    """Weights that train: every one, or r (in + out) per adapted matrix (Hu et al. 2021, section 4.1)."""
    if not lora.use_lora:
        return sum(prod(shape) for shape in shapes.values())
    endings = tuple(f".{name}.weight" for name in lora.target_modules)
    return sum(lora.r * sum(shape) for name, shape in shapes.items() if name.endswith(endings))


def free_bytes(path: Path) -> int:
    """Free space where a path lies or would be made."""
    there = next(folder for folder in [path.absolute(), *path.absolute().parents] if folder.is_dir())
    return shutil.disk_usage(there).free


def course_line(configs: Sequence[Any], run: Path) -> tuple[str, bool]:
    """Disk of several stages together beside what is free there, in words; and whether it is enough."""
    needs = [need for config in configs if (need := need_of(config)) is not None]
    total, free = sum(need.total for need in needs), free_bytes(run)
    about = "at least" if any(not need.steps for need in needs) else "about"
    unknown = sum(hasattr(c, "validation") and hasattr(c, "lora") for c in configs) - len(needs)
    left_out = f" ({unknown} of unknown size left out)" if unknown else ""
    needed = f"checkpoints {about} {gigabytes(total)}{left_out}" if needs or unknown else "no checkpoints"
    return f"{needed}; {gigabytes(free)} are free", total < free


def gigabytes(count: float) -> str:
    """`3.1 GB`, `52 MB` (powers of ten, two digits)."""
    value, unit = (count / 1e9, "GB") if count >= 1e9 else (count / 1e6, "MB")
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
