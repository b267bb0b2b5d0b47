"""The `bench` verb: one sub-command a benchmark.

    python -m dnabert2.benchmarks.main encoder --shapes 1x128 --memory_shapes --repetitions 2          # CPU-sized

is the same as `dnabert2 bench encoder ...`; `dnabert2 bench encoder --help` lists its options.
"""

import argparse
import importlib
import sys
from pathlib import Path

from ..errors import run_verb


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if all was measured, 2 for unusable options, 1 if variants disagree, so that nothing is timed."""
    options = _parser().parse_args(argv)
    # What measures imports torch; --help has been answered by now.
    module = importlib.import_module(options.module, __package__)
    try:
        return run_verb(module.run, options)
    except module.GateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dnabert2 bench", description="Measure speed and memory.")
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    encoder = benchmarks.add_parser(
        "encoder",
        help="the encoder's tokens/s and peak memory, beside the published code's algorithm",
        description="Tokens/s and peak memory of the encoder's forward pass, in each attention backend and precision, "
        "side by side with the published code's algorithm.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    encoder.set_defaults(module=".encoder")
    _add_encoder_options(encoder.add_argument)
    return parser


def _add_encoder_options(add):
    shapes = {"metavar": "SEQUENCESxTOKENS"}
    variants = {"metavar": "BACKEND:PRECISION"}
    add("--shapes", nargs="+", default=["1x512", "8x512", "1x2048"], help="batches to time", **shapes)
    add(
        "--variants",
        nargs="+",
        default=["published:float32", "eager:float32", "sdpa:float32", "sdpa:bfloat16"],
        help="what to time; a precision that the device lacks is skipped, and recorded as skipped",
        **variants,
    )
    add("--include_slow", action="store_true", help="measure precisions that the device has to emulate too")
    add("--repetitions", type=int, default=5, help="rounds a shape; each runs every variant once")
    add("--warmup", type=int, default=1, help="unmeasured rounds a shape")
    add(
        "--memory_shapes",
        nargs="*",
        default=["1x8192"],
        help="long batches, of which only the peak memory and the time of one pass are measured",
        **shapes,
    )
    add(
        "--memory_variants",
        nargs="*",
        default=["sdpa:float32", "sdpa:bfloat16"],
        help="what to run them with",
        **variants,
    )
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--threads", type=int, help="CPU threads; torch's choice if not given")
    add("--padding", type=float, default=0.0, help="share of a batch that is pads, 0 to 1; tokens/s counts the rest")
    add("--config", type=Path, help="JSON configuration of the network; DNABERT-2-117M's if not given")
    add("--seed", type=int, default=0, help="of weights, ids and lengths")
    add("--output", type=Path, help="JSON file to write; a table is printed in any case")


if __name__ == "__main__":
    sys.exit(main())
