"""Sequences from FASTA, FASTQ, tables, BED with a genome, or standard input, one at a time and each with its place.

    for record in read_records(["reads.fq.gz"]):
        record.id, record.sequence, record.where               # "read1", "ACGT...", "reads.fq.gz, record 1 (read1)"

Nothing is held but the record at hand and eight bytes for each id, by which twins are found. What cannot be used is a
`BadRecord` with its reason; whether that ends the work is for the caller to say.
"""

import gzip
import hashlib
import itertools
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..fasta import SUFFIXES as FASTA_SUFFIXES
from ..fasta import find_fasta_files, read_any_fasta
from .reference import Reference
from .strands import reverse_complement
from .table_formats import SUFFIXES as TABLE_SUFFIXES
from .table_formats import Source, column_names, read_rows

STDIN = "-"
SEQUENCE, PAIR, ID = "sequence", "sequence2", "id"
BED_SUFFIXES = (".bed", ".bed.gz")
NOT_BED = ("#", "track", "browser")


@dataclass(frozen=True)
class Record:
    """
    Attributes:
        id: its name in the file; of tables without ids the number of its row, from 0, counted through all of them; of
            BED its name or its place.
        sequence: as the file has it; of a BED line on the minus strand, the reverse complement.
        where: file and record, for messages.
        pair: a second sequence, of tables that have one.
    """

    id: str
    sequence: str
    where: str
    pair: str | None = None


