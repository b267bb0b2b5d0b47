"""Random access to a genome in FASTA: any stretch of any record, read from the disk when it is asked for.

    reference = Reference("hg38.fa.gz")
    reference.fetch("chr17", 43_044_294, 43_044_304)            # "TTCTCCACAC": 0-based, half-open
    reference.fetch("17", 43_044_294, 43_044_304)               # the same: chr17 is meant, if there is no 17

pysam reads, with the index `.fai` beside the file, which is made if it is missing. A file that no index is possible
for (gzip instead of bgzip, lines of several lengths) is unpacked to a temporary one. A record that is a part of a
chromosome and says so, `chr17:43000001-43200000` as `samtools faidx` writes it, answers to the chromosome's
coordinates.
"""

import gzip
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pysam

from ..errors import UserError
from ..fasta import read_any_fasta

REGION = re.compile(r"(?P<chrom>.+):(?P<start>[0-9][0-9,]*)-(?P<end>[0-9][0-9,]*)")
MITOCHONDRION = ("M", "MT", "chrM", "chrMT")
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Stretch:
    """
    A part of a chromosome that a FASTA record holds.

    Attributes:
        record: its name in the file.
        start, end: 0-based, half-open, in the chromosome's coordinates.
    """

    record: str
    start: int
    end: int


