"""Ray Data: sequences to vectors and variants to scores, on as many machines as a cluster has.

    from dnabert2.inference.ray_pipeline import embed_dataset, read_sequences
    vectors = embed_dataset(read_sequences(["reads/"]), model="mini", pooling="mean", concurrency=4)
    vectors.write_parquet("/shared/vectors")                                    # columns id and embedding

Datasets are lazy: files are read, and networks loaded, when answers are asked for; what is found wrong then comes as
Ray's RayTaskError, and `with ray_parts.plain_errors():` makes a UserError of it again. Every file is a task of its
own, so that many are read at once. Paths are those of a file system that all machines share; what lies elsewhere
`ray.data.read_parquet("s3://...")` and its like read, and whatever has the columns that are named below can be given.
Rows come in no certain order.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from ..errors import UserError
from ..fasta import SUFFIXES as FASTA_SUFFIXES
from ..genome.records import BED_SUFFIXES, BadRecord, Columns, Record, read_records
from ..genome.reference import Reference
from ..genome.variants import Variant, read_variants
from ..tokenizer.policy import TextPolicy
from .defaults import CONTEXT, OVERLAP, SCORES, STRIDE, WINDOW
from .outputs import VCF
from .ray_work import EmbedSettings, ScoreSettings, Settings, Started, everywhere

if TYPE_CHECKING:
    from ray.data import Dataset

READ_CPUS = 0.25  # that a task which reads a file asks for; actors leave as much, so that neither waits for the other
AT_ONCE, BASES_AT_ONCE = 1024, 2_000_000  # records and bases of a table that a file is read in
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
SEQUENCES = (*FASTA_SUFFIXES, *(f"{suffix}.gz" for suffix in FASTA_SUFFIXES), *TABLES)
NO_DATA = ("_", ".")  # that names of what other programs leave in folders of Parquet begin with
BAD = [("where", pa.string()), ("bad", pa.string())]
SEQUENCE_SCHEMA = pa.schema([("id", pa.string()), ("sequence", pa.large_string()), *BAD])
VARIANT_SCHEMA = pa.schema(
    [
        ("chrom", pa.string()),
        ("pos", pa.int64()),
        ("ref", pa.string()),
        ("alt", pa.string()),
        ("line", pa.int64()),
        ("allele", pa.int32()),
        *BAD,
    ]
)

Read = Callable[[str], Iterator[Record | Variant | BadRecord]]


def import_ray():
    """
    The module `ray`, with `ray.data`.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f'this needs Ray ({error}); install it with: pip install "dnabert2[ray]".') from error
    return ray


def read_sequences(
    paths: list[str], *, fasta: str | None = None, columns: Columns | None = None, keep_bad: bool = False
) -> "Dataset":
    """
    A dataset with the columns id, sequence and where (file and record, for messages).

    Args:
        paths: files as `genome.records.read_records` takes them, or folders, which are searched for FASTA, FASTQ, CSV,
            TSV, JSON lines (also .gz) and Parquet, and for BED if there is a genome.
        fasta: the genome that BED files refer to.
        columns: names of a table's columns; without ids its rows are numbered from 0 in each file.
        keep_bad: keep records that cannot be read as rows without a sequence, whose column `bad` says why.

    Raises:
        UserError: if Ray is not installed, or there is no such file.
    """
    files = sequence_files(paths, fasta is not None)
    return _dataset_of(files, sequence_reader(fasta, columns), SEQUENCE_SCHEMA, keep_bad)


def read_variant_files(paths: list[str], fasta: str, *, keep_bad: bool = False) -> "Dataset":
    """
    A dataset with the columns chrom, pos, ref, alt, line, allele and where: a row for each alternative allele.

    Args:
        paths: VCF or tables as `genome.variants.read_variants` takes them, or folders of such files.
        fasta: the genome that positions count in; its bases must be the reference alleles.
        keep_bad: as in `read_sequences`.

    Raises:
        UserError: as `read_sequences`.
    """
    return _dataset_of(variant_files(paths), variant_reader(fasta), VARIANT_SCHEMA, keep_bad)


