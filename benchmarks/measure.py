"""How long a call takes, in rounds shared with what it is compared to, and how far its result is from another's."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Hashable
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

FLOAT32_BOUND = 1e-5
# Written before each call that CUDA events time: several times any GPU's L2 cache, and about a millisecond's work, so
# that the host has queued the whole call before the device reaches it.
FLUSH_BYTES, FLUSHES = 2**29, 8
# Rounds that are run however long they take, so that there is a median.
LEAST_ROUNDS = 3


class GateError(Exception):
    """What was to be timed does not compute what its reference does, so that its speed means nothing."""


def describe(error: Exception) -> str:
    """An exception as one line of a result; compilers and CUDA explain at length."""
    if isinstance(error, torch.OutOfMemoryError) or "you tried to allocate" in str(error):  # of CUDA, of the CPU
        return "out of memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}".rstrip(".")


def refuse_disagreement(records: list[dict], reference: str):
    """Raise GateError if a record (`variant`, `batch`, `relative_error`, `bound`) is above its bound or NaN."""
    failed = [
        f"{x['variant']} on the {x['batch']} batch (relative error {x['relative_error']:.1e}, bound {x['bound']:.1e})"
        for x in records
        if not x["relative_error"] <= x["bound"]  # a NaN is not
    ]
    if failed:
        raise GateError(f"nothing was timed, for these do not agree with {reference}: {'; '.join(failed)}.")


def error_bound(dtype: torch.dtype, layers: int) -> float:
    """
    The largest relative error (Frobenius norm) of a last hidden state that rounding in `dtype` explains.

    float32: 1e-5. Half precision: machine epsilon times sqrt(layers), since each post-LN block adds its rounding to
    what it passes on. With the benchmark's weights `eager` itself shows half of that in bfloat16 (0.46 of it at 2
    layers, 0.48 at 6, 0.47 at 12); at 12 layers leaving ALiBi out would show five times the bound.
    """
    if dtype == torch.float32:
        return FLOAT32_BOUND
    return torch.finfo(dtype).eps * max(1, layers) ** 0.5


@torch.inference_mode()
def relative_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """|output - reference| / |reference| in the Frobenius norm, computed in the reference's type; NaN stays NaN."""
    difference = (output.to(reference.dtype) - reference).norm()
    return float(difference / reference.norm()) if difference != 0 else 0.0


@torch.inference_mode()
def seconds_of(encoder: Callable, batch: tuple) -> float:
    """Wall-clock seconds of one pass, the device's queue drained before and after."""
    drain(batch[0].device)
    start = time.perf_counter()
    encoder(*batch)
    drain(batch[0].device)
    return time.perf_counter() - start


def drain(device: torch.device):
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def stopwatch(device: torch.device) -> Callable[[Callable, tuple], float]:
    """
    A function (case, batch) -> seconds for `time_rounds`, where `case(*batch)` prepares a call and returns it.

    Only the call is timed: on CUDA by events around it, after the L2 cache was overwritten, elsewhere by the clock.
    """
    if device.type != "cuda":
        return _seconds_of_prepared
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    return partial(_device_seconds_of_prepared, flush)


def _seconds_of_prepared(case: Callable, batch: tuple) -> float:
    call = case(*batch)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _device_seconds_of_prepared(flush: torch.Tensor, case: Callable, batch: tuple) -> float:
    call = case(*batch)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(flush.device)
    for _ in range(FLUSHES):
        flush.zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def rounds_within(budget: float | None, round_seconds: float, repetitions: int, warmup: int) -> tuple[int, int]:
    """`repetitions` and `warmup`, or as many as fit into `budget` seconds, but `LEAST_ROUNDS` and one."""
    if budget is None or (repetitions + warmup) * round_seconds <= budget:
        return repetitions, warmup
    affordable = int(budget / round_seconds) - 1
    return min(repetitions, max(LEAST_ROUNDS, affordable)), min(warmup, 1)


def guarded(seconds: Callable, device: torch.device) -> tuple[Callable, dict]:
    """
    `seconds` for `time_rounds` that survives a case that fails half-way: it gives NaN then, and calls it no more.

    Returns:
        The function, and a dictionary that will hold the reason for each case that failed.
    """
    broken = {}

    def survive(case, batch):
        if case in broken:
            return math.nan
        try:
            return seconds(case, batch)
        except Exception as error:  # hours of other measurements are not lost for it
            broken[case] = f"in its timed rounds: {describe(error)}"
        free_memory(device)  # out of the except block, where the traceback holds tensors
        return math.nan

    return survive, broken


def free_memory(device: torch.device):
    """Give back what nobody holds, so that the next to run finds all of the device's memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def time_rounds(
    cases: dict[Hashable, Callable],
    batch: tuple,
    repetitions: int,
    warmup: int,
    advance: Callable[[], None],
    seconds: Callable[[Callable, tuple], float] = seconds_of,
) -> dict[Hashable, list[float]]:
    """
    Seconds of each case in each of `repetitions` rounds, after `warmup` unmeasured passes each.

    Every round runs every case once, in an order that alternates (A B C, C B A, ...), so that a machine that slows
    down or warms up is shared fairly. `advance` is called after each pass; `seconds(case, batch)` times one.
    """
    found = {name: [] for name in cases}
    for round_index in range(-warmup, repetitions):
        for name in list(cases)[:: -1 if round_index % 2 else 1]:
            took = seconds(cases[name], batch)
            if round_index >= 0:
                found[name].append(took)
            advance()
    return found


@contextmanager
def cuda_peak(device: torch.device):
    """Yields a dictionary that afterwards holds `bytes`, the most the allocator held beyond what it held before."""
    drain(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    measured = {"method": "torch.cuda.max_memory_allocated"}
    yield measured
    drain(device)
    measured["bytes"] = torch.cuda.max_memory_allocated(device) - before


def median_ratio(reference_seconds: list[float], seconds: list[float]) -> float:
    """How many times faster than the reference: the median over rounds of the ratio within a round."""
    return statistics.median(theirs / ours for theirs, ours in zip(reference_seconds, seconds, strict=True))


def quantiles(values) -> dict[str, float]:
    """The 20th, 50th and 80th percentile, interpolated."""
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in (20, 50, 80)}
