"""The most memory that a call needs beyond what is there before it: exactly, and as the system sees it.

torch keeps no peak of its CPU allocator, but its profiler reports every allocation and release, those inside kernels
included: the running sum's maximum is exact, as `max_memory_allocated` is on a GPU. What libraries take past torch's
allocator is not in it. The resident peak, from Linux, is: whole pages, fragmentation and threads' stacks as well.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What clear_refs takes for: forget the highest resident size (proc(5))."""


def allocated_peak(call: Callable[[], object], device: str) -> int:
    """Bytes of torch's allocator at the call's highest point, less those before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    results = profiled.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    level = highest = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        level += change
        highest = max(highest, level)
    return highest


def resident_peak(call: Callable[[], object]) -> int:
    """Bytes of the process in memory at the call's highest point, less those before it (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed but kept would serve the call unseen
    before = forget_peak()
    call()
    return resident("VmHWM") - before


def forget_peak() -> int:
    """Begin a new highest point; what is resident now."""
    REFERENCES.write_text(RESET_PEAK)
    return resident("VmRSS")


def resident(field: str) -> int:
    """Bytes of a size in /proc/self/status: VmRSS now, VmHWM at its highest."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
