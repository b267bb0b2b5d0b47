"""Stretches of a genome from FASTA of every kind, and what is said of files and places that cannot be read."""

import gzip
import os
import random
from pathlib import Path

import pysam
import pytest

from dnabert2.errors import UserError
from dnabert2.genome.reference import Reference, parse_region

LENGTHS = {"chr1": 5_000, "chr2": 1_234, "chrM": 300, "chr17:1,001-1,200": 200, "chr9:5-9": 77}


@pytest.fixture(scope="module")
def sequences() -> dict[str, str]:
    """By record: upper and lower case, and N."""
    draw = random.Random(1)
    return {name: "".join(draw.choices("ACGTacgtN", k=length)) for name, length in LENGTHS.items()}


@pytest.fixture
def fasta(sequences):
    """The text of a FASTA file with lines of 60 bases."""
    return "".join(
        f">{name} described\n" + "".join(f"{sequence[i : i + 60]}\n" for i in range(0, len(sequence), 60))
        for name, sequence in sequences.items()
    )


def write(path: Path, text: str, compression: str) -> Path:
    if compression == "gzip":
        path = path.with_name(f"{path.name}.gz")
        path.write_bytes(gzip.compress(text.encode()))
        return path
    path.write_text(text)
    if compression == "bgzip":
        packed = path.with_name(f"{path.name}.gz")
        pysam.tabix_compress(str(path), str(packed))
        path.unlink()
        return packed
    return path


def assert_holds(reference: Reference, sequences: dict[str, str]):
    draw = random.Random(2)
    for name, sequence in sequences.items():
        places = [(0, 1), (0, len(sequence)), (len(sequence) - 1, len(sequence))]
        places += [sorted(draw.sample(range(len(sequence) + 1), 2)) for _ in range(20)]
        for start, end in places:
            if name == "chr17:1,001-1,200":
                assert reference.fetch("chr17", start + 1_000, end + 1_000) == sequence[start:end]
            else:
                assert reference.fetch(name, start, end) == sequence[start:end]


@pytest.mark.parametrize("compression", ["plain", "bgzip", "gzip"])
def test_every_compression(tmp_path, sequences, fasta, compression):
    path = write(tmp_path / "g.fa", fasta, compression)
    for _ in range(2):  # the second time with the index of the first
        reference = Reference(path)
        # chr9:5-9 says that it has 5 bases, but has more: a name like any other.
        assert reference.chromosomes == ["chr1", "chr2", "chrM", "chr17", "chr9:5-9"]
        assert_holds(reference, sequences)
        beside = {"plain": ["g.fa", "g.fa.fai"], "gzip": ["g.fa.gz"]}
        expected = beside.get(compression, ["g.fa.gz", "g.fa.gz.fai", "g.fa.gz.gzi"])
        assert sorted(os.listdir(tmp_path)) == expected
    scratch = Path(reference._scratch.name)
    assert scratch.is_dir()
    del reference
    assert not scratch.exists()


@pytest.mark.parametrize(
    "text",
    [
        ">chr1 a\nACGT\nAC\n\nGTACG\n>chr2\nTT\n",  # lines of several lengths
        ">chr1\r\nACGTA\r\nCGTAC\r\nG\r\n>chr2\r\nTT\r\n",
        ">chr1\nACGTACGTACG\n>chr2\nTT",
        "@chr1\nACGTACGTACG\n+\nIIIIIIIIIII\n@chr2\nTT\n+\nII\n",
    ],
)
@pytest.mark.parametrize("compression", ["plain", "bgzip", "gzip"])
def test_every_form(tmp_path, text, compression):
    reference = Reference(write(tmp_path / "g.fa", text, compression))
    assert reference.chromosomes == ["chr1", "chr2"]
    assert reference.fetch("chr1", 3, 10) == "TACGTAC" and reference.fetch("chr2", 0, 2) == "TT"


@pytest.mark.parametrize("compression", ["plain", "bgzip"])
def test_an_index_is_made_elsewhere_in_a_read_only_folder(tmp_path, sequences, fasta, compression, monkeypatch):
    """Root may write anywhere, so that the folder is made to refuse."""
    path, write_bytes = write(tmp_path / "g.fa", fasta, compression), Path.write_bytes

    def refuse(self, data):
        if self.parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(self))
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert_holds(Reference(path), sequences)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("compression", ["plain", "bgzip"])
def test_an_index_that_does_not_belong_to_the_file_is_made_anew(tmp_path, sequences, fasta, compression):
    path = write(tmp_path / "g.fa", fasta, compression)
    index = Path(f"{path}.fai")
    index.write_text("no index\n")
    assert_holds(Reference(path), sequences)
    index.write_text("chr1\t4\t99\t4\t5\n")
    os.utime(index, (1, 1))  # older than the genome
    assert_holds(Reference(path), sequences)
    assert len(index.read_text().splitlines()) == len(sequences)


