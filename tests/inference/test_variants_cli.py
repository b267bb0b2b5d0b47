"""`dnabert2 score-variants`: every output says the same, bad input is one sentence, what was begun is gone on with."""

import gzip
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pysam
import pytest
from variant_files import CONTEXT, HEADER, other, record, score_words, write_vcf

from dnabert2.cli import main
from dnabert2.inference.models import load_masked_lm
from dnabert2.inference.variant_scores import Haplotypes, VariantScorer

CHR1 = "".join(random.Random(7).choices("ACGT", k=160)) + "NNNN" + "".join(random.Random(8).choices("ACGT", k=60))
DELETED = 61  # the base before a deletion that cannot be written elsewhere
PLACE = ["chrom", "pos", "ref", "alt"]
COLUMNS = ["llr", "pseudo_likelihood", "embedding_l2", "embedding_cosine"]


def snv(pos: int, *, by: int = 1, chrom: str = "chr1") -> str:
    base = CHR1[pos - 1]
    return record(pos, base, other(base, by), chrom)


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_text(f">chr1\n{CHR1}\n>chr2\nACGT\n")
    return str(path)


RECORDS = [
    snv(1),
    record(40, CHR1[39], f"{other(CHR1[39])},<DEL>,{CHR1[39]}GATT", more=("9", "PASS", ".", "GT", "0/1")),
    record(162, "N", "A"),
    record(170, CHR1[169].lower(), other(CHR1[169]).lower()),
    snv(len(CHR1)),
    record(DELETED, CHR1[DELETED - 1 : DELETED + 4], CHR1[DELETED - 1], "1"),
]
ALLELES = 8


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    return write_vcf(tmp_path_factory.mktemp("calls") / "calls.vcf", RECORDS)


@pytest.fixture(scope="module")
def table(calls, genome, tmp_path_factory):
    """All scores of the records above."""
    output = tmp_path_factory.mktemp("scores") / "scores.parquet"
    assert main(score_words(calls, genome, output)) == 0
    return pq.read_table(output)


def test_what_a_row_says(table):
    assert table.column_names == [*PLACE, "score", *COLUMNS, "unscored", "line", "allele"]
    found = table.to_pydict()
    assert found["chrom"] == ["chr1"] * 7 + ["1"]
    assert found["pos"] == [1, 40, 40, 40, 162, 170, len(CHR1), DELETED]
    assert found["line"] == [2, 3, 3, 3, 4, 5, 6, 7] and found["allele"] == [0, 0, 1, 2, 0, 0, 0, 0]
    assert found["unscored"] == [None, None, "no sequence", None, "N in the reference", None, None, None]
    assert found["alt"][2] == "<DEL>" and found["alt"][5].islower()
    assert found["score"] == found["llr"]
    settings = json.loads(table.schema.metadata[b"dnabert2"])
    assert settings["context"] == CONTEXT and settings["sha256"] and settings["stride"] == 7


def test_the_scores_are_those_of_the_scorer(table):
    read = CHR1.upper()
    places = [(0, 1), (39, 40), (39, 40), (169, 170), (len(CHR1) - 1, len(CHR1)), (DELETED - 1, DELETED + 4)]
    rows = [row for row in table.to_pylist() if row["unscored"] is None]
    expected = VariantScorer(load_masked_lm("mini")).score(
        [
            Haplotypes(
                read[max(0, start - CONTEXT) : start],
                row["ref"].upper(),
                row["alt"].upper(),
                read[end : end + CONTEXT],
            )
            for row, (start, end) in zip(rows, places, strict=True)
        ]
    )
    for name in COLUMNS:
        assert [row[name] for row in rows] == pytest.approx(expected[name].tolist(), abs=2e-5)


def same(frame: pd.DataFrame, table, **tolerance):
    expected = table.to_pandas()
    assert list(frame.columns) == list(expected.columns) and len(frame) == ALLELES
    for name in expected.columns:
        if name in ("score", *COLUMNS):
            np.testing.assert_allclose(
                frame[name].astype(float), expected[name].astype(float), err_msg=name, **tolerance
            )
        else:
            assert frame[name].fillna("").tolist() == expected[name].fillna("").tolist(), name


READERS = {
    "dataset": pd.read_parquet,
    "tsv": lambda path: pd.read_csv(path, sep="\t", dtype={"chrom": str}),
    "jsonl": lambda path: pd.read_json(path, lines=True, dtype={"chrom": str}),
}


