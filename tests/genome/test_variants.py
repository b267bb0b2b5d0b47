"""Variants of VCF and tables: every way to be packed and to be wrong; and normal forms."""

import random
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from variant_files import HEADER, PACKINGS, pack, record, write_vcf

from dnabert2.errors import UserError
from dnabert2.genome.records import BadRecord
from dnabert2.genome.reference import Reference
from dnabert2.genome.variants import LONGEST, Variant, normalised, read_variants

#       12345678901234567890
CHR1 = "ACGTTTTTGCACACAtgNNG" + "ACGT" * 20
SMALL = "G"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_text(f">chr1\n{CHR1}\n>small\n{SMALL}\n")
    return Reference(path)


@pytest.fixture
def read(tmp_path, reference):
    """Function: what a VCF with these records is read as."""

    def of(*lines):
        return list(read_variants(write_vcf(tmp_path / "calls.vcf", lines), reference))

    return of


@pytest.mark.parametrize("name", ["calls.vcf", "calls.vcf.gz", "calls.VCF.bgz", "calls.txt"])
@pytest.mark.parametrize("how", PACKINGS)
def test_every_packing(tmp_path, reference, name, how):
    """By what the file is, not by its name; without lines on contigs and INFO, which pysam would want to write it."""
    text = "\n".join([HEADER, record(1, "A", "C"), record(3, "G", "GA,T"), ""])
    found = list(read_variants(pack(tmp_path / name, how, text.encode()), reference))
    assert [(v.chrom, v.pos, v.ref, v.alt, v.line, v.allele, v.unscored) for v in found] == [
        ("chr1", 1, "A", "C", 2, 0, None),
        ("chr1", 3, "G", "GA", 3, 0, None),
        ("chr1", 3, "G", "T", 3, 1, None),
    ]
    assert found[2].where == f"{tmp_path / name}, line 3 (chr1:3 G>T)"
    assert (found[1].start, found[1].end) == (2, 3)


def test_windows_line_ends_and_empty_lines(tmp_path, reference):
    path = tmp_path / "calls.vcf"
    path.write_bytes("\r\n".join([HEADER, "", record(1, "A", "C"), "chr1\t2\t.\tC\tT", ""]).encode())
    assert [(v.pos, v.alt, v.line) for v in read_variants(str(path), reference)] == [(1, "C", 3), (2, "T", 4)]


def test_names_of_chromosomes_and_case(read):
    found = read(record(1, "a", "c", chrom="1"), record(16, "T", "c"), record(17, "g", "A"))
    assert [(v.chrom, v.ref, v.alt, v.unscored) for v in found] == [
        ("1", "a", "c", None),
        ("chr1", "T", "c", None),
        ("chr1", "g", "A", None),
    ]


@pytest.mark.parametrize(
    ("ref", "alt", "reason"),
    [
        ("T", "<DEL>", "no sequence"),
        ("T", "<NON_REF>", "no sequence"),
        ("T", "*", "no sequence"),
        ("T", "T[chr2:321681[", "no sequence"),
        ("T", "]chr2:321681]T", "no sequence"),
        ("T", "T.", "no sequence"),
        ("T", "N", "no sequence"),
        ("T", "R", "no sequence"),
        ("T", "-", "no sequence"),
        ("T", "t", "alt is ref"),
        ("T", "A" * LONGEST, None),
        ("T", "A" * (LONGEST + 1), f"longer than {LONGEST} bases"),
    ],
)
def test_what_gets_no_score(read, ref, alt, reason):
    """There is nothing wrong with these, and nothing else of the file is given up for them."""
    (found,) = read(record(4, ref, alt))
    assert isinstance(found, Variant) and found.unscored == reason and found.alt == alt


def test_n_in_the_reference_gets_no_score(read):
    assert [v.unscored for v in read(record(18, "N", "A"), record(17, "gN", "g"))] == ["N in the reference"] * 2


def test_no_alternative_is_no_variant(read):
    """As of sites without variant in a gVCF; alleles keep their numbers."""
    found = read(record(1, "A", "."), record(4, "T", "*,C"), record(5, "T", ".,C"))
    assert [(v.line, v.allele, v.alt, v.unscored) for v in found] == [
        (3, 0, "*", "no sequence"),
        (3, 1, "C", None),
        (4, 1, "C", None),
    ]


