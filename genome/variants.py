"""Variants from VCF, or from a table of chrom, pos, ref and alt, checked against the genome they belong to.

    reference = Reference("hg38.fa")
    for variant in read_variants("calls.vcf.gz", reference):
        variant.chrom, variant.pos, variant.ref, variant.alt           # "chr17", 43044295, "T", "C": pos counts from 1

Lines are read and annotated as text, so that nothing of a VCF gets lost: pysam refuses to write records whose contig
or INFO keys the header does not declare, which is how many files are, and to read a VCF that was gzipped.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .records import BadRecord
from .reference import Reference
from .table_formats import SUFFIXES as TABLE_SUFFIXES
from .table_formats import Source, column_names, read_rows

VCF_SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz")
COLUMNS = ("chrom", "pos", "ref", "alt")
BASES = frozenset("ACGT")
LONGEST = 50  # bases of an allele that is scored


@dataclass(frozen=True)
class Variant:
    """
    One alternative allele.

    Attributes:
        chrom: as the VCF has it.
        pos: of the first base of `ref`, from 1.
        ref, alt: alleles, as the file has them.
        where: file, line and place, for messages.
        line: its number in the file, from 1.
        allele: which of the line's alternatives, from 0.
        unscored: why it gets no score, though there is nothing wrong with it; None if it gets one.
    """

    chrom: str
    pos: int
    ref: str
    alt: str
    where: str
    line: int
    allele: int = 0
    unscored: str | None = None

    @property
    def start(self) -> int:
        """Of the first base of `ref`, from 0."""
        return self.pos - 1

    @property
    def end(self) -> int:
        return self.start + len(self.ref)


def read_variants(path: str, reference: Reference) -> Iterator[Variant | BadRecord]:
    """
    Every alternative allele, in file order.

    Args:
        path: VCF, plain or gzipped in either way, or a table (CSV, TSV, JSON lines, Parquet).
        reference: the genome that positions count in; its bases must be the reference alleles.

    Raises:
        UserError: if the file is missing or no VCF. What is wrong further on is a BadRecord.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; --vcf takes the variants to score.")
    if path.lower().endswith(TABLE_SUFFIXES):
        yield from _read_table(path, reference)
        return
    number, has_header = 0, False
    try:
        with open_text(path) as handle:
            for number, line in enumerate(handle, 1):
                if line.startswith("#CHROM"):
                    has_header = True
                elif not line.startswith("#") and line.strip():
                    if not has_header:
                        raise UserError(f"{path}: is no VCF, no line #CHROM stands before its first record.")
                    yield from _read_line(line.rstrip("\r\n"), path, number, reference)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = f"the file is damaged or cut short ({str(error) or type(error).__name__}); copy or download it again"
        if not has_header:
            raise UserError(f"{path}: {reason}.") from error
        yield BadRecord("", f"{path}, what follows line {number}", reason)
        return
    if not has_header:
        raise UserError(f"{path}: is no VCF, it has no line #CHROM.")


@contextmanager
def open_text(path: str | Path):
    """The lines of a file that may be gzipped."""
    with open(path, "rb") as handle:
        is_gzip = handle.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rt", encoding="utf-8") if is_gzip else open(path, encoding="utf-8") as handle:
        yield handle


def _read_line(line: str, path: str, number: int, reference: Reference) -> Iterator[Variant | BadRecord]:
    cells, where = line.split("\t"), f"{path}, line {number}"
    if len(cells) < 5 or not cells[1].isdigit():
        yield BadRecord(
            "", where, "is no VCF record; it needs chromosome, position, id, ref and alt with tabs between"
        )
        return
    chrom, pos, ref = cells[0], int(cells[1]), cells[3]
    for allele, alt in enumerate(cells[4].split(",")):
        if alt != ".":
            yield checked(
                Variant(chrom, pos, ref, alt, _place(where, chrom, pos, ref, alt), number, allele), reference
            )