@dataclass(frozen=True)
class BadRecord:
    """
    Attributes:
        id: its name, empty if it has none.
        where: file and record.
        reason: what is wrong with it, and how to mend it.
    """

    id: str
    where: str
    reason: str

    def describe(self) -> str:
        return f"{self.where}: {self.reason.rstrip('.')}."


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns."""

    sequence: str = SEQUENCE
    pair: str | None = PAIR
    id: str = ID


def read_records(
    inputs: list[str],
    *,
    fasta: str | None = None,
    columns: Columns | None = None,
    only: str | None = None,
) -> Iterator[Record | BadRecord]:
    """
    Every record of the inputs, in order.

    Args:
        inputs: FASTA or FASTQ, CSV, TSV, JSON lines, Parquet, BED, all but Parquet also gzipped; folders of FASTA; or
            "-", FASTA or FASTQ on standard input.
        fasta: the genome that BED files refer to.
        columns: names of a table's columns.
        only: "fasta" for inputs whose names do not say so.

    Raises:
        UserError: if an input is missing, of no kind that is known, or lacks a column. Files that turn out damaged
            further on end in a BadRecord.
    """
    if not inputs:
        raise UserError("no input; give files of sequences, or - for standard input.")
    # Outside the generator: what is missing is said before any work.
    return _read_files(_files(inputs, only), fasta, columns or Columns(), only)


def _read_files(
    paths: list[str], fasta: str | None, columns: Columns, only: str | None
) -> Iterator[Record | BadRecord]:
    seen, row_numbers = SeenIds(), itertools.count()
    for path in paths:
        name = path.lower()
        if name.endswith(BED_SUFFIXES):
            found = _read_bed(path, fasta)
        elif name.endswith(TABLE_SUFFIXES) and only != "fasta":
            found = _read_table(path, columns, row_numbers)
        else:
            found = _read_fasta(path)
        for record in found:
            if isinstance(record, Record) and not seen.add(record.id):
                record = BadRecord(record.id, record.where, f"there was a record {record.id!r} already; rename one")
            yield record


def _files(inputs: list[str], only: str | None) -> list[str]:
    found = []
    for entry in inputs:
        if entry == STDIN:
            found.append(entry)
        elif Path(entry).is_dir():
            found += map(str, find_fasta_files([entry]))
        elif not Path(entry).is_file():
            raise UserError(f"{entry}: no such file or folder.")
        elif only is None and not _is_known(entry.lower()):
            kinds = ", ".join((*FASTA_SUFFIXES, *TABLE_SUFFIXES[:4], ".parquet", ".bed"))
            raise UserError(
                f"{entry}: its name says no format that is known ({kinds}); rename it, or say --input_format fasta."
            )
        else:
            found.append(entry)
    return found


def _is_known(name: str) -> bool:
    return name.endswith((*TABLE_SUFFIXES, *BED_SUFFIXES)) or name.removesuffix(".gz").endswith(FASTA_SUFFIXES)


def _read_fasta(path: str) -> Iterator[Record | BadRecord]:
    shown, number = "standard input" if path == STDIN else path, 0
    if path == STDIN and sys.stdin.isatty():
        raise UserError("--input -: nothing comes on standard input; pipe FASTA into it.")
    try:
        for name, sequence in read_any_fasta(path):
            number += 1
            where = f"{shown}, record {number} ({name})"
            if name:
                yield Record(name, sequence, where)
            else:
                yield BadRecord("", where, "it has no name; write one behind the '>'")
    except UserError as error:
        if number == 0:
            raise
        message = str(error).removeprefix(f"{shown}: ")
        yield BadRecord("", f"{shown}, what follows record {number}", f"the file {message}")


def _read_table(path: str, columns: Columns, row_numbers: Iterator[int]) -> Iterator[Record | BadRecord]:
    source = Source.of(path)
    present = column_names(source)
    if columns.sequence not in present:
        raise UserError(
            f"{path}: has no column {columns.sequence} (its columns are {', '.join(present)[:200]}); name the one "
            "that holds sequences with --sequence_column."
        )
    if columns.id != ID and columns.id not in present:
        raise UserError(f"{path}: has no column {columns.id} (its columns are {', '.join(present)[:200]}).")
    has_id = columns.id in present
    has_pair = columns.pair is not None and columns.pair in present
    wanted = [columns.sequence, *([columns.pair] if has_pair else []), *([columns.id] if has_id else [])]
    rows = 0
    try:
        for number, cells in read_rows(source, wanted, skip_bad=True):
            where, rows = f"{path}, {source.unit} {number}", rows + 1
            row_number = str(next(row_numbers))
            if isinstance(cells, UserError):
                yield BadRecord("", where, str(cells).removeprefix(f"{where}: "))
                continue
            name = ("" if cells[-1] is None else str(cells[-1]).strip()) if has_id else row_number
            if not name:
                yield BadRecord("", where, f"the column {columns.id} is empty; fill it in")
                continue
            where = f"{where} ({name})" if has_id else where
            texts = cells[: 1 + has_pair]
            wrong = next((cell for cell in texts if not isinstance(cell, str | None)), None)
            if wrong is not None:
                yield BadRecord(name, where, f"the sequence is {str(wrong)[:60]!r}, which is no text")
                continue
            texts = [(cell or "").strip() for cell in texts]
            yield Record(name, texts[0], where, texts[1] if has_pair else None)
    except UserError as error:
        if rows == 0:
            raise
        message = str(error).removeprefix(path).lstrip(":, ")
        yield BadRecord("", f"{path}, what follows row {rows}", f"the file {message}")


def _read_bed(path: str, fasta: str | None) -> Iterator[Record | BadRecord]:
    if fasta is None:
        raise UserError(f"{path}: BED names places in a genome; give that with --fasta.")
    reference, number = Reference(fasta), 0
    try:
        opener = gzip.open if path.lower().endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if line.strip() and not line.startswith(NOT_BED):
                    yield _bed_record(line.rstrip("\r\n"), f"{path}, line {number}", reference)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = f"the file is damaged or cut short ({str(error) or type(error).__name__}); copy or download it again"
        if number == 0:
            raise UserError(f"{path}: {reason}.") from error
        yield BadRecord("", f"{path}, what follows line {number}", reason)


def _bed_record(line: str, where: str, reference: Reference) -> Record | BadRecord:
    cells = line.split("\t") if "\t" in line else line.split()
    name = cells[3] if len(cells) > 3 and cells[3] not in ("", ".") else ""
    try:
        chrom, start, end = cells[0], int(cells[1]), int(cells[2])
    except (IndexError, ValueError):
        return BadRecord(name, where, "is no BED; write chromosome, start and end with tabs between them")
    strand = cells[5] if len(cells) > 5 else "."
    name = name or f"{chrom}:{start}-{end}" + (f"({strand})" if strand in ("+", "-") else "")
    where = f"{where} ({name})"
    if not 0 <= start < end:
        return BadRecord(name, where, f"holds no base, it goes from {start} to {end}; BED starts at 0 and ends later")
    try:
        sequence = reference.fetch(chrom, start, end)
    except UserError as error:
        return BadRecord(name, where, str(error))
    return Record(name, reverse_complement(sequence) if strand == "-" else sequence, where)


class SeenIds:
    """Which ids there were, as sorted 64-bit hashes: eight bytes each, and a chance of 3 in 10^6 to err in 10^7."""

    RECENT = 100_000

    def __init__(self):
        self._sorted = np.empty(0, dtype=np.uint64)
        self._recent = set()

    def add(self, name: str) -> bool:
        """True if it is new."""
        key = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        if key in self._recent:
            return False
        place = int(np.searchsorted(self._sorted, np.uint64(key)))
        if place < len(self._sorted) and int(self._sorted[place]) == key:
            return False
        self._recent.add(key)
        if len(self._recent) >= self.RECENT:
            fresh = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, fresh]), kind="stable")
            self._recent = set()
        return True
