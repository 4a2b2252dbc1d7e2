"""What the machine computes fast, from the files in which Linux says so."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import machine
from utils.config import resolve


@pytest.mark.parametrize(
    ("device", "gpu", "flags", "expected"),
    [
        ("auto", False, "avx512f avx512_bf16", "fp32"),
        ("auto", False, "avx512f amx_bf16 amx_tile", "bf16"),
        ("auto", True, "avx2", "bf16"),
        ("cpu", True, "avx2", "fp32"),
        ("cuda", False, "", "bf16"),
    ],
)
def test_bf16_is_taken_where_units_multiply_in_it(
    device: str, gpu: bool, flags: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "NVIDIA", tmp_path if gpu else tmp_path / "absent")
    assert machine.fast_precision(device) == expected


def test_an_automatic_precision_is_settled_before_a_stage_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    config_class = importlib.import_module("03_sft_train").Config
    for found in ("bf16", "fp32"):
        monkeypatch.setattr("utils.config.fast_precision", lambda device, found=found: found)
        resolved = resolve(config_class, ["--config", "llama-tiny"], doc="", script="03_sft_train.py")
        assert resolved.config.model.precision == found
        assert resolved.sources["model.precision"].startswith("auto of ")
        given = resolve(config_class, ["--precision", "bf16"], doc="", script="03_sft_train.py")
        assert (given.config.model.precision, given.sources["model.precision"]) == ("bf16", "flag")


@pytest.mark.skipif(not hasattr(os, "confstr") or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="glibc")
def test_freed_memory_is_kept() -> None:
    code = (
        "import ctypes, sys; from utils.machine import keep_freed_memory\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "if len(sys.argv) > 1: keep_freed_memory()\n"
        "before = resident(); block = bytearray(2**28); del block; print(resident() - before > 2**27)"
    )
    run = [[sys.executable, "-c", code, *flag] for flag in ([], ["keep"])]
    said = [subprocess.run(one, capture_output=True, text=True, check=True).stdout.strip() for one in run]
    assert said == ["False", "True"]
