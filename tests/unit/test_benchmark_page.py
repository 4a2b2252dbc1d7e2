"""docs/benchmarks.md: made from what the benchmarks wrote; targets that are reached, missed, not measured."""

from __future__ import annotations

import argparse
import importlib
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table
from benchmarks.measure import compared, row
from benchmarks.targets import TARGETS
from utils.files import write_json


def made_up(benchmark: str, values: dict[str, list[float]], unit: str = "s", **more: Any) -> dict[str, Any]:
    """Figures as a benchmark writes them; numbers made up for this test."""
    figures: dict[str, Any] = {"benchmark": benchmark, "title": f"{benchmark} of a test", **compared(values, unit)}
    about = {
        "command": f"python -m benchmarks.{benchmark}",
        "settings": {},
        "machine": {"processor": "P", "units": "AVX2", "cores": 2},
        "commit": "c" * 40,
    }
    figures |= {**about, "dirty": None, **more}
    return figures | {"row": row(figures)}


def lines(tmp_path: Path, *results: dict[str, Any]) -> list[str]:
    """The page of some results."""
    files = [tmp_path / f"{number}.json" for number in range(len(results))]
    for file, figures in zip(files, results, strict=True):
        write_json(file, figures)
    assert table.main([*map(str, files), "--output", str(tmp_path / "page.md")]) == 0
    return (tmp_path / "page.md").read_text().splitlines()


def test_targets_are_reached_missed_or_not_measured(tmp_path: Path) -> None:
    update = made_up(
        "update",
        {"project": [1.0, 1.0], "TRL": [4.2, 4.0, 4.4], "prefix_grouper": [1.1, 1.1]},
        settings={"model": "5M", "dtype": "fp32"},
    )
    sampler = made_up("sampler", {"project": [1.0], "generate, dynamic": [9.0], "generate, static": [7.0]},
                      settings={"model": "60M", "dtype": "bf16"})  # fmt: skip
    memory = made_up("memory", {"project": [3e6], "TRL, 8 rows": [1e7], "TRL, 1 row": [1.5e6]}, "bytes",
                     settings={"model": "5M", "dtype": "fp32"})  # fmt: skip
    page = lines(tmp_path, update, sampler, memory)
    for line in (
        "update, 5 M, fp32, vs TRL | update of a test (P, AVX2) | 2 | 4.2 x | ≥ 4 x | ≥ 4.5 x | reached",
        "update, 5 M, fp32, vs prefix_grouper | update of a test (P, AVX2) | 2 | 1.1 x | ≥ 1.2 x | ≥ 1.5 x | "
        "**missed**",
        "sampler, 60 M, bf16, vs generate with its faster cache | sampler of a test (P, AVX2) | 1 | 7 x | ≥ 4 x | "
        "≥ 6 x | aim reached",
        "activations, 5 M, fp32, vs TRL with 8 rows | memory of a test (P, AVX2) | 1 | 0.3 x | ≤ 0.35 x | ≤ 0.25 x | "
        "reached",
        "activations, 5 M, fp32, vs TRL with 1 row | memory of a test (P, AVX2) | 1 | 2 x | ≤ 1.5 x | ≤ 1 x | "
        "**missed**",
        "update, 5 M, bf16, vs TRL | `python -m benchmarks.update --model 5M --dtype bf16` |  | not measured | ≥ 4 x | "
        "≥ 4.5 x | ",
        "sampler, 60 M, fp32, vs generate with its faster cache | "
        "`python -m benchmarks.sampler --model 60M --dtype fp32` |  | not measured | ≥ 4 x | ≥ 6 x | ",
    ):
        assert f"| {line} |" in page, line
    assert update["row"] in page and "* in s: project 1, 1; TRL 4.2, 4, 4.4; prefix_grouper 1.1, 1.1" in page
    assert "* `python -m benchmarks.update`" in page and "* commit cccccccccccc" in page


