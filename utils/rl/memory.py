"""The memory of an online RL run, foretold from its settings, and the largest micro-batch that fits. No torch.

The constants are fitted to exact peaks of torch's allocator on a CPU (`benchmarks.peaks`) for Llama's layers;
tests/invariants/test_memory_estimate.py holds estimate and peak together. On a GPU they were not measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import manifest
from utils.config import ROOT
from utils.disk import BYTES_PER_WEIGHT, critic_of, critic_parameters, weight_shapes
from utils.errors import UserError
from utils.machine import DeviceMemory, free_memory
from utils.models.memory import (
    BLOCK,
    CUT_FAMILIES,
    KEYS_MULTIPLE,
    MOST_PAIRS,
    ROW_BLOCK,
    SLOTS_MULTIPLE,
    TRAINED_BYTES,
    WIDTH_MULTIPLE,
    adapter_parameters,
    round_up,
    weight_bytes,
)
from utils.ranks import from_first
from utils.settings import LoraSettings, ModelSettings, RLSettings

if TYPE_CHECKING:
    from utils.rl.session import Config

HIDDEN_BYTES = {"fp32": 40, "bf16": 34}
"""Kept for the backward pass per token and layer, for each of the hidden units: two norms in fp32 whatever the
precision, queries, keys, values, attention, residuals."""
MLP_BYTES = {"fp32": 16, "bf16": 8}
"""The same for each unit of the MLP: gate, its activation, the other half, their product."""
KEYS_BYTES = 20
"""Of a token that the last layer is asked for keys and values alone, for each of the hidden units."""
MASK_BYTES = {"fp32": 4, "bf16": 2}
"""On a GPU also for each column that a token's row is wide: the mask, as what SDPA adds to the scores."""
WEIGHT_BYTES = 2
"""On a CPU attention in bf16 keeps its weights (`utils.models.blocks`), of all heads for each pair of a query and a key
in blocks, if a row has no more than MOST_PAIRS; in fp32 none."""
GRADIENT_BYTES = 8
"""Of the layer that is going through the backward pass, per unit of hidden size and MLP."""
CHUNK = 2**24
"""Logits that are there at once (`utils.rl.logprobs`); more are computed in chunks, and again in the backward pass."""
SAMPLING_HIDDEN_BYTES = 16
"""Of a prompt's token in the layer that is computing it while sampling, for each of the hidden units."""
SAMPLING_MLP_BYTES = {"fp32": 12, "bf16": 6}
"""The same for each unit of the MLP."""
SAMPLING_SCORES = 4
"""And in bf16 on a CPU for each of a head's BLOCK scores, in the place of the MLP, if it is more."""
PREFILL_TOKENS = 4096
"""Prompt tokens per pass of sampling on a CPU: what a layer makes of them then stays in the processor's cache. A GPU
computes all of a batch."""
CDF_ELEMENTS = 2**24
"""Probabilities per chunk of sampling's inverse CDF: bounds its float64 memory to 128 MiB."""
DRAW_BYTES, CDF_BYTES = 8, 20
"""Of a logit that is drawn from; besides of each in such a chunk."""
LOGIT_BYTES = {"fp32": 8, "bf16": 4}
"""Of a logit at the columns of completions and its gradient."""
FEW, FEW_ON_GPU, FEW_BYTES = 2**18, 2**22, 16
"""Logits of which log-probs are made at once (`utils.rl.logprobs`): on a CPU a megabyte; and what is made of each."""
NOT_QUANTISED = {"embed_tokens", "lm_head", "wte", "wpe"}
"""Matrices that no linear layer inside the model is, by what Llama and GPT-2 call them."""
USED_SHARE = 0.8
"""Of the free memory, what a plan may fill: the estimate is not exact, and allocators lose some to fragments."""
SMALLEST = 64
"""The least that `rl.micro_batch_tokens` may be."""


@dataclass(frozen=True)
class Need:
    """Bytes: `fixed` from step to step (weights, gradients, optimiser); at the peak of a pass besides, `activations`
    of the layers and `logits`; in their place, while it samples, `sampling`."""

    fixed: float
    activations: float
    logits: float
    sampling: float = 0.0

    @property
    def total(self) -> float:
        """At the highest point."""
        return self.fixed + max(self.activations + self.logits, self.sampling)