class Reference:
    """
    Args:
        path: FASTA, plain, bgzipped or gzipped.

    Attributes:
        chromosomes: names, in file order.

    Raises:
        UserError: if the file is missing, damaged, not FASTA or has two records of one name.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path}: no such file; --fasta takes the genome that coordinates refer to.")
        self._scratch = tempfile.TemporaryDirectory(prefix="dnabert2-")
        verbosity = pysam.set_verbosity(0)
        try:
            self._file = _open(self.path, Path(self._scratch.name))
        except (OSError, ValueError, EOFError, pysam.SamtoolsError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{path}: cannot be read as FASTA ({reason[:200].rstrip('.')}).") from error
        finally:
            pysam.set_verbosity(verbosity)
        self._stretches = _stretches(dict(zip(self._file.references, self._file.lengths, strict=True)))
        self.chromosomes = list(self._stretches)

    @property
    def identity(self) -> dict:
        """Which file it is, JSON-ready: its path, size and time, by which work that goes on knows another genome."""
        stat = self.path.stat()
        return {"fasta": str(self.path), "bytes": stat.st_size, "modified": stat.st_mtime_ns}

    def name_of(self, chrom: str) -> str:
        """
        The chromosome as this file calls it: `chrom` itself, or with `chr` before it or taken away.

        Raises:
            UserError: if it has none of these names.
        """
        bare = chrom.removeprefix("chr")
        others = MITOCHONDRION if chrom in MITOCHONDRION else (bare, f"chr{bare}")
        for name in (chrom, *others):
            if name in self._stretches:
                return name
        known = ", ".join(self.chromosomes[:SHOWN]) + (", ..." if len(self.chromosomes) > SHOWN else "")
        raise UserError(f"{self.path} has no sequence {chrom!r} (it has {known}); give the genome it belongs to")

    def stretch(self, chrom: str, start: int, end: int) -> Stretch:
        """
        The stretch of sequence that holds bases `start` to `end`, 0-based and half-open.

        Raises:
            UserError: if no record holds all of them. The caller adds who asked, and a full stop.
        """
        name = self.name_of(chrom)
        stretches = self._stretches[name]
        for stretch in stretches:
            if stretch.start <= start <= end <= stretch.end:
                return stretch
        held = ", ".join(f"{s.start + 1:,}-{s.end:,}" for s in stretches[:SHOWN])
        raise UserError(
            f"bases {start + 1:,} to {end:,} of {chrom} are not all in {self.path}, which holds {name}:{held}; give "
            "the genome that the coordinates refer to"
        )

    def fetch(self, chrom: str, start: int, end: int) -> str:
        """
        Bases `start` to `end`, 0-based and half-open, in the case of the file.

        Raises:
            UserError: as `stretch`, and if the file is cut short there.
        """
        stretch = self.stretch(chrom, start, end)
        verbosity = pysam.set_verbosity(0)
        try:
            return self._file.fetch(stretch.record, start - stretch.start, end - stretch.start)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} is damaged or cut short ({error}); copy or download it again") from error
        finally:
            pysam.set_verbosity(verbosity)


def parse_region(text: str) -> tuple[str, int, int]:
    """
    "chr1:1,001-2,000", whose bases count from 1 and include the last -> ("chr1", 1000, 2000), 0-based and half-open.

    Raises:
        UserError: if it is no region or holds no base.
    """
    match = REGION.fullmatch(text)
    if not match:
        raise UserError(f"{text}: is no region; write CHROM:START-END, such as chr17:43,044,295-43,044,394.")
    start, end = (int(match[name].replace(",", "")) for name in ("start", "end"))
    if not 1 <= start <= end:
        raise UserError(f"{text}: a region's first base is 1 or more and its last not before it; mend it.")
    return match["chrom"], start - 1, end


def _stretches(lengths: dict[str, int]) -> dict[str, list[Stretch]]:
    found = {}
    for record, length in lengths.items():
        match = REGION.fullmatch(record)
        chrom, start = record, 0
        if match and match["chrom"] not in lengths:
            first, last = (int(match[name].replace(",", "")) for name in ("start", "end"))
            if last - first + 1 == length and first >= 1:  # else it is a name like any other
                chrom, start = match["chrom"], first - 1
        found.setdefault(chrom, []).append(Stretch(record, start, start + length))
    return found


def _open(path: Path, scratch: Path) -> pysam.FastaFile:
    is_gzip, is_bgzip = _compression(path)
    if is_gzip and not is_bgzip:
        return _open_unpacked(path, scratch)
    indices = [Path(f"{path}.fai"), Path(f"{path}.gzi")][: 1 + is_bgzip]
    if all(index.is_file() and index.stat().st_mtime >= path.stat().st_mtime for index in indices):
        # One that cannot be read is made anew.
        with suppress(OSError, ValueError):
            return _open_indexed(path, indices)
    try:
        indices = _build_index(path, scratch, is_bgzip)
    except pysam.SamtoolsError:  # lines of several lengths
        return _open_unpacked(path, scratch)
    return _open_indexed(path, indices)


def _open_indexed(path: Path, indices: list[Path]) -> pysam.FastaFile:
    compressed = {"filepath_index_compressed": str(indices[1])} if len(indices) > 1 else {}
    return pysam.FastaFile(str(path), filepath_index=str(indices[0]), **compressed)


def _open_unpacked(path: Path, scratch: Path) -> pysam.FastaFile:
    unpacked = _unpack(path, scratch)
    return _open_indexed(unpacked, _build_index(unpacked, scratch, False))


def _compression(path: Path) -> tuple[bool, bool]:
    """Whether a file is gzipped, and whether in the blocks of bgzip."""
    with open(path, "rb") as handle:
        head = handle.read(14)
    return head[:2] == b"\x1f\x8b", head[:4] == b"\x1f\x8b\x08\x04" and head[12:14] == b"BC"


def _build_index(path: Path, scratch: Path, is_bgzip: bool) -> list[Path]:
    """Beside the file, where the next run finds it; in a read-only folder, in `scratch`."""
    _refuse_twins(path, is_bgzip)
    made = [scratch / "index.fai", scratch / "index.gzi"][: 1 + is_bgzip]
    pysam.faidx(str(path), "--fai-idx", str(made[0]), *(["--gzi-idx", str(made[1])] if is_bgzip else []))
    beside = [Path(f"{path}{index.suffix}") for index in made]
    for here, there in zip(made, beside, strict=True):
        partial = there.with_name(f"{there.name}.{os.getpid()}.tmp")
        try:
            partial.write_bytes(here.read_bytes())
            os.replace(partial, there)
        except OSError:
            partial.unlink(missing_ok=True)
            return made
    return beside


def _refuse_twins(path: Path, is_bgzip: bool):
    """Two records of one name, of which an index would hold the first and say nothing."""
    seen = set()
    with gzip.open(path, "rb") if is_bgzip else open(path, "rb") as handle:
        for line in handle:
            if line.startswith(b">"):
                _note((line[1:].split() or [b""])[0].decode("utf-8", "replace"), seen, path)


def _unpack(path: Path, scratch: Path) -> Path:
    seen, unpacked = set(), scratch / "genome.fa"
    with open(unpacked, "w", encoding="utf-8") as handle:
        for name, sequence in read_any_fasta(path):
            _note(name, seen, path)
            handle.write(f">{name}\n{sequence}\n")
    return unpacked


def _note(name: str, seen: set[str], path: Path):
    if name in seen:
        raise UserError(f"{path}: two records are called {name!r}; rename or remove one.")
    seen.add(name)
