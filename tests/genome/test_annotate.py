"""VCF written again with scores: nothing but INFO is another, byte for byte."""

import io

import pysam
import pytest
from variant_files import HEADER, PACKINGS, pack, record, write_vcf

from dnabert2.errors import UserError
from dnabert2.genome.variants import annotate

FULL_HEADER = [
    "##fileformat=VCFv4.2",
    "##contig=<ID=chr1,length=100>",
    '##INFO=<ID=AC,Number=A,Type=Integer,Description="Count, of André">',
    '##FILTER=<ID=PASS,Description="All">',
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
]
FIRST = len(FULL_HEADER) + 2  # line of the first record
FIELDS = {"DNABERT2_LLR": "log ratio", "DNABERT2_X": "another"}


def annotated(path, scores, fields=FIELDS) -> bytes:
    output = io.BytesIO()
    annotate(path, scores, fields, output)
    return output.getvalue()


GENOTYPES = ("GT:DP", "0/1:12", "1|0:3", "./.")
RECORDS = [
    record(1, "A", "C", more=("100", "PASS", "AC=1", *GENOTYPES)),
    record(3, "G", "T,<DEL>,GA", more=("100", "PASS", "AC=1,2,3;NOTE=caf\u00e9", *GENOTYPES)),
    record(4, "T", "*", more=(".", ".", ".", *GENOTYPES)),
    record(5, "T", "C", more=(".", ".", ".", *GENOTYPES)),
]
SCORES = [
    (FIRST, 0, {"DNABERT2_LLR": -1.23456789, "DNABERT2_X": 0.0}),
    (FIRST + 1, 0, {"DNABERT2_LLR": 2.0, "DNABERT2_X": 1e-9}),
    (FIRST + 1, 2, {"DNABERT2_LLR": -300.5, "DNABERT2_X": None}),
    (FIRST + 3, 0, {"DNABERT2_LLR": 7, "DNABERT2_X": 8}),
]
INFO = [
    "AC=1;DNABERT2_LLR=-1.23457;DNABERT2_X=0",
    "AC=1,2,3;NOTE=caf\u00e9;DNABERT2_LLR=2,.,-300.5;DNABERT2_X=1e-09,.,.",
    ".",
    "DNABERT2_LLR=7;DNABERT2_X=8",
]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("how", PACKINGS)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
def test_nothing_changes_but_info(tmp_path, ending, how, encoding, closed):
    """Byte for byte: line ends, what is no ASCII, genotypes, and a last line without an end."""
    samples = "\t".join([HEADER, "FORMAT", "one", "two", "three"])
    lines = [*FULL_HEADER, samples, *RECORDS]
    content = ending.join(lines) + ending * closed
    path = pack(tmp_path / "calls.vcf", how, content.encode(encoding))
    expected = [one.split("\t") for one in RECORDS]
    for cells, info in zip(expected, INFO, strict=True):
        cells[7] = info
    added = [f'##INFO=<ID={key},Number=A,Type=Float,Description="{text}">' for key, text in FIELDS.items()]
    whole = [*FULL_HEADER, *added, samples, *("\t".join(cells) for cells in expected)]
    found = annotated(path, SCORES)
    assert found == (ending.join(whole) + ending * closed).encode(encoding)
    # Scored again, new numbers stand in place of the old ones.
    (tmp_path / "again.vcf").write_bytes(found)
    again = [(number + 2, allele, dict.fromkeys(values, 5.0)) for number, allele, values in SCORES]
    text = annotated(tmp_path / "again.vcf", again).decode(encoding)
    assert text.count("##INFO=<ID=DNABERT2_LLR,") == 1 and text.count("DNABERT2_LLR=") == 3
    assert "AC=1;DNABERT2_LLR=5;DNABERT2_X=5\t" in text and "DNABERT2_LLR=5,.,5;" in text


def test_a_file_without_scores_is_only_told_of_the_fields(tmp_path):
    path = write_vcf(tmp_path / "calls.vcf", [record(1, "A", "C"), "chr1\t2\t.\tC\tT"])
    found = annotated(path, []).decode().splitlines(keepends=True)
    assert "".join(found[2:]) == (tmp_path / "calls.vcf").read_text()
    assert all(one.startswith("##INFO=<ID=DNABERT2_") for one in found[:2])


def test_a_record_without_info_gets_the_columns_before_it(tmp_path):
    path = write_vcf(tmp_path / "calls.vcf", ["chr1\t2\t.\tC\tT"])
    last = annotated(path, [(2, 0, {"DNABERT2_LLR": 1.5})], {"DNABERT2_LLR": "x"}).decode().splitlines()[-1]
    assert last == "chr1\t2\t.\tC\tT\t.\t.\tDNABERT2_LLR=1.5"


def test_pysam_reads_what_was_annotated(tmp_path):
    samples = "\t".join([HEADER, "FORMAT", "one", "two", "three"])
    header = [*FULL_HEADER, '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">']
    header += [
        '##INFO=<ID=NOTE,Number=1,Type=String,Description="Note">',
        '##ALT=<ID=DEL,Description="Gone">',
        samples,
    ]
    path = pack(tmp_path / "calls.vcf.gz", "bgzip", ("\n".join([*header, *RECORDS]) + "\n").encode())
    scores = [(number + 3, allele, values) for number, allele, values in SCORES]
    made = pack(tmp_path / "made.vcf.gz", "bgzip", annotated(path, scores))
    with pysam.VariantFile(path) as before, pysam.VariantFile(made) as behind:
        assert behind.header.info["DNABERT2_LLR"].number == "A" and behind.header.info["DNABERT2_LLR"].type == "Float"
        for old, new, found in zip(before, behind, ((-1.23457,), (2.0, None, -300.5), None, (7.0,)), strict=True):
            assert (new.chrom, new.pos, new.ref, new.alts, new.qual) == (
                old.chrom,
                old.pos,
                old.ref,
                old.alts,
                old.qual,
            )
            assert [s["GT"] for s in new.samples.values()] == [s["GT"] for s in old.samples.values()]
            assert new.info.get("AC") == old.info.get("AC")
            assert new.info.get("DNABERT2_LLR") == (found and pytest.approx(found))


def test_a_file_that_is_cut_short_is_not_annotated(tmp_path):
    lines = [HEADER, *(record(i, "A", "C", more=(str(7919 * i % 104_729), "PASS", ".")) for i in range(1, 3_000))]
    path = pack(tmp_path / "calls.vcf.gz", "bgzip", "\n".join(lines).encode())
    content = (tmp_path / "calls.vcf.gz").read_bytes()
    (tmp_path / "calls.vcf.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"calls.vcf.gz: the file is damaged or cut short .* no VCF\.$"):
        annotated(path, SCORES)
