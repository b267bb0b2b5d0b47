"""Peak memory of one forward pass or training step above the weights (and, in training, AdamW's moments).

    python -m dnabert2.benchmarks.memory '{"variant": "sdpa:float32", "shape": "1x512", "direction": "forward",
        "device": "cpu", "padding": 0, "seed": 0, "threads": null, "config": null}'

On CUDA the allocator's own count, in the benchmark's process. On a CPU the highest resident set size (RSS) while the
pass runs, less the RSS once the model is built and has run a few tokens, in a process of its own, because malloc keeps
freed memory for later: what an earlier variant has freed would hide what the next one needs. For the same reason the
process hands free memory back to the system (`malloc_trim`, glibc only) before the pass. What malloc and the matrix
library themselves hold during the pass is counted, as it is for a user; a megabyte or two is noise.
"""

import ctypes
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from .measure import cuda_peak, describe, free_memory, seconds_of
from .steps import batch_for, build_steps
from .variants import Shape, Variant, load_config

SAMPLE_SECONDS = 0.002


def probe_in_subprocess(
    variant: Variant,
    shape: Shape,
    *,
    direction: str,
    config: Path | None,
    device: str,
    padding: float,
    seed: int,
    threads: int | None,
) -> dict:
    """
    Measure one variant on one shape in a new process.

    Returns:
        `peak_memory_bytes_above_weights`, `method`, `seconds` of that one pass, real `tokens`; or `error`, if memory
        ran out.
    """
    request = {
        "variant": str(variant),
        "shape": str(shape),
        "direction": direction,
        "config": None if config is None else str(Path(config).resolve()),
        "device": device,
        "padding": padding,
        "seed": seed,
        "threads": threads,
    }
    command = [sys.executable, "-m", __spec__.name, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode < 0:
        return {"error": f"killed by signal {-done.returncode}, as the system does when memory runs out"}
    if done.returncode:
        raise RuntimeError(f"The memory probe of {variant} on {shape} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def probe(request: dict) -> dict:
    """The body of the process; `request` and result as in `probe_in_subprocess`."""
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    config, device, seed = load_config(request["config"]), torch.device(request["device"]), request["seed"]
    shape, variant = Shape.parse(request["shape"]), Variant.parse(request["variant"])
    step = build_steps(request["direction"], config, [variant], device, seed)[variant]
    batch, tokens = batch_for(request["direction"], config, shape, request["padding"], device, seed)
    # Start threads and libraries. Not on the shape itself, whose freed memory malloc would keep.
    seconds_of(step, tuple(x[:, :8].contiguous() for x in batch))
    return probe_here(step, batch, tokens)


def probe_here(step: Callable, batch: tuple, tokens: int) -> dict:
    """Measure one pass in this process; results as in `probe_in_subprocess`. On CUDA it runs twice, to compile."""
    device = batch[0].device
    is_cuda = device.type == "cuda"
    _give_free_memory_back(device)
    peak = cuda_peak if is_cuda else _kernel_peak if _can_reset_kernel_peak() else _sampled_peak
    try:
        if is_cuda:
            seconds_of(step, batch)
        with peak(device) as measured:
            seconds = seconds_of(step, batch)
    except Exception as error:  # a kernel or compiler that fails on this shape; the others are still to be measured
        failed = {"error": describe(error)}
    else:
        return {
            "peak_memory_bytes_above_weights": measured["bytes"],
            "method": measured["method"],
            "seconds": seconds,
            "tokens": tokens,
        }
    _give_free_memory_back(device)  # out of the except block, where the traceback holds tensors
    return failed


@contextmanager
def _kernel_peak(device: torch.device):
    """Linux keeps the highest RSS itself: exact, however short the peak."""
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    measured = {"method": "VmHWM"}
    yield measured
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    measured["bytes"] = max(0, int(status["VmHWM"].split()[0]) * 1024 - before)


def _can_reset_kernel_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@contextmanager
def _sampled_peak(device: torch.device):
    """Elsewhere a thread looks every few milliseconds, and may miss a shorter peak."""
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    samples = [before]

    def sample():
        while not done.wait(SAMPLE_SECONDS):
            samples.append(process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    measured = {"method": f"RSS sampled every {SAMPLE_SECONDS * 1000:g} ms"}
    try:
        yield measured
    finally:
        done.set()
        thread.join()
    measured["bytes"] = max(samples) - before


def _give_free_memory_back(device: torch.device):
    free_memory(device)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    print(json.dumps(probe(json.loads(sys.argv[1]))))
