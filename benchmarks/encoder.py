"""Speed and memory of the encoder's forward pass, side by side with the published code's algorithm, in one run.

    dnabert2 bench encoder --output benchmarks/results/encoder-cpu.json              # 117M, a quarter of an hour
    dnabert2 bench encoder --shapes 1x128 --memory_shapes --repetitions 2            # CPU-sized, two minutes

First every variant must agree with float32 `eager` on small batches; if one does not, nothing is timed. Then peak
memory is measured, each variant and shape in a process of its own, then time, in rounds that run every variant once. A
ratio is the median over rounds of the ratio within a round: whatever else the machine does hits both sides.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from ..atomic import write_whole
from ..configuration_dnabert2 import DNABert2Config
from ..errors import UserError
from ..precision import DTYPES
from ..provenance import provenance
from .measure import error_bound, median_ratio, quantiles, relative_error, time_rounds
from .memory import probe_in_subprocess
from .variants import PUBLISHED, Shape, Variant, batch_of, build_encoders, check_device, draw_batch, load_config

REFERENCE = Variant("eager", "float32")
# The gate's batches: with pads and without, since backends take different paths.
GATE_LENGTHS = {"padded": [96, 61, 7], "full": [96, 96]}


class GateError(Exception):
    """A variant does not compute what `eager` in float32 does, so that its speed means nothing."""


def run(options: argparse.Namespace) -> None:
    """
    The benchmark, with the options of `benchmarks.main`; prints a table and writes `--output`.

    Raises:
        UserError: for options that cannot be used. GateError: if the variants disagree; nothing is timed then.
    """
    _check(options)
    shapes, memory_shapes = _parse_all(Shape, options.shapes), _parse_all(Shape, options.memory_shapes)
    config, device = load_config(options.config), check_device(options.device)
    variants, memory_variants = (
        list(dict.fromkeys(variant.resolved(device) for variant in _parse_all(Variant, texts)))
        for texts in (options.variants, options.memory_variants)
    )
    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = dict.fromkeys(variants + (memory_variants if memory_shapes else []))
    reasons = {variant: variant.reason_to_skip(device, options.include_slow) for variant in wanted}
    able = [variant for variant in wanted if reasons[variant] is None]
    if not able:
        raise UserError(f"there is nothing to measure: {'; '.join(f'{x}: {why}' for x, why in reasons.items())}.")

    circumstances = provenance(device)  # of the files as they are now
    encoders = build_encoders(config, list(dict.fromkeys([REFERENCE, *able])), device, options.seed)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        gate = check_agreement(config, encoders, able, device, options.seed)
        timed = {x: encoders[x] for x in variants if x in able}
        rows = _time_shapes(options, config, device, shapes, timed, progress)
        rows += _run_once(options, memory_shapes, [x for x in memory_variants if x in able], progress)
    for group, names in ((shapes, variants), (memory_shapes, memory_variants)):
        rows += [_row(shape, x, "skipped", reasons[x]) for shape in group for x in names if x not in able]
    if options.output is not None:
        result = {
            "benchmark": "encoder",
            "config": config.to_dict(),
            "parameters": sum(x.numel() for x in encoders[REFERENCE].parameters()),
            "shapes": [str(shape) for shape in shapes],
            "memory_shapes": [str(shape) for shape in memory_shapes],
            "padding": options.padding,
            "repetitions": options.repetitions,
            "warmup": options.warmup,
            "seed": options.seed,
            "gate": gate,
            "results": rows,
            "provenance": circumstances,
        }
        _save(result, options.output)
    _print(rows)


def _parse_all(kind: type, texts: list[str]) -> list:
    return [kind.parse(text) for text in dict.fromkeys(texts)]


def _check(options: argparse.Namespace):
    if options.repetitions < 1 or options.warmup < 0:
        raise UserError("--repetitions must be at least 1 and --warmup at least 0.")
    if not 0 <= options.padding < 1:
        raise UserError(f"--padding is the share of pads, at least 0 and below 1, not {options.padding}.")
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads must be at least 1, not {options.threads}.")
    if options.output is not None:
        if options.output.is_dir():
            raise UserError(f"--output {options.output} is a folder: name a JSON file.")
        try:  # now, not after minutes of work
            options.output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {options.output} cannot be written: {error.strerror}.") from error


@torch.inference_mode()
def check_agreement(
    config: DNABert2Config,
    encoders: dict[Variant, nn.Module],
    variants: list[Variant],
    device: torch.device,
    seed: int,
) -> list[dict]:
    """
    Compare `variants` with `REFERENCE`, both among `encoders`.

    Returns:
        One record a batch and variant: `variant`, `batch`, `relative_error`, `bound`.

    Raises:
        GateError: if an error is above its bound (`measure.error_bound`), or not a number.
    """
    generator = torch.Generator().manual_seed(seed)
    records = []
    for name, lengths in GATE_LENGTHS.items():
        batch = draw_batch(config, lengths, max(lengths), device, generator)
        expected = encoders[REFERENCE](*batch)
        for variant in variants:
            error = relative_error(encoders[variant](*batch), expected)
            bound = error_bound(DTYPES[variant.dtype], config.num_hidden_layers)
            records.append({"variant": str(variant), "batch": name, "relative_error": error, "bound": bound})
    failed = [
        f"{x['variant']} on the {x['batch']} batch (relative error {x['relative_error']:.1e}, bound {x['bound']:.1e})"
        for x in records
        if not x["relative_error"] <= x["bound"]  # a NaN is not
    ]
    if failed:
        raise GateError(f"nothing was timed, for these do not agree with {REFERENCE}: {'; '.join(failed)}.")
    return records


def _time_shapes(options, config, device, shapes, encoders, progress) -> list[dict]:
    rows = []
    passes = 1 + options.warmup + options.repetitions
    task = progress.add_task("", total=len(shapes) * len(encoders) * passes)
    for shape in shapes:
        found = {}
        for variant in encoders:
            progress.update(task, description=f"{shape} {variant}: memory")
            found[variant] = _probe(options, variant, shape)
            progress.advance(task)
        progress.update(task, description=f"{shape}: time")
        batch, _ = batch_of(config, shape, options.padding, device, options.seed)
        fitting = {variant: encoders[variant] for variant in encoders if "error" not in found[variant]}
        seconds = time_rounds(fitting, batch, options.repetitions, options.warmup, lambda: progress.advance(task))
        published = next((seconds[x] for x in seconds if x.backend == PUBLISHED), None)
        rows += [_row_of_probe(shape, x, found[x], seconds.get(x), published) for x in encoders]
    return rows


def _run_once(options, shapes, variants, progress) -> list[dict]:
    rows = []
    task = progress.add_task("", total=len(shapes) * len(variants))
    for shape in shapes:
        for variant in variants:
            progress.update(task, description=f"{shape} {variant}: one pass")
            found = _probe(options, variant, shape)
            rows.append(_row_of_probe(shape, variant, found, [found["seconds"]] if "seconds" in found else None, None))
            progress.advance(task)
    return rows


def _probe(options, variant, shape) -> dict:
    names = ("config", "device", "padding", "seed", "threads")
    return probe_in_subprocess(variant, shape, **{name: getattr(options, name) for name in names})


def _row(shape: Shape, variant: Variant, status: str, reason: str | None) -> dict:
    return {
        "shape": str(shape),
        "variant": str(variant),
        "status": status,
        "reason": reason,
        "tokens": None,
        "tokens_per_second": None,
        "milliseconds": None,
        "rounds_milliseconds": [],
        "ratio_to_published": None,
        "peak_memory_bytes_above_weights": None,
        "memory_method": None,
    }


def _row_of_probe(shape, variant, found: dict, seconds: list[float] | None, published: list[float] | None) -> dict:
    if "error" in found:
        return _row(shape, variant, "failed", found["error"])
    return _row(shape, variant, "measured", None) | {
        "tokens": found["tokens"],
        "tokens_per_second": quantiles([found["tokens"] / x for x in seconds]),
        "milliseconds": quantiles([1000 * x for x in seconds]),
        "rounds_milliseconds": [1000 * x for x in seconds],
        "ratio_to_published": None if published is None else median_ratio(published, seconds),
        "peak_memory_bytes_above_weights": found["peak_memory_bytes_above_weights"],
        "memory_method": found["method"],
    }


def _save(result: dict, path: Path):
    try:
        write_whole(path, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}.") from error


def _print(rows: list[dict]):
    table = Table(title="Forward pass: tokens/s and peak memory above the weights", title_justify="left")
    table.add_column("shape", no_wrap=True)
    table.add_column("variant", no_wrap=True)
    for name in ("p20", "p50", "p80", "x published", "peak MiB"):
        table.add_column(name, justify="right")
    for row in rows:
        if row["status"] != "measured":
            table.add_row(row["shape"], row["variant"], row["status"])
            continue
        ratio = row["ratio_to_published"]
        table.add_row(
            row["shape"],
            row["variant"],
            *(f"{row['tokens_per_second'][percentile]:,.0f}" for percentile in ("p20", "p50", "p80")),
            "" if ratio is None else f"{ratio:.2f}",
            f"{row['peak_memory_bytes_above_weights'] / 2**20:,.0f}",
        )
    console = Console()
    console.print(table)
    for line in dict.fromkeys(f"{x['variant']} {x['status']}: {x['reason']}." for x in rows if x["reason"]):
        console.print(line, highlight=False)
