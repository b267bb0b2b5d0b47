"""Score variants: how much less likely, or how different, an allele makes the sequence around it.

    dnabert2 score-variants --model mini --vcf calls.vcf.gz --fasta hg38.fa --output scores.parquet
    dnabert2 score-variants --model mini --vcf calls.vcf.gz --fasta hg38.fa --output annotated.vcf.gz --scores llr

Single-base variants, insertions and deletions. `score` is the first of the scores asked for: by default llr, the
logarithm of P(alt) / P(ref), below 0 where the model finds alt less likely; summed over all ways of writing the bases
as tokens, and the mean over both strands. Reference alleles are checked against the genome. `--vcf` may also be a
table with the columns chrom, pos, ref and alt. Started again, an interrupted run goes on where it was.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pysam

from ..atomic import whole_file
from ..errors import UserError
from ..genome.reference import Reference
from ..genome.variants import Variant, annotate, is_table, normalised, read_variants
from ..terminal import quiet_unless_terminal
from ..tokenizer.policy import TextPolicy
from .defaults import CONTEXT, SCORES, STRIDE
from .embed import run_ranked
from .jobs import Job, refuse_existing
from .options import add_model_options, add_output_options, batch_tokens_of, loading_of, parser_of
from .outputs import format_of, writer
from .ranks import Ranks

FORMATS = ("parquet", "dataset", "tsv", "jsonl", "vcf")
CHUNK = 256  # variants
LETTERS = TextPolicy().table()
MEANING = {
    "llr": "log P(alt)/P(ref) of masked alleles over all tokenizations, natural logarithm, mean of both strands",
    "pseudo_likelihood": "pseudo-log-likelihood of the sequence with alt less that with ref, mean of both strands",
    "embedding_l2": "Euclidean distance of the mean vectors of the sequences with alt and ref, mean of both strands",
    "embedding_cosine": "cosine distance of the mean vectors of the sequences with alt and ref, mean of both strands",
}


def haplotypes_of(variant: Variant, reference: Reference, context: int):
    """The variant with up to `context` bases on either side, as the model reads them."""
    from .variant_scores import Haplotypes

    stretch = reference.stretch(variant.chrom, variant.start, variant.end)
    left = reference.fetch(variant.chrom, max(stretch.start, variant.start - context), variant.start)
    right = reference.fetch(variant.chrom, variant.end, min(stretch.end, variant.end + context))
    left, right = (flank.translate(LETTERS).upper() for flank in (left, right))
    return Haplotypes(left, variant.ref.upper(), variant.alt.upper(), right)


def score_schema(columns: list[str]) -> pa.Schema:
    """Columns of the output; scores are null where `unscored` says why."""
    place = [("chrom", pa.string()), ("pos", pa.int64()), ("ref", pa.string()), ("alt", pa.string())]
    scores = [(name, pa.float64()) for name in ("score", *columns)]
    return pa.schema([*place, *scores, ("unscored", pa.string()), ("line", pa.int64()), ("allele", pa.int32())])


def score_table(scorer, variants: list[Variant], reference: Reference, context: int, schema: pa.Schema) -> pa.Table:
    """Scores of variants, a row each."""
    scored = [normalised(variant, reference) for variant in variants if variant.unscored is None]
    places = [haplotypes_of(variant, reference, context) for variant in scored]
    found = scorer.score(places) if places else {}
    rows = iter(zip(*(found[name] for name in scorer.columns), strict=True)) if scored else iter(())
    table = []
    for variant in variants:
        values = next(rows) if variant.unscored is None else [None] * len(scorer.columns)
        scores = dict(zip(scorer.columns, values, strict=True))
        place = {"chrom": variant.chrom, "pos": variant.pos, "ref": variant.ref, "alt": variant.alt}
        rest = {"unscored": variant.unscored, "line": variant.line, "allele": variant.allele}
        table.append({**place, "score": values[0], **scores, **rest})
    return pa.Table.from_pylist(table, schema=schema)


def vcf_writer(vcf: str, output: Path, columns: list[str]) -> Callable[[Iterator[pa.Table]], None]:
    """A function that writes the VCF with the scores of tables among its INFO; bgzipped if the name ends so."""
    fields = {f"DNABERT2_{name.upper()}": MEANING[name] for name in columns}

    def scores(tables: Iterator[pa.Table]):
        for table in tables:
            for row in table.to_pylist():
                if row["unscored"] is None:
                    values = zip(fields, (row[name] for name in columns), strict=True)
                    yield row["line"], row["allele"], dict(values)

    def write(tables: Iterator[pa.Table]):
        if str(output) == "-":
            annotate(vcf, scores(tables), fields, sys.stdout.buffer)
            return
        is_bgzip = output.suffix in (".gz", ".bgz")
        with (
            whole_file(output) as partial,
            pysam.BGZFile(str(partial), "wb") if is_bgzip else open(partial, "wb") as handle,
        ):
            annotate(vcf, scores(tables), fields, handle)

    return write


def score_variants(options: argparse.Namespace):
    """Body of the verb."""
    quiet_unless_terminal()
    ranks, batch_tokens = Ranks.from_environment(), batch_tokens_of(options)
    form = format_of(options.output, options.format, "tsv", FORMATS)
    refuse_existing(options.output, options.overwrite)
    if form == "vcf" and is_table(options.vcf):
        raise UserError(f"{options.output}: only a VCF can be annotated, not {options.vcf}; choose .parquet or .tsv.")
    if options.context < 1:
        raise UserError(f"--context {options.context}: give at least 1 base.")
    if options.stride < 0:
        raise UserError(f"--stride {options.stride}: give 0, or at least 1.")
    reference = Reference(options.fasta)
    variants = read_variants(options.vcf, reference)

    from .models import load_masked_lm  # torch; options were found right without it
    from .variant_scores import VariantScorer

    loaded = load_masked_lm(options.model, **loading_of(options, ranks))
    scorer = VariantScorer(
        loaded,
        scores=tuple(dict.fromkeys(options.scores)),
        both_strands=not options.forward_only,
        stride=options.stride,
        batch_tokens=batch_tokens,
    )
    schema = score_schema(scorer.columns)
    described = scorer.identity | {"context": options.context}
    job = Job(
        options.output,
        schema,
        {"verb": "score-variants", **described, "genome": reference.identity},
        options.skip_bad,
        options.overwrite,
        ranks,
        chunk_records=CHUNK,
        size=lambda variant: len(variant.ref),
    )
    job.check()
    ranks.join()

    def work(chunk: list[Variant], collect):
        yield score_table(scorer, chunk, reference, options.context, schema)

    if form == "vcf":
        write = vcf_writer(options.vcf, options.output, scorer.columns)
    else:
        write = writer(options.output, form, schema, described)
    unscored = 0

    def counted(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        nonlocal unscored
        for table in tables:
            unscored += table.num_rows - table["unscored"].null_count
            yield table

    job.run(variants, work, lambda tables: write(counted(tables)))
    if unscored:
        print(f"{unscored:,} alleles have no score, the column unscored says why.", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """The `score-variants` verb; returns the exit code."""
    parser = parser_of(__doc__)
    required = {"required": True, "default": argparse.SUPPRESS}
    add_model_options(parser)
    parser.add_argument("--vcf", help="VCF, also gzipped, or a table with chrom, pos, ref and alt", **required)
    parser.add_argument("--fasta", help="the genome that positions count in, also (b)gzipped", **required)
    add_output_options(parser, FORMATS)
    add_scoring_options(parser)
    parser.add_argument(
        "--scores", nargs="+", choices=SCORES, default=list(SCORES), help="which, the first as `score`"
    )
    parser.add_argument(
        "--stride",
        type=int,
        default=STRIDE,
        help="of the pseudo-likelihood: one of so many tokens is masked; 0: one by one",
    )
    return run_ranked(score_variants, parser.parse_args(argv))


def add_scoring_options(parser: argparse.ArgumentParser):
    """What a score takes into account."""
    parser.add_argument("--context", type=int, default=CONTEXT, help="bases on either side that the model reads")
    parser.add_argument("--forward_only", action="store_true", help="the forward strand alone, in half the time")


if __name__ == "__main__":
    sys.exit(main())