@pytest.mark.parametrize("form", READERS)
def test_other_tables_say_the_same(table, calls, genome, tmp_path, form):
    output = tmp_path / ("scores" if form == "dataset" else f"scores.{form}")
    assert main(score_words(calls, genome, output)) == 0
    same(READERS[form](output), table, rtol=0, atol=1e-9)
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name]


def test_standard_output(table, calls, genome, capsysbinary, tmp_path):
    assert main(score_words(calls, genome, "-")) == 0
    said = capsysbinary.readouterr()
    (tmp_path / "said.tsv").write_bytes(said.out)
    same(READERS["tsv"](tmp_path / "said.tsv"), table, rtol=0, atol=1e-9)
    assert said.err.decode().splitlines()[-1] == "2 alleles have no score, the column unscored says why."


def check_annotated(content: str, table):
    """Nothing is added but INFO, and that says what the table says, to six digits."""
    header = [f"##INFO=<ID=DNABERT2_{name.upper()},Number=A,Type=Float" for name in COLUMNS]
    lines = content.splitlines()
    assert [line[: len(start)] for line, start in zip(lines, header, strict=False)] == header
    assert lines[4] == HEADER and content.endswith("\n") and len(lines) == 5 + len(RECORDS)
    rows = table.to_pylist()
    for number, (line, before) in enumerate(zip(lines[5:], RECORDS, strict=True), 2):
        of_line = [row for row in rows if row["line"] == number]
        cells, old = line.split("\t"), before.split("\t")
        if all(row["unscored"] for row in of_line):
            assert line == before
            continue
        assert cells[:7] == old[:7] and cells[8:] == old[8:]
        entries = cells[7].split(";")
        assert entries[: len(entries) - 4] == ([] if old[7] == "." else [old[7]])
        for entry, name in zip(entries[-4:], COLUMNS, strict=True):
            key, values = entry.split("=")
            assert key == f"DNABERT2_{name.upper()}"
            for value, row in zip(values.split(","), of_line, strict=True):
                assert (value == ".") == (row["unscored"] is not None)
                assert value == "." or float(value) == pytest.approx(row[name], rel=1e-5, abs=2e-5)


@pytest.mark.parametrize("name", ["scores.vcf", "scores.vcf.gz", "scores.vcf.bgz", "scores", "-"])
def test_annotated_vcf(table, calls, genome, tmp_path, name, capsysbinary):
    output = name if name == "-" else tmp_path / name
    assert main(score_words(calls, genome, output, "--format", "vcf")) == 0
    said = capsysbinary.readouterr()
    content = said.out if name == "-" else output.read_bytes()
    is_packed = name.endswith("gz")
    if is_packed:
        assert content[:4] == b"\x1f\x8b\x08\x04" and content.endswith(bytes.fromhex("1b0003000000000000000000"))
        pysam.tabix_index(str(output), preset="vcf", keep_original=True)  # of bgzip alone
        content = gzip.decompress(content)
    check_annotated(content.decode(), table)
    assert b"2 alleles have no score" in said.err


def test_a_vcf_is_annotated_in_place(table, calls, genome, tmp_path):
    path = tmp_path / "calls.vcf"
    shutil.copyfile(calls, path)
    assert main(score_words(path, genome, path)) == 2  # it is there
    assert path.read_bytes() == Path(calls).read_bytes()
    for _ in range(2):  # the second time in place of the first scores
        assert main(score_words(path, genome, path, "--overwrite")) == 0
        lines = path.read_text().splitlines()
        check_annotated(path.read_text(), table)
    assert len(lines) == 5 + len(RECORDS)


def test_a_table_of_variants(table, genome, tmp_path):
    rows = table.select(PLACE).to_pandas().drop(index=2)
    rows.to_csv(tmp_path / "calls.csv", index=False)
    assert main(score_words(tmp_path / "calls.csv", genome, tmp_path / "scores.parquet", "--scores", "llr")) == 0
    found = pq.read_table(tmp_path / "scores.parquet").to_pandas()
    expected = table.to_pandas().drop(index=2)
    assert list(found.columns) == [*PLACE, "score", "llr", "unscored", "line", "allele"]
    np.testing.assert_allclose(found["llr"], expected["llr"], rtol=0, atol=2e-5)
    assert found["line"].tolist() == list(range(2, ALLELES + 1))


