"""The benchmarks of the engine run on small work and say what they measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from benchmarks import rollouts
from benchmarks.measure import alternate, compared, row

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
WAYS = {
    "sampler": {"project", "generate, dynamic", "generate, static"},
    "update": {"project", "project, a row per sample", "TRL"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WAYS))
def test_every_way_is_measured_on_the_same_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(rollouts.SHAPES, "5M", TINY)
    sizes = ["--prompt", "9", "--completion", "3", "--prompts", "2", "--group", "2", "--repeats", "1"]
    out = tmp_path / "figures.json"
    assert importlib.import_module(f"benchmarks.{name}").main([*sizes, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert set(figures["median_seconds"]) == WAYS[name] and set(figures["ratio"]) == WAYS[name] - {"project"}
    assert min(figures["median_seconds"].values()) > 0 and figures["machine"]["cores"]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"| {name}, 0.1 M parameters, fp32, prompt 9, completion 3, 2 x 2 |")


def test_medians_ratios_and_turns() -> None:
    calls: list[str] = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3 and [len(times) for times in seconds.values()] == [2, 2]
    figures = compared({"a": [1.0, 3.0, 2.0], "b": [9.0, 8.0, 4.0]}, "a")
    assert figures["median_seconds"] == {"a": 2.0, "b": 8.0} and figures["ratio"] == {"b": 4.0}
    assert row("work", figures) == "| work | a 2 s, b 8 s | 4.00 x b |"


def test_sizes_that_are_none_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module("benchmarks.sampler").main(["--group", "0"]) == 2
    assert capsys.readouterr().err == "error: --group must be 1 or more, got 0\n"
