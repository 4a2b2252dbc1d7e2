"""What a model is made of, what LoRA would train in it, what it needs in memory; and a model file to start from.

Nothing is downloaded but config.json; folders and the models of configs/models need no network at all. The memory is
that of weights, adapter and optimiser; activations and the key-value cache grow with the tokens and come on top
(a stage's --dry_run estimates them for its settings).

Reads:  a folder with config.json, a model file (name or path), or a hub id
Writes: configs/models/<last part of the name>.yaml, unless it is there or a file names the model already

    python inspect_model_architecture.py --model llama-3.2-1b
    python inspect_model_architecture.py --model path/to/model --no_config
    python inspect_model_architecture.py --all
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.files import read_yaml, write_text
from utils.flags import make_parser
from utils.models.memory import PRECISIONS, TRAINED_BYTES, adapter_parameters, gigabytes, weight_bytes
from utils.terminal import Terminal

if TYPE_CHECKING:
    from utils.models.architecture import Architecture

MODEL_FILES = Path("configs") / "models"
DEFAULT_RANK = 32


def inspect(name: str, terminal: Terminal, write: bool) -> None:
    """Say everything about one model and, when asked, write its file. UserError when it cannot be read."""
    from utils.models.architecture import architecture, find_config

    source, config = find_config(name)
    found = architecture(config)
    model, settings = settings_of(name)
    terminal.say(
        f"{model}: {found.kind}, {found.parameters:,} parameters in {config.num_hidden_layers} layers ({source})"
    )
    rows = [[part, count, 100 * count / found.parameters] for part, count in found.parts.items()]
    terminal.table("parameters", ["part", "number", "%"], rows)
    if not found.parts["head"]:
        terminal.say("the head is the embeddings' own matrix")
    show_adapters(found, settings.get("lora", {}), terminal)
    show_cache(found, terminal)
    if write:
        terminal.say(write_file(name, model, found))


def settings_of(name: str) -> tuple[str, dict[str, Any]]:
    """(model.name, sections) of the model file that `name` is or that names it; (name, {}) where there is none."""
    from utils.models.architecture import MODEL_FILES, file_of_model

    candidates = [Path(name), MODEL_FILES / f"{name}.yaml"]
    file = next((path for path in candidates if path.suffix == ".yaml" and path.is_file()), file_of_model(name))
    if file is None:
        return name, {}
    data = read_yaml(file).data
    return str(data.get("model", {}).get("name", name)), data


def show_adapters(found: Architecture, lora: dict[str, Any], terminal: Terminal) -> None:
    """The linear layers, what LoRA trains in each, and the memory of training with it and without."""
    rank, targets = int(lora.get("r", DEFAULT_RANK)), list(lora.get("target_modules", found.attention_names))
    rows = []
    for name in found.layer_names:
        shapes = found.targets([name])
        rows.append([name, len(shapes), " ".join(f"{i}x{o}" for i, o in dict.fromkeys(shapes)),
                     adapter_parameters(shapes, rank), "yes" if name in targets else ""])  # fmt: skip
    terminal.table(f"linear layers, and what an adapter of rank {rank} trains in each",
                   ["layer", "count", "inputs x outputs", "trained", "target"], rows)  # fmt: skip
    trained = adapter_parameters(found.targets(targets), rank)
    terminal.say(f"LoRA on {', '.join(targets)}: {trained:,} trained, {100 * trained / found.parameters:.2f} % of all")
    linear = [(layer.inputs, layer.outputs) for layer in found.linear]
    others = found.parameters - sum(i * o for i, o in linear)
    optimiser = TRAINED_BYTES * trained
    rows = []
    for precision in PRECISIONS:
        weights = weight_bytes(linear, others, precision)
        full = gigabytes(TRAINED_BYTES * found.parameters) if precision == "fp32" else "-"
        rows.append([precision, gigabytes(weights), gigabytes(weights + optimiser), full])
    terminal.table("memory without activations", ["base held in", "weights", "LoRA training", "full training"], rows)


def show_cache(found: Architecture, terminal: Terminal) -> None:
    """The key-value cache while sampling."""
    values = found.cache_values_per_token
    terminal.say(f"key-value cache: {2 * values:,} bytes per token in bf16, {4 * values:,} in fp32")


def write_file(name: str, model: str, found: Architecture) -> str:
    """Write the model's file unless there is one; what was done, in a line."""
    from utils.models.architecture import file_of_model, has_chat_template
    from utils.models.model_file import file_name, model_file

    target = MODEL_FILES / file_name(model)
    there = file_of_model(model) or (target if target.is_file() else None)
    if there is not None or model != name:
        return f"kept {there or name}: give --config {Path(there or name).stem} to the stages"
    command = f"python {Path(__file__).name} --model {name}"
    write_text(target, model_file(model, found, has_chat_template(model), command))
    return f"wrote {target}: look at its batch sizes and rates, then give --config {target.stem} to the stages"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags. UserError unless exactly one of --model and --all is there."""
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--model", metavar="NAME", help="folder, model file or hub id", default="")
    parser.add_argument("--all", action="store_true", help="every model of configs/models", default=False)
    parser.add_argument("--no_config", action="store_true", help="write no model file", default=False)
    given = parser.parse_args(argv)
    if bool(given.model) == given.all:
        raise UserError("give one of --model NAME (folder, model file or hub id) and --all")
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 with one line on stderr."""
    try:
        given = arguments(sys.argv[1:] if argv is None else argv)
        names = [path.stem for path in sorted(MODEL_FILES.glob("*.yaml"))] if given.all else [given.model]
        for name in names:
            inspect(name, Terminal(), write=not given.no_config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
