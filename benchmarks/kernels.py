"""Which blocks of the Triton kernels are fastest on this GPU: what its row of `kernel_configs.py` should be.

    dnabert2 bench kernels --output kernels.json                             # a GPU, about ten minutes
    TRITON_INTERPRET=1 dnabert2 bench kernels --device cpu --lengths 64 --tokens 64 --heads 1 --repetitions 3

One kernel at a time is given each candidate, while the others keep what the table has, and the pass it is part of is
timed: forward, or backward. All candidates of a kernel share their rounds. Nothing is skipped, for what is left out
says nothing of the rest. A candidate that differs from the first one that runs (the table's own, if it does), does not
compile or does not fit, is in the result with the reason.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from contextlib import contextmanager
from itertools import product
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import Progress

from ..bert_layers.kernel_configs import (
    TF32,
    KernelConfig,
    gpu_architecture,
    kernel_config,
    kind_of,
    one_block,
    products,
)
from ..errors import UserError
from ..precision import DTYPES
from ..provenance import provenance
from .measure import (
    GateError,
    describe,
    drain,
    error_bound,
    free_memory,
    guarded,
    quantiles,
    relative_error,
    rounds_within,
    stopwatch,
    time_rounds,
)
from .options import KERNELS_DEFAULTS, fill_in
from .output import check_output, check_rounds, save
from .problems import Problem, lengths_of, random_problem
from .rivals import RIVALS
from .variants import check_device

__all__ = ["GateError", "run"]

# Blocks of queries and of keys, warps and stages to try; the one-block backward has no loop and square blocks.
CANDIDATES = {
    "forward": [KernelConfig(*x) for x in product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))],
    "query_gradient": [KernelConfig(*x) for x in product((64, 128), (32, 64), (4, 8), (1, 2, 3))],
    "key_gradient": [KernelConfig(*x) for x in product((32, 64), (64, 128), (4, 8), (1, 2, 3))],
    "block_gradient": [KernelConfig(size, size, warps, 1) for size, warps in product((64, 128), (4, 8))],
}


def run(options: argparse.Namespace) -> None:
    """
    The benchmark, with the options of `benchmarks.options`; prints tables and writes `--output`.

    Raises:
        UserError: for options that cannot be used.
    """
    device = check_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    fill_in(options, KERNELS_DEFAULTS[device.type])
    _check(options, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dtype = DTYPES[options.dtype]
    names = ("lengths", "tokens", "heads", "head_dim", "dtype", "repetitions", "warmup", "seconds", "seed")
    result = {
        "benchmark": "kernels",
        **{name: getattr(options, name) for name in names},
        "architecture": gpu_architecture(device),
        "products": products(gpu_architecture(device), dtype),
        "results": [],
        "complete": False,
        "provenance": provenance(device),
    }
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=None)
        for length in dict.fromkeys(options.lengths):
            lengths = lengths_of("equal", length, options.tokens, torch.Generator())
            shape = {"heads": options.heads, "head_dim": options.head_dim, "dtype": dtype, "device": device}
            problem = random_problem("equal", length, lengths, **shape, seed=options.seed)
            for kernel in _kernels(problem, options.kernels):
                progress.update(task, description=f"{length:,} tokens, {kernel}")
                result["results"] += _time_kernel(problem, kernel, options, lambda: progress.advance(task))
                save(result, options.output)
    result["complete"] = True
    save(result, options.output)
    print(report(result))


def _check(options: argparse.Namespace, device: torch.device):
    check_rounds(options.repetitions, options.warmup, options.seconds)
    check_output(options.output)
    if min([*options.lengths, options.tokens, options.heads, options.head_dim]) < 1:
        raise UserError("--lengths, --tokens, --heads and --head_dim must be at least 1.")
    if options.dtype not in DTYPES:
        raise UserError(f"--dtype takes {', '.join(DTYPES)}, not {options.dtype!r}.")
    for kernel in options.kernels:
        if kernel not in CANDIDATES:
            raise UserError(f"{kernel!r} is not a kernel: choose among {', '.join(CANDIDATES)}.")
    if reason := RIVALS["triton"].needs(device, DTYPES[options.dtype]):
        raise UserError(f"{reason}.")


def _kernels(problem: Problem, wanted: list[str]) -> list[str]:
    """Those that a batch of this length runs."""
    backward = ["query_gradient", "key_gradient"]
    if problem.length <= one_block(*kind_of(problem.qkv)):
        backward = ["block_gradient"]
    return [kernel for kernel in wanted if kernel in ["forward", *backward]]


def _time_kernel(
    problem: Problem, kernel: str, options: argparse.Namespace, advance: Callable[[], None]
) -> list[dict]:
    """A JSON-ready row for each candidate, the table's own among them."""
    device, clock = problem.device, stopwatch(problem.device)
    # Blocks of another size cut other numbers to tf32.
    bound = 2.0**-9 if kind_of(problem.qkv)[2] == TF32 else error_bound(problem.dtype, 1)
    own = kernel_config(kernel, *kind_of(problem.qkv), problem.length)
    cases, rows, took, expected = {}, {}, 0.0, None
    for config in dict.fromkeys([own, *CANDIDATES[kernel]]):
        row = {"length": problem.length, "kernel": kernel, **config._asdict(), "is_table": config == own}
        if kernel == "block_gradient" and problem.length > config.block_n:
            rows[config] = row | {"status": "failed", "reason": "the block is shorter than the sequence"}
            continue
        case = _Case(problem, kernel, config)
        try:
            found = _results(problem, kernel, config)
            expected = expected or found
            errors = list(map(relative_error, found, expected))
            took += clock(case, ())
        except Exception as failure:  # whatever a compiler or a GPU raises is the candidate's result
            rows[config] = row | {"status": "failed", "reason": describe(failure)}
        else:
            rows[config] = row | {"relative_errors": errors}
            if all(error <= bound for error in errors):  # a NaN is not
                cases[config] = case
            else:
                rows[config] |= {"status": "failed", "reason": f"differs by {max(errors):.1e} from other blocks"}
        free_memory(device)
        advance()
    seconds, broken = guarded(clock, device)
    rounds = rounds_within(options.seconds, took, options.repetitions, options.warmup)
    found = time_rounds(cases, (), *rounds, advance, seconds)
    for config, case in cases.items():
        if case in broken:
            rows[config] |= {"status": "failed", "reason": broken[case]}
        else:
            rows[config] |= {"status": "measured", "seconds": quantiles(found[config])}
    return list(rows.values())


