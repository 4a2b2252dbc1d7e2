"""What this machine computes fast, found out without loading torch."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

NVIDIA = Path("/dev/nvidiactl")
PROCESSOR = Path("/proc/cpuinfo")


def fast_precision(device: str) -> str:
    """`bf16` where there are units that multiply matrices in it (a CUDA GPU, AMX in a processor), else `fp32`.

    `device` is `auto`, `cpu` or `cuda`. A processor without AMX multiplies in bf16 at half the speed of fp32, AVX512's
    bf16 instructions or not (docs/LOG.md).
    """
    if device == "cuda" or (device == "auto" and NVIDIA.exists()):
        return "bf16"
    flags = PROCESSOR.read_text(encoding="utf-8") if PROCESSOR.is_file() else ""
    return "bf16" if "amx_bf16" in flags else "fp32"


def keep_freed_memory() -> None:
    """Ask glibc to give no memory back to the system before the process ends.

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
