"""Embed sequences, or score variants, on a cluster: folders of files through Ray Data (pip install "dnabert2[ray]").

    dnabert2 ray embed --model mini --input reads/ --output vectors/
    dnabert2 ray embed --model M --input reads/ --output vectors/ --address auto --num_gpus 1 --concurrency 16
    dnabert2 ray score-variants --model mini --input calls/ --fasta hg38.fa --output scores/

The numbers are those of `dnabert2 embed` and `dnabert2 score-variants`. The output is a folder of Parquet, whole or
not there, its rows in the order of the sorted files, which the column `file` names; tables without ids
have their rows numbered from 0, each file by itself. Without --address, or RAY_ADDRESS,
Ray is started on this machine alone. All machines have dnabert2 installed and see the input, the output, the genome
and a model's folder under the same paths. Started again, an interrupted run goes on where it was.

In Python: `embed_dataset`, `score_variants_dataset`, `read_sequences` and `read_variant_files`, see `ray_datasets.py`.
"""

import argparse
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from ..errors import UserError, run_verb
from ..genome.records import Columns
from .defaults import ALL_POOLINGS, OVERLAP, SCORES, STRIDE, WINDOW
from .embed import CHUNK_BASES
from .options import add_model_options, add_policy_options, add_window_options, batch_tokens_of, parser_of, policy_of
from .ray_datasets import (
    embed_dataset,
    import_ray,
    read_sequences,
    read_variant_files,
    score_variants_dataset,
    sequence_files,
    sequence_reader,
    variant_files,
    variant_reader,
)
from .ray_parts import Parts, Workers, run_parts
from .ray_work import EmbedSettings, ScoreSettings, everywhere
from .variants import CHUNK, add_scoring_options

__all__ = ["embed_dataset", "main", "read_sequences", "read_variant_files", "score_variants_dataset"]

# For Ray, before it is loaded: it sends nobody anything, says what is an error alone, and leaves GPUs as they are.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
ANSWER = 10  # seconds that a cluster's head may take to accept a connection


@contextmanager
def cluster(address: str | None = None) -> Iterator[dict[str, float]]:
    """
    A connection to a Ray cluster, given as what it has of CPU and GPU; one that there is already is used and left.

    Args:
        address: of its head, or "auto"; without it RAY_ADDRESS says it, or Ray is started on this machine and ended.

    Raises:
        UserError: if Ray is not installed or does not answer at the address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    ray = import_ray()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error comes to us as an exception
    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    address = address or os.environ.get("RAY_ADDRESS")
    options = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        if address:
            _check_answers(address)
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        if not address:
            raise UserError(f"Ray cannot be started on this machine ({reason}).") from error
        raise UserError(
            f"{address}: no Ray cluster answers to --address or RAY_ADDRESS ({reason}); if it asks for a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
        ) from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _check_answers(address: str):
    """Raises OSError if nothing listens there; Ray itself tries for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()


