"""What the project promises about its speed and memory, and where a benchmark's figures say whether it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Figures, shown

Value = Callable[[Figures], float | None]


@dataclass(frozen=True)
class Target:
    """`value` of a benchmark's figures (None: they do not speak about it) is to reach `required`, better `aimed`: at
    least, or at most where `most` says that less is better. Without a promise it is only shown."""

    benchmark: str
    what: str
    value: Value
    required: float | None
    aimed: float | None
    command: str
    most: bool = False
    unit: str = "x"

    def of(self, figures: Figures) -> float | None:
        """What the figures say."""
        return self.value(figures) if figures["benchmark"] == self.benchmark else None

    def verdict(self, value: float) -> str:
        """In words."""
        for goal, words in ((self.aimed, "aim reached"), (self.required, "reached")):
            if goal is not None and (value <= goal if self.most else value >= goal):
                return words
        return "" if self.required is None else "**missed**"

    def goal(self, value: float | None) -> str:
        """A promise: at least, or at most."""
        return "" if value is None else f"{'≤' if self.most else '≥'} {self.shown(value)}"

    def shown(self, value: float) -> str:
        """With its unit."""
        return f"{value:.1%}" if self.unit == "%" else shown(value, self.unit)


def where(value: Value, **settings: Any) -> Value:
    """The value of figures with these settings."""

    def found(figures: Figures) -> float | None:
        return value(figures) if all(figures["settings"].get(name) == one for name, one in settings.items()) else None

    return found


def ratio(*ways: str) -> Value:
    """How many times as much the best of some ways takes as the project; all of them must be there."""

    def found(figures: Figures) -> float | None:
        there = [figures["ratio"][way] for way in ways if way in figures["ratio"]]
        return min(there) if len(there) == len(ways) else None

    return found


def part(way: str) -> Value:
    """What the project takes, as a part of what a way takes."""
    return lambda figures: 1 / figures["ratio"][way] if way in figures["ratio"] else None


def fact(name: str) -> Value:
    """A fact of the figures."""
    return lambda figures: figures.get(name)


def first(figures: Figures) -> float:
    """The median of the first way."""
    value: float = next(iter(figures["median"].values()))
    return value


def grown(figures: Figures) -> float | None:
    """By which part memory grew in a long run."""
    return None if "last tenth" not in figures["ratio"] else figures["ratio"]["last tenth"] - 1


def _run(what: str) -> str:
    return f"python -m benchmarks.{what}"


COMPACT = "TRL, completions scored only"
GROUPED = "prefix_grouper"
CARD = _run("step --device cuda --dtype bf16 --lora --model")
CELLS = tuple((model, dtype) for model in ("5M", "60M") for dtype in ("fp32", "bf16"))
"""What speed is promised for: llama-shaped models, both precisions."""
PLAIN: dict[str, Any] = {"method": "grpo", "lora": False, "load_in_4bit": False}


def _cells(
    benchmark: str, what: str, value: Value, required: float, aimed: float, *, most: bool = False, **settings: Any
) -> list[Target]:
    """A target for every model and precision."""
    return [
        Target(benchmark, what.replace(",", f", {model.replace('M', ' M')}, {dtype},", 1),
               where(value, model=model, dtype=dtype, **settings), required, aimed,
               _run(f"{benchmark} --model {model} --dtype {dtype}"), most=most)
        for model, dtype in CELLS
    ]  # fmt: skip


TARGETS = (
    *(Target("update", f"update, {model.replace('M', ' M')}, {dtype}, vs {name}",
             where(ratio(way), model=model, dtype=dtype), required, 4.5,
             _run(f"update --model {model} --dtype {dtype}"))
      for way, name in (("TRL", "TRL"), (COMPACT, "TRL that scores completions only (no release does so on a CPU)"))
      for (model, dtype), required in zip(CELLS, (4.0, 4.0, 3.5, 3.5), strict=True)),
    *_cells("update", "update, vs prefix_grouper", ratio(GROUPED), 1.2, 1.5),
    *_cells("sampler", "sampler, vs generate with its faster cache", ratio("generate, dynamic", "generate, static"),
            4.0, 6.0),
    *_cells("step", "whole GRPO step, vs TRL", ratio("TRL"), 4.0, 5.0, **PLAIN),
    *_cells("step", "whole GRPO step, vs TRL that scores completions only", ratio(COMPACT), 4.0, 5.0, **PLAIN),
    *_cells("memory", "activations, vs TRL with 8 rows", part("TRL, 8 rows"), 0.35, 0.25, most=True),
    *_cells("memory", "activations, vs TRL with 1 row", part("TRL, 1 row"), 1.5, 1.0, most=True),
    *_cells("growth", "step time, from group 8 to 16", ratio("project, group 16"), 1.5, 1.4, most=True, steps=None),
    Target("growth", "memory after 500 steps", where(grown, steps=500), 0.05, 0.05, _run("growth --steps 500"),
           most=True, unit="%"),
    Target("scorer", "program equality vs sympy alone", ratio("sympy"), 30.0, 100.0,
           _run("scorer --cases evaluator_cases.jsonl --data datasets/finqa")),
    Target("startup", "--help of the slowest script", first, 0.5, 0.3, _run("startup"), most=True, unit="s"),
    Target("data", "00 to 02 on 8,281 records", where(first, records=8281), 60.0, 30.0, _run("data"), most=True,
           unit="s"),
    Target("data", "their memory", where(fact("peak_bytes"), records=8281), 1e9, 1e9, _run("data"), most=True,
           unit="bytes"),
    Target("step", "whole RLOO step, vs TRL's RLOOTrainer", where(ratio("TRL"), method="rloo", lora=False), None, None,
           _run("step --method rloo")),
    Target("sampler", "GPU: 1B, bf16, sampler vs vLLM", where(ratio("vLLM"), model="1B", dtype="bf16"), None, None,
           _run("sampler --device cuda --dtype bf16 --model 1B")),
    *(Target("step", f"GPU: {model}, LoRA, {bits}, GRPO step vs TRL",
             where(ratio("TRL"), method="grpo", model=model, lora=True, load_in_4bit=bits == "4-bit", device="cuda"),
             None, None, f"{CARD} {model}{' --load_in_4bit' * (bits == '4-bit')}")
      for bits in ("bf16", "4-bit") for model in ("1B", "8B")),
    *(Target("step", f"GPU: {model}, LoRA, 4-bit, {method.upper()} step inside {size} GB",
             where(fact("peak_bytes"), method=method, model=model, load_in_4bit=True, memory_gb=float(size),
                   only=["project"]),
             size * 1e9, size * 1e9,
             f"{CARD} {model} --load_in_4bit --method {method} --memory_gb {size} --only project", most=True,
             unit="bytes") for model, size in (("1B", 6), ("8B", 24)) for method in ("grpo", "ppo")),
    *(Target("step", f"GPU: {model}, LoRA, 4-bit, memory of TRL's GRPO step",
             where(fact("peak_bytes"), method="grpo", model=model, load_in_4bit=True, only=["TRL"]), None, None,
             f"{CARD} {model} --load_in_4bit --only TRL", most=True, unit="bytes") for model in ("1B", "8B")),
)  # fmt: skip
