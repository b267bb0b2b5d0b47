"""The `bench` verb: one sub-command a benchmark.

    python -m dnabert2.benchmarks.main encoder --shapes 1x128 --memory_shapes --repetitions 2          # CPU-sized

is the same as `dnabert2 bench encoder ...`; `dnabert2 bench encoder --help` lists its options. On a GPU

    dnabert2 bench attention --output attention.json && dnabert2 bench encoder --device cuda --output encoder.json

measures everything with a goal, in less than ten minutes. `bench length` measures how good a model is, not how fast.
"""

import argparse
import importlib
import sys

from ..errors import run_verb
from ..terminal import quiet_unless_terminal
from .options import (
    Formatter,
    add_attention_options,
    add_bits_options,
    add_brca1_options,
    add_demo_options,
    add_embed_options,
    add_encoder_options,
    add_kernels_options,
    add_length_options,
    add_vocab_options,
)

# name, which is its module's too -> (adds its options, one line, a sentence)
BENCHMARKS = {
    "attention": (
        add_attention_options,
        "attention alone, forward and backward, beside every other way to compute it",
        "Speed and memory of ALiBi attention in this project's Triton kernels, beside every rival that is "
        "installed, once all of them are found to compute the same.",
    ),
    "encoder": (
        add_encoder_options,
        "the encoder's tokens/s and peak memory, beside the published code's algorithm",
        "Tokens/s and peak memory of the encoder's forward pass, or of a training step, in each attention "
        "backend and precision, side by side with the published code's algorithm.",
    ),
    "kernels": (
        add_kernels_options,
        "block sizes of the Triton kernels, to choose those of a GPU",
        "The time of attention with each candidate for the block sizes, warps and stages of each Triton "
        "kernel, beside those that the table in bert_layers/kernel_configs.py has for this GPU.",
    ),
    "bits": (
        add_bits_options,
        "held-out bits per base of a masked language model, beside Markov models",
        "Bits per base of a masked language model on a corpus' held-out windows, by group, beside Markov "
        "models of orders 0 to 10 that were counted on the corpus' training windows.",
    ),
    "demo": (
        add_demo_options,
        "what pretraining is worth: mini fine-tuned, beside random weights",
        "Test scores of the bundled checkpoint, fine-tuned on the bundled data set, beside networks that "
        "start from random weights, over several seeds.",
    ),
    "vocab": (
        add_vocab_options,
        "byte pairs of every size beside k-mers: length, cost, leakage, stability",
        "Byte-pair vocabularies of several sizes, trained on genomes, beside overlapping and "
        "non-overlapping k-mers: tokens a base, FLOPs, what neighbours tell of a masked token, and what one edited "
        "base does to the others.",
    ),
    "embed": (
        add_embed_options,
        "sequences/s of embedding, beside the published code's way of doing it",
        "Sequences/s of embedding real sequences of mixed length, beside padded batches in input order as the "
        "published code has them, and what tokenization takes of it.",
    ),
    "brca1": (
        add_brca1_options,
        "variant scores against saturation genome editing of BRCA1",
        "AUROC of loss-of-function variants of BRCA1 against functional ones by the scores of a model, beside what "
        "needs no model.",
    ),
    "length": (
        add_length_options,
        "bits per base of held-out sequence, at the training length and beyond",
        "Bits per base of masked language models on the same masked tokens of held-out sequence, with "
        "more and more sequence around them.",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if all was measured, 2 for unusable options, 1 if variants disagree, so that nothing is timed."""
    options = _parser().parse_args(argv)
    # What measures imports torch; --help has been answered by now.
    module = importlib.import_module(options.module, __package__)
    quiet_unless_terminal()
    try:
        return run_verb(module.run, options)
    except getattr(module, "GateError", ()) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dnabert2 bench",
        description="Measure speed, memory, and what models and tokenizers make of DNA.",
    )
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    for name, (add_options, summary, description) in BENCHMARKS.items():
        benchmark = benchmarks.add_parser(name, help=summary, description=description, formatter_class=Formatter)
        benchmark.set_defaults(module=f".{name}")
        add_options(benchmark)
    return parser


if __name__ == "__main__":
    sys.exit(main())
