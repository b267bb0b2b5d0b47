"""Windows of genomes, drawn so that groups of species are balanced: what a tokenizer is trained and measured on."""

import csv
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import UserError
from ..fasta import find_fasta_files, read_fasta
from .policy import PolicyReport, normalise

SHORTEST_WINDOW = 100


def read_groups(table: str, column: str) -> dict[str, str]:
    """
    File name -> group, from a tab-separated table with a `file` column and `column`.

    A qualifier behind the group's name is dropped: "plant (plastid)" and "plant/alga" are both "plant".

    Raises:
        UserError: if the table or a column is missing.
    """
    try:
        with open(table, newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle, delimiter="\t")
            missing = {"file", column} - set(reader.fieldnames or [])
            if missing:
                raise UserError(
                    f"{table}: no column {sorted(missing)[0]!r} in its header; it has {reader.fieldnames}."
                )
            return {Path(row["file"]).name: re.split(r"[/(,]", row[column])[0].strip() for row in reader}
    except FileNotFoundError as error:
        raise UserError(
            f"{table}: no such file; give a tab-separated table with the columns file and {column}."
        ) from error


def fair_shares(sizes: dict[str, int], total: int) -> dict[str, float]:
    """
    How many bases to take of each group so that groups are as equal as their sizes allow and add up to `total`.

    Small groups are taken whole; what they leave is shared by the larger ones.
    """
    shares, left = {}, float(total)
    for rank, (group, size) in enumerate(sorted(sizes.items(), key=lambda item: (item[1], item[0]))):
        shares[group] = min(size, left / (len(sizes) - rank))
        left -= shares[group]
    return shares


def windows(sequence: str, length: int) -> Iterator[str]:
    """Stretches of at most `length` bases between the Ns of a normalised sequence; very short ones are left out."""
    for match in re.finditer("[ACGT]+", sequence):
        for start in range(match.start(), match.end(), length):
            window = sequence[start : min(start + length, match.end())]
            if len(window) >= min(SHORTEST_WINDOW, length):
                yield window


def find_groups(inputs: list[str], table: str | None, column: str) -> dict[Path, str]:
    """
    FASTA file -> group, in the order in which they are read.

    A file's group is what `table` says, "other" if it says nothing; without a table it is the file's folder.

    Raises:
        UserError: if a file, the table or its column is missing.
    """
    files = find_fasta_files(inputs)
    groups = read_groups(table, column) if table else {}
    return {path: groups.get(path.name, "other" if table else path.parent.name) for path in files}


def count_bases(group_of: dict[Path, str], progress: Callable) -> Counter:
    """
    Group -> bases of its files, N included.

    Args:
        progress: `progress(files, doing)` passes files through and shows how far it is.
    """
    sizes = Counter()
    for path in progress(list(group_of), "counting bases"):
        sizes[group_of[path]] += sum(len(sequence) for _, sequence in read_fasta(path))
    return sizes


def draw_windows(
    group_of: dict[Path, str], length: int, seed: int, report: PolicyReport, progress: Callable
) -> Iterator[tuple[str, float, str]]:
    """
    Yield (group, lot, window) for every window of at most `length` bases; who takes it decides by the lot.

    The lot is uniform in [0, 1): windows below a threshold and windows above another never share a base. One record
    is in memory at a time. `report` holds the text policy and counts what it met.

    Raises:
        UserError: if a file cannot be used.
    """
    generator = random.Random(seed)
    for path in progress(list(group_of), "reading windows"):
        for name, sequence in read_fasta(path):
            if not sequence.strip("Nn"):
                continue
            try:
                text = normalise(sequence, report.policy, report)
            except UserError as error:
                raise UserError(f"{path}: record {name} {error}.") from error
            for window in windows(text, length):
                yield group_of[path], generator.random(), window