def _read_table(path: str, reference: Reference) -> Iterator[Variant | BadRecord]:
    source = Source.of(path)
    present = column_names(source)
    missing = [name for name in COLUMNS if name not in present]
    if missing:
        raise UserError(
            f"{path}: has no column {' and no column '.join(missing)} (its columns are {', '.join(present)[:200]})."
        )
    for number, (chrom, pos, ref, alt) in read_rows(source, list(COLUMNS)):
        where = f"{path}, {source.unit} {number}"
        try:
            chrom, pos, ref, alt = str(chrom), int(pos), str(ref), str(alt)
        except (TypeError, ValueError):
            yield BadRecord("", where, f"the position {str(pos)[:40]!r} is no whole number")
            continue
        yield checked(Variant(chrom, pos, ref, alt, _place(where, chrom, pos, ref, alt), number), reference)


def _place(where: str, chrom: str, pos: int, ref: str, alt: str) -> str:
    return f"{where} ({chrom}:{pos} {ref[:20]}>{alt[:20]})"


def checked(variant: Variant, reference: Reference) -> Variant | BadRecord:
    """The variant, with `unscored` if it has no sequence of its own; a BadRecord if the genome says otherwise."""
    name = f"{variant.chrom}:{variant.pos}"
    ref, alt = variant.ref.upper(), variant.alt.upper()
    if not ref or set(ref) - BASES - {"N"}:
        return BadRecord(name, variant.where, f"the reference allele {variant.ref[:40]!r} is no sequence of bases")
    try:
        found = reference.fetch(variant.chrom, variant.start, variant.end)
    except UserError as error:
        return BadRecord(name, variant.where, str(error))
    if found.upper() != ref:
        return BadRecord(
            name,
            variant.where,
            f"the reference allele is {variant.ref[:40]}, but {reference.path} has {found[:40]} there; give the "
            "genome that the variants were called on",
        )
    reason = None
    if set(alt) - BASES:
        reason = "no sequence"  # <DEL>, *, a breakend, an ambiguity code
    elif set(ref) - BASES:
        reason = "N in the reference"
    elif alt == ref:
        reason = "alt is ref"
    elif max(len(ref), len(alt)) > LONGEST:
        reason = f"longer than {LONGEST} bases"
    if reason is None:
        return variant
    return Variant(
        variant.chrom, variant.pos, variant.ref, variant.alt, variant.where, variant.line, variant.allele, reason
    )


def annotate(
    path: str | Path, scores: Iterable[tuple[int, int, dict[str, float | None]]], fields: dict[str, str], output
):
    """
    Write a VCF again with scores among its INFO, everything else as it was.

    Args:
        path: the VCF.
        scores: line, allele and the value of each field, in the order of the file.
        fields: what each INFO key means; every one of them is a float for each alternative allele.
        output: a handle for bytes.
    """
    scores, ahead = iter(scores), None
    with open_text(path) as handle:
        for number, line in enumerate(handle, 1):
            if line.startswith("#CHROM"):
                for key, meaning in fields.items():
                    output.write(f'##INFO=<ID={key},Number=A,Type=Float,Description="{meaning}">\n'.encode())
            found = {}
            while (ahead := ahead or next(scores, None)) is not None and ahead[0] == number:
                found[ahead[1]], ahead = ahead[2], None
            output.write((_annotated(line, found, fields) if found else line).encode())


def _annotated(line: str, found: dict[int, dict], fields: dict[str, str]) -> str:
    cells = line.rstrip("\r\n").split("\t")
    alleles = range(cells[4].count(",") + 1)
    cells += ["."] * (8 - len(cells))
    added = [f"{key}={','.join(_number(found.get(allele, {}).get(key)) for allele in alleles)}" for key in fields]
    cells[7] = ";".join(([] if cells[7] in (".", "") else [cells[7]]) + added)
    return "\t".join(cells) + "\n"


def _number(value: float | None) -> str:
    return "." if value is None else f"{value:.6g}"
