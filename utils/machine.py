"""What this machine computes fast, found out without loading torch."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NVIDIA = Path("/dev/nvidiactl")
PROCESSOR = Path("/proc/cpuinfo")
MEMORY = Path("/proc/meminfo")
OUT_OF_MEMORY = "out of memory: lower batch_size, micro_batch_tokens or tokens_per_batch (README, Troubleshooting)"
UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512 bf16", "avx512f": "AVX512", "avx2": "AVX2"}
"""What Linux calls an instruction set -> its name, the best first."""
KERNELS = 256
"""That oneDNN keeps, and that torch keeps of each kind of its own."""
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def fast_precision(device: str) -> str:
    """`bf16` where there are units that multiply matrices in it fast, else `fp32`.

    Those are a CUDA GPU, AMX in a processor, and AVX512's bf16 instructions in one of AMD's; with the same instructions
    another without AMX took twice the time of fp32 (measured: docs/LOG.md). `device` is `auto`, `cpu` or `cuda`.
    """
    if device == "cuda" or (device == "auto" and NVIDIA.exists() and not gpus_hidden()):
        return "bf16"
    said, units = _processor(), matrix_units()
    return "bf16" if units == "AMX" or ("AuthenticAMD" in said and units == "AVX512 bf16") else "fp32"


def slow_in_bf16(device: str) -> bool:
    """Whether this is a processor known to multiply in bf16 more slowly than in fp32: by half, or a hundred times."""
    return bool(matrix_units()) and fast_precision(device) == "fp32"


def gpus_hidden() -> str:
    """Why torch sees none of a machine's GPUs, as far as it can be foretold; empty where it may see them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides all"
    from importlib.metadata import version  # slow to import, and only machines with a GPU ask

    return "torch is built without CUDA" if version("torch").endswith("+cpu") else ""


def matrix_units() -> str:
    """The best that this processor multiplies matrices with: one of UNITS; empty where it does not say."""
    flags = set(_processor().split())
    return next((name for flag, name in UNITS.items() if flag in flags), "")


def wide_products_unused_by_mkl() -> bool:
    """Whether this is one of AMD's processors with AVX512, on which MKL multiplies fp32 matrices without it."""
    return "AuthenticAMD" in _processor() and matrix_units() in ("AVX512", "AVX512 bf16")


def _processor() -> str:
    return PROCESSOR.read_text(encoding="utf-8") if PROCESSOR.is_file() else ""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Ask glibc to give no memory back to the system of its own accord (`give_back_memory` does).

    Tensors of a training step are freed and made again at once; every page of each would be cleared by the system
    anew, a tenth to a quarter of the time (docs/LOG.md). Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_* in <malloc.h>
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**26)


def give_back_memory() -> None:
    """Give what is free back to the system all the same, once.

    After work of other sizes than what goes on: its tensors would have found no room among what was kept, and the next
    time again, a little more of it each time (docs/LOG.md). A step of training takes some 0.07 s to get it back.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def keep_few_kernels() -> None:
    """Bound how many compiled kernels oneDNN and torch keep for shapes that they have met, unless the user has.

    Each is half a megabyte, and of every kind there may be 1,024: prompts of ever other lengths fill them for hundreds
    of steps (docs/LOG.md). To be called before the first product.
    """
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(KERNELS))
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # an older name of the same
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes that a device has, and those nobody uses now. `what`: GPU or RAM."""

    what: str
    total: int
    free: int

    def line(self) -> str:
        """`RAM 16 GB, 12 GB free`."""
        return f"{self.what} {self.total / 1e9:.3g} GB, {self.free / 1e9:.3g} GB free"


def free_memory(gpu: bool) -> DeviceMemory | None:
    """Memory of the first visible GPU (asked of nvidia-smi), else of this machine; None where nobody says."""
    return _gpu_memory() if gpu else _ram()


def _gpu_memory() -> DeviceMemory | None:
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    query = ["nvidia-smi", "-i", first, "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        total, free = (int(number) * 2**20 for number in said.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return DeviceMemory("GPU", total, free)


def _ram() -> DeviceMemory | None:
    """What is available without swapping, within the limits of the control groups (containers) around this process."""
    if not MEMORY.is_file():
        return None
    lines = (line.split() for line in MEMORY.read_text(encoding="utf-8").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    total, free = sizes["MemTotal"], sizes.get("MemAvailable", sizes["MemFree"])
    for limit, used in _limits():
        total, free = min(total, limit), min(free, max(0, limit - used))
    return DeviceMemory("RAM", total, free)


def _limits() -> list[tuple[int, int]]:
    """(limit, used) in bytes of each control group with a limit (Linux, cgroup 2 and 1); cached files count as free."""
    found = []
    groups = OWN_GROUPS.read_text(encoding="utf-8").splitlines() if OWN_GROUPS.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in groups):
        if controllers not in ("", "memory"):
            continue
        root = GROUPS / controllers
        own = root / path.lstrip("/")
        above = [folder for folder in own.parents if folder == root or root in folder.parents]
        found += [pair for folder in {own, *above} if (pair := _limit(folder, second=not controllers))]
    return found


def _limit(folder: Path, second: bool) -> tuple[int, int] | None:
    """One control group's (limit, used), by the names of cgroup 2 or 1; None without a limit."""
    names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    limit, used, statistics = (folder / name for name in (*names, "memory.stat"))
    if not (limit.is_file() and used.is_file() and (words := limit.read_text().strip()) != "max"):
        return None
    lines = statistics.read_text().splitlines() if statistics.is_file() else []
    counts = {name: int(value) for name, value in (line.split() for line in lines)}
    files = counts.get("total_inactive_file", counts.get("inactive_file", 0))
    return int(words), int(used.read_text()) - files


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch raised because a device has no memory left: OutOfMemoryError on a GPU, a RuntimeError on a CPU."""
    signs = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in signs)
    )