def test_names_with_and_without_chr(tmp_path, sequences, fasta):
    with_chr = Reference(write(tmp_path / "with.fa", fasta, "plain"))
    assert with_chr.fetch("2", 3, 9) == with_chr.fetch("chr2", 3, 9) == sequences["chr2"][3:9]
    for name in ("M", "MT", "chrM", "chrMT"):
        assert with_chr.name_of(name) == "chrM"
    assert with_chr.name_of("17") == "chr17"
    without = Reference(write(tmp_path / "without.fa", ">1\nAAAA\n>MT\nCCCC\n>chr7\nGGGG\n>7\nTTTT\n", "plain"))
    assert without.fetch("chr1", 0, 2) == "AA" and without.fetch("chrM", 0, 2) == without.fetch("M", 0, 2) == "CC"
    assert without.fetch("chr7", 0, 2) == "GG" and without.fetch("7", 0, 2) == "TT"


def test_parts_of_a_chromosome_keep_its_coordinates(tmp_path):
    text = ">chr3:11-14\nACGT\n>chr3:21-26\nTTGACC\n>chr5\nAC\n>chr5:1-2\nGG\n"
    reference = Reference(write(tmp_path / "g.fa", text, "plain"))
    assert reference.chromosomes == ["chr3", "chr5", "chr5:1-2"]
    assert reference.fetch("chr3", 11, 13) == "CG" and reference.fetch("3", 20, 26) == "TTGACC"
    assert reference.fetch("chr5", 0, 2) == "AC" and reference.fetch("chr5:1-2", 0, 2) == "GG"
    with pytest.raises(UserError, match=r"bases 14 to 21 of chr3 are not all in .*, which holds chr3:11-14, 21-26"):
        reference.fetch("chr3", 13, 21)


def test_places_that_are_not_there(tmp_path, fasta):
    reference = Reference(write(tmp_path / "g.fa", fasta, "plain"))
    with pytest.raises(UserError, match=r"g\.fa has no sequence 'chr3' \(it has chr1, chr2, chrM, chr17, chr9:5-9\)"):
        reference.fetch("chr3", 0, 1)
    for start, end in ((4_990, 5_001), (6_000, 6_010), (-1, 5), (9, 3)):
        with pytest.raises(UserError, match=rf"bases {start + 1:,} to {end:,} of 1 .* which holds chr1:1-5,000"):
            reference.fetch("1", start, end)
    many = "".join(f">c{i}\nACGT\n" for i in range(9))
    with pytest.raises(UserError, match=r"it has c0, c1, c2, c3, c4, \.\.\.\)"):
        Reference(write(tmp_path / "many.fa", many, "plain")).fetch("x", 0, 1)


@pytest.mark.parametrize("compression", ["plain", "bgzip", "gzip"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no FASTA record in this file"),
        ("chr1\t5\t9\n", "no FASTA record in this file"),
        (">a\nACGT\n>b\nAC\n>a x\nAC\n", "two records are called 'a'"),
        (">a\nACGT\nAC\nACGT\n>a\nAC\n", "two records are called 'a'"),
    ],
)
def test_files_that_are_no_genome(tmp_path, compression, text, said):
    path = write(tmp_path / "g.fa", text, compression)
    with pytest.raises(UserError, match=said) as raised:
        Reference(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize("compression", ["bgzip", "gzip"])
def test_files_that_are_cut_short(tmp_path, compression):
    bases = "".join(random.Random(3).choices("ACGT", k=200_000))
    path = write(
        tmp_path / "g.fa", ">a\n" + "".join(f"{bases[i : i + 50]}\n" for i in range(0, 200_000, 50)), compression
    )
    if compression == "bgzip":
        Reference(path)  # leaves an index
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{path.name}: (is damaged or cut short|cannot be read as FASTA \()"):
        Reference(path)
    if compression == "bgzip":
        os.utime(path, (1, 1))  # an index of the whole file, as if the genome had been cut after it was made
        reference = Reference(path)
        assert reference.fetch("a", 100, 130) == bases[100:130]
        with pytest.raises(UserError, match=rf"{path.name} is damaged or cut short"):
            reference.fetch("a", 190_000, 190_010)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file; --fasta takes the genome"):
        Reference(tmp_path / "absent.fa")


def test_regions():
    assert parse_region("chr1:1,001-2,000") == ("chr1", 1_000, 2_000)
    assert parse_region("HLA-A*01:01:7-7") == ("HLA-A*01:01", 6, 7)
    for text in ("chr1", "chr1:5", "chr1:5-", "chr1:-5-9", "chr1:a-b", "5-9", ""):
        with pytest.raises(UserError, match="is no region; write CHROM:START-END"):
            parse_region(text)
    for text in ("chr1:0-5", "chr1:6-5"):
        with pytest.raises(UserError, match="a region's first base is 1 or more and its last not before it"):
            parse_region(text)
