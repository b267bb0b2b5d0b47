"""One split of the benchmark as it lies on the disk: its rows, what cannot be used of them, and its checksums."""

import csv
import functools
import hashlib
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .tasks import HERE

HEADERS = (["sequence", "label"], ["sequence", "sequence2", "label"])


@dataclass
class Split:
    """
    A split that was read.

    Attributes:
        sequences: a row's sequence, or its two, upper-cased.
        labels: as written.
        unusable: lines of rows with an empty field, or with more or fewer fields than the header.
        file_sha256: of the file's bytes.
        content_sha256: of its rows alone, a line "sequence,label\\n" each: the same for other line ends or quotes.
    """

    path: Path
    sequences: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    unusable: list[int] = field(default_factory=list)
    file_sha256: str = ""
    content_sha256: str = ""

    def lengths(self) -> list[int]:
        """Bases of every sequence, of both in a pair."""
        return [len(sequence) for row in self.sequences for sequence in row]

    def with_other_letters(self) -> int:
        """Rows with letters other than A, C, G and T."""
        return sum(any(set(sequence) - set("ACGT") for sequence in row) for row in self.sequences)

    def repeats(self) -> tuple[int, int]:
        """Rows whose sequence stood in a row before; and sequences that have several labels."""
        labels = {}
        for sequence, label in zip(self.sequences, self.labels, strict=True):
            labels.setdefault(sequence, set()).add(label)
        return len(self.sequences) - len(labels), sum(len(x) > 1 for x in labels.values())

    def row_counts(self) -> Counter:
        """How often each pair of sequence and label occurs."""
        return Counter(zip(self.sequences, self.labels, strict=True))


def read_split(path: Path) -> Split:
    """
    Read a split file; rows that cannot be used are counted, not refused.

    Raises:
        UserError: if it is no CSV file with the columns sequence (and sequence2) and label.
    """
    split, content = Split(path), hashlib.sha256()
    try:
        body = path.read_bytes()
        rows = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""))
        header = [name.strip() for name in next(rows, [])]
        if header not in HEADERS:
            raise UserError(
                f"{path}, line 1: the header is {','.join(header)[:60]!r}, not sequence,label (pairs: "
                "sequence,sequence2,label); mend it."
            )
        for row in filter(None, rows):
            row = [value.strip() for value in row]
            content.update((",".join(row) + "\n").encode())
            if len(row) != len(header) or not all(row):
                split.unusable.append(rows.line_num)
                continue
            split.sequences.append(tuple(sequence.upper() for sequence in row[:-1]))
            split.labels.append(row[-1])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); fetch it again.") from error
    split.file_sha256, split.content_sha256 = hashlib.sha256(body).hexdigest(), content.hexdigest()
    return split


@functools.cache
def known_checksums() -> dict[tuple[str, str], dict[str, str]]:
    """(dataset, split) -> `file_sha256` and `content_sha256` of the released files, where these are known."""
    with open(HERE / "checksums.csv", newline="", encoding="utf-8") as handle:
        return {(row["dataset"], row["split"]): row for row in csv.DictReader(handle)}
