"""Model files (configs/models/*.yaml) made from what a model is: a start to be tuned, not tuned values."""

from __future__ import annotations

from typing import Any

import yaml

from utils.models.architecture import Architecture

LARGE = 2_000_000_000
"""From so many parameters on, micro-batches hold two records instead of four."""
LONGEST = 1536
"""Tokens of prompt and answer together, where the model has room for so many: a FinQA page fitted by stage 01."""
NOT_SHAPE = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache")
"""Keys of a config.json that say nothing about what the model is."""


def file_name(model: str) -> str:
    """The one naming rule: the last part of the folder or hub id, in lower case."""
    return model.rstrip("/").rpartition("/")[2].lower() + ".yaml"


def model_file(name: str, found: Architecture, chat: bool, command: str) -> str:
    """The text of a model file: LoRA on the attention, 16 records per optimiser step, bf16."""
    config: Any = found.config
    records, pairs = (2, 1) if found.parameters >= LARGE else (4, 2)
    positions = getattr(config, "max_position_embeddings", None) or LONGEST
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "name": name,
            "type": config.model_type,
            "architecture": found.kind,
            "hidden_size": config.hidden_size,
            "num_layers": config.num_hidden_layers,
            "vocab_size": config.vocab_size,
            "precision": "bf16",
            "prompt_style": "chat" if chat else "plain",
        },
        "lora": {"use_lora": True, "r": 32, "alpha": 64, "dropout": 0.05, "target_modules": found.attention_names},
        "training": {
            "epochs": 3,
            "patience": 3,
            "batch_size": records,
            "gradient_accumulation_steps": 16 // records,
            "learning_rate": 1e-4,
            "warmup_steps": 20,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "max_length": min(LONGEST, positions),
        },
        "validation": {"eval_steps": 100, "save_steps": 100, "logging_steps": 10, "eval_records": 300},
        "rl": {"learning_rate": 1e-5, "micro_batch_tokens": 4096},
        "preference": {
            "learning_rate": 5e-6,
            "batch_size": pairs,
            "gradient_accumulation_steps": 16 // pairs,
            "weight_decay": 0.0,
            "max_length": min(LONGEST, positions),
        },
        "generation": {
            "max_new_tokens": 160,
            "num_candidates": 4,
            "temperature": 0.8,
            "top_p": 0.9,
            "tokens_per_batch": 32768,
        },
        "metadata": metadata(found, command),
    }
    lines = [f"# {name}: {found.parameters:,} parameters. Made by inspect_model_architecture.py: a start, not tuned."]
    for section, values in sections.items():
        lines += [f"{section}:", *(f"  {key}: {_flow(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def metadata(found: Architecture, command: str) -> dict[str, Any]:
    """What the model is, so that it can be inspected and rebuilt in small without a network. No setting."""
    shape = {key: value for key, value in found.config.to_diff_dict().items() if key not in NOT_SHAPE}
    return {
        "generated_by": command,
        "all_available_layers": found.layer_names,
        "config": {"model_type": found.config.model_type, **shape},
    }


def _flow(value: Any) -> str:
    """A value on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("...\n").strip()