def embed_dataset(
    dataset: "Dataset",
    *,
    model: str,
    pooling: str = "mean",
    layer: int = -1,
    window: int | None = WINDOW,
    overlap: int = OVERLAP,
    rc_average: bool = False,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    batch_tokens: int | None = None,
    policy: TextPolicy | None = None,
    trust_remote_code: bool = False,
    keep_bad: bool = False,
    concurrency: int | tuple[int, int] | None = None,
    num_gpus: float = 0,
    num_cpus: float = 1,
    batch_size: int = AT_ONCE,
) -> "Dataset":
    """
    Sequences (columns id and sequence, and where for messages) to vectors (id and embedding, float32).

    Args:
        model: a model folder that all machines see, a Hub id or a bundled checkpoint.
        pooling: mean, cls or max, a row for each sequence; "tokens", with their start, end and token, or "bases",
            with their position and base, a row for each of them.
        layer, window, overlap, rc_average, dtype, attn_implementation, batch_tokens: as of `embedding.Embedding` and
            `models.load_encoder`.
        policy: what becomes of lower case, U, ambiguity codes and N.
        keep_bad: keep sequences that cannot be used as rows without a vector, with the columns where and bad, which
            says why and is null in all other rows.
        concurrency: actors, each with a network of its own, or the fewest and the most; by default Ray starts one, and
            more while there is room and work.
        num_gpus: of an actor; 0 computes on the CPU.
        num_cpus: of an actor, and its threads.
        batch_size: sequences that an actor takes at once; it sorts them by length for the network.

    Raises:
        UserError: if Ray is not installed or a setting cannot be.
    """
    settings = EmbedSettings(
        model=everywhere(model),
        dtype=dtype,
        attn_implementation=attn_implementation,
        batch_tokens=batch_tokens,
        device="cuda" if num_gpus else "cpu",
        threads=max(1, int(num_cpus)),
        pooling=pooling,
        layer=layer,
        window=window,
        overlap=overlap,
        rc_average=rc_average,
        trust_remote_code=trust_remote_code,
        policy=policy or TextPolicy(),
    )
    return _answers_of(dataset, settings, keep_bad, concurrency, num_gpus, num_cpus, batch_size)


def score_variants_dataset(
    dataset: "Dataset",
    *,
    model: str,
    fasta: str,
    scores: tuple[str, ...] = SCORES,
    context: int = CONTEXT,
    both_strands: bool = True,
    stride: int = STRIDE,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    batch_tokens: int | None = None,
    keep_bad: bool = False,
    concurrency: int | tuple[int, int] | None = None,
    num_gpus: float = 0,
    num_cpus: float = 1,
    batch_size: int = 256,
) -> "Dataset":
    """
    Variants (columns chrom, pos, ref and alt; line, allele and where if there are any) to the columns of
    `variants.score_schema`.

    Args:
        fasta: the genome that positions count in, which all machines see.
        scores, context, both_strands, stride: as of the command `score-variants` and `variant_scores.VariantScorer`.
        model, dtype, attn_implementation, batch_tokens, keep_bad, concurrency, num_gpus, num_cpus, batch_size: as of
            `embed_dataset`; a reference allele that the genome does not have makes a bad row.

    Raises:
        UserError: as `embed_dataset`.
    """
    settings = ScoreSettings(
        model=everywhere(model),
        dtype=dtype,
        attn_implementation=attn_implementation,
        batch_tokens=batch_tokens,
        device="cuda" if num_gpus else "cpu",
        threads=max(1, int(num_cpus)),
        fasta=everywhere(fasta),
        scores=tuple(scores),
        context=context,
        both_strands=both_strands,
        stride=stride,
    )
    return _answers_of(dataset, settings, keep_bad, concurrency, num_gpus, num_cpus, batch_size)


def sequence_files(paths: Iterable[str], has_genome: bool = False) -> list[str]:
    """The files of sequences that paths and the folders among them name; raises UserError if there are none."""
    return _files(paths, SEQUENCES + (BED_SUFFIXES if has_genome else ()))


def variant_files(paths: Iterable[str]) -> list[str]:
    """The same of variants."""
    return _files(paths, VCF + TABLES)


def sequence_reader(fasta: str | None = None, columns: Columns | None = None) -> Read:
    """A function that reads a file of sequences, and that Ray can send to other machines."""
    if fasta is not None:
        fasta = str(Reference(everywhere(fasta)).path)  # its index is made here, once
    return partial(_read_sequences, fasta=fasta, columns=columns)


def variant_reader(fasta: str) -> Read:
    """The same of variants."""
    return partial(_read_variants, fasta=str(Reference(everywhere(fasta)).path))


def tasks_of(files: list[str], function: Callable, **options) -> "Dataset":
    """A dataset of what `function` makes of a table with the columns number and path, one file a task."""
    ray = import_ray()
    items = [{"number": i, "path": everywhere(path)} for i, path in enumerate(files)]
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        function, fn_kwargs=options, batch_format="pyarrow", batch_size=1, num_cpus=READ_CPUS
    )


