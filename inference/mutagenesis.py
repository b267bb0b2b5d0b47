"""In-silico mutagenesis: every single-base change of a region, as a matrix and as a logo.

    dnabert2 mutagenesis --model mini --fasta hg38.fa --region chr17:43045700-43045760 --output m.parquet --plot m.svg

The matrix has a row a base: chrom, pos (from 1), ref, the logarithm of P(base) / P(ref) of A, C, G and T (0 at the
reference, below 0 where the model finds the change less likely), and `importance`, the mean of the three changes'
with its sign turned. They are the llr of `score-variants`: summed over tokenizations, the mean of both strands. The
plot, PNG or SVG by its suffix, has the reference drawn as high as its importance above the matrix.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..errors import UserError, run_verb
from ..genome.reference import Reference, parse_region
from ..genome.variants import Variant
from ..terminal import quiet_unless_terminal
from .jobs import Job, refuse_existing
from .options import add_model_options, add_output_options, batch_tokens_of, loading_of, parser_of
from .outputs import format_of, writer
from .variants import add_scoring_options, haplotypes_of

BASES = "ACGT"
FORMATS = ("parquet", "dataset", "tsv", "jsonl")
PLOTS = (".png", ".svg")
CHUNK = 128  # bases
LONGEST_PLOT = 500  # bases; a logo of more cannot be read
SCHEMA = pa.schema(
    [
        ("chrom", pa.string()),
        ("pos", pa.int64()),
        ("ref", pa.string()),
        *((base, pa.float64()) for base in BASES),
        ("importance", pa.float64()),
    ]
)


def mutagenesis_table(scorer, variants: list[Variant], reference: Reference, context: int) -> pa.Table:
    """The matrix' rows of places given as variants of one base; of N nothing but the place."""
    known = [variant for variant in variants if variant.ref.upper() in BASES]
    places = [haplotypes_of(variant, reference, context) for variant in known]
    found = scorer.base_log_probabilities([(place.left, place.right) for place in places]) if places else []
    rows = []
    ratios = iter(found)
    for variant in variants:
        row = {"chrom": variant.chrom, "pos": variant.pos, "ref": variant.ref.upper()}
        if row["ref"] in BASES:
            values = next(ratios)
            values = values - values[BASES.index(row["ref"])]
            row |= dict(zip(BASES, values, strict=True)) | {"importance": -values.sum() / 3}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def plot(table: pa.Table, path: Path, title: str):
    """The logo of the reference above the matrix, as PNG or SVG."""
    import logomaker
    import pandas as pd
    from matplotlib.figure import Figure

    from ..atomic import whole_file

    frame = table.to_pandas()
    matrix = frame[list(BASES)].to_numpy(dtype=float)
    # `where` leaves 0 for N.
    letters = pd.DataFrame(
        {base: np.where(frame["ref"] == base, frame["importance"].fillna(0.0), 0.0) for base in BASES}
    )
    figure = Figure(figsize=(max(6.0, 0.16 * len(frame) + 1.5), 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 2), sharex=True)
    logomaker.Logo(letters, ax=above, shade_below=0.4, fade_below=0.4)
    above.set_ylabel("importance")
    above.set_title(title)
    bound = max(float(np.nanmax(np.abs(matrix), initial=0.0)), 1e-6)
    image = below.imshow(matrix.T, aspect="auto", cmap="RdBu", vmin=-bound, vmax=bound, interpolation="nearest")
    below.set_yticks(range(len(BASES)), list(BASES))
    step = max(1, len(frame) // 10)
    below.set_xticks(range(0, len(frame), step), [f"{pos:,}" for pos in frame["pos"][::step]], rotation=30, ha="right")
    figure.colorbar(image, ax=below, label="log P(base)/P(ref)")
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=150)


def mutagenesis(options: argparse.Namespace):
    """Body of the verb."""
    quiet_unless_terminal()
    batch_tokens = batch_tokens_of(options)
    form = format_of(options.output, options.format, "tsv", FORMATS)
    refuse_existing(options.output, options.overwrite)
    chrom, start, end = parse_region(options.region)
    if options.plot is not None:
        _check_plot(options.plot, end - start)
    if options.context < 1:
        raise UserError(f"--context {options.context}: give at least 1 base.")
    reference = Reference(options.fasta)
    try:
        bases = reference.fetch(chrom, start, end)
    except UserError as error:
        raise UserError(f"--region {options.region}: {error}.") from error
    if not set(bases.upper()) & set(BASES):
        raise UserError(f"--region {options.region}: holds nothing but N, which cannot be changed; give another.")

    from .models import load_masked_lm  # torch; options were found right without it
    from .ranks import Ranks
    from .variant_scores import VariantScorer

    loaded = load_masked_lm(options.model, **loading_of(options, Ranks()))
    scorer = VariantScorer(loaded, scores=("llr",), both_strands=not options.forward_only, batch_tokens=batch_tokens)
    described = scorer.identity | {"context": options.context, "region": options.region}
    job = Job(
        options.output,
        SCHEMA,
        {"verb": "mutagenesis", **described, "genome": reference.identity},
        overwrite=options.overwrite,
        chunk_records=CHUNK,
        size=lambda variant: 1,
    )
    job.check()
    places = (
        Variant(chrom, start + 1 + i, base, base, f"{options.region}, base {i + 1}", 0) for i, base in enumerate(bases)
    )
    drawn: list[pa.Table] = []
    write_table = writer(options.output, form, SCHEMA, described)

    def write(tables):
        def keeping():
            for table in tables:
                drawn.append(table)
                yield table

        write_table(keeping())

    def work(chunk: list[Variant], collect):
        yield mutagenesis_table(scorer, chunk, reference, options.context)

    job.run(places, work, write)
    if options.plot is not None:
        try:
            plot(pa.concat_tables(drawn), options.plot, f"{options.region}, {options.model}")
        except OSError as error:
            raise UserError(f"--plot {options.plot}: cannot be written ({error.strerror}).") from error


def _check_plot(path: Path, bases: int):
    if path.suffix not in PLOTS:
        raise UserError(f"--plot {path}: must end in {' or '.join(PLOTS)}.")
    if bases > LONGEST_PLOT:
        raise UserError(f"--plot: a logo of {bases:,} bases cannot be read; give a region of at most {LONGEST_PLOT}.")


def main(argv: list[str] | None = None) -> int:
    """The `mutagenesis` verb; returns the exit code."""
    parser = parser_of(__doc__)
    required = {"required": True, "default": argparse.SUPPRESS}
    add_model_options(parser)
    parser.add_argument("--fasta", help="the genome that the region lies in, also (b)gzipped", **required)
    parser.add_argument("--region", help="CHROM:START-END, from 1 and with its last base", **required)
    add_output_options(parser, FORMATS)
    parser.add_argument("--plot", type=Path, help="logo and matrix as a picture, .png or .svg")
    add_scoring_options(parser)
    return run_verb(mutagenesis, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