def workers_of(options: argparse.Namespace, resources: dict[str, float]) -> Workers:
    """
    As many workers as options say, or else as a cluster has room for.

    Raises:
        UserError: if there is no room for one.
    """
    for name in ("num_gpus", "num_cpus", "concurrency"):
        value = getattr(options, name)
        if value is not None and (value < 0 or (value == 0 and name != "num_gpus")):
            raise UserError(f"--{name} {value}: give more.")
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    num_gpus = options.num_gpus if options.num_gpus is not None else min(1, gpus)
    if num_gpus and gpus < num_gpus:
        raise UserError(f"--num_gpus {num_gpus:g}: the cluster has {gpus:g}; leave it out, or give 0 for CPUs.")
    if cpus < options.num_cpus:
        raise UserError(f"--num_cpus {options.num_cpus:g}: the cluster has {cpus:g}; give fewer.")
    room = min(cpus // options.num_cpus, gpus // num_gpus if num_gpus else cpus)
    return Workers(options.concurrency or max(1, int(room)), num_gpus, options.num_cpus)


def embed(options: argparse.Namespace):
    """Body of `embed`."""
    files = sequence_files(options.input, options.fasta is not None)
    _check_apart(options)
    batch_tokens, columns = batch_tokens_of(options), Columns(options.sequence_column, None, options.id_column)
    with cluster(options.address) as resources:
        workers = workers_of(options, resources)
        settings = EmbedSettings(
            **_common(options, workers, batch_tokens),
            pooling=options.pooling,
            layer=options.layer,
            window=options.window or None,
            overlap=options.overlap,
            rc_average=options.rc_average,
            trust_remote_code=options.trust_remote_code,
            policy=policy_of(options),
        )
        settings.check()
        bases = {"chunk_bases": CHUNK_BASES[options.pooling]} if options.pooling in CHUNK_BASES else {}
        job = Parts(**_outputs(options), settings={"verb": "embed", **settings.identity()}, **bases)
        run_parts(job, files, sequence_reader(options.fasta, columns), settings, workers)


def score_variants(options: argparse.Namespace):
    """Body of `score-variants`."""
    files = variant_files(options.input)
    _check_apart(options)
    batch_tokens = batch_tokens_of(options)
    with cluster(options.address) as resources:
        workers = workers_of(options, resources)
        settings = ScoreSettings(
            **_common(options, workers, batch_tokens),
            fasta=everywhere(options.fasta),
            scores=tuple(dict.fromkeys(options.scores)),
            context=options.context,
            both_strands=not options.forward_only,
            stride=options.stride,
        )
        settings.check()
        identity = {"verb": "score-variants", **settings.identity()}
        job = Parts(**_outputs(options), settings=identity, chunk_records=CHUNK, size=_alleles)
        run_parts(job, files, variant_reader(options.fasta), settings, workers)


def _alleles(variant) -> int:
    return len(variant.ref)


def _common(options: argparse.Namespace, workers: Workers, batch_tokens: int | None) -> dict:
    return {
        "model": everywhere(options.model),
        "dtype": options.dtype,
        "attn_implementation": options.attn_implementation,
        "batch_tokens": batch_tokens,
        "device": "cuda" if workers.num_gpus else "cpu",
        "threads": max(1, int(workers.num_cpus)),
    }


def _outputs(options: argparse.Namespace) -> dict:
    return {
        "output": options.output.absolute(),
        "schema": pa.schema([]),
        "skip_bad": options.skip_bad,
        "overwrite": options.overwrite,
    }


def _check_apart(options: argparse.Namespace):
    """Raises UserError if the output would be a part of the input when the command is started again."""
    output = options.output.resolve()
    for entry in options.input:
        folder = Path(entry).resolve()
        if folder == output or folder in output.parents:
            raise UserError(f"{options.output}: lies in the input {entry}; choose another --output.")


def main(argv: list[str] | None = None) -> int:
    """The `ray` verb; returns the exit code."""
    parser = parser_of(__doc__)
    verbs = parser.add_subparsers(metavar="embed | score-variants", required=True)
    required = {"required": True, "default": argparse.SUPPRESS}

    on = verbs.add_parser("embed", description="Vectors of sequences.", formatter_class=parser.formatter_class)
    on.set_defaults(function=embed)
    add_model_options(on, with_device=False)
    on.add_argument("--trust_remote_code", action="store_true", help="run code of the model's repository")
    on.add_argument(
        "--input", nargs="+", help="folders or files of FASTA, FASTQ, CSV, TSV, JSON lines, Parquet, BED", **required
    )
    on.add_argument("--fasta", help="the genome that BED files refer to")
    on.add_argument("--sequence_column", default="sequence", help="of tables")
    on.add_argument("--id_column", default="id", help="of tables; without it each file's rows are numbered from 0")
    add_policy_options(on)
    _add_cluster_options(on)
    on.add_argument(
        "--pooling", choices=ALL_POOLINGS, default="mean", help="a vector a sequence: mean, cls, max; or a token, base"
    )
    on.add_argument("--layer", type=int, default=-1, help="states behind this layer; 0 the embeddings, -1 the last")
    add_window_options(on, WINDOW, OVERLAP)
    on.add_argument("--rc_average", action="store_true", help="the mean over both strands")

    on = verbs.add_parser("score-variants", description="Effects of variants.", formatter_class=parser.formatter_class)
    on.set_defaults(function=score_variants)
    add_model_options(on, with_device=False)
    on.add_argument(
        "--input", nargs="+", help="folders or files of VCF, or of tables with chrom, pos, ref and alt", **required
    )
    on.add_argument("--fasta", help="the genome that positions count in, also (b)gzipped", **required)
    _add_cluster_options(on)
    add_scoring_options(on)
    on.add_argument("--scores", nargs="+", choices=SCORES, default=list(SCORES), help="which, the first as `score`")
    on.add_argument("--stride", type=int, default=STRIDE, help="of the pseudo-likelihood, as in score-variants")

    options = parser.parse_args(argv)
    return run_verb(options.function, options)


def _add_cluster_options(parser: argparse.ArgumentParser):
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--output", type=Path, help="a folder of Parquet, which appears when it is whole", **required)
    parser.add_argument("--overwrite", action="store_true", help="replace the output, and begin anew")
    parser.add_argument(
        "--skip_bad", action="store_true", help="leave out records that cannot be used, and list them in *.skipped.tsv"
    )
    parser.add_argument("--address", help="of a cluster's head, or auto; else Ray is started on this machine")
    parser.add_argument("--concurrency", type=int, help="networks at once; as many as there is room for if not given")
    parser.add_argument("--num_gpus", type=float, help="of each network; 1 if the cluster has any, if not given")
    parser.add_argument("--num_cpus", type=float, default=1, help="of each network")


if __name__ == "__main__":
    sys.exit(main())
