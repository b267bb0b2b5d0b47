"""Every file format of a fine-tuning table says the same, and a damaged file is named."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dnabert2.errors import UserError
from dnabert2.genome.table_formats import BATCH
from dnabert2.tokenizer.policy import TextPolicy
from dnabert2.training.tables import per_base_ids, read_table

POLICY = TextPolicy()
ROWS = [("acgu", 1), ("GGNA", 0), ("TTA", 12)]


def write_text(path, text):
    (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8").write(text)
    return path


def json_lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def parquet(tmp_path):
    def write(name="train.parquet", **columns):
        pq.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz", "a.jsonl", "a.jsonl.gz", "a.json"])
def test_text_formats_agree(tmp_path, name):
    if "json" in name:
        text = json_lines({"label": label, "sequence": sequence, "more": None} for sequence, label in ROWS)
        first = 1
    else:
        comma = "," if "csv" in name else "\t"
        text = "\ufeff" + "".join(f"{a}{comma}{b}\n" for a, b in [("sequence", "label"), *ROWS])
        first = 2
    read = read_table(write_text(tmp_path / name, text), POLICY)
    assert read.sequences == ["ACGT", "GGNA", "TTA"] and read.labels == [["1"], ["0"], ["12"]]
    assert read.lines == [first, first + 1, first + 2] and read.unit == "line"


def test_parquet_is_read_in_batches(parquet):
    many = 2 * BATCH + 1
    path = parquet(label=range(many), junk=["x"] * many, sequence=["ACGT"] * many)
    read = read_table(path, POLICY)
    assert read.labels == [[str(i)] for i in range(many)] and read.lines == list(range(1, many + 1))
    assert read.where(BATCH) == f"{path}, row {BATCH + 1}"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1, 0], ["1", "0"]),
        ([1.0, 2.5], ["1", "2.5"]),
        ([True, False], ["1", "0"]),
        (["b ", "a"], ["b", "a"]),
        (pa.array(["b", "a"]).dictionary_encode(), ["b", "a"]),
        (pa.array([3, 1], pa.uint8()), ["3", "1"]),
    ],
)
def test_typed_labels_become_text(parquet, tmp_path, values, texts):
    assert read_table(parquet(sequence=["AC", "GT"], label=values), POLICY).labels == [[text] for text in texts]
    rows = json_lines({"sequence": "AC", "label": x} for x in pa.array(values).to_pylist())
    assert read_table(write_text(tmp_path / "a.jsonl", rows), POLICY).labels == [[text] for text in texts]


def test_lists_of_labels_of_bases(parquet, tmp_path):
    labels = [[0, 1, -100], [None, 1]]
    files = [
        parquet(sequence=["ACG", "GT"], label=labels),
        write_text(
            tmp_path / "a.jsonl",
            json_lines({"sequence": s, "label": x} for s, x in zip(["ACG", "GT"], labels, strict=True)),
        ),
    ]
    for path in files:
        read = read_table(path, POLICY, per_base=True)
        assert read.labels == [["0", "1", "-100"], ["", "1"]]
        assert per_base_ids(read, ["0", "1"]) == [[0, 1, -100], [-100, 1]]
        with pytest.raises(UserError, match=r"(row|line) 1: the column label holds a list .* labels of bases"):
            read_table(path, POLICY)
    with pytest.raises(UserError, match="row 1: 2 labels where the sequence has 3 bases"):
        read_table(parquet(sequence=["ACG"], label=[[1, 0]]), POLICY, per_base=True)
    with pytest.raises(UserError, match="row 1: a label of a base is a list"):
        read_table(parquet(sequence=["AC"], label=[[[1], [0]]]), POLICY, per_base=True)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sequence": ["AC", "GT"], "label": [1, None]}, "row 2: the label is empty"),
        ({"sequence": ["AC", "GT"], "label": [1.0, float("nan")]}, "row 2: the label is empty"),
        ({"sequence": ["AC", None], "label": [1, 0]}, "row 2: the sequence is empty"),
        ({"sequence": [5], "label": [1]}, "row 1: the sequence is '5', which is no text"),
        ({"sequence": ["AC"], "label": [{"a": 1}]}, "row 1: the column label holds an object"),
        ({"sequence": ["AC"], "class": [1]}, "has no column label (its columns are sequence, class)"),
        ({"sequence": pa.array([], pa.string()), "label": pa.array([], pa.int8())}, "has no rows"),
    ],
)
def test_unusable_parquet_names_file_and_row(parquet, columns, message):
    path = parquet(**columns)
    with pytest.raises(UserError) as caught:
        read_table(path, POLICY)
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ('[{"sequence": "AC", "label": 0}]\n', "line 1: is no JSON object; write one object a line"),
        ('{"sequence": "AC", "label": 0}\n\n{"sequence": "AC", ', "line 3: is no JSON object (Expecting"),
        ('{"sequence": "AC", "label": 0}\n{"sequence": "AC"}\n', "line 2: the label is empty"),
        ('{"sequence": "AC"}\n', "has no column label (its columns are sequence)"),
    ],
)
def test_unusable_json_lines_name_file_and_line(tmp_path, text, message):
    path = write_text(tmp_path / "a.jsonl", text)
    with pytest.raises(UserError) as caught:
        read_table(path, POLICY)
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.parquet"])
def test_a_damaged_file_is_named(tmp_path, parquet, name):
    path = tmp_path / name
    if name.endswith(".gz"):
        write_text(path, "sequence,label\n" + "".join(f"ACGT,{i}\n" for i in range(999)))
    else:
        parquet(name, sequence=["ACGT"] * 99, label=range(99))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"text\n" * 20):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name}: is damaged or cut short \(.+\); copy or download it again"):
            read_table(path, POLICY)


def test_cells_longer_than_pythons_limit(tmp_path):
    sequence = "ACGT" * 50_000
    path = write_text(tmp_path / "a.csv", f"sequence,label\n{sequence},1\n")
    assert read_table(path, POLICY).sequences == [sequence]
