"""What a worker of a Ray cluster does: it loads a network once, and makes tables of answers from records.

    work = EmbedSettings("mini").load()
    tables = work([Record("read1", "ACGT", "reads.fa, record 1")], collect)             # collect: of bad records

Settings travel to the workers, networks do not. The numbers are made by what `embed` and `score-variants` make theirs
with.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from ..bundled import BUNDLED
from ..errors import UserError
from ..genome.records import BadRecord, Record
from ..genome.reference import Reference
from ..genome.variants import COLUMNS, Variant, checked
from ..tokenizer.policy import TextPolicy
from .defaults import ALL_POOLINGS, CONTEXT, OVERLAP, SCORES, STRIDE, WINDOW, WITH_PLACES
from .embed import (
    CHUNK_BASES,
    check_pooling,
    embed_records,
    normalised,
    readable,
    vector_schema,
)
from .jobs import CHUNK_BASES as MOST_BASES
from .variants import CHUNK, score_schema, score_table

Collect = Callable[[BadRecord], None]
# Of settings, what the numbers do not depend on.
CIRCUMSTANCES = ("attn_implementation", "batch_tokens", "threads")


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        model: a model folder, which all machines see under this path, a Hub id or a bundled checkpoint.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where it is fast.
        attn_implementation: attention backend; by default the fastest that works.
        batch_tokens: tokens of a batch, pads included; by default what suits the device.
        device: cpu or cuda.
        threads: of a worker.
        trust_remote_code: run code of the model's repository; of `EmbedSettings`.
    """

    model: str
    dtype: str = "float32"
    attn_implementation: str | None = None
    batch_tokens: int | None = None
    device: str = "cpu"
    threads: int = 1
    trust_remote_code: bool = False

    def check(self):
        """Raises UserError for what can be found wrong without the network; done before there are any workers."""
        from ..architectures.models import architecture_of
        from ..precision import resolve_dtype

        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise UserError(f"--batch_tokens {self.batch_tokens}: give at least 1.")
        resolve_dtype(self.dtype, "cpu")
        architecture_of(self.model, self.trust_remote_code)

    def identity(self) -> dict:
        """What decides the numbers, JSON-ready, the checksum of the weights among it."""
        from .models import fingerprint

        named = {name: value for name, value in asdict(self).items() if name not in CIRCUMSTANCES}
        return named | fingerprint(self.model)

    def prepare(self) -> dict:
        """Make this process ready for the network; returns the arguments that load it."""
        import torch

        from ..terminal import quiet_unless_terminal
        from .ranks import Ranks

        quiet_unless_terminal()
        torch.set_num_threads(self.threads)
        device = Ranks().device(self.device)
        return {"device": device, "dtype": self.dtype, "attn_implementation": self.attn_implementation}


@dataclass(frozen=True)
class EmbedSettings(Settings):
    """The parameters of `Embedding`; its poolings, and tokens and bases."""

    pooling: str = "mean"
    layer: int = -1
    window: int | None = WINDOW
    overlap: int = OVERLAP
    rc_average: bool = False
    policy: TextPolicy = field(default_factory=TextPolicy)

    def check(self):
        if self.pooling not in ALL_POOLINGS:
            raise UserError(f"--pooling {self.pooling}: choose one of {', '.join(ALL_POOLINGS)}.")
        check_pooling(self.pooling, self.policy, self.rc_average)
        from .rows import check_windows

        check_windows(self.window, self.overlap)
        super().check()

    def load(self) -> "EmbedWork":
        return EmbedWork(self)


@dataclass(frozen=True)
class ScoreSettings(Settings):
    """The parameters of `VariantScorer`, the genome, and the bases that are read on either side of a variant."""

    fasta: str = ""
    scores: tuple[str, ...] = SCORES
    context: int = CONTEXT
    both_strands: bool = True
    stride: int = STRIDE

    def check(self):
        if self.context < 1:
            raise UserError(f"--context {self.context}: give at least 1 base.")
        if self.stride < 0:
            raise UserError(f"--stride {self.stride}: give 0, or at least 1.")
        Reference(self.fasta)  # makes its index too, which workers then find
        super().check()

    def identity(self) -> dict:
        return super().identity() | {"genome": Reference(self.fasta).identity}

    def load(self) -> "ScoreWork":
        return ScoreWork(self)


