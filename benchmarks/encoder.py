"""Speed and memory of the encoder, forward and in training, side by side with the published code's algorithm.

    dnabert2 bench encoder --output benchmarks/results/encoder-cpu.json              # 117M, a quarter of an hour
    dnabert2 bench encoder --shapes 1x128 --memory_shapes --repetitions 2            # CPU-sized, two minutes
    dnabert2 bench encoder --device cuda --output benchmarks/results/encoder-h200.json              # a few minutes

First every variant must agree with float32 `eager` on small batches; if one does not, nothing is timed. Then peak
memory is measured, each variant and shape by itself, then time, in rounds that run every variant once. A ratio is the
median over rounds of the ratio within a round: whatever else the machine does hits both sides.
"""

import argparse
import sys
from functools import partial

import torch
from rich.console import Console
from rich.progress import Progress

from ..errors import UserError
from ..modeling_dnabert2 import DNABert2Model
from ..provenance import provenance
from . import goals, tables
from .encoder_gate import check_agreement, variants_to_build
from .encoder_rounds import EncoderRounds
from .measure import GateError
from .options import ENCODER_DEFAULTS, fill_in
from .output import check_output, check_rounds, save
from .steps import DIRECTIONS, build_steps
from .variants import Shape, Variant, check_device, load_config

__all__ = ["GateError", "run"]


def run(options: argparse.Namespace) -> None:
    """
    The benchmark, with the options of `benchmarks.options`; prints a table and writes `--output`.

    Raises:
        UserError: for options that cannot be used. GateError: if the variants disagree; nothing is timed then.
    """
    device = check_device(options.device)
    fill_in(options, ENCODER_DEFAULTS[device.type])
    _check(options)
    shapes, memory_shapes = _parse_all(Shape, options.shapes), _parse_all(Shape, options.memory_shapes)
    config = load_config(options.config)
    variants, memory_variants = (
        list(dict.fromkeys(variant.resolved(device) for variant in _parse_all(Variant, texts)))
        for texts in (options.variants, options.memory_variants)
    )
    if options.threads:
        torch.set_num_threads(options.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    wanted = list(dict.fromkeys(variants + (memory_variants if memory_shapes else [])))
    refused = {x: _refusals(options, config, device, wanted, x) for x in dict.fromkeys(options.directions)}
    if all(len(found) == len(wanted) for found in refused.values()):
        reasons = "; ".join(f"{variant}: {why}" for variant, (_, why) in next(iter(refused.values())).items())
        raise UserError(f"there is nothing to measure: {reasons}.")

    result = _new_result(options, config, device, shapes, memory_shapes)
    steps = {}
    for direction in refused:  # all gates before anything is timed
        able = [variant for variant in wanted if variant not in refused[direction]]
        steps[direction] = build_steps(direction, config, variants_to_build(direction, able), device, options.seed)
        records, broken = check_agreement(direction, config, steps[direction], able, device, options.seed)
        result["gate"] += records
        refused[direction] |= {variant: ("failed", why) for variant, why in broken.items()}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        for direction in refused:
            bench = EncoderRounds(options, config, device, direction, steps.pop(direction), refused[direction])
            task = progress.add_task("", total=None)
            for shape, names, measure in [
                *((shape, variants, bench.time) for shape in shapes),
                *((shape, memory_variants, bench.run_once) for shape in memory_shapes),
            ]:
                progress.update(task, description=f"{direction}, {shape}")
                result["results"] += measure(shape, names, partial(progress.advance, task))
                save(result, options.output)  # a run that is cut short leaves what it has measured
    result["goals"] = goals.judge(result)
    result["complete"] = True
    save(result, options.output)
    print(tables.report(result))


def _refusals(options, config, device, variants: list[Variant], direction: str) -> dict[Variant, tuple[str, str]]:
    """Status and reason of the variants that are not to be measured."""
    head_dim = config.hidden_size // config.num_attention_heads
    reasons = {x: x.reason_to_skip(device, options.include_slow, direction, head_dim) for x in variants}
    return {variant: ("skipped", why) for variant, why in reasons.items() if why is not None}


def _new_result(options, config, device, shapes: list[Shape], memory_shapes: list[Shape]) -> dict:
    with torch.device("meta"):
        parameters = sum(x.numel() for x in DNABert2Model(config, add_pooling_layer=False).parameters())
    return {
        "benchmark": "encoder",
        "config": config.to_dict(),
        "parameters": parameters,
        "directions": list(dict.fromkeys(options.directions)),
        "shapes": [str(shape) for shape in shapes],
        "memory_shapes": [str(shape) for shape in memory_shapes],
        "padding": options.padding,
        "repetitions": options.repetitions,
        "warmup": options.warmup,
        "seconds": options.seconds,
        "seed": options.seed,
        "gate": [],
        "results": [],
        "goals": [],
        "complete": False,
        "provenance": provenance(device),  # of the files as they are now
    }


def _parse_all(kind: type, texts: list[str]) -> list:
    return [kind.parse(text) for text in dict.fromkeys(texts)]


def _check(options: argparse.Namespace):
    check_rounds(options.repetitions, options.warmup, options.seconds)
    if not 0 <= options.padding < 1:
        raise UserError(f"--padding is the share of pads, at least 0 and below 1, not {options.padding}.")
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads must be at least 1, not {options.threads}.")
    for direction in options.directions:
        if direction not in DIRECTIONS:
            raise UserError(f"--directions takes {', '.join(DIRECTIONS)}, not {direction!r}.")
    check_output(options.output)
