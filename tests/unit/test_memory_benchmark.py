"""Peaks of memory: exact where torch allocates, near where the system looks; and the benchmark that compares them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import memory
from benchmarks.peaks import allocated_peak

MEGABYTE = 2**20
ROOT = Path(__file__).resolve().parents[2]


def use(first: int, second: int, together: bool) -> None:
    """Two tensors of so many MB, the first gone before the second comes unless they are there together."""
    one = torch.ones(first * MEGABYTE, dtype=torch.uint8)
    if not together:
        del one
    torch.ones(second * MEGABYTE, dtype=torch.uint8)


@pytest.mark.parametrize(("together", "expected"), [(True, 80), (False, 48)])
def test_the_allocated_peak_is_exact(together: bool, expected: int) -> None:
    assert allocated_peak(lambda: use(32, 48, together), "cpu") == expected * MEGABYTE


def test_the_allocated_peak_sees_the_backward_pass() -> None:
    weight = torch.ones(MEGABYTE, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    # exp keeps its result, 4 MB; the sum's gradient is expanded; its product with the result is the gradient
    assert allocated_peak(lambda: weight.exp().sum().backward(), "cpu") >= 8 * MEGABYTE


@pytest.mark.parametrize(("together", "expected"), [(True, 80), (False, 48)])
def test_the_resident_peak_is_near(together: bool, expected: int) -> None:
    code = (  # in a process of its own: what other tests have freed would be used again
        "from benchmarks.peaks import resident_peak; from tests.unit.test_memory_benchmark import use\n"
        f"print(resident_peak(lambda: use(32, 48, {together})))"
    )
    peak = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(peak) == pytest.approx(expected * MEGABYTE, abs=8 * MEGABYTE)


@pytest.mark.slow
def test_the_ways_are_measured_in_processes_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    sizes = ["--prompt", "40", "--completion", "8", "--group", "4", "--vocabulary", "512", "--device", "cpu"]
    chosen = ["--only", "project", "TRL, 4 rows", "--repeats", "1"]
    assert memory.main([*sizes, *chosen, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert list(figures["median"]) == ["project", "TRL, 4 rows"] and figures["unit"] == "bytes"
    # four rows of 48 tokens need more than one of 40 + 4 x 8
    assert figures["ratio"]["TRL, 4 rows"] > 1 and min(figures["resident"]["median"].values()) > 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| activations of an update, 4.1 M parameters, fp32,")


def test_a_process_that_fails_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert memory.main(["--only", "project", "--repeats", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: project: ModuleNotFoundError: ")


def test_weights_gradients_and_moments_are_counted() -> None:
    assert memory.fixed(torch.nn.Linear(3, 2)) == 4 * 4 * 8
