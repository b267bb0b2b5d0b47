"""What a corpus is made of: which records of which files, their species and group, and which of them are held out.

Everything that can be wrong with the files is found here, in one pass over them, before hours of work.
"""

import csv
import hashlib
import re
from collections import Counter, defaultdict
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import UserError
from ..fasta import SUFFIXES, find_fasta_files, read_fasta
from ..tokenizer.policy import IUPAC, PolicyReport

SPLITS = ("train", "validation")
MOST_HELD_OUT = 0.25  # of a group, for the sake of a record long enough to evaluate on


@dataclass
class Record:
    """A chromosome, contig or plasmid: its name in the file, its length in bases, and what it is for."""

    accession: str
    bases: int
    split: str = "train"


@dataclass
class Source:
    """A FASTA file; `letters` counts what is no upper-case A, C, G or T in it, as a `PolicyReport` does."""

    path: str
    species: str
    group: str
    split: str | None = None
    bytes: int = 0
    sha256: str = ""
    records: list[Record] = field(default_factory=list)
    letters: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Source":
        return cls(**{**values, "records": [Record(**record) for record in values["records"]]})


def find_sources(inputs: list[str], table: str | None = None, group_column: str = "group") -> list[Source]:
    """
    The FASTA files among `inputs`, not read yet.

    Args:
        table: a tab-separated table with the column `file`, and any of `species`, `split` (train or validation) and
            `group_column`. What it does not say: the species is the file's name up to a double underscore or its
            suffix, the group is the species.

    Raises:
        UserError: if a file, the table or one of its values is missing or unusable.
    """
    rows = _read_table(table, group_column) if table else {}
    sources, files = [], find_fasta_files(inputs)
    if rows and not any(path.name in rows for path in files):
        raise UserError(
            f"{table}: names none of the input files, {files[0].name} the first of them; its column file holds file "
            "names, with their suffix."
        )
    for path in files:
        row = rows.get(path.name, {})
        species = row.get("species") or _stem(path).split("__")[0].replace("_", " ")
        group, split, size = row.get(group_column) or species, row.get("split") or None, path.stat().st_size
        sources.append(Source(str(path), species, group, split, size))
    return sources


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def _read_table(table: str, group_column: str) -> dict[str, dict]:
    path = Path(table)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a tab-separated table with the columns file and {group_column}.")
    rows = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as handle:
        reader = csv.DictReader((line for line in handle if not line.startswith("#")), delimiter="\t")
        missing = [name for name in ("file", group_column) if name not in (reader.fieldnames or [])]
        if missing:
            raise UserError(f"{path}: no column {missing[0]!r} in its header; it has {reader.fieldnames}.")
        for row in reader:
            if (row.get("split") or "train") not in SPLITS:
                raise UserError(f"{path}: {row['file']} has the split {row['split']!r}; it is train or validation.")
            rows[Path(row["file"] or "").name] = row
    return rows


