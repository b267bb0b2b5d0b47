"""Reading FASTA: real records, and every way a file can be unusable."""

import gzip
import random

import pytest

from dnabert2.errors import UserError
from dnabert2.fasta import find_fasta_files, read_fasta


@pytest.fixture
def write(tmp_path):
    def to(name: str, content: bytes):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return to


def test_records_of_plain_and_gzipped_files(write):
    text = b">chr1 a description\nACGT\nacgtn\n>chr2\nRYT\n"
    expected = [("chr1", "ACGTacgtn"), ("chr2", "RYT")]
    assert list(read_fasta(write("a.fa", text))) == expected
    assert list(read_fasta(write("a.fa.gz", gzip.compress(text)))) == expected


def test_truncated_and_damaged_gzip(write):
    bases = "".join(random.Random(0).choices("ACGT", k=200_000))
    whole = gzip.compress(f">a\n{bases}\n".encode())
    with pytest.raises(UserError, match=r"cut\.fa\.gz: is damaged or cut short in or after record 1"):
        list(read_fasta(write("cut.fa.gz", whole[: len(whole) // 2])))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    with pytest.raises(UserError, match=r"flipped\.fa\.gz: is damaged"):
        list(read_fasta(write("flipped.fa.gz", bytes(flipped))))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.fa", b"", "no FASTA record"),
        ("text.fa", b"hello\nworld\n", "no FASTA record"),
        ("hollow.fa", b">a\n>b\nACGT\n", r"record 1 \(a\) has no sequence"),
        ("protein.fa", b">a\nACGT\n>p\nMKVLEEFIQPLLKWW\n", r"record 2 \(p\) is not DNA.*protein"),
    ],
)
def test_unusable_files(write, name, content, message):
    with pytest.raises(UserError, match=f"{name}: .*{message}"):
        list(read_fasta(write(name, content)))


def test_finding_files(write, tmp_path):
    first, second = write("b.fa", b">a\nA\n"), write("a.fna.gz", gzip.compress(b">a\nA\n"))
    write("notes.txt", b"")
    assert find_fasta_files([str(tmp_path), str(first)]) == [second, first]
    with pytest.raises(UserError, match="no such file or folder"):
        find_fasta_files([str(tmp_path / "absent")])
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no FASTA file in this folder"):
        find_fasta_files([str(tmp_path / "bare")])


def test_real_genomes(shared):
    path = shared / "data" / "genomes" / "Human_herpesvirus_1__NC_001806.fa.gz"
    records = list(read_fasta(path))
    assert sum(len(sequence) for _, sequence in records) > 150_000
    assert set("".join(sequence for _, sequence in records)) <= set("ACGTN")