def test_which_scores(calls, genome, tmp_path):
    """The first of those asked for is `score`; what is asked for twice is there once."""
    more = ["--scores", "embedding", "llr", "embedding", "--forward_only"]
    assert main(score_words(calls, genome, tmp_path / "scores.parquet", *more)) == 0
    found = pq.read_table(tmp_path / "scores.parquet")
    assert found.column_names[4:8] == ["score", "embedding_l2", "embedding_cosine", "llr"]
    assert found["score"].equals(found["embedding_l2"])


# What cannot be


def refused(said, *expected: str):
    """One sentence."""
    lines = [line for line in said.err.splitlines() if "error" in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and lines[0].endswith(".")
    assert "Traceback" not in said.err and not said.out
    for words_of in expected:
        assert words_of in lines[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            record(5, other(CHR1[4]), CHR1[4]),
            f"the reference allele is {other(CHR1[4])}, but {{genome}} has {CHR1[4]}",
        ),
        (snv(5, chrom="chr7"), "{genome} has no sequence 'chr7' (it has chr1, chr2); give the genome it belongs to"),
        (record(5, "A", "C", chrom="chr2"), "bases 5 to 5 of chr2 are not all in {genome}, which holds chr2:1-4"),
        (record(0, "A", "C"), "bases 0 to 0 of chr1 are not all in {genome}"),
        ("chr1\tfive\t.\tA\tC", "is no VCF record; it needs chromosome, position, id, ref and alt with tabs between"),
    ],
)
def test_records_that_cannot_be_scored(genome, tmp_path, capsys, line, message):
    path = write_vcf(tmp_path / "calls.vcf", [snv(3), line, snv(9)])
    for output in (tmp_path / "scores.parquet", tmp_path / "scores.vcf"):
        assert main(score_words(path, genome, output, "--scores", "llr")) == 2
        refused(capsys.readouterr(), f"error: {path}, line 3", message.format(genome=genome))
        assert not output.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vcf": "none.vcf"}, "none.vcf: no such file; --vcf takes the variants to score"),
        ({"vcf": "genome.fa"}, "genome.fa: is no VCF, no line #CHROM"),
        ({"fasta": "none.fa"}, "none.fa: no such file; --fasta takes the genome"),
        ({"fasta": "table.csv"}, "table.csv: no FASTA record in this file"),
        (
            {"output": "scores.bed"},
            "its name says no format; end it in .parquet, .tsv, .jsonl, .vcf, .vcf.gz",
        ),
        ({"output": "scores.npy"}, "scores.npy: its name says npy, which this cannot be written as"),
        ({"output": "there.tsv"}, "there.tsv: is there already; choose another --output or add --overwrite"),
        ({"output": "there.tsv/scores.tsv"}, "there.tsv/scores.tsv: cannot be written"),
        ({"output": "/sys/kernel/scores.tsv"}, "/sys/kernel/scores.tsv: cannot be written"),
        ({"vcf": "table.csv", "output": "scores.vcf"}, "scores.vcf: only a VCF can be annotated, not table.csv"),
        ({"context": 0}, "--context 0: give at least 1 base"),
        ({"stride": -1}, "--stride -1: give 0, or at least 1"),
        ({"batch_tokens": 0}, "--batch_tokens 0: give at least 1"),
        ({"model": "nowhere"}, "nowhere"),
        ({"dtype": "float8"}, "float8"),
        ({"device": "cuda:99"}, "--device cuda:99"),
    ],
    ids=str,
)
def test_options_that_cannot_be(calls, genome, tmp_path, capsys, monkeypatch, changed, message):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(calls, "calls.vcf")
    shutil.copyfile(genome, "genome.fa")
    (tmp_path / "there.tsv").write_text("mine")
    (tmp_path / "table.csv").write_text("chrom,pos,ref,alt\nchr2,1,A,C\n")
    given = score_words("calls.vcf", "genome.fa", "scores.tsv", "--scores", "llr")
    given += [word for key, value in changed.items() for word in (f"--{key}", str(value))]  # the last one counts
    assert main(given) == 2
    refused(capsys.readouterr(), message)
    assert (tmp_path / "there.tsv").read_text() == "mine"


@pytest.fixture(scope="module")
def without_head(tmp_path_factory, small_config):
    from dnabert2 import DNABert2Model
    from dnabert2.tokenizer.files import OURS, write_tokenizer

    folder = tmp_path_factory.mktemp("encoder")
    DNABert2Model(small_config(vocab_size=4096)).save_pretrained(folder)
    write_tokenizer(OURS / "tokenizer.json", folder)
    return folder


