"""Embed DNA: one vector a sequence, or one a token or base, from FASTA, FASTQ, tables, BED or standard input.

    dnabert2 embed --model mini --input reads.fa.gz --output reads.parquet
    dnabert2 embed --model mini --input peaks.bed --fasta hg38.fa --output peaks.npy --pooling max --rc_average
    torchrun --nproc_per_node 4 -m dnabert2.inference.embed --model M --input folder/ --output vectors/

The mean over all tokens, [CLS] and [SEP] among them, is the published convention. Started again, an interrupted run
goes on where it was. Rows come in the order of the input.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa

from ..errors import UserError, run_verb
from ..genome.records import STDIN, BadRecord, Columns, Record, read_records
from ..terminal import quiet_unless_terminal
from ..tokenizer.policy import PolicyReport, TextPolicy, normalise
from .defaults import ALL_POOLINGS, OVERLAP, WINDOW, WITH_PLACES
from .jobs import Job, refuse_existing
from .options import (
    add_input_options,
    add_model_options,
    add_output_options,
    add_window_options,
    batch_tokens_of,
    loading_of,
    parser_of,
    policy_of,
)
from .outputs import format_of, writer
from .ranks import Ranks

# What a chunk of the work holds in bases, so that its vectors fit into memory.
CHUNK_BASES = {"tokens": 500_000, "bases": 100_000}


def counted(records: Iterable[Record | BadRecord], report: PolicyReport) -> Iterator[Record | BadRecord]:
    """The same records; their letters are counted, those of records too that another process or run works on."""
    for record in records:
        if isinstance(record, Record):
            report.count_letters(record.sequence)
        yield record


def normalised(
    records: list[Record], policy: TextPolicy, report: PolicyReport | None, collect: Callable[[BadRecord], None]
) -> list[Record]:
    """Records with their text as the policy has it; those that it refuses go to `collect`."""
    good = []
    for record in records:
        try:
            sequence = normalise(record.sequence, policy, report)
            pair = None if record.pair is None else normalise(record.pair, policy, report)
        except UserError as error:
            collect(BadRecord(record.id, record.where, str(error)))
            continue
        good.append(Record(record.id, sequence, record.where, pair))
    return good


def readable(records: list[Record], loaded, collect: Callable[[BadRecord], None]) -> list[Record]:
    """Those that are neither too long nor too short for a foreign model; the others go to `collect`."""
    if loaded.is_ours:
        return records
    from ..architectures.encoding import TooManyTokens, encode

    good = []
    for record in records:
        try:
            pairs = None if record.pair is None else [record.pair]
            encode(loaded.tokenizer, [record.sequence], pairs, loaded.architecture, loaded.max_tokens)
        except TooManyTokens:
            reason = f"has more than the {loaded.max_tokens} tokens that {loaded.architecture.name} takes; cut it"
            collect(BadRecord(record.id, record.where, reason))
        except UserError as error:
            collect(BadRecord(record.id, record.where, str(error)))
        else:
            good.append(record)
    return good


def vector_schema(pooling: str, size: int) -> pa.Schema:
    """Columns of the output: id and embedding, with the place of tokens and bases between them."""
    places = {
        "tokens": [("start", pa.int64()), ("end", pa.int64()), ("token", pa.string())],
        "bases": [("position", pa.int64()), ("base", pa.string())],
    }
    return pa.schema([("id", pa.string()), *places.get(pooling, ()), ("embedding", pa.list_(pa.float32(), size))])


def vector_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """(rows, hidden) float32 as a column."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def embed_records(embedding, records: list[Record], pooling: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of the vectors of records, in their order."""
    sequences = [record.sequence for record in records]
    if pooling == "tokens":
        names = np.array(embedding.loaded.tokenizer.convert_ids_to_tokens(range(len(embedding.loaded.tokenizer))))
        for part in embedding.tokens(sequences):
            ids = pa.array([records[part.sequence].id] * len(part.ids))
            columns = [ids, part.spans[:, 0], part.spans[:, 1], names[part.ids], vector_column(part.vectors)]
            yield pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)
    elif pooling == "bases":
        for number, first, vectors in embedding.bases(sequences):
            places = np.arange(first, first + len(vectors))
            letters = list(sequences[number][first : first + len(vectors)])
            columns = [[records[number].id] * len(vectors), places, letters, vector_column(vectors)]
            yield pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)
    else:
        vectors = vector_column(embedding.vectors(sequences))
        yield pa.Table.from_arrays([pa.array([record.id for record in records]), vectors], schema=schema)


