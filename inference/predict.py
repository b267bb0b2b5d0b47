"""Predict with a fine-tuned model: classes with probabilities, numbers, or a class for every base.

    dnabert2 predict --model runs/tata --input sequences.csv --output predictions.parquet
    dnabert2 predict --model runs/tata --input genome.fa --output - --window 128 --overlap 16

`--model` is the output folder of `dnabert2 finetune`, or any sequence classifier that it knows. A table's column
`sequence2` holds the second sequences of pairs. Of labels of bases the columns hold lists, one entry a base. Started
again, an interrupted run goes on where it was.
"""

import argparse
import sys

import pyarrow as pa

from ..errors import UserError
from ..genome.records import PAIR, BadRecord, Columns, Record, read_records
from ..terminal import quiet_unless_terminal
from ..tokenizer.policy import PolicyReport
from .embed import counted, normalised, readable, run_ranked
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

FORMATS = ("parquet", "dataset", "tsv", "jsonl")
CHUNK_BASES = 500_000  # of labels of bases


def predict(options: argparse.Namespace):
    """Body of the verb."""
    quiet_unless_terminal()
    ranks, policy = Ranks.from_environment(), policy_of(options)
    batch_tokens = batch_tokens_of(options)
    form = format_of(options.output, options.format, "tsv", FORMATS)
    refuse_existing(options.output, options.overwrite)
    records = read_records(
        options.input,
        fasta=options.fasta,
        columns=Columns(options.sequence_column, options.pair_column, options.id_column),
        only=options.input_format,
    )

    from .predicting import Predictor, load_predictor  # torch; options were found right without it

    loaded = load_predictor(options.model, **loading_of(options, ranks), trust_remote_code=options.trust_remote_code)
    predictor = Predictor(
        loaded,
        window=options.window or None,
        overlap=options.overlap if options.window else 0,
        rc_average=options.rc_average,
        batch_tokens=batch_tokens,
    )
    of_bases = predictor.kind.name == "base_classification"
    if of_bases and policy.n != "keep":
        raise UserError(f"--n {options.n} would shift the places of bases; leave it out.")
    schema = predictor.kind.schema()
    described = loaded.identity | {
        "window": predictor.window,
        "overlap": predictor.overlap,
        "rc_average": predictor.rc_average,
        "kind": predictor.kind.name,
        "text": vars(policy),
    }
    job = Job(
        options.output,
        schema,
        {"verb": "predict", **described},
        options.skip_bad,
        options.overwrite,
        ranks,
        **({"chunk_bases": CHUNK_BASES} if of_bases else {}),
    )
    job.check()
    ranks.join()
    report = PolicyReport(policy=policy)

    def work(chunk: list[Record], collect):
        good = _alike(readable(normalised(chunk, policy, None, collect), loaded, collect), collect)
        if good:
            pairs = None if good[0].pair is None else [record.pair for record in good]
            columns = predictor.columns([record.sequence for record in good], pairs)
            yield pa.table({"id": [record.id for record in good], **columns}, schema=schema)

    job.run(counted(records, report), work, writer(options.output, form, schema, described))
    if ranks.is_first:
        print(report.describe(), file=sys.stderr)


def _alike(records: list[Record], collect) -> list[Record]:
    """Pairs if the first one is a pair, else single sequences; the network reads either."""
    good = []
    for record in records:
        if (record.pair is None) == (records[0].pair is None):
            good.append(record)
        else:
            reason = "it has no second sequence and others have one, or the other way round; part the inputs"
            collect(BadRecord(record.id, record.where, reason))
    return good


def main(argv: list[str] | None = None) -> int:
    """The `predict` verb; returns the exit code."""
    parser = parser_of(__doc__)
    add_model_options(parser)
    parser.add_argument("--trust_remote_code", action="store_true", help="run code of the model's repository")
    add_input_options(parser)
    parser.add_argument("--pair_column", default=PAIR, help="of tables, second sequences, where there are any")
    add_output_options(parser, FORMATS)
    add_window_options(parser, 0, 0)
    parser.add_argument("--rc_average", action="store_true", help="the mean over both strands")
    return run_ranked(predict, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
