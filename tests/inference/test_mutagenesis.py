"""`dnabert2 mutagenesis`: a matrix that says what score-variants says, and pictures with letters in them."""

import random
import re
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from variant_files import CONTEXT, record, score_words, write_vcf

from dnabert2.cli import main
from dnabert2.inference import mutagenesis

BASES = list("ACGT")
CHR1 = (
    "".join(random.Random(3).choices("ACGT", k=70))
    + "NRacgtagctaNNcatgg"
    + "".join(random.Random(4).choices("ACGT", k=30))
)
COLUMNS = ["chrom", "pos", "ref", *BASES, "importance"]


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_text(f">chr1\n{CHR1}\n>one\nG\n>n\n{'N' * 20}\n")
    return str(path)


def words(fasta, region, output, *more) -> list[str]:
    options = {
        "model": "mini",
        "fasta": fasta,
        "region": region,
        "output": output,
        "context": CONTEXT,
        "device": "cpu",
    }
    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return ["mutagenesis", *given, *map(str, more)]


@pytest.fixture
def matrix(genome, tmp_path):
    """Function: the matrix of a region."""

    def of(region, *more) -> pd.DataFrame:
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        assert main(words(genome, region, output, *more)) == 0
        return pq.read_table(output).to_pandas()

    return of


FIRST, LAST = 60, 92
REGION = f"chr1:{FIRST}-{LAST}"


def test_rows_are_bases(matrix):
    found = matrix(REGION)
    assert list(found.columns) == COLUMNS and found["chrom"].eq("chr1").all()
    assert found["pos"].tolist() == list(range(FIRST, LAST + 1))
    assert "".join(found["ref"]) == CHR1[FIRST - 1 : LAST].upper()
    for row in found.to_dict("records"):
        values = np.array([row[base] for base in BASES])
        if row["ref"] in BASES:
            assert row[row["ref"]] == 0.0 and np.isfinite(values).all() and (values != 0).sum() == 3
            assert row["importance"] == pytest.approx(-values.sum() / 3)
        else:  # N, and R, of which the model reads N
            assert np.isnan(values).all() and np.isnan(row["importance"])
    assert found["importance"].isna().sum() == 4


@pytest.mark.parametrize("more", [[], ["--forward_only"]], ids=["both strands", "one strand"])
def test_the_llr_of_score_variants(matrix, genome, tmp_path, more):
    found = matrix(REGION, *more).set_index("pos")
    changes = [
        (pos, CHR1[pos - 1], alt)
        for pos in range(FIRST, LAST + 1)
        for alt in BASES
        if CHR1[pos - 1].upper() in BASES and alt != CHR1[pos - 1].upper()
    ]
    path = write_vcf(tmp_path / "calls.vcf", [record(*change) for change in changes])
    assert main(score_words(path, genome, tmp_path / "scores.parquet", "--scores", "llr", *more)) == 0
    scores = pq.read_table(tmp_path / "scores.parquet")["llr"].to_pylist()
    assert len(scores) == 3 * (LAST - FIRST + 1 - 4)
    np.testing.assert_allclose([found.loc[pos, alt] for pos, _, alt in changes], scores, rtol=0, atol=2e-5)
    assert np.std(scores) > 0.3


def test_regions(matrix):
    """With commas, without chr, to the first and the last base, and of one base; the same whatever lies beside it."""
    whole = matrix(REGION).set_index("pos")[BASES]
    for region, places in (
        ("1:65-68", range(65, 69)),
        ("chr1:0,065-0,068", range(65, 69)),
        ("chr1:1-3", range(1, 4)),
        (f"chr1:{len(CHR1)}-{len(CHR1)}", [len(CHR1)]),
    ):
        found = matrix(region).set_index("pos")
        assert found.index.tolist() == list(places) and found["importance"].notna().all()
        both = whole.index.intersection(found.index)
        np.testing.assert_allclose(found.loc[both, BASES], whole.loc[both], rtol=0, atol=2e-5)
    assert matrix("one:1-1")[BASES].notna().all(axis=None)


