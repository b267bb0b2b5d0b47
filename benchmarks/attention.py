"""Speed and memory of attention alone: ours in its three modes beside every rival at hand, in one run.

    dnabert2 bench attention --output benchmarks/results/attention-h200.json         # a GPU, about five minutes
    TRITON_INTERPRET=1 dnabert2 bench attention --device cpu --lengths 64 --tokens 128 --heads 2 --repetitions 1
    dnabert2 bench attention --model CHECKPOINT --input GENOME.fa        # its q and k; without a GPU only their norms

First every variant that computes ALiBi must agree with the reference (`attention_gate.py`); if one of ours does not,
nothing is timed. Then, for each length, everything that fits is timed in rounds that run every variant once. What
cannot run is in the result with its reason.

On CUDA a call is timed by events around it, after the L2 cache was overwritten, with the call queued before the device
reaches it: kernels, not the host's launching of them. FLOPs are those of dense attention, also for variants that leave
blocks out: their TFLOP/s are effective ones.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from functools import partial

import torch
from rich.console import Console
from rich.progress import Progress

from ..errors import UserError
from ..precision import DTYPES
from ..provenance import provenance
from . import goals, tables
from .attention_gate import check_attention, failures
from .attention_rounds import time_problems
from .captured import Checkpoint
from .measure import FLUSH_BYTES, FLUSHES, GateError, free_memory
from .norms import norms
from .options import ATTENTION_DEFAULTS, fill_in
from .output import check_output, check_rounds, save
from .problems import DIRECTIONS, LAYOUTS, Problem, lengths_of, random_problem
from .rivals import Rival, forget_compiled, reason_without_triton, rivals_named
from .variants import check_device

__all__ = ["GateError", "run"]


def run(options: argparse.Namespace) -> None:
    """
    The benchmark, with the options of `benchmarks.options`; prints tables and writes `--output`.

    Raises:
        UserError: for options that cannot be used. GateError: if ours is wrong; nothing is timed then.
    """
    device = check_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    fill_in(options, ATTENTION_DEFAULTS[device.type])
    rivals = rivals_named(options.variants)
    _check(options)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # kernels are launched, and events recorded, on the current device
    checkpoint = None
    if options.model is not None:
        checkpoint = Checkpoint(
            options.model, options.input, options.lengths, options.tokens, dtype=options.dtype, device=device
        )
        options.heads, options.head_dim = checkpoint.heads, checkpoint.head_dim
    result = _new_result(options, rivals, device)
    setting = {"heads": options.heads, "head_dim": options.head_dim, "dtype": DTYPES[options.dtype], "device": device}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        result["gate"] = check_attention(
            rivals, **setting, seed=options.seed, with_gradients=set(options.directions) != {"forward"}
        )
        forget_compiled()
        settled = {
            "repetitions": options.repetitions,
            "warmup": options.warmup,
            "budget": options.seconds,
            "failed": failures(result["gate"]),
            "memory": result["provenance"]["device"]["memory_bytes"],
        }
        task = progress.add_task("", total=None)
        for problems in _groups(options, setting, checkpoint):
            for direction in dict.fromkeys(options.directions):
                name = f"{problems[0].source}, {problems[0].length:,} tokens, {direction}"
                progress.update(task, description=name)
                advance = partial(progress.advance, task)
                result["results"] += time_problems(problems, rivals, direction, **settled, advance=advance)
            result["problems"] += [_record(problem) for problem in problems]
            for problem in problems:
                problem.cache.clear()
            forget_compiled()
            free_memory(device)
            save(result, options.output)  # a run that is cut short leaves what it has measured
    result["goals"] = goals.judge(result)
    result["complete"] = True
    save(result, options.output)
    print(tables.report(result))


def _check(options: argparse.Namespace):
    check_rounds(options.repetitions, options.warmup, options.seconds)
    check_output(options.output)
    if min([*options.lengths, options.tokens, options.heads, options.head_dim]) < 1:
        raise UserError("--lengths, --tokens, --heads and --head_dim must be at least 1.")
    if not 0 < options.score_std < math.inf:
        raise UserError(f"--score_std must be a positive number, not {options.score_std}.")
    if (options.model is None) != (options.input is None):
        raise UserError("--model and --input go together: a checkpoint, and the sequences to run it on.")
    for name, known in (("layouts", LAYOUTS), ("directions", DIRECTIONS), ("dtype", DTYPES)):
        values = getattr(options, name)
        for value in [values] if isinstance(values, str) else values:
            if value not in known:
                raise UserError(f"--{name} takes {', '.join(known)}, not {value!r}.")


def _new_result(options: argparse.Namespace, rivals: list[Rival], device: torch.device) -> dict:
    names = ("heads", "head_dim", "dtype", "lengths", "tokens", "layouts", "directions")
    names += ("repetitions", "warmup", "seconds", "seed")
    timing = "wall clock"
    if device.type == "cuda":
        flushed = f"{FLUSHES} times {FLUSH_BYTES // 2**20} MiB written"
        timing = f"CUDA events around a call that is queued already; before it the L2 cache is flushed ({flushed})"
    elif reason_without_triton(device) is None:
        timing += "; Triton is interpreted, which says nothing of its speed"
    return {
        "benchmark": "attention",
        "input": {"score_std": options.score_std}
        if options.model is None
        else {"model": str(options.model), "file": str(options.input)},
        **{name: getattr(options, name) for name in names},
        "timing": timing,
        "flops": "of dense attention, also where blocks are left out: 4 n^2 head_dim a head, backward 2.5 times that",
        "variants": {rival.name: rival.what for rival in rivals},
        "gate": [],
        "problems": [],
        "results": [],
        "goals": [],
        "complete": False,
        "provenance": provenance(device),
    }


def _groups(options: argparse.Namespace, setting: dict, checkpoint: Checkpoint | None) -> Iterator[list[Problem]]:
    """Problems that are timed in the same rounds: the layouts of a length, or one layer of a model."""
    for length in dict.fromkeys(options.lengths):
        if checkpoint is not None:
            yield from ([problem] for problem in checkpoint.problems(length))
            continue
        generator = torch.Generator().manual_seed(options.seed)
        drawn = {x: lengths_of(x, length, options.tokens, generator) for x in dict.fromkeys(options.layouts)}
        yield [
            random_problem(layout, length, lengths, **setting, score_std=options.score_std, seed=options.seed)
            for layout, lengths in drawn.items()
        ]


def _record(problem: Problem) -> dict:
    return {
        "source": problem.source,
        "layout": problem.layout,
        "length": problem.length,
        "lengths": problem.lengths,
        "flops": {direction: problem.flops(direction) for direction in DIRECTIONS},
        "norms": norms(problem.qkv, problem.lengths, problem.slopes),
    }