@contextmanager
def _blocks(kernel: str, config: KernelConfig):
    """Gives `kernel` these blocks; the other kernels keep what the table has."""
    flash_alibi = importlib.import_module(f"{__package__.rpartition('.')[0]}.bert_layers.flash_alibi")

    def choose(name, *rest):
        return config if name == kernel else kernel_config(name, *rest)

    with patch.object(flash_alibi, "kernel_config", choose):
        yield flash_alibi


class _Case:
    """Prepares one call of the pass that a kernel is part of, and returns it."""

    def __init__(self, problem: Problem, kernel: str, config: KernelConfig):
        self.problem, self.kernel, self.config = problem, kernel, config

    def __call__(self) -> Callable[[], list[torch.Tensor]]:
        problem = self.problem
        leaves = [x.detach().requires_grad_(self.kernel != "forward") for x in problem.qkv.unbind(1)]
        cu_seqlens = torch.tensor([0, *problem.lengths], device=problem.device).cumsum(0).to(torch.int32)
        # Bound anew for every call, so that no two hold each other's graph; the plan is not part of what is timed.
        with _blocks(self.kernel, self.config) as flash_alibi:
            plan = flash_alibi.tile_plan(cu_seqlens[:-1], cu_seqlens.diff(), problem.tokens, problem.slopes)
            arguments = (*leaves, problem.slopes, plan, problem.length)
            output = None if self.kernel == "forward" else flash_alibi.planned_attention(*arguments, skip=None)

        def call():
            with _blocks(self.kernel, self.config):
                if output is None:
                    return [flash_alibi.planned_attention(*arguments, skip=None)]
                return list(torch.autograd.grad(output, leaves, problem.gradient))

        return call


def _results(problem: Problem, kernel: str, config: KernelConfig) -> list[torch.Tensor]:
    results = _Case(problem, kernel, config)()()
    drain(problem.device)
    return [x.detach().float() for x in results]


def report(result: dict) -> str:
    """For each length and kernel the fastest candidates and the table's own, as Markdown."""
    lines = []
    for length, kernel in dict.fromkeys((x["length"], x["kernel"]) for x in result["results"]):
        rows = [x for x in result["results"] if (x["length"], x["kernel"]) == (length, kernel)]
        measured = sorted((x for x in rows if x["status"] == "measured"), key=lambda x: x["seconds"]["p50"])
        lines += [f"{length:,} tokens, {kernel}: {len(measured)} of {len(rows)} candidates measured", ""]
        lines += ["| queries x keys | warps | stages | milliseconds (p50) | |", "| --- | ---: | ---: | ---: | --- |"]
        for x in measured:
            if x in measured[:5] or x["is_table"]:
                blocks = f"{x['block_m']}x{x['block_n']} | {x['num_warps']} | {x['num_stages']}"
                note = "the table's" if x["is_table"] else ""
                lines.append(f"| {blocks} | {x['seconds']['p50'] * 1000:.3f} | {note} |")
        lines.append("")
    return "\n".join(lines)