@pytest.mark.parametrize(
    ("bad_line", "words"),
    [
        (record(1, "C", "T"), "the reference allele is C, but {genome} has A there; give the genome"),
        (record(4, "TTTTTA", "T"), "the reference allele is TTTTTA, but {genome} has TTTTTG there"),
        (record(1, "A", "T", chrom="chr9"), "{genome} has no sequence 'chr9' (it has chr1, small)"),
        (record(0, "A", "T"), "bases 0 to 0 of chr1 are not all in {genome}"),
        (record(len(CHR1), "TA", "T"), "bases 100 to 101 of chr1 are not all in {genome}, which holds chr1:1-100"),
        (record(10**30, "A", "T"), "are not all in {genome}"),
        (record(2, "C", ""), "the alternative allele is empty; begin both with the base before them"),
        (record(2, "C", "A,,T"), "the alternative allele is empty"),
        (record(2, "", "A"), "the reference allele '' is no sequence of bases"),
        (record(2, "<DUP>", "A"), "the reference allele '<DUP>' is no sequence of bases"),
        (record("2.5", "C", "A"), "is no VCF record"),
        (record("-2", "C", "A"), "is no VCF record"),
        (record("²", "C", "A"), "is no VCF record"),
        ("chr1\t2\t.\tC", "is no VCF record; it needs chromosome, position, id, ref and alt with tabs between"),
        ("chr1 2 . C A", "is no VCF record"),
    ],
)
def test_what_is_wrong(read, reference, bad_line, words):
    """The first record stands, the bad one is named with file and line, and reading goes on behind it."""
    found = read(record(1, "A", "T"), bad_line, record(3, "G", "T"))
    (bad,) = (one for one in found if isinstance(one, BadRecord))
    assert words.format(genome=reference.path) in bad.describe()
    assert "calls.vcf, line 3" in bad.where and bad.describe().endswith(".") and "\n" not in bad.describe()
    assert [v.line for v in found if v is not bad and v.line != 3] == [2, 4]


@pytest.mark.parametrize("how", ["gzip", "bgzip"])
def test_a_file_that_is_cut_short(tmp_path, reference, how):
    draw = random.Random(0)
    lines = [record(1, "A", "C", more=(str(draw.random()), "PASS", f"AC={i}")) for i in range(5_000)]
    path = pack(tmp_path / "calls.vcf.gz", how, "\n".join([HEADER, *lines, ""]).encode())
    content = (tmp_path / "calls.vcf.gz").read_bytes()
    (tmp_path / "calls.vcf.gz").write_bytes(content[: 2 * len(content) // 3])
    *good, bad = read_variants(path, reference)
    assert 100 < len(good) < 5_000 and all(isinstance(one, Variant) for one in good)
    assert isinstance(bad, BadRecord) and "is damaged or cut short" in bad.describe()
    assert bad.where == f"{path}, what follows line {good[-1].line}"
    (tmp_path / "calls.vcf.gz").write_bytes(content[:30])
    with pytest.raises(UserError, match=r"calls.vcf.gz: the file is damaged or cut short"):
        list(read_variants(path, reference))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no VCF, it has no line #CHROM"),
        (b"##fileformat=VCFv4.2\n", "is no VCF, it has no line #CHROM"),
        (b">chr1\nACGT\n", "is no VCF, no line #CHROM stands before its first record"),
        (b"chr1\t1\t.\tA\tC\n" + HEADER.encode(), "is no VCF, no line #CHROM"),
        (bytes(range(256)) * 9, "is no VCF, no line #CHROM"),
    ],
)
def test_what_is_no_vcf(tmp_path, reference, content, words):
    path = tmp_path / "calls.vcf"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        list(read_variants(str(path), reference))
    assert str(raised.value).startswith(f"{path}: {words}") and str(raised.value).endswith(".")
    with pytest.raises(UserError, match="no such file"):
        list(read_variants(str(tmp_path / "none.vcf"), reference))


def test_a_header_alone_holds_no_variants(read):
    assert read() == []


TABLES = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "tsv.gz": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "parquet": lambda frame, path: frame.to_parquet(path),
}


@pytest.mark.parametrize("form", TABLES)
def test_tables(tmp_path, reference, form):
    frame = pd.DataFrame(
        {"score": [1, 2, 3], "alt": ["C", "TA", "<DEL>"], "pos": [1, 4, 4], "chrom": ["chr1"] * 3, "ref": list("ATT")}
    )
    path = tmp_path / f"calls.{form}"
    TABLES[form](frame, path)
    found = list(read_variants(str(path), reference))
    assert [(v.chrom, v.pos, v.ref, v.alt, v.allele, v.unscored) for v in found] == [
        ("chr1", 1, "A", "C", 0, None),
        ("chr1", 4, "T", "TA", 0, None),
        ("chr1", 4, "T", "<DEL>", 0, "no sequence"),
    ]
    first = 1 if form in ("parquet", "jsonl") else 2  # a header is a line
    assert [v.line for v in found] == [first, first + 1, first + 2]
    assert found[1].where == f"{path}, {'row' if form == 'parquet' else 'line'} {first + 1} (chr1:4 T>TA)"


