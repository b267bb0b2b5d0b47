"""`gue check`: the real files are as released, and every way to differ from them is found and said."""

import json
import random
import shutil

import pytest

from dnabert2.genome.strands import reverse_complement
from dnabert2.gue_eval.check import check, leaked_rows, main
from dnabert2.gue_eval.splits import read_split
from dnabert2.gue_eval.tasks import HERE, SPLITS

BUNDLED = HERE.parent / "data" / "gue"
TATA = "prom/prom_core_tata"


@pytest.fixture
def tata(tmp_path):
    """A copy of the bundled dataset, to be spoilt."""
    shutil.copytree(BUNDLED / TATA, tmp_path / TATA)
    return tmp_path


@pytest.fixture
def made(tmp_path):
    """Factory: a dataset in the original layout from rows by split; what is not given is filled with random rows."""
    draw = random.Random(0)

    def make(name: str = "tf/3", header: str = "sequence,label", length: int = 101, **splits) -> str:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            rows = splits.get(split, ["".join(draw.choices("ACGT", k=length)) + f",{i % 2}" for i in range(8)])
            (tmp_path / name / f"{split}.csv").write_text("\n".join([header, *rows]) + "\n")
        return name

    return make


def said(report: dict, level: str | None = None) -> list[str]:
    return [x["text"] for x in report["findings"] if level in (None, x["level"])]


def test_leaked_rows():
    assert leaked_rows(["ACGT", "TTTT", "ggcc"], ["acgt", "ACG", "GGCC", "ACGT", "AAAA"]) == [0, 2, 3]
    assert leaked_rows([("AC", "GT")], [("ac", "gt"), ("GT", "AC"), ("ACGT", "")]) == [0]
    assert leaked_rows([], ["A"]) == leaked_rows(["A"], []) == []
    assert reverse_complement("AACGTN") == "NACGTT"


