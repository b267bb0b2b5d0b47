"""The two measurements of the encoder benchmark that share a process: do the variants agree, and how fast is each."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from .variants import Variant

FLOAT32_BOUND = 1e-5


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
    """|output - reference| / |reference| in the Frobenius norm; NaN if `output` holds any."""
    return float((output.float() - reference).norm() / reference.norm())


@torch.inference_mode()
def seconds_of(encoder: Callable, batch: tuple) -> float:
    """Wall-clock seconds of one forward pass, the device's queue drained before and after."""
    _drain(batch[0].device)
    start = time.perf_counter()
    encoder(*batch)
    _drain(batch[0].device)
    return time.perf_counter() - start


def _drain(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_rounds(
    encoders: dict[Variant, Callable], batch: tuple, repetitions: int, warmup: int, advance: Callable[[], None]
) -> dict[Variant, list[float]]:
    """
    Seconds of each variant in each of `repetitions` rounds, after `warmup` unmeasured passes each.

    Every round runs every variant once, in an order that alternates (A B C, C B A, ...), so that a machine that slows
    down or warms up is shared fairly. `advance` is called after each pass.
    """
    seconds = {variant: [] for variant in encoders}
    for round_index in range(-warmup, repetitions):
        for variant in list(encoders)[:: -1 if round_index % 2 else 1]:
            took = seconds_of(encoders[variant], batch)
            if round_index >= 0:
                seconds[variant].append(took)
            advance()
    return seconds


def median_ratio(reference_seconds: list[float], seconds: list[float]) -> float:
    """How many times faster than the reference: the median over rounds of the ratio within a round."""
    return statistics.median(theirs / ours for theirs, ours in zip(reference_seconds, seconds, strict=True))


def quantiles(values) -> dict[str, float]:
    """The 20th, 50th and 80th percentile, interpolated."""
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in (20, 50, 80)}