class EmbedWork:
    """
    Attributes:
        schema: of its tables.
        described: model and settings, JSON-ready.
    """

    def __init__(self, settings: EmbedSettings):
        from .embedding import Embedding
        from .models import load_encoder

        loaded = load_encoder(settings.model, trust_remote_code=settings.trust_remote_code, **settings.prepare())
        self._pooling, self._policy = settings.pooling, settings.policy
        self._embedding = Embedding(
            loaded,
            pooling="mean" if self._pooling in WITH_PLACES else self._pooling,
            layer=settings.layer,
            window=settings.window,
            overlap=settings.overlap,
            rc_average=settings.rc_average,
            batch_tokens=settings.batch_tokens,
        )
        self.schema = vector_schema(self._pooling, self._embedding.size)
        self.described = {**self._embedding.identity, "pooling": self._pooling, "text": vars(self._policy)}

    def __call__(self, records: list[Record], collect: Collect) -> Iterator[pa.Table]:
        """Tables of the vectors of records; those that cannot be used go to `collect`."""
        good = readable(normalised(records, self._policy, None, collect), self._embedding.loaded, collect)
        for some in _groups(good, CHUNK_BASES.get(self._pooling, MOST_BASES)):
            yield from embed_records(self._embedding, some, self._pooling, self.schema)

    def records_of(self, table: pa.Table) -> Iterator[Record | BadRecord]:
        """Rows with the columns id and sequence, and if there is one, where."""
        for row in _rows(table, ("id", "sequence")):
            name = "" if row["id"] is None else str(row["id"])
            where = row.get("where") or f"record {name}"
            if row.get("bad"):
                yield BadRecord(name, where, row["bad"])
            elif not isinstance(row["sequence"], str):
                yield BadRecord(name, where, f"the sequence is {str(row['sequence'])[:60]!r}, which is no text")
            else:
                yield Record(name, row["sequence"], where)


class ScoreWork:
    """The same of scores."""

    def __init__(self, settings: ScoreSettings):
        from .models import load_masked_lm
        from .variant_scores import VariantScorer

        self._reference, self._context = Reference(settings.fasta), settings.context
        self._scorer = VariantScorer(
            load_masked_lm(settings.model, **settings.prepare()),
            scores=settings.scores,
            both_strands=settings.both_strands,
            stride=settings.stride,
            batch_tokens=settings.batch_tokens,
        )
        self.schema = score_schema(self._scorer.columns)
        self.described = self._scorer.identity | {"context": self._context}

    def __call__(self, variants: list[Variant], collect: Collect) -> Iterator[pa.Table]:
        """Tables of the scores of variants."""
        for first in range(0, len(variants), CHUNK):
            some = variants[first : first + CHUNK]
            yield score_table(self._scorer, some, self._reference, self._context, self.schema)

    def records_of(self, table: pa.Table) -> Iterator[Variant | BadRecord]:
        """Rows with the columns chrom, pos, ref and alt, and if there are any, line, allele and where."""
        for row in _rows(table, COLUMNS):
            place = "{chrom}:{pos} {ref}>{alt}".format(**row)
            where = row.get("where") or f"variant {place}"
            if row.get("bad"):
                yield BadRecord("", where, row["bad"])
                continue
            try:
                chrom, pos, ref, alt = str(row["chrom"]), int(row["pos"]), str(row["ref"]), str(row["alt"])
            except (TypeError, ValueError):
                yield BadRecord("", where, f"the position {str(row['pos'])[:40]!r} is no whole number")
                continue
            variant = Variant(chrom, pos, ref, alt, where, row.get("line"), row.get("allele") or 0)
            yield checked(variant, self._reference)


class Started:
    """
    The work of settings, in an actor. A network that cannot be loaded is said when it is first used: of what an
    actor's constructor raises Ray keeps the text alone, tracebacks and all.
    """

    def __init__(self, settings: Settings):
        self._work, self._error = None, None
        try:
            self._work = settings.load()
        except UserError as error:
            self._error = error

    @property
    def work(self) -> EmbedWork | ScoreWork:
        if self._error is not None:
            raise self._error
        return self._work


def everywhere(name: str) -> str:
    """A path as every machine finds it, whatever folder its processes are in; names of no path as they are."""
    return str(Path(name).absolute()) if name not in BUNDLED and Path(name).exists() else name


def _rows(table: pa.Table, needed: tuple[str, ...]) -> list[dict]:
    lacking = [name for name in needed if name not in table.column_names]
    if lacking and len(table):
        columns = ", ".join(table.column_names)[:200]
        raise UserError(f"the dataset has no column {' and no column '.join(lacking)} (its columns are {columns}).")
    return table.to_pylist()


def _groups(records: list[Record], bases: int) -> Iterator[list[Record]]:
    """In order; a group ends with the record that reaches so many bases, so that its vectors fit into memory."""
    some, count = [], 0
    for record in records:
        some.append(record)
        count += len(record.sequence)
        if count >= bases:
            yield some
            some, count = [], 0
    if some:
        yield some