def test_the_bundled_dataset_is_as_released(tmp_path, capsys):
    output = tmp_path / "report.json"
    assert main(["--data", str(BUNDLED), "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    record = report["datasets"][TATA]
    assert list(report["datasets"]) == [TATA] and record["state"] == "as released"
    assert [record["splits"][split]["rows"] for split in SPLITS] == [4904, 613, 613]
    assert record["splits"]["test"]["labels"] == {"0": 304, "1": 309}
    assert record["splits"]["train"]["length"] == {"min": 70, "median": 70, "max": 70}
    assert record["leaks"]["test in train"] == {"rows": 16, "reverse_complement_rows": 0}
    assert record["leaks"]["dev in train"]["rows"] == 8
    assert {x["level"] for x in report["findings"]} == {"as released"}
    assert "16 of 613 test rows stand in train too" in said(report)
    assert len(report["missing"]) == 35
    text = capsys.readouterr().out
    assert text.splitlines()[1].split()[:4] == [TATA, "4904", "613", "613"] and "Not there: EMP/H3," in text


def test_the_real_files_are_as_released(shared):
    report = check(shared / "data" / "gue", "all")
    assert len(report["datasets"]) == 13
    assert {record["state"] for record in report["datasets"].values()} == {"as released"}
    assert {x["level"] for x in report["findings"]} == {"as released"}
    leaks = {
        name: x["leaks"]["test in train"]["rows"] for name, x in report["datasets"].items() if len(x["leaks"]) == 3
    }
    assert leaks["prom/prom_core_all"] == 43 and leaks["prom/prom_core_notata"] == 30 and leaks["tf/1"] == 1
    assert sum(leaks.values()) == 43 + 30 + 16 + 1
    assert report["datasets"]["tf/1"]["leaks"]["test in train"]["reverse_complement_rows"] == 1
    assert report["datasets"]["tf/4"]["leaks"]["dev in train"]["rows"] == 358
    assert "dev and test are the same rows" not in " ".join(said(report))
    assert report["missing"]["mouse/1"] == ["train"]


def test_line_ends_and_quotes_do_not_matter(tata):
    path = tata / TATA / "dev.csv"
    lines = path.read_text().split()
    path.write_bytes("\r\n".join([lines[0], *(f'"{x[:-2]}",{x[-1]}' for x in lines[1:])]).encode())
    report = check(tata, TATA)
    assert report["datasets"][TATA]["state"] == "as released"
    assert "dev has the released rows with other line ends or quotes" in said(report, "as released")


def test_a_changed_base_differs(tata, capsys):
    path = tata / TATA / "test.csv"
    text = path.read_text()
    place = text.index("\n") + 1
    path.write_text(text[:place] + {"A": "C"}.get(text[place], "A") + text[place + 1 :])
    assert main(["--data", str(tata)]) == 1
    out, err = capsys.readouterr()
    assert f"Differs from the release:\n  {TATA}: test has other rows" in out
    assert err.startswith("error: ") and TATA in err and err.count("\n") == 1


def test_missing_rows_and_splits(tata, capsys):
    path = tata / TATA / "train.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    (tata / TATA / "dev.csv").unlink()
    assert main(["--data", str(tata), "--tasks", f"{TATA},tf/0"]) == 1
    out = capsys.readouterr().out
    assert "train has 4903 rows, the release 4904" in out
    assert f"{TATA} lacks dev.\nNot there: tf/0.\n" in out and "differs, incomplete" in out


def test_unusable_rows_labels_and_letters(made, tmp_path):
    long = "ACGT" * 25
    rows = [f"{long}A,0", f"{long}C,2", f"{long}", f"{long}G,", "", f"{long}N,1"]
    report = check(tmp_path, made(train=rows))
    assert "train has 2 rows that cannot be used (line 4, 5)" in said(report, "differs")
    assert "train has the labels 0, 1, 2; 0 to 1 are expected" in said(report, "differs")
    assert "train has 1 row with letters other than A, C, G, T" in said(report, "not known")
    assert report["datasets"]["tf/3"]["splits"]["train"]["unusable_lines"] == [4, 5]


def test_repeats_contradictions_and_leaks(made, tmp_path):
    first, second, third = (x * 25 + "A" for x in ("ACGG", "TTGC", "CATG"))
    train = [f"{first},0", f"{first.lower()},1", f"{second},1", f"{second},1"]
    test = [f"{second},1", f"{reverse_complement(first)},0", f"{third},0"]
    report = check(tmp_path, made(train=train, dev=[f"{third},0", f"{third},1"], test=test))
    counted = said(report, "not known")
    assert "train has 2 repeats of earlier sequences, 1 sequence with several labels" in counted
    assert "1 of 3 test rows stand in train too" in counted
    assert "1 of 3 test rows stand in train as their reverse complement" in counted
    assert "1 of 3 test rows stand in dev too" in counted


def test_a_known_leak_that_is_not_there_differs(made, tmp_path):
    report = check(tmp_path, made("prom/prom_300_tata", length=300))
    assert "0 of 8 test rows stand in train too; 6 do in the release" in said(report, "differs")


def test_dev_that_is_test(made, tmp_path):
    rows = [f"{base * 500},{i}" for i, base in enumerate("AC")]
    report = check(tmp_path, made("EMP/H3K9ac", dev=rows, test=rows[::-1], length=500))
    assert "dev and test are the same rows: what is chosen by dev is chosen by test" in said(report)


def test_pairs_and_what_only_the_paper_says_of_gue_plus(made, tmp_path):
    rows = [f"{'ACGT' * 1250},{'GGCC' * 1250},{i}" for i in (0, 1)]
    name = made("EPI/K562", "sequence,sequence2,label", train=rows, dev=rows, test=rows)
    report = check(tmp_path, name)
    assert report["datasets"][name]["state"] == "as far as known"
    assert report["datasets"][name]["leaks"]["test in train"]["rows"] == 2
    # Other classes than the paper's, as users of the files report them, are no difference.
    assert (
        check(tmp_path, made("fungi/species_20", length=10000))["datasets"]["fungi/species_20"]["state"] != "differs"
    )


@pytest.mark.parametrize(
    ("body", "place"),
    [("", "train.csv, line 1"), ("ACGT,1\n", "train.csv, line 1"), ("sequence,label\n\xff,1\n", "train.csv: cannot")],
)
def test_files_that_are_no_table(tata, capsys, body, place):
    (tata / TATA / "train.csv").write_bytes(body.encode("latin-1"))
    assert main(["--data", str(tata)]) == 2
    error = capsys.readouterr().err
    assert place in error and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--tasks", "tf/0"], ["--tasks", "nothing"], ["--output", "{}/prom"]])
def test_bad_input(tata, capsys, arguments):
    assert main(["--data", str(tata), *(x.format(tata) for x in arguments)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_checksum_of_the_content_is_of_its_rows(tmp_path):
    (tmp_path / "a.csv").write_text("sequence,label\nACGT,1\n")
    (tmp_path / "b.csv").write_bytes(b'\xef\xbb\xbfsequence,label\r\n"ACGT", 1\r\n\r\n')
    a, b = read_split(tmp_path / "a.csv"), read_split(tmp_path / "b.csv")
    # sha256sum of the line "ACGT,1"
    assert a.content_sha256 == b.content_sha256 == "972824937e6767178094e30819730036f9d11276cd2c7d55943aae3beb911ce2"
    assert a.file_sha256 != b.file_sha256