def actors_of(
    dataset: "Dataset",
    actor: type,
    options: dict,
    concurrency: int | tuple[int, int] | None,
    num_gpus: float,
    num_cpus: float,
    batch_size: int,
) -> "Dataset":
    """A dataset of what actors make of tables of rows."""
    ray = import_ray()
    if concurrency is None:
        bounds = {"min_size": 1}
    elif isinstance(concurrency, int):
        bounds = {"size": concurrency}
    else:
        bounds = dict(zip(("min_size", "max_size"), concurrency, strict=True))
    return dataset.map_batches(
        actor,
        fn_constructor_kwargs=options,
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(**bounds),
        num_cpus=max(num_cpus - READ_CPUS, READ_CPUS),
        num_gpus=num_gpus or None,
    )


def _answers_of(dataset, settings: Settings, keep_bad: bool, concurrency, num_gpus, num_cpus, batch_size) -> "Dataset":
    import_ray()
    settings.check()
    options = {"settings": settings, "keep_bad": keep_bad}
    return actors_of(dataset, Answers, options, concurrency, num_gpus, num_cpus, batch_size)


class Answers(Started):
    """An actor: tables of rows to tables of answers."""

    def __init__(self, settings: Settings, keep_bad: bool):
        super().__init__(settings)
        self._keep_bad = keep_bad

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        bad: list[BadRecord] = []

        def collect(record: BadRecord):
            if not self._keep_bad:
                raise UserError(record.describe())
            bad.append(record)

        good = []
        for record in self.work.records_of(table):
            if isinstance(record, BadRecord):
                collect(record)
            else:
                good.append(record)
        schema = self.work.schema
        if self._keep_bad:
            schema = pa.schema([*schema, *BAD])
        yield schema.empty_table()  # a batch of nothing has its columns all the same
        for answers in self.work(good, collect):
            yield _widened(answers, schema)
        if bad:
            rows = [{"id": record.id, "where": record.where, "bad": record.reason} for record in bad]
            yield pa.Table.from_pylist(rows, schema=schema)


def _widened(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for field in list(schema)[table.num_columns :]:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def _dataset_of(files: list[str], read: Read, schema: pa.Schema, keep_bad: bool) -> "Dataset":
    return tasks_of(files, _tables_of, read=read, schema=schema, keep_bad=keep_bad)


def _tables_of(files: pa.Table, read: Read, schema: pa.Schema, keep_bad: bool) -> Iterator[pa.Table]:
    if not keep_bad:
        schema = schema.remove(schema.get_field_index("bad"))
    yield schema.empty_table()
    for path in files["path"].to_pylist():
        rows, bases = [], 0
        for record in read(path):
            if isinstance(record, BadRecord):
                if not keep_bad:
                    raise UserError(record.describe())
                rows.append({"id": record.id, "where": record.where, "bad": record.reason})
            else:
                rows.append(vars(record))
                bases += len(record.sequence) if isinstance(record, Record) else 0
            if len(rows) >= AT_ONCE or bases >= BASES_AT_ONCE:
                yield pa.Table.from_pylist(rows, schema=schema)
                rows, bases = [], 0
        if rows:
            yield pa.Table.from_pylist(rows, schema=schema)


def _read_sequences(path: str, fasta: str | None, columns: Columns | None) -> Iterator[Record | BadRecord]:
    return read_records([path], fasta=fasta, columns=columns)


def _read_variants(path: str, fasta: str) -> Iterator[Variant | BadRecord]:
    return read_variants(path, Reference(fasta))


def _files(paths: Iterable[str], suffixes: tuple[str, ...]) -> list[str]:
    """Sorted, so that runs are repeatable; of folders, those whose names end in one of `suffixes`."""
    found = set()
    for entry in map(str, paths):
        if "://" in entry:
            raise UserError(
                f"{entry}: is no path; give files that all machines see, or read it in Python with ray.data."
            )
        path = Path(entry)
        if path.is_dir():
            below = [file for file in path.rglob("*") if file.name.lower().endswith(suffixes)]
            below = [file for file in below if not file.name.startswith(NO_DATA) and file.is_file()]
            if not below:
                raise UserError(f"{entry}: no file in this folder that could be read ({', '.join(suffixes)}).")
            found.update(map(str, below))
        elif path.is_file():
            found.add(entry)
        else:
            raise UserError(f"{entry}: no such file or folder.")
    if not found:
        raise UserError("no input; give files or folders.")
    return sorted(found)
