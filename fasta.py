"""Streams FASTA and FASTQ files, plain or gzipped, one record at a time; reading itself is pysam's."""

from collections.abc import Iterator
from pathlib import Path

import pysam

from .errors import UserError
from .tokenizer.policy import IUPAC

SUFFIXES = (".fa", ".fasta", ".fna", ".ffn", ".fq", ".fastq")
# A letter that no nucleotide code uses, in more than this share of a record, means protein.
FOREIGN_SHARE = 0.01


def find_fasta_files(inputs: list[str]) -> list[Path]:
    """
    The FASTA files among `inputs`, folders searched recursively, sorted by name so that runs are repeatable.

    Raises:
        UserError: if an input does not exist or a folder holds no FASTA file.
    """
    found = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            below = [p for p in entry.rglob("*") if p.name.lower().removesuffix(".gz").endswith(SUFFIXES)]
            if not below:
                raise UserError(f"{entry}: no FASTA file in this folder (looked for {', '.join(SUFFIXES)}, also .gz).")
            found += below
        elif entry.is_file():
            found.append(entry)
        else:
            raise UserError(
                f"{entry}: no such file or folder; give FASTA files (.fa, .fa.gz, ...) or a folder of them."
            )
    return sorted(set(found))


def read_fasta(path: str | Path) -> Iterator[tuple[str, str]]:
    """
    Yield (name, sequence) of each record, in file order; one record is in memory at a time.

    Raises:
        UserError: if the file is missing, empty, not FASTA, damaged, has a record without sequence, or holds protein.
    """
    for number, (name, sequence) in enumerate(read_any_fasta(path), 1):
        if not sequence:
            raise UserError(f"{path}: record {number} ({name}) has no sequence; remove it or complete the file.")
        _refuse_protein(path, number, name, sequence)
        yield name, sequence


def read_any_fasta(path: str | Path) -> Iterator[tuple[str, str]]:
    """
    The same of records of any letters, or none; "-" reads standard input.

    Raises:
        UserError: if the file is missing, empty, not FASTA, or damaged.
    """
    shown = "standard input" if str(path) == "-" else str(path)
    if str(path) != "-" and not Path(path).is_file():
        raise UserError(f"{path}: no such file.")
    verbosity = pysam.set_verbosity(0)  # htslib prints its own errors; ours says the same once
    number = 0
    try:
        for record in pysam.FastxFile(str(path)):
            number += 1
            yield record.name, record.sequence or ""
    except (OSError, ValueError) as error:
        raise UserError(
            f"{shown}: is damaged or cut short in or after record {max(number, 1)}; copy or download it again."
        ) from error
    finally:
        pysam.set_verbosity(verbosity)
    if number == 0:
        raise UserError(f"{shown}: no FASTA record in this file (a record starts with a line '>name').")


def _refuse_protein(path: str | Path, number: int, name: str, sequence: str):
    head = sequence[:10_000].upper()
    foreign = {letter: head.count(letter) for letter in set(head) - IUPAC}
    if sum(foreign.values()) > FOREIGN_SHARE * len(head):
        letters = " ".join(sorted(foreign))
        raise UserError(
            f"{path}: record {number} ({name}) is not DNA, it holds the letters {letters}; "
            "this looks like protein, give nucleotide sequences."
        )