def test_numbers_for_chromosomes_and_whole_floats(tmp_path, reference):
    pd.DataFrame({"chrom": [1], "pos": [1.0], "ref": ["A"], "alt": ["C"]}).to_parquet(tmp_path / "calls.parquet")
    (found,) = read_variants(str(tmp_path / "calls.parquet"), reference)
    assert (found.chrom, found.pos, found.unscored) == ("1", 1, None) and isinstance(found.pos, int)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("pos", 1.5, "the position '1.5' is no whole number"),
        ("pos", None, "the position '' is no whole number"),
        ("pos", float("inf"), "the position 'inf' is no whole number"),
        ("pos", "one", "the position 'one' is no whole number"),
        ("pos", 7_000, "are not all in"),
        ("pos", -1, "are not all in"),
        ("chrom", None, "has no sequence ''"),
        ("ref", None, "the reference allele '' is no sequence of bases"),
        ("alt", None, "the alternative allele is empty"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path, reference, column, value, words):
    row = {"chrom": "chr1", "pos": 1, "ref": "A", "alt": "C"}
    frame = pd.DataFrame([row, {**row, column: value}, row], dtype=object)
    frame["pos"] = frame["pos"].astype(str if value == "one" else float)
    path = tmp_path / "calls.parquet"
    frame.to_parquet(path)
    if value == "one":
        frame["pos"] = ["1", "one", "1"]
        frame.to_parquet(path)
    first, bad, last = read_variants(str(path), reference)
    assert isinstance(bad, BadRecord) and words in bad.reason and f"{path}, row 2" in bad.where
    assert first.pos == last.pos == 1


def test_a_table_without_its_columns_or_with_a_broken_row(tmp_path, reference):
    path = tmp_path / "calls.csv"
    path.write_text("chrom,position,ref,alt\nchr1,1,A,C\n")
    with pytest.raises(UserError, match=r"calls.csv: has no column pos \(its columns are chrom, position, ref, alt\)"):
        list(read_variants(str(path), reference))
    path.write_text("chrom,pos,ref,alt\nchr1,1,A,C\nchr1,1,A\n")
    good, bad = read_variants(str(path), reference)
    assert good.alt == "C"
    assert bad.describe() == (f"{path}, what follows row 1: line 3: 3 fields where the header has 4; mend the row.")


# Normal forms


def applied(variant: Variant, sequence: str) -> str:
    assert sequence[variant.start : variant.end].upper() == variant.ref.upper()
    return (sequence[: variant.start] + variant.alt + sequence[variant.end :]).upper()


def of(pos, ref, alt) -> Variant:
    return Variant("chr1", pos, ref, alt, "", 1)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (of(8, "T", "TT"), (3, "G", "GT")),  # into a run of T
        (of(7, "TT", "T"), (3, "GT", "G")),
        (of(13, "ACA", "A"), (9, "GCA", "G")),  # a repeat of two
        (of(2, "CGT", "CAT"), (3, "G", "A")),  # one base, with others around it
        (of(14, "CA", "CG"), (15, "A", "G")),
        (of(15, "At", "Ac"), (16, "T", "C")),
        (of(1, "A", "AA"), (1, "A", "AA")),  # at the first base there is nothing more to the left
        (of(1, "AC", "C"), (1, "AC", "C")),
        (of(20, "G", "GG"), (20, "G", "GG")),  # nor behind N
    ],
)
def test_normal_forms(reference, variant, expected):
    found = normalised(variant, reference)
    assert (found.pos, found.ref, found.alt) == expected
    assert applied(found, CHR1) == applied(variant, CHR1)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_one_change_has_one_normal_form(reference, data):
    """However it is written: with bases around it, and shifted along the sequence wherever that gives the same."""
    start = data.draw(st.integers(0, 14))
    end = data.draw(st.integers(start + 1, min(start + 4, 15)))
    variant = of(start + 1, CHR1[start:end], data.draw(st.text("ACGT", min_size=1, max_size=4)))
    text = applied(variant, CHR1)
    if text == CHR1.upper():
        return
    found = normalised(variant, reference)
    assert applied(found, CHR1) == text
    assert len(found.ref) <= len(variant.ref) + 1 and found.pos <= variant.end
    shift = len(text) - len(CHR1)
    low, high = data.draw(st.integers(0, start)), data.draw(st.integers(end, 17))
    padded = of(low + 1, CHR1[low:high], text[low : high + shift])
    assert normalised(padded, reference) == found
    for first in range(15):  # every way to write it that begins here
        for last in range(first + 1, 17):
            if (
                last + shift > first
                and text == CHR1[:first].upper() + text[first : last + shift] + CHR1[last:].upper()
            ):
                other = of(first + 1, CHR1[first:last], text[first : last + shift])
                assert normalised(other, reference) == found


def test_variants_of_a_megabase_of_chromosome_20(shared):
    """Of the 1000 Genomes: 29,144 alleles of 28,998 records, every one of which fits its sequence."""
    folder = shared / "data" / "examples"
    reference = Reference(folder / "chr20_1M-2M.fa.gz")
    counts = Counter()
    for variant in read_variants(str(folder / "chr20_1M-2M_1000G.vcf.gz"), reference):
        assert isinstance(variant, Variant)
        counts[variant.unscored or ("one base" if len(variant.ref) == len(variant.alt) == 1 else "indel")] += 1
    assert counts == {"one base": 28_191, "indel": 928, "no sequence": 24, "longer than 50 bases": 1}
