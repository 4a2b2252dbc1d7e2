"""What the machine computes fast, from the files in which Linux says so."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils import machine, manifest
from utils.config import resolve

CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
of_glibc = pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="glibc"
)


@pytest.mark.parametrize(
    ("device", "gpu", "processor", "expected"),
    [
        ("auto", False, "GenuineIntel avx512f avx512_bf16", "fp32"),
        ("auto", False, "GenuineIntel avx512f avx512_bf16 amx_bf16 amx_tile", "bf16"),
        ("auto", False, "AuthenticAMD avx512f avx512_bf16", "bf16"),
        ("auto", False, "AuthenticAMD avx2", "fp32"),
        ("auto", True, "GenuineIntel avx2", "bf16"),
        ("cpu", True, "GenuineIntel avx2", "fp32"),
        ("cuda", False, "", "bf16"),
    ],
)
def test_bf16_is_taken_where_units_multiply_in_it(
    device: str, gpu: bool, processor: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {processor.replace(' ', chr(10) + 'flags : ', 1)}\n")
    monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "NVIDIA", tmp_path if gpu else tmp_path / "absent")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0")
    assert machine.fast_precision(device) == expected
    assert machine.slow_in_bf16(device) == (expected == "fp32")


def test_of_a_processor_that_says_nothing_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "absent")
    assert (machine.fast_precision("cpu"), machine.slow_in_bf16("cpu")) == ("fp32", False)


@pytest.mark.parametrize(
    ("visible", "torch", "expected"),
    [
        (None, "2.13.0", "device cuda (auto: GPU X)"),
        ("0", "2.13.0+cu130", "device cuda (auto: GPU X)"),
        ("", "2.13.0", "device cpu (auto: CUDA_VISIBLE_DEVICES hides all)"),
        ("-1", "2.13.0", "device cpu (auto: CUDA_VISIBLE_DEVICES hides all)"),
        (None, "2.13.0+cpu", "device cpu (auto: torch is built without CUDA)"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_none(
    visible: str | None, torch: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("vendor_id : GenuineIntel\nflags : avx2\n")
    monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "NVIDIA", tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: torch)
    monkeypatch.setattr(manifest, "gpus", lambda: ["GPU X"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert manifest.device_line("auto") == expected
    assert machine.fast_precision("auto") == ("bf16" if "cuda" in expected else "fp32")


def test_an_automatic_precision_is_settled_before_a_stage_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    config_class = importlib.import_module("03_sft_train").Config
    for found in ("bf16", "fp32"):
        monkeypatch.setattr("utils.config.fast_precision", lambda device, found=found: found)
        resolved = resolve(config_class, ["--config", "llama-tiny"], doc="", script="03_sft_train.py")
        assert resolved.config.model.precision == found
        assert resolved.sources["model.precision"].startswith("auto of ")
        given = resolve(config_class, ["--precision", "bf16"], doc="", script="03_sft_train.py")
        assert (given.config.model.precision, given.sources["model.precision"]) == ("bf16", "flag")


@of_glibc
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    code = (
        "import ctypes, sys; from utils.machine import give_back_memory, keep_freed_memory\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "if len(sys.argv) > 1: keep_freed_memory()\n"
        "before = resident(); block = bytearray(2**28); del block\n"
        "if len(sys.argv) > 2: give_back_memory()\n"
        "print(resident() - before > 2**27)"
    )
    run = [[sys.executable, "-c", code, *flags] for flags in ([], ["keep"], ["keep", "give back"])]
    said = [subprocess.run(one, capture_output=True, text=True, check=True).stdout.strip() for one in run]
    assert said == ["False", "True", "False"]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
@of_glibc
def test_few_kernels_are_kept() -> None:
    """What 600 products of other shapes leave behind, in MB; the user's own number counts."""
    code = (
        "import ctypes, sys, torch; from utils import machine\n"
        "class Info(ctypes.Structure): _fields_ = [(name, ctypes.c_size_t) for name in 'abcdefghij']\n"
        "used = ctypes.CDLL(None).mallinfo2; used.restype = Info\n"
        "if len(sys.argv) > 1: machine.KERNELS = int(sys.argv[1]); machine.keep_few_kernels()\n"
        "weight = torch.randn(64, 64)\n"
        "def product(rows): torch.ops.mkldnn._linear_pointwise(torch.randn(rows, 64), weight, None, 'none', [], '')\n"
        "product(1); before = used().h\n"
        "for rows in range(2, 602): product(rows)\n"
        "print((used().h - before) / 1e6)"
    )
    bare = {name: value for name, value in os.environ.items() if name not in CAPACITIES}
    kept, few, own, older = (
        float(
            subprocess.run(
                [sys.executable, "-c", code, *flag], stdout=subprocess.PIPE, text=True, env=env, check=True
            ).stdout
        )
        for flag, env in (
            ([], bare),
            (["4"], bare),
            (["4"], {**bare, **dict.fromkeys(CAPACITIES[:2], "1024")}),
            (["4"], {**bare, **dict.fromkeys(CAPACITIES[1:], "1024")}),
        )
    )
    assert few < kept / 4 and min(own, older) > kept / 2


GIB = 2**30


def test_memory_is_what_is_free_within_the_limits_around_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {12 * 2**20} kB\n")
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    assert machine.free_memory(False) == machine.DeviceMemory("RAM", 16 * GIB, 12 * GIB)
    inner = tmp_path / "groups" / "outer" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/outer/inner\n")
    (inner / "memory.max").write_text("max\n")
    for folder, limit, used in ((inner, "max", 1), (inner.parent, str(4 * GIB), 3 * GIB)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    (inner.parent / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")  # files kept in memory can go
    assert machine.free_memory(False) == machine.DeviceMemory("RAM", 4 * GIB, 2 * GIB)
    # cgroup 1: the limit of the hierarchy's root is the container's
    (tmp_path / "cgroup").write_text("4:memory:/elsewhere/abc\n3:cpuset:/\n")
    (tmp_path / "groups" / "memory").mkdir()
    (tmp_path / "groups" / "memory" / "memory.limit_in_bytes").write_text(f"{8 * GIB}\n")
    (tmp_path / "groups" / "memory" / "memory.usage_in_bytes").write_text(f"{2 * GIB}\n")
    assert machine.free_memory(False) == machine.DeviceMemory("RAM", 8 * GIB, 6 * GIB)


def test_a_gpu_is_asked_through_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\n[ "$2" = 1 ] && echo "81559, 80000"\n')
    program.chmod(0o755)
    assert machine.free_memory(True) == machine.DeviceMemory("GPU", 81559 * 2**20, 80000 * 2**20)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.free_memory(True) is None
    monkeypatch.setenv("PATH", str(tmp_path / "absent"))
    assert machine.free_memory(True) is None