def test_every_figure_has_its_target(tmp_path: Path) -> None:
    cell = {"model": "5M", "dtype": "fp32"}
    step = {"method": "grpo", "lora": False, "load_in_4bit": False, **cell}
    results = [
        made_up("growth", {"project, group 8": [1.0], "project, group 16": [1.45]}, settings={**cell, "steps": None}),
        made_up("growth", {"second tenth": [1e8], "last tenth": [1.04e8]}, "bytes", settings={"steps": 500}),
        made_up("scorer", {"project": [0.1], "sympy": [13.0]}),
        made_up("startup", {"03_sft_train.py --help": [0.4], "import utils.config": [0.1]}),
        made_up("data", {"stages 00 to 02": [70.0]}, settings={"records": 8281}, peak_bytes=5e8),
        made_up("step", {"project": [1.0], "TRL": [4.5]}, settings=step),
        made_up("step", {"project": [1.0]}, settings={**step, "model": "8B", "load_in_4bit": True, "memory_gb": 24.0,
                                                       "only": ["project"]},
                peak_bytes=2.2e10),
    ]  # fmt: skip
    found = {line.split(" | ")[0][2:]: line for line in lines(tmp_path, *results) if line.count("|") == 8}
    assert found["step time, 5 M, fp32, from group 8 to 16"].endswith("| 1.45 x | ≤ 1.5 x | ≤ 1.4 x | reached |")
    assert found["memory after 500 steps"].endswith("| 4.0% | ≤ 5.0% | ≤ 5.0% | aim reached |")
    assert found["program equality vs sympy alone"].endswith("| 130 x | ≥ 30 x | ≥ 100 x | aim reached |")
    assert found["--help of the slowest script"].endswith("| 0.4 s | ≤ 0.5 s | ≤ 0.3 s | reached |")
    assert found["00 to 02 on 8,281 records"].endswith("| 70 s | ≤ 60 s | ≤ 30 s | **missed** |")
    assert found["their memory"].endswith("| 500 MB | ≤ 1 GB | ≤ 1 GB | aim reached |")
    assert found["whole GRPO step, 5 M, fp32, vs TRL"].endswith("| 4.5 x | ≥ 4 x | ≥ 5 x | reached |")
    assert found["GPU: 8B, LoRA, 4-bit, GRPO step inside 24 GB"].endswith("| 22 GB | ≤ 24 GB | ≤ 24 GB | aim reached |")
    assert found["GPU: 8B, LoRA, 4-bit, PPO step inside 24 GB"].split(" | ")[3] == "not measured"


@pytest.mark.parametrize("command", sorted({target.command for target in TARGETS}))
def test_the_commands_of_targets_are_understood(command: str) -> None:
    _, _, module, *flags = shlex.split(command)
    parser = argparse.ArgumentParser()
    getattr(importlib.import_module(module), "add_flags", lambda parser: None)(parser)
    if module == "benchmarks.update":
        importlib.import_module("benchmarks.rollouts").add_flags(parser)
    assert parser.parse_args(flags)


def test_without_names_the_results_of_the_repository_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    write_json(tmp_path / "scorer.json", made_up("scorer", {"project": [1.0], "sympy": [2.0]}))
    assert table.main([]) == 0
    assert (
        "| program equality vs sympy alone | scorer of a test (P, AVX2) | 1 | 2 x | ≥ 30 x | ≥ 100 x | **missed** |"
        in capsys.readouterr().out
    )


def test_a_file_that_no_benchmark_wrote_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "other.json", {"benchmark": "update"})
    assert table.main([str(tmp_path / "other.json")]) == 2
    assert capsys.readouterr().err.endswith(
        "other.json: 'title' is missing; expected a file that a benchmark wrote with --json\n"
    )


def test_the_page_is_what_the_results_say() -> None:
    results = [table.read(path) for path in sorted(table.RESULTS.glob("*.json"))]
    page = table.RESULTS.parents[1] / "docs" / "benchmarks.md"
    assert page.read_text(encoding="utf-8") == table.page(results), (
        "python -m benchmarks.table --output docs/benchmarks.md"
    )
