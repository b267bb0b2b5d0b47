"""Variants from VCF, or from a table of chrom, pos, ref and alt, checked against the genome they belong to.

    reference = Reference("hg38.fa")
    for variant in read_variants("calls.vcf.gz", reference):
        variant.chrom, variant.pos, variant.ref, variant.alt           # "chr17", 43044295, "T", "C": pos counts from 1

Lines are read and annotated as text, so that nothing of a VCF gets lost: pysam refuses to write records whose contig
or INFO keys the header does not declare, which is how many files are, and to read a VCF that was gzipped. The text is
Latin-1, in which every byte is a letter: a VCF is ASCII but for what its header and INFO say in other tongues.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from .records import BadRecord
from .reference import Reference
from .table_formats import SUFFIXES as TABLE_SUFFIXES
from .table_formats import Source, column_names, read_rows

VCF_SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz")
COLUMNS = ("chrom", "pos", "ref", "alt")
BASES = frozenset("ACGT")
ENCODING = "latin-1"
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
    if is_table(path):
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
    except (OSError, EOFError, zlib.error) as error:
        if not has_header:
            raise UserError(f"{path}: {_damage(error)}.") from error
        yield BadRecord("", f"{path}, what follows line {number}", _damage(error))
        return
    if not has_header:
        raise UserError(f"{path}: is no VCF, it has no line #CHROM.")


def is_table(path: str) -> bool:
    """Whether a file is a table by its name; any other is taken for a VCF."""
    return path.lower().endswith(TABLE_SUFFIXES)


def _damage(error: Exception) -> str:
    return f"the file is damaged or cut short ({str(error) or type(error).__name__}); copy or download it again"


@contextmanager
def open_text(path: str | Path):
    """The lines of a file that may be gzipped, with the ends they have."""
    with open(path, "rb") as handle:
        is_gzip = handle.read(2) == b"\x1f\x8b"
    with (gzip.open if is_gzip else open)(path, "rt", encoding=ENCODING, newline="\n") as handle:
        yield handle


def _read_line(line: str, path: str, number: int, reference: Reference) -> Iterator[Variant | BadRecord]:
    cells, where = line.split("\t"), f"{path}, line {number}"
    if len(cells) < 5 or not cells[1].isdecimal():
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
    row = 0
    try:
        for number, cells in read_rows(source, list(COLUMNS)):
            row += 1
            yield _of_cells(cells, f"{path}, {source.unit} {number}", number, reference)
    except UserError as error:
        if row == 0:
            raise
        yield BadRecord("", f"{path}, what follows row {row}", str(error).removeprefix(path).lstrip(":, "))


def _of_cells(cells: list, where: str, number: int, reference: Reference) -> Variant | BadRecord:
    chrom, pos, ref, alt = ("" if cell is None else cell for cell in cells)
    try:
        if isinstance(pos, float) and not pos.is_integer():
            raise ValueError
        pos = int(pos)
    except (TypeError, ValueError):
        return BadRecord("", where, f"the position {str(pos)[:40]!r} is no whole number")
    chrom, ref, alt = str(chrom), str(ref), str(alt)
    return checked(Variant(chrom, pos, ref, alt, _place(where, chrom, pos, ref, alt), number), reference)


def _place(where: str, chrom: str, pos: int, ref: str, alt: str) -> str:
    return f"{where} ({chrom}:{pos} {ref[:20]}>{alt[:20]})"


def checked(variant: Variant, reference: Reference) -> Variant | BadRecord:
    """The variant, with `unscored` if it has no sequence of its own; a BadRecord if the genome says otherwise."""
    name = f"{variant.chrom}:{variant.pos}"
    ref, alt = variant.ref.upper(), variant.alt.upper()
    if not ref or set(ref) - BASES - {"N"}:
        return BadRecord(name, variant.where, f"the reference allele {variant.ref[:40]!r} is no sequence of bases")
    if not alt:
        return BadRecord(name, variant.where, "the alternative allele is empty; begin both with the base before them")
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
    return replace(variant, unscored=reason)


def normalised(variant: Variant, reference: Reference) -> Variant:
    """
    The same change with as few bases and as far left as it can be written (Tan et al. 2015), in upper case.

    One insertion into a run of A has as many places as there are bases in the run, and any allele may be written with
    more bases around it; what is made of a change must not hang on that.

    Args:
        variant: one that gets a score.
    """
    start, ref, alt = variant.start, variant.ref.upper(), variant.alt.upper()
    first = reference.stretch(variant.chrom, variant.start, variant.end).start
    while ref[-1] == alt[-1]:
        before = ""
        if min(len(ref), len(alt)) == 1:
            before = reference.fetch(variant.chrom, start - 1, start).upper() if start > first else ""
            if before not in BASES:
                break
        start, ref, alt = start - len(before), before + ref[:-1], before + alt[:-1]
    while min(len(ref), len(alt)) > 1 and ref[0] == alt[0]:
        start, ref, alt = start + 1, ref[1:], alt[1:]
    return replace(variant, pos=start + 1, ref=ref, alt=alt)


def annotate(
    path: str | Path, scores: Iterable[tuple[int, int, dict[str, float | None]]], fields: dict[str, str], output
):
    """
    Write a VCF again with scores among its INFO, in place of any that it has under these keys; all else as it was.

    Args:
        path: the VCF.
        scores: line, allele and the value of each field, in the order of the file.
        fields: what each INFO key means; every one of them is a float for each alternative allele.
        output: a handle for bytes.

    Raises:
        UserError: if the VCF cannot be read to its end.
    """
    try:
        _annotate(path, iter(scores), fields, output)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: {_damage(error)}, or choose an output that is no VCF.") from error


def _annotate(path: str | Path, scores: Iterator, fields: dict[str, str], output):
    ahead = None
    earlier = tuple(f"##INFO=<ID={key}," for key in fields)
    with open_text(path) as handle:
        for number, line in enumerate(handle, 1):
            if line.startswith(earlier):
                continue
            if line.startswith("#CHROM"):
                for key, meaning in fields.items():
                    added = f'##INFO=<ID={key},Number=A,Type=Float,Description="{meaning}">'
                    output.write((added + _ending(line)).encode(ENCODING))
            found = {}
            while (ahead := ahead or next(scores, None)) is not None and ahead[0] == number:
                found[ahead[1]], ahead = ahead[2], None
            output.write((_annotated(line, found, fields) if found else line).encode(ENCODING))


def _annotated(line: str, found: dict[int, dict], fields: dict[str, str]) -> str:
    cells = line.rstrip("\r\n").split("\t")
    alleles = range(cells[4].count(",") + 1)
    cells += ["."] * (8 - len(cells))
    info = [] if cells[7] in (".", "") else cells[7].split(";")
    info = [entry for entry in info if entry.partition("=")[0] not in fields]
    added = [f"{key}={','.join(_number(found.get(allele, {}).get(key)) for allele in alleles)}" for key in fields]
    cells[7] = ";".join(info + added)
    return "\t".join(cells) + _ending(line)


def _ending(line: str) -> str:
    return line[len(line.rstrip("\r\n")) :]


def _number(value: float | None) -> str:
    return "." if value is None else f"{value:.6g}"