def scan(source: Source) -> Source:
    """
    Read a file once: its checksum, its records' names and lengths, its letters.

    Raises:
        UserError: if it is damaged, holds no sequence, protein, or a letter that no nucleotide code uses.
    """
    digest = hashlib.sha256()
    with open(source.path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    report = PolicyReport()
    allowed = IUPAC | {letter.lower() for letter in IUPAC}
    records = []
    for name, sequence in read_fasta(source.path):
        foreign = set(sequence) - allowed
        if foreign:
            letters = " ".join(repr(letter) for letter in sorted(foreign)[:5])
            raise UserError(
                f"{source.path}: record {len(records) + 1} ({name}) holds {letters}, which no nucleotide code uses; "
                "give DNA or RNA letters only."
            )
        report.count_letters(sequence)
        records.append(Record(name, len(sequence)))
    letters = {key: getattr(report, key) for key in ("lower_case", "uracil", "ambiguous", "n")}
    return replace(source, sha256=digest.hexdigest(), records=records, letters=letters)


def scan_all(sources: list[Source], pool: Executor, progress) -> list[Source]:
    """Scan every file on the pool's processes; `progress(path)` is called as each is done."""
    futures = [pool.submit(scan, source) for source in sources]
    scanned = []
    try:
        for future in futures:
            scanned.append(future.result())
            progress(scanned[-1].path)
    finally:
        for future in futures:
            future.cancel()
    refuse_duplicates(scanned)
    return scanned


def refuse_duplicates(sources: list[Source]):
    """Raise UserError if a species has two records of one name: coordinates would not say which is meant."""
    seen = {}
    for source in sources:
        for record in source.records:
            key = (source.species, record.accession)
            if key in seen:
                raise UserError(
                    f"{source.path}: the accession {record.accession} of {source.species} is also in {seen[key]}; "
                    "remove or rename one, or name the species apart in --table."
                )
            seen[key] = source.path


def hold_out(sources: list[Source], patterns: list[str], share: float) -> list[str]:
    """
    Decide which records are for validation: whole ones only, never windows of a record that also trains.

    A file's `split` in the table decides for all its records. So does a pattern that matches the accession, the
    species, both with a colon between, or the file's name. Only where neither says anything anywhere is a share of
    each group chosen: its longest records that fit into `share` of its bases; where these are less than half of that,
    the shortest record above it, if that is at most a quarter of the group; where none fits, the shortest.

    Args:
        patterns: shell-style, `chr20`, `Danio*` or `Homo sapiens:chr2?`.
        share: of each group's bases.

    Returns:
        Groups of which nothing is held out.

    Raises:
        UserError: if a pattern matches nothing, or nothing is left to train on.
    """
    unused = set(patterns)
    for source in sources:
        for record in source.records:
            full = f"{source.species}:{record.accession}"
            names = (full, record.accession, source.species, Path(source.path).name)
            matching = {p for p in patterns if any(fnmatchcase(name, p) for name in names)}
            unused -= matching
            record.split = source.split or ("validation" if matching else "train")
    if unused:
        raise UserError(f"--held_out {sorted(unused)[0]}: matches no accession, species or file name; correct it.")
    if share > 0 and not patterns and not any(source.split for source in sources):
        _choose(sources, share)
    counts = defaultdict(Counter)
    for source in sources:
        for record in source.records:
            counts[source.group][record.split] += record.bases
    if not any(count["train"] for count in counts.values()):
        raise UserError("every record is held out; leave some to train on (--held_out, or the table's split column).")
    return sorted(group for group, count in counts.items() if not count["validation"])


def _choose(sources: list[Source], share: float):
    groups = defaultdict(list)
    for source in sources:
        groups[source.group] += source.records
    for records in groups.values():
        if len(records) > 1:
            for record in _held_out_of(sorted(records, key=lambda record: record.bases), share):
                record.split = "validation"


def _held_out_of(records: list[Record], share: float) -> list[Record]:
    """Of a group's records, shortest first."""
    total = sum(record.bases for record in records)
    fitting, held = [], 0
    for record in reversed(records):
        if held + record.bases <= share * total:
            fitting.append(record)
            held += record.bases
    # A few chromosomes and a plasmid: a whole chromosome says more of the rest than the plasmid does.
    if held < share * total / 2:
        larger = next((record for record in records if record.bases >= share * total), records[-1])
        if larger.bases <= MOST_HELD_OUT * total:
            return [larger]
    return fitting or records[:1]


def passes_by_group(
    sizes: dict[str, int], passes: float, balance: float, weights: dict[str, float], most: float
) -> dict[str, float]:
    """
    How many times each group's bases go into the corpus, so that large groups do not drown small ones.

    A group's share of the corpus is proportional to weight x size ** balance, as multilingual models are sampled
    (Conneau et al. 2020): balance 1 keeps natural proportions, 0 makes groups equal.

    Args:
        sizes: bases of each group's training records.
        passes: total bases of the corpus, in times of all sizes together.
        weights: factor of a group's share; 1 where it is not named, 0 leaves the group out.
        most: no group is read more often than this; what it leaves is not given to others.

    Raises:
        UserError: if a weight names no group or is negative.
    """
    unknown = sorted(set(weights) - set(sizes))
    if unknown:
        raise UserError(f"--group_weights: there is no group {unknown[0]!r}; there are {', '.join(sorted(sizes))}.")
    if any(weight < 0 for weight in weights.values()):
        raise UserError("--group_weights must not be negative.")
    shares = {group: weights.get(group, 1.0) * size**balance for group, size in sizes.items() if size}
    whole = sum(shares.values())
    if not whole:
        raise UserError("--group_weights leaves no group to train on.")
    total = passes * sum(sizes.values())
    return {group: min(most, total * share / whole / sizes[group]) for group, share in shares.items()}


def parse_weights(text: str | None) -> dict[str, float]:
    """`bacteria=0.5,plant=2` as a dictionary; raises UserError if it is none."""
    weights = {}
    for item in filter(None, re.split(r"\s*,\s*", text or "")):
        name, _, value = item.rpartition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError as error:
            raise UserError(f"--group_weights {item}: is no group=number; write bacteria=0.5,plant=2.") from error
        if not name.strip():
            raise UserError(f"--group_weights {item}: names no group; write bacteria=0.5,plant=2.")
    return weights