def test_in_several_chunks(matrix, monkeypatch):
    whole = matrix(REGION)
    monkeypatch.setattr(mutagenesis, "CHUNK", 7)
    pd.testing.assert_frame_equal(matrix(REGION), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", ["tsv", "jsonl", "dataset", "-"])
def test_other_outputs_say_the_same(matrix, genome, tmp_path, form, capsysbinary):
    expected = matrix(REGION)
    output = {"dataset": tmp_path / "m", "-": "-"}.get(form, tmp_path / f"m.{form}")
    assert main(words(genome, REGION, output)) == 0
    if form == "-":
        (tmp_path / "m.tsv").write_bytes(capsysbinary.readouterr().out)
    if form == "dataset":
        found = pd.read_parquet(output)
    elif form == "jsonl":
        found = pd.read_json(output, lines=True)
    else:
        found = pd.read_csv(tmp_path / "m.tsv", sep="\t", keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-9, check_dtype=False)


# Pictures

SVG = "{http://www.w3.org/2000/svg}"
# What logomaker draws A, C, G and T in.
COLOURS = {"A": "#008000", "C": "#0000ff", "G": "#ffa600", "T": "#ff0000"}


def test_a_picture_of_points(matrix, tmp_path):
    """900 dots, 6 inches, at least, as long as the region is, with the letters' colours and those of the matrix."""
    for region, width in (("chr1:10-30", 900), (f"chr1:1-{len(CHR1)}", round((0.16 * len(CHR1) + 1.5) * 150))):
        path = tmp_path / f"{width}.png"
        table = matrix(region, "--plot", path)
        image = matplotlib.image.imread(path)
        assert image.shape == (630, width, 4) and np.isfinite(image).all()
        dots, counts = np.unique((image[..., :3].reshape(-1, 3) * 255).round().astype(int), axis=0, return_counts=True)
        found = {"#" + bytes(dot).hex(): count for dot, count in zip(dots.tolist(), counts, strict=True)}
        assert len(found) > 100 and found["#ffffff"] < 0.9 * counts.sum()
        high = set(table["ref"][table["importance"] > table["importance"].max() / 10])
        assert len(high) >= 2 and all(found[COLOURS[base]] > 20 for base in high)


def test_a_picture_of_paths(matrix, tmp_path):
    """A path for each letter; those of bases that matter stand upright, the others on their heads."""
    table = matrix("chr1:1-40", "--plot", tmp_path / "m.svg")
    root = ElementTree.parse(tmp_path / "m.svg").getroot()
    assert root.tag == f"{SVG}svg"
    letters = [
        path
        for path in root.iter(f"{SVG}path")
        if re.search("fill: #", path.get("style") or "") and "clip-path" in path.attrib
    ]
    fills = [re.search("fill: (#[0-9a-f]{6})", path.get("style"))[1] for path in letters]
    drawn = [fill for fill in fills if fill not in ("#ffffff", "#000000")]
    assert len(drawn) == 40 and len(set(drawn)) >= 4
    upright = (table["importance"] > 0).sum()
    assert 0 < upright < 40 and sum(fill in COLOURS.values() for fill in drawn) == upright
    assert sum(1 for _ in root.iter(f"{SVG}image")) >= 1  # the matrix
    shown = {text.strip() for group in root.iter(f"{SVG}g") for text in group.itertext()} | set(
        re.findall("<!-- (.*?) -->", (tmp_path / "m.svg").read_text())
    )
    assert "chr1:1-40, mini" in shown and "importance" in shown


def test_a_picture_of_what_is_printed(genome, tmp_path, capsys):
    assert main(words(genome, "chr1:5-9", "-", "--plot", tmp_path / "m.png")) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 6 and "Warning" not in said.err
    assert matplotlib.image.imread(tmp_path / "m.png").shape == (630, 900, 4)


@pytest.mark.parametrize("region", ["chr1:71-72", "chr1:70-72", "one:1-1"])
def test_pictures_of_hardly_anything(genome, tmp_path, region, recwarn):
    code = main(words(genome, region, tmp_path / "m.tsv", "--plot", tmp_path / "m.png"))
    assert code == (2 if region == "chr1:71-72" else 0)
    assert (tmp_path / "m.png").is_file() == (code == 0)
    assert not [str(w.message) for w in recwarn if issubclass(w.category, (UserWarning, RuntimeWarning))]


# What cannot be


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("chr1", "chr1: is no region; write CHROM:START-END, such as chr17:43,044,295-43,044,394."),
        ("chr1:5", "chr1:5: is no region"),
        ("chr1:a-b", "chr1:a-b: is no region"),
        ("chr1:0-5", "chr1:0-5: a region's first base is 1 or more and its last not before it"),
        ("chr1:9-5", "chr1:9-5: a region's first base is 1 or more"),
        ("chr9:1-5", "--region chr9:1-5: {genome} has no sequence 'chr9' (it has chr1, one, n)"),
        ("chr1:100-200", "--region chr1:100-200: bases 100 to 200 of chr1 are not all in {genome}, which holds"),
        ("n:1-20", "--region n:1-20: holds nothing but N, which cannot be changed; give another."),
    ],
)
def test_regions_that_are_not_there(genome, tmp_path, capsys, region, message):
    assert main(words(genome, region, tmp_path / "m.parquet", "--plot", tmp_path / "m.svg")) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith(f"error: {message.format(genome=genome)}") and said.count("\n") == 1 and said.endswith(".\n")
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--plot", "m.pdf"], "--plot m.pdf: must end in .png or .svg."),
        (["--plot", "there.tsv/m.png"], "--plot there.tsv/m.png: cannot be written"),
        (
            ["--region", "chr1:1-501", "--plot", "m.png"],
            "--plot: a logo of 501 bases cannot be read; give a region of at",
        ),
        (["--output", "there.tsv"], "there.tsv: is there already"),
        (["--output", "m.npy"], "m.npy: its name says npy, which"),
        (["--output", "m.vcf"], "m.vcf: its name says vcf, which"),
        (["--output", "/sys/kernel/m.tsv"], "/sys/kernel/m.tsv: cannot be written"),
        (["--context", "0"], "--context 0: give at least 1 base"),
        (["--fasta", "none.fa"], "none.fa: no such file"),
        (["--model", "none"], "none: no such folder"),
    ],
    ids=str,
)
def test_options_that_cannot_be(genome, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.tsv").write_text("mine")
    assert main(words(genome, "chr1:5-8", "m.tsv", *more)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1
    assert (tmp_path / "there.tsv").read_text() == "mine"
