"""Command-line options that embed, predict and score-variants share. No torch here: `--help` answers at once."""

import argparse
from pathlib import Path

from ..errors import UserError
from ..tokenizer.policy import TextPolicy
from .outputs import FORMATS

WINDOW_HELP = "tokens, [CLS] and [SEP] included, that are read at once; 0 reads sequences whole"


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each option, and the description as it is written."""


def parser_of(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=Formatter)


def add_model_options(parser: argparse.ArgumentParser, with_device: bool = True):
    """Model, device, unless something else decides it, and precision."""
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--model", help="model folder, Hub id, or mini, the bundled checkpoint", **required)
    if with_device:
        parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    parser.add_argument(
        "--dtype", default="float32", help="float32, bfloat16, float16, or auto: bfloat16 where it is fast"
    )
    parser.add_argument("--attn_implementation", help="attention backend; the fastest that works if not given")
    parser.add_argument(
        "--batch_tokens",
        type=int,
        default=argparse.SUPPRESS,
        help="tokens of a batch, pads included (default: 4,096 on a CPU, 32,768 on a GPU)",
    )


def add_input_options(parser: argparse.ArgumentParser):
    """Where sequences come from, and what becomes of letters that are no A, C, G or T."""
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument(
        "--input",
        nargs="+",
        help="FASTA, FASTQ, CSV, TSV, JSON lines (also .gz), Parquet, BED; folders of FASTA; - for FASTA on "
        "standard input",
        **required,
    )
    parser.add_argument("--input_format", choices=["fasta"], help="of inputs whose names do not say it")
    parser.add_argument("--fasta", help="the genome that BED files refer to")
    parser.add_argument("--sequence_column", default="sequence", help="of tables")
    parser.add_argument("--id_column", default="id", help="of tables; without it rows are numbered from 0")
    add_policy_options(parser)


def add_policy_options(parser: argparse.ArgumentParser):
    parser.add_argument("--keep_case", action="store_true", help="leave lower-case bases, each an [UNK]")
    parser.add_argument("--keep_u", action="store_true", help="leave RNA's U, each an [UNK]")
    parser.add_argument("--iupac", choices=["n", "keep"], default="n", help="ambiguity codes: read as N, or left")
    parser.add_argument(
        "--n", choices=["keep", "collapse", "drop"], default="keep", help="N: each an [UNK], runs as one, or taken out"
    )


def add_output_options(parser: argparse.ArgumentParser, formats: tuple[str, ...] = FORMATS):
    """Where answers go."""
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--output", type=Path, help="file by its suffix; a name without one is a folder", **required)
    parser.add_argument("--format", choices=formats, help="instead of the suffix's")
    parser.add_argument("--overwrite", action="store_true", help="replace the output, and begin anew")
    parser.add_argument(
        "--skip_bad", action="store_true", help="leave out records that cannot be used, and list them in *.skipped.tsv"
    )


def add_window_options(parser: argparse.ArgumentParser, window: int, overlap: int):
    """How long sequences are cut."""
    parser.add_argument("--window", type=int, default=window, help=WINDOW_HELP)
    parser.add_argument("--overlap", type=int, default=overlap, help="tokens that two windows of a sequence share")


def policy_of(options: argparse.Namespace) -> TextPolicy:
    return TextPolicy(not options.keep_case, not options.keep_u, options.iupac, options.n)


def batch_tokens_of(options: argparse.Namespace) -> int | None:
    """Tokens of a batch, None to leave them to the device; raises UserError if there can be no batch."""
    tokens = getattr(options, "batch_tokens", None)
    if tokens is not None and tokens < 1:
        raise UserError(f"--batch_tokens {tokens}: give at least 1.")
    return tokens


def loading_of(options: argparse.Namespace, ranks) -> dict:
    """Device, precision and backend, as the loaders of models take them; `ranks` says whose GPU it is."""
    return {
        "device": ranks.device(options.device),
        "dtype": options.dtype,
        "attn_implementation": options.attn_implementation,
    }