def check_pooling(pooling: str, policy: TextPolicy, rc_average: bool):
    """Raises UserError for vectors of tokens or bases whose places would not be those of the sequence."""
    if pooling in WITH_PLACES and policy.n != "keep":
        raise UserError(f"--n {policy.n} would shift the places of {pooling}; leave it out.")
    if pooling == "tokens" and rc_average:
        raise UserError("--pooling tokens: the strands' tokens are not the same ones; average --pooling bases.")


def embed(options: argparse.Namespace):
    """Body of the verb."""
    quiet_unless_terminal()
    ranks, policy = Ranks.from_environment(), policy_of(options)
    batch_tokens = batch_tokens_of(options)
    has_places = options.pooling in WITH_PLACES
    check_pooling(options.pooling, policy, options.rc_average)
    form = format_of(options.output, options.format, "jsonl")
    refuse_existing(options.output, options.overwrite)
    records = read_records(
        options.input,
        fasta=options.fasta,
        columns=Columns(options.sequence_column, None, options.id_column),
        only=options.input_format,
    )

    from .embedding import Embedding  # torch; options were found right without it
    from .models import load_encoder

    loaded = load_encoder(options.model, **loading_of(options, ranks), trust_remote_code=options.trust_remote_code)
    embedding = Embedding(
        loaded,
        pooling="mean" if has_places else options.pooling,
        layer=options.layer,
        window=options.window or None,
        overlap=options.overlap,
        rc_average=options.rc_average,
        batch_tokens=batch_tokens,
    )
    if has_places:
        embedding.check_places(options.pooling)
    schema = vector_schema(options.pooling, embedding.size)
    described = {**embedding.identity, "pooling": options.pooling, "text": vars(policy)}
    job = Job(
        options.output,
        schema,
        {"verb": "embed", **described},
        options.skip_bad,
        options.overwrite,
        ranks,
        **({"chunk_bases": CHUNK_BASES[options.pooling]} if has_places else {}),
    )
    job.check()
    ranks.join()
    report = PolicyReport(policy=policy)

    def work(chunk: list[Record], collect):
        good = readable(normalised(chunk, policy, None, collect), loaded, collect)
        if good:
            yield from embed_records(embedding, good, options.pooling, schema)

    job.run(counted(records, report), work, writer(options.output, form, schema, described))
    if ranks.is_first:
        print(report.describe(), file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """The `embed` verb; returns the exit code."""
    parser = parser_of(__doc__)
    add_model_options(parser)
    parser.add_argument("--trust_remote_code", action="store_true", help="run code of the model's repository")
    add_input_options(parser)
    add_output_options(parser)
    parser.add_argument(
        "--pooling",
        choices=ALL_POOLINGS,
        default="mean",
        help="one vector a sequence: mean, cls, max; or one a token, base",
    )
    parser.add_argument(
        "--layer", type=int, default=-1, help="states behind this layer; 0 the embeddings, -1 the last"
    )
    add_window_options(parser, WINDOW, OVERLAP)
    parser.add_argument("--rc_average", action="store_true", help="the mean over both strands")
    return run_ranked(embed, parser.parse_args(argv))


def run_ranked(function: Callable, options: argparse.Namespace) -> int:
    """`run_verb` of one of several processes: messages say which, and no process is left waiting."""
    ranks = Ranks.from_environment()

    def body():
        if ranks.size > 1 and STDIN in getattr(options, "input", ()):
            raise UserError("--input -: several processes cannot share standard input; give files.")
        function(options)

    code = run_verb(body)
    if ranks.size > 1:
        if code:
            print(f"(process {ranks.rank} of {ranks.size})", file=sys.stderr)
        from ..processes import leave

        leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