def test_models_that_cannot_score(calls, genome, tmp_path, capsys, without_head):
    from foreign_models import dnabert

    for model, message in (
        (without_head, "its checkpoint has no masked-LM head (cls.predictions"),
        (dnabert(tmp_path / "foreign", 3), "is DNABERT; variants are scored by DNABERT-2 models alone"),
    ):
        assert main([*score_words(calls, genome, tmp_path / "scores.tsv"), "--model", str(model)]) == 2
        refused(capsys.readouterr(), f"error: {model}: {message}")


BAD = [record(5, other(CHR1[4]), CHR1[4]), "chr1\t7\t.\tA", snv(9, chrom="chrX")]


def test_bad_records_are_skipped_and_listed(genome, tmp_path, capsys):
    path = write_vcf(tmp_path / "calls.vcf", [snv(3), *BAD, snv(12)])
    output = tmp_path / "scores.parquet"
    assert main(score_words(path, genome, output, "--scores", "llr", "--skip_bad")) == 0
    found = pq.read_table(output).to_pydict()
    assert found["pos"] == [3, 12] and found["line"] == [2, 6]
    listed = pd.read_csv(tmp_path / "scores.parquet.skipped.tsv", sep="\t", keep_default_na=False)
    assert list(listed.columns) == ["id", "where", "reason"] and listed["id"].tolist() == ["chr1:5", "", "chrX:9"]
    assert [where.split(", line ")[1].split()[0] for where in listed["where"]] == ["3", "4", "5"]
    assert listed["reason"][1].startswith("is no VCF record")
    assert "3 records skipped, listed in" in capsys.readouterr().err
    # In a VCF they stay as they are.
    assert main(score_words(path, genome, tmp_path / "scores.vcf", "--scores", "llr", "--skip_bad")) == 0
    lines = (tmp_path / "scores.vcf").read_text().splitlines()
    assert lines[3:6] == BAD and lines[2].endswith(f"AC=1;DNABERT2_LLR={found['llr'][0]:.6g}")
    capsys.readouterr()
    assert main(score_words(path, genome, "-", "--scores", "llr", "--skip_bad")) == 0
    said = capsys.readouterr()
    assert said.err.count(f"skipped: {path}, line") == 3 and len(said.out.splitlines()) == 3


def test_a_vcf_that_is_cut_short(genome, tmp_path, capsys):
    """What was read of it is scored if that is asked for, but in no VCF, which would look whole."""
    lines = [HEADER, *(record(3, CHR1[2], other(CHR1[2]), more=(str(i), "PASS", ".")) for i in range(4_000))]
    path = tmp_path / "calls.vcf.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode())[:-9_000])
    more = ["--scores", "llr", "--skip_bad", "--forward_only"]
    assert main(score_words(path, genome, tmp_path / "scores.vcf", *more)) == 2
    refused(capsys.readouterr(), f"error: {path}: the file is damaged or cut short")
    assert not (tmp_path / "scores.vcf").exists()
    assert main(score_words(path, genome, tmp_path / "scores.tsv", *more)) == 0
    rows = pd.read_csv(tmp_path / "scores.tsv", sep="\t")
    assert 100 < len(rows) < 4_000 and rows["llr"].nunique() == 1
    assert "what follows line" in (tmp_path / "scores.tsv.skipped.tsv").read_text()


def test_real_variants(shared, tmp_path):
    """Of the 1000 Genomes in BRCA2, chromosome "13", from a FASTA of stretches of "chr13"."""
    folder = shared / "data" / "examples"
    content = (folder / "BRCA1_BRCA2_1000G_exon_sites_hg38.vcf.gz").read_bytes()
    lines = gzip.decompress(content).decode().splitlines()[:20]
    (tmp_path / "calls.vcf").write_text("\n".join(lines) + "\n")
    fasta = folder / "BRCA1_BRCA2_regions_hg19_hg38.fa.gz"
    assert main(score_words(tmp_path / "calls.vcf", fasta, tmp_path / "scores.vcf", "--scores", "llr")) == 0
    found = (tmp_path / "scores.vcf").read_text().splitlines()
    assert len(found) == 21 and found[1].startswith("##INFO=<ID=DNABERT2_LLR") and [found[0], found[2]] == lines[:2]
    for old, new in zip(lines[2:], found[3:], strict=True):
        assert new.startswith(f"{old};DNABERT2_LLR=") and abs(float(new.rpartition("=")[2])) < 30