@dataclass(frozen=True)
class Shape:
    """What the memory of a model's pass depends on, and the tokens of a prompt's row: [prompt | its completions]."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    vocabulary: int
    prompt: int
    completions: int
    completion: int = 0
    """Of each of them; 0 where nothing depends on it."""
    keys: int = 0
    """Width of a layer's keys, which is that of its values; 0: the hidden size."""

    @classmethod
    def of(cls, cfg: Config, group_size: int) -> Shape | None:
        """None where the model file gives no sizes. Prompts and completions are taken at full length."""
        model = cfg.model
        if not (model.hidden_size and model.num_layers and model.vocab_size):
            return None
        matrices = [shape for name, shape in weight_shapes(model).items() if _is_linear(name, shape)]
        mlp = max(max(shape) for shape in matrices)
        completion = cfg.generation.max_new_tokens
        return cls(
            model.hidden_size, mlp, model.num_layers, _heads(model), model.vocab_size,
            cfg.task.max_prompt_tokens, group_size * completion, completion, _key_width(model),
        )  # fmt: skip

    @property
    def row(self) -> int:
        """Tokens of a prompt's row."""
        return self.prompt + self.completions


def need_of(cfg: Config, group_size: int, tokens: int = 0) -> Need | None:
    """What a run needs with passes of `tokens` (0: rl.micro_batch_tokens; a row always goes); None: sizes unknown."""
    shape = Shape.of(cfg, group_size)
    if shape is None:
        return None
    rows = max(1, (tokens or cfg.rl.micro_batch_tokens) // shape.row)
    activations, logits = pass_bytes(cfg, shape, rows)
    return Need(resident_bytes(cfg), activations, logits, sampling_bytes(cfg, shape, group_size))


def put_together(cfg: Config) -> tuple[int, int]:
    """Bytes of a model in shares (--fsdp) that are there as a whole: during a pass, and while it samples.

    In a pass what is in no layer with its gradient, two layers and the gradient of one (`utils.models.sharding`).
    """
    if not cfg.run.fsdp:
        return 0, 0
    sizes = {name: BYTES_PER_WEIGHT * prod(shape) for name, shape in weight_shapes(cfg.model).items()}
    outside = sum(size for name, size in sizes.items() if not any(map(str.isdecimal, name.split("."))))
    layer = (sum(sizes.values()) - outside) // max(1, cfg.model.num_layers)
    return 2 * outside + 3 * layer, sum(sizes.values())


def pass_bytes(cfg: Config, shape: Shape, rows: int) -> tuple[float, float]:
    """(activations, logits) at the peak of a forward and backward pass over so many rows."""
    model, tokens = cfg.model, rows * shape.row
    kind, gpu, read = model.precision, on_gpu(cfg), shape.completions + 1
    per_token = HIDDEN_BYTES[kind] * shape.hidden + MLP_BYTES[kind] * shape.mlp
    layer: float = rows * (shape.row * per_token + _attention_bytes(kind, shape, gpu, shape.prompt))
    last = layer
    if model.type in CUT_FAMILIES:
        others = (shape.prompt - 1) * KEYS_BYTES * shape.hidden
        last = rows * (read * per_token + _attention_bytes(kind, shape, gpu, 1) + others)
    moving: float = tokens * GRADIENT_BYTES * (shape.hidden + shape.mlp)
    if model.activation_checkpointing:  # the layers' inputs, and one layer at a time as a whole
        kept, moving = float(tokens * shape.layers * shape.hidden * 4), moving + layer
    else:
        kept = layer * (shape.layers - 1) + last
    if critic_of(cfg) == "adapter":  # a pass of its own, whose activations are always kept
        kept += layer * (shape.layers - 1) + last
    count = min(rows * read * shape.vocabulary, CHUNK)
    logits = count * LOGIT_BYTES[kind] + min(count, FEW_ON_GPU if gpu else FEW) * FEW_BYTES
    copies = _copies(cfg)
    # logits are gone when the first layer's gradients come
    return kept + copies + put_together(cfg)[0] + max(0, moving - logits), logits


def sampling_bytes(cfg: Config, shape: Shape, group_size: int) -> float:
    """At the peak of sampling: a full cache, and the layer that computes prompts, or the logits that are drawn from.

    Of a step's prompts or validation's records, as many as `generation.tokens_per_batch` lets stand at once; and a
    model in shares as a whole. vLLM's memory is its own affair.
    """
    generation, model = cfg.generation, cfg.model
    if generation.backend == "vllm":
        return 0.0
    own_prompts = -(-cfg.rollout.prompts_per_step // cfg.run.num_processes)
    other, gpu = generation.backend == "transformers", on_gpu(cfg)
    copies = group_size if other else 1
    step = _rows_at_once(copies * shape.prompt + shape.completions, own_prompts, generation.tokens_per_batch)
    short = shape.prompt + generation.max_new_tokens
    records = _rows_at_once(short, cfg.validation.eval_records or 10**9, generation.tokens_per_batch)
    greedy = replace(shape, completions=generation.max_new_tokens)
    cast = 0 if other or cfg.run.fsdp else cast_bytes(cfg)  # models in shares are called as they are
    return (
        put_together(cfg)[1]
        + cast
        + max(
            _sampling(model, shape, step, copies, group_size, gpu, other),
            _sampling(model, greedy, records, 1, 1, gpu, other),
        )
    )


def _rows_at_once(row: int, rows: int, tokens: int) -> int:
    return max(1, min(rows, tokens // row))


def _sampling(
    model: ModelSettings, shape: Shape, rows: int, copies: int, samples: int, gpu: bool, generate: bool
) -> float:
    """Of so many prompts, each computed `copies` times, with so many samples."""
    kind, prompt = model.precision, shape.prompt if generate else round_up(shape.prompt, WIDTH_MULTIPLE)
    cached = rows * (copies * prompt + shape.completions)
    cache = cached * shape.layers * 2 * (shape.keys or shape.hidden) * (2 if kind == "bf16" else 4)
    prefilled = rows * copies * prompt
    per_token = SAMPLING_HIDDEN_BYTES * shape.hidden
    mlp, scores = SAMPLING_MLP_BYTES[kind] * shape.mlp, SAMPLING_SCORES * BLOCK * shape.heads
    per_token += mlp if gpu or kind == "fp32" else max(mlp, scores)
    prefill = (prefilled if gpu or generate else min(prefilled, max(PREFILL_TOKENS, prompt))) * per_token
    logits = rows * samples * shape.vocabulary
    return cache + max(prefill, logits * DRAW_BYTES + min(logits, CDF_ELEMENTS) * CDF_BYTES)


def largest_micro_batch(cfg: Config, group_size: int, free: int, rows_per_update: int) -> int | None:
    """The most tokens per pass whose need stays within USED_SHARE of `free` bytes; 0: not even a row; None: not known.

    All of an update where that fits; else rounded down to a power of two, so that a little more or less free memory
    changes nothing.
    """
    shape = Shape.of(cfg, group_size)
    if shape is None:
        return None
    room = USED_SHARE * free - resident_bytes(cfg)
    fitting = [rows for rows in range(1, rows_per_update + 1) if sum(pass_bytes(cfg, shape, rows)) <= room]
    if not fitting:
        return 0
    most = fitting[-1] * shape.row
    return max(SMALLEST, most if fitting[-1] == rows_per_update else max(shape.row, 2 ** (most.bit_length() - 1)))


def with_largest(cfg: Config, group_size: int, warn: Callable[[str], None]) -> RLSettings:
    """--auto_batch: the settings with the largest micro-batch that fits, by the first process's memory.

    Call it before the model is loaded: the estimate holds its weights. UserError where memory or sizes are not known.
    """

    def found() -> int | None:
        here = memory_here(cfg)
        return largest_micro_batch(cfg, group_size, here.free, rows_per_update(cfg)) if here else None

    tokens = from_first(found)
    if tokens is None:
        raise UserError("--auto_batch: memory or the model's sizes are not known; give --micro_batch_tokens instead")
    if not tokens:
        warn("--auto_batch: by the plan (--dry_run) not even one prompt fits; tries one at a time")
    return replace(cfg.rl, micro_batch_tokens=tokens or SMALLEST)


def rows_per_update(cfg: Config) -> int:
    """Prompts of a mini-batch that one process puts through the model, rounded up."""
    return -(-cfg.rollout.prompts_per_step // (cfg.algorithm.mini_batches * cfg.run.num_processes))


def memory_here(cfg: Config) -> DeviceMemory | None:
    """What the device of this run has; on a CPU what is this process's share of it."""
    found = free_memory(on_gpu(cfg))
    generation = cfg.generation
    if found is not None and on_gpu(cfg) and generation.backend == "vllm" and not generation.vllm_server:
        found = replace(found, free=max(0, found.free - int(generation.vllm_memory * found.total)))
    share = 1 if found is None or on_gpu(cfg) else cfg.run.num_processes
    return None if found is None else replace(found, total=found.total // share, free=found.free // share)


def on_gpu(cfg: Config) -> bool:
    """Whether the run computes on a GPU; foretold without torch."""
    return manifest.device_line(cfg.run.device).startswith("device cuda")


def resident_bytes(cfg: Config) -> int:
    """Bytes that stay from step to step, with those of a critic, of which there is no reference.

    A process's own share of them where they are in shares; the critic's head never is.
    """
    shares = cfg.run.num_processes if cfg.run.fsdp else 1
    return weights_and_optimizer(cfg.model, cfg.lora) // shares + TRAINED_BYTES * critic_parameters(cfg)


def weights_and_optimizer(model: ModelSettings, lora: LoraSettings) -> int:
    """Bytes of base or policy, what trains with its gradient and moments, the reference.

    The reference is a frozen fp32 copy of what trains: of the adapter, or of the whole policy.
    """
    shapes = weight_shapes(model)
    if not lora.use_lora:
        return (TRAINED_BYTES + BYTES_PER_WEIGHT) * sum(map(prod, shapes.values()))
    layers = {name: (shape[1], shape[0]) for name, shape in shapes.items() if _is_linear(name, shape)}
    others = sum(map(prod, shapes.values())) - sum(map(prod, layers.values()))
    stored = "4-bit" if model.load_in_4bit else "8-bit" if model.load_in_8bit else model.precision
    base = weight_bytes(layers.values(), others, stored)
    if model.precision == "fp32" and stored != "fp32":
        base += 2 * others  # weight_bytes takes bf16 for what is not quantised
    endings = tuple(f".{name}.weight" for name in lora.target_modules)
    adapted = [shape for name, shape in layers.items() if name.endswith(endings)]
    if not adapted:  # another family than the guessed Llama: square layers
        adapted = [(model.hidden_size, model.hidden_size)] * model.num_layers * len(lora.target_modules)
    return base + (TRAINED_BYTES + BYTES_PER_WEIGHT) * adapter_parameters(adapted, lora.r)


def _attention_bytes(kind: str, shape: Shape, gpu: bool, of_prompt: int) -> float:
    """Of one row in one layer, beside queries, keys, values and output; so many of the prompt's last tokens ask.

    A row of too many pairs keeps none, but a pass may be of shorter ones: as many as it has tokens of this one.
    """
    if gpu:
        return MASK_BYTES[kind] * (of_prompt + shape.completions) * shape.row
    if kind == "fp32":
        return 0.0
    prompt, completions = (round_up(columns, WIDTH_MULTIPLE) for columns in (shape.prompt, shape.completions))
    keys = round_up(prompt + round_up(shape.completion, SLOTS_MULTIPLE), KEYS_MULTIPLE)
    asking = prompt if of_prompt == shape.prompt else of_prompt
    pairs = completions * keys + asking * (prompt - asking + (asking + min(asking, ROW_BLOCK)) / 2)
    return WEIGHT_BYTES * shape.heads * min(pairs, sqrt(pairs * MOST_PAIRS))


def _copies(cfg: Config) -> int:
    """The largest gradient before it is added to the others; and bf16 of the weights that train in fp32.

    Recomputed layers make theirs again, one at a time.
    """
    if cfg.lora.use_lora:
        return 0
    sizes = [prod(shape) for shape in weight_shapes(cfg.model).values()]
    return (0 if cfg.model.activation_checkpointing else cast_bytes(cfg)) + 4 * max(sizes)


def cast_bytes(cfg: Config) -> int:
    """Of the bf16 copies of weights that train in fp32: a pass makes them, and sampling (`utils.models.decoding`)."""
    if cfg.lora.use_lora or cfg.model.precision != "bf16":
        return 0
    return 2 * sum(prod(shape) for shape in weight_shapes(cfg.model).values())


def _heads(model: ModelSettings) -> int:
    """Attention heads: from a local model's config.json, else heads of 64 are taken."""
    for folder in (Path(model.name), ROOT / model.name):
        if (folder / "config.json").is_file():
            facts: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return int(facts.get("num_attention_heads") or facts.get("n_head") or max(1, model.hidden_size // 64))
    return max(1, model.hidden_size // 64)


def _key_width(model: ModelSettings) -> int:
    """From the weights of a local model, else the hidden size, or 0."""
    shapes = weight_shapes(model)
    return next((shape[0] for name, shape in shapes.items() if name.endswith("k_proj.weight")), 0)


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a linear layer's that is quantised: a matrix, but for embeddings, positions and head."""
    return len(shape) == 2 and not set(name.split(".")) & NOT_QUANTISED
