"""How memory is given back: on a CPU, not after every step.

glibc maps large blocks from the kernel and unmaps them when they are freed, so that every training step faults all of
its activations in again. Keeping them made a step of the `mini` recipe some 10 % faster (docs/log.md, 2026-11-24).
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Have this process keep freed blocks for its next allocations; False where the C library has no such setting."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
