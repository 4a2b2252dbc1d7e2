"""`python 12_driver.py export outputs/run_001`: a trained policy as a folder that others can load, with a model card.

`merged` adds the adapter's product to the base's weights (Hu et al. 2021, arXiv:2106.09685, eq. 3), in fp32, and needs
nothing but transformers; `adapter` copies the adapter, which needs the same base. A policy that was trained whole is
exported whole. Imports torch inside `export` only.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from utils import manifest
from utils.config import resolve, setting
from utils.disk import gigabytes
from utils.errors import UserError
from utils.evaluation.lineage import METHODS, method_of
from utils.evaluation.model_card import model_card
from utils.files import new_folder, read_json, write_json, write_text
from utils.pipeline import RUN_MANIFEST
from utils.runs import resolve_checkpoint
from utils.settings import LoraSettings, ModelSettings

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
S = TypeVar("S")


@dataclass(frozen=True)
class What:
    """What is exported, how, and to where."""

    sources: tuple[str, ...] = setting((), "a run, a stage folder or a checkpoint", positional=True)
    to: str = setting("", "folder to make (default: exports/RUN_METHOD)")
    form: str = setting("merged", "one model, or the adapter for its base", choices=("merged", "adapter"))
    dtype: str = setting("fp32", "numbers that merged weights are written in", choices=("fp32", "bf16"))

    def __post_init__(self) -> None:
        if len(self.sources) != 1:
            raise ValueError("expected one run, stage or checkpoint, as in: python 12_driver.py export outputs/run_001")


@dataclass(frozen=True)
class Config:
    """Flags of `export`."""

    export: What


def export(argv: Sequence[str]) -> int:
    """Write the folder, whole or not at all; 0."""
    what = resolve(Config, argv, doc=__doc__ or "", script="12_driver.py export").config.export
    checkpoint = resolve_checkpoint(policy_folder(Path(what.sources[0])))
    stage = manifest.stage_above(checkpoint)
    if stage is None:
        raise UserError(f"{checkpoint}: lies in no stage folder with a {manifest.NAME}; the model card is made from it")
    record = manifest.read(stage)
    if record["status"] != "completed":
        raise UserError(f"{stage}: has not finished ({record['status']}); finish it before exporting what it made")
    is_adapter = (checkpoint / ADAPTER_FILES[0]).is_file()
    if what.form == "adapter" and not is_adapter:
        raise UserError(f"--form adapter: {checkpoint} is a whole model, trained without LoRA; use --form merged")
    target = Path(what.to or f"exports/{stage.absolute().parent.name}_{method_of(checkpoint)}")
    if target.exists():
        raise UserError(f"{target}: is there already; name another folder with --to")
    with new_folder(target) as folder:
        if what.form == "adapter":
            copy_adapter(checkpoint, folder, record["config"]["model"]["name"])
        else:
            write_merged(checkpoint, folder, record["config"], what.dtype)
        write_text(folder / "README.md", model_card(checkpoint, what.form if is_adapter else "whole", what.dtype))
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"export: {manifest.shown(checkpoint)} → {manifest.shown(target)} ({gigabytes(size)}), card: README.md")
    return 0


def policy_folder(source: Path) -> Path:
    """The folder whose policy is meant: of a run, its method's stage, or of several trials the one that was evaluated;
    else the path itself. UserError for no method."""
    if not (source / RUN_MANIFEST).is_file():
        return source
    method = read_json(source / RUN_MANIFEST).get("method")
    folder = next((source / name for name, known in METHODS.items() if known == method), None)
    if folder is not None and not folder.is_dir():
        folder = _chosen_trial(source, method)
    if folder is None or not folder.is_dir():
        trained = ", ".join(name for name in METHODS if (source / name).is_dir()) or "none yet"
        raise UserError(f"{source}: its method {method!r} has no stage folder here; name a stage (there: {trained})")
    return folder


def _chosen_trial(run: Path, method: str) -> Path | None:
    """The checkpoint that a run's evaluation chose of a method's trials."""
    for path in sorted(run.glob("10_evaluation*/metrics.json")):
        facts = read_json(path)
        if facts.get("method") == method and facts.get("trials"):
            return run.joinpath(*Path(facts["policy"]["path"]).parts[-3:])  # <stage>/ckpt_<method>/best
    return None


def copy_adapter(checkpoint: Path, folder: Path, base: str) -> None:
    """The adapter and its tokenizer; it names its base as the model file does, not as a path of this machine."""
    for file in checkpoint.iterdir():
        if file.name in ADAPTER_FILES or "token" in file.name or file.suffix == ".jinja":
            shutil.copyfile(file, folder / file.name)
    facts = read_json(folder / ADAPTER_FILES[0])
    write_json(folder / ADAPTER_FILES[0], {**facts, "base_model_name_or_path": base})


def write_merged(checkpoint: Path, folder: Path, config: dict[str, Any], dtype: str) -> None:
    """One model in Hugging Face's layout: the whole one, or base + adapter. Merged in fp32, also over a 4-bit base."""
    import torch

    from utils.models.load import load_model, write_model
    from utils.models.tokens import load_tokenizer

    model, lora = section(ModelSettings, config["model"]), section(LoraSettings, config["lora"])
    settings = replace(model, precision="fp32", load_in_4bit=False, load_in_8bit=False)
    policy: Any = load_model(settings, lora, checkpoint=checkpoint, trainable=False, device=torch.device("cpu"))
    if hasattr(policy, "merge_and_unload"):
        policy = policy.merge_and_unload()
        if hasattr(policy, "peft_config"):  # peft leaves it, and saving would take the model for an adapter
            del policy.peft_config
    policy = policy.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    write_model(policy, load_tokenizer(settings, checkpoint), folder)


def section(settings_class: type[S], recorded: dict[str, Any]) -> S:
    """A settings section as a manifest records it; keys that this code does not know are left out."""
    known = {field.name for field in dataclasses.fields(settings_class)}  # type: ignore[arg-type]
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items()}
    return settings_class(**{name: value for name, value in values.items() if name in known})
