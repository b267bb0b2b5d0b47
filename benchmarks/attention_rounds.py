"""The timing of `bench attention`: what can run, the memory it takes alone, and the time, in rounds shared by all."""

import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product

import torch

from .measure import (
    cuda_peak,
    describe,
    drain,
    free_memory,
    guarded,
    median_ratio,
    quantiles,
    rounds_within,
    stopwatch,
    time_rounds,
)
from .problems import Problem
from .rivals import Rival

BASELINE = "triton"


def time_problems(
    problems: list[Problem],
    rivals: list[Rival],
    direction: str,
    *,
    repetitions: int,
    warmup: int,
    budget: float | None,
    failed: dict[str, str],
    memory: int,
    advance: Callable[[], None],
) -> list[dict]:
    """
    Run `rivals` on `problems` in one direction: each alone for its memory, then all in the same rounds for their time.

    Args:
        budget: seconds after which there are no more rounds, None if all are to be run.
        failed: variants that are not to be run, and why.
        memory: bytes of the device; what needs more for its bias alone is not tried.
        advance: called after each call.

    Returns:
        A JSON-ready row for every pair of problem and variant, those that did not run included, with the reason.
    """
    device = problems[0].device
    cases, took, peaks, refused = {}, {}, {}, {}
    for problem, rival in product(problems, rivals):
        key = (problem, rival)
        refusal = _refusal(problem, rival, failed, memory)
        if refusal is None:
            case = _Case(problem, rival, direction)
            try:
                took[key], peaks[key] = _run_alone(case, device)
                cases[key] = case
            except Exception as error:  # whatever it raises is its result; the gate has seen to ours
                refusal = ("failed", describe(error))
            if refusal:  # out of the except block, where the traceback holds tensors
                free_memory(device)
        refused[key] = refusal
        advance()
    seconds, broken = guarded(stopwatch(device), device)
    rounds = rounds_within(budget, sum(took[key] for key in cases), repetitions, warmup)
    found = time_rounds(cases, (), *rounds, advance, seconds)
    broken = {key: ("failed", broken[case]) for key, case in cases.items() if case in broken}
    clock = _clock(device)
    rows = []
    for key, refusal in (refused | broken).items():
        problem, rival = key
        row = _row(problem, rival, direction) | {"sm_clock_mhz": clock}
        if refusal is not None:
            row |= {"status": refusal[0], "reason": refusal[1]}
        else:
            ours = (found[x] for x in cases if x[0] is problem and x[1].name == BASELINE and x not in broken)
            row |= _measurements(problem, direction, found[key], next(ours, None), peaks[key])
        rows.append(row)
    return rows


def _refusal(problem: Problem, rival: Rival, failed: dict[str, str], memory: int) -> tuple[str, str] | None:
    """Status and reason of what is not to be run."""
    if why := rival.reason_to_skip(problem.layout, problem.device, problem.dtype):
        return "skipped", why
    if rival.name in failed:
        return "failed", failed[rival.name]
    if (needed := rival.bias_bytes(problem)) > memory:
        return "skipped", f"holds at least {needed / 2**30:,.0f} GiB, and the device has {memory / 2**30:,.0f} GiB"
    return None


class _Case:
    """Prepares one call: makes what is not timed, and returns what is."""

    def __init__(self, problem: Problem, rival: Rival, direction: str):
        self.problem, self.rival, self.direction = problem, rival, direction

    def __call__(self):
        problem, rival = self.problem, self.rival
        trains = self.direction != "forward"
        # Bound anew for every call, so that no two variants hold a bias at once.
        attend, leaves = rival.bind(problem), rival.inputs(problem, with_gradients=trains)
        if not trains:
            return torch.no_grad()(lambda: attend(*leaves))
        gradient = rival.native(problem.gradient, problem)
        if self.direction == "both":
            return lambda: torch.autograd.grad(attend(*leaves), leaves, gradient)
        output = attend(*leaves)
        return lambda: torch.autograd.grad(output, leaves, gradient)


def _run_alone(case: _Case, device: torch.device) -> tuple[float, int | None]:
    """
    Run a case twice, the first time to compile.

    Returns:
        Seconds of the whole second run, and its peak of bytes above its inputs, None where nobody counts.
    """
    case.problem.gradient  # noqa: B018  an input too, made at its first use
    case()()
    drain(device)
    with cuda_peak(device) if device.type == "cuda" else nullcontext({"bytes": None}) as measured:
        start = time.perf_counter()
        case()()
        drain(device)
        seconds = time.perf_counter() - start
    return seconds, measured["bytes"]


def _clock(device: torch.device) -> int | None:
    """Clock of the multiprocessors in MHz, right after the rounds; None where nobody says."""
    if device.type != "cuda":
        return None
    query = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", f"--id={device.index or 0}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
        return int(done.stdout.split()[0])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None


def _row(problem: Problem, rival: Rival, direction: str) -> dict:
    return {
        "source": problem.source,
        "layout": problem.layout,
        "length": problem.length,
        "sequences": len(problem.lengths),
        "tokens": problem.tokens,
        "direction": direction,
        "variant": rival.name,
        "status": "measured",
        "reason": None,
        "milliseconds": None,
        "rounds_milliseconds": [],
        "tflops": None,
        "tflops_are_effective": rival.skip is not None,
        "speed_over_triton": None,
        "peak_memory_bytes_above_inputs": None,
        "sm_clock_mhz": None,
    }


def _measurements(problem, direction, seconds: list[float], ours: list[float] | None, peak: int | None) -> dict:
    flops = problem.flops(direction)
    return {
        "milliseconds": quantiles([1000 * x for x in seconds]),
        "rounds_milliseconds": [1000 * x for x in seconds],
        "tflops": quantiles([flops / x / 1e12 for x in seconds]),
        "speed_over_triton": None if ours is None else median_ratio(ours, seconds),
        "peak_memory_bytes_above_inputs": peak,
    }
