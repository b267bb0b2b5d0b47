"""Fine-tuning tables: what is read, what is refused with file and line, and labels as numbers."""

import time

import numpy as np
import pytest

from dnabert2.errors import UserError
from dnabert2.genome.table_formats import Source
from dnabert2.tokenizer.policy import PolicyReport, TextPolicy
from dnabert2.training.tables import (
    IGNORE,
    class_names,
    find_tables,
    float_labels,
    label_ids,
    multi_label_ids,
    per_base_ids,
    per_base_names,
    read_table,
)

POLICY = TextPolicy()


@pytest.fixture
def table(tmp_path):
    def write(content, name="train.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_rows_columns_and_policy(table):
    report = PolicyReport()
    read = read_table(table("id,label,sequence\n1,b,acgu\n\n2,a,ACGN\n"), POLICY, report)
    assert read.sequences == ["ACGT", "ACGN"] and read.labels == [["b"], ["a"]] and read.lines == [2, 4]
    assert (read.columns, read.pairs, read.unit) == (("label",), None, "line")
    assert (report.sequences, report.uracil, report.n) == (2, 1, 1)
    assert read.where(1).endswith("train.csv, line 4")
    assert read_table(table("sequence\tlabel\nAC\t0\n", "dev.tsv"), POLICY).sequences == ["AC"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("ACGT,1\nAC,0\n", "line 1 is no header"),
        ("sequence,class\nAC,0\n", "(it reads 'sequence,class')"),
        ("sequence,label,label\nAC,0,0\n", "more than one column label"),
        ("sequence,label\n", "has a header but no rows"),
        ("sequence,label\nACGT,1\nACGT\n", "line 3: 1 fields where the header has 2"),
        ("sequence,label\nACGT,1,x\n", "line 2: 3 fields"),
        ("sequence,label\nACGT,1\nNNNN,0\n", "line 3: the sequence holds no base but N"),
        ("sequence,label\nMKVLE,1\n", "line 2: the sequence holds 'E' 'L'"),
        ("sequence,label\n,1\n", "line 2: the sequence is empty"),
        ("sequence,label\nACGT,\n", "line 2: the label is empty"),
        ("sequence,label_a,label_b\nACGT,1, \n", "line 2: the label label_b is empty"),
        ("sequence,sequence2,label\nACGT,,1\n", "line 2: the second sequence is empty"),
        ('sequence,label\nAC,0\n"ACGT,1\nAC,0\n', "line 4: is no well-formed .csv text"),
        (b"sequence,label\n\xff\xfe\x00,1\n", "not readable as text"),
    ],
)
def test_unusable_tables_name_file_and_line(table, content, message):
    path = table(content)
    with pytest.raises(UserError) as caught:
        read_table(path, POLICY)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_pairs_and_columns_of_other_names(table):
    path = table("promoter,enhancer,a,label\nACu,gg,x,y\n")
    read = read_table(path, POLICY, sequence_column="promoter", pair_column="enhancer", label_columns=["label", "a"])
    assert (read.sequences, read.pairs, read.labels) == (["ACT"], ["GG"], [["y", "x"]])
    pairs = table("sequence,sequence2,label\nAC,GT,0\n", "dev.csv")
    assert read_table(pairs, POLICY).pairs == ["GT"]
    assert read_table(pairs, POLICY, pair_column=None).pairs is None
    with pytest.raises(UserError, match="no header with the columns sequence, a and b"):
        read_table(path, POLICY, label_columns=["a", "b"])
    with pytest.raises(UserError, match="none of them twice"):
        read_table(path, POLICY, label_columns=["a", "a"])


def test_several_label_columns(table):
    read = read_table(table("label_b,sequence,label_a,other\n1,AC,0,9\n0,GT,1.0,9\n"), POLICY)
    assert read.columns == ("label_b", "label_a")
    values = multi_label_ids(read)
    assert values.dtype == np.float32 and values.tolist() == [[1, 0], [0, 1]]
    read.labels[1][0] = "2"
    with pytest.raises(UserError, match=r"line 3: the label '2' in column label_b is neither 0 nor 1"):
        multi_label_ids(read)
    both = read_table(table("sequence,label,label_a\nAC,0,1\n"), POLICY)
    assert both.columns == ("label",)


def test_regression_targets(table):
    read = read_table(table("sequence,label_x,label_y\nAC,0.5,-1e-3\nAC,7,2\n"), POLICY)
    values = float_labels(read)
    assert values.dtype == np.float32 and np.array_equal(values, np.float32([[0.5, -1e-3], [7, 2]]))
    for wrong in ("high", "nan", "-inf", "1e39"):
        read.labels[1][1] = wrong
        with pytest.raises(UserError, match=rf"line 3: the label '{wrong}' in column label_y is no finite number"):
            float_labels(read)


@pytest.mark.parametrize("cell", ["0-1.2", '"0,-,1,,2"', "0;- ; 1;.;2", "0 -100  1 . 2", '" 0, -, 1, ., 2"'])
def test_labels_of_bases(table, cell):
    read = read_table(table(f"sequence,label\nacgun,{cell}\n"), POLICY, per_base=True)
    assert len(read.labels[0]) == len(read.sequences[0]) == 5
    assert per_base_names(read) == ["0", "1", "2"]
    assert per_base_ids(read, ["0", "1", "2"]) == [[0, IGNORE, 1, IGNORE, 2]]
    with pytest.raises(UserError, match=r"line 2: the label '2' of base 5 does not occur in the training table"):
        per_base_ids(read, ["0", "1"])


def test_labels_of_bases_that_do_not_fit(table):
    path = table("sequence,label\nACG,EII\nACG,exon intron\nACG,EI\n")
    with pytest.raises(UserError, match="line 3: 2 labels where the sequence has 3 bases; give one label a base"):
        read_table(path, POLICY, per_base=True)
    with pytest.raises(UserError, match="line 2: the label 'EI' where the sequence has 3 bases"):
        read_table(table("sequence,label\nACG,EI\n"), POLICY, per_base=True)
    with pytest.raises(UserError, match="N cannot be dropped where every base has a label"):
        read_table(path, TextPolicy(n="drop"), per_base=True)
    with pytest.raises(UserError, match="leave out the column sequence2"):
        read_table(table("sequence,sequence2,label\nA,C,1\n"), POLICY, per_base=True)
    with pytest.raises(UserError, match="leave out the column label_b"):
        read_table(table("sequence,label_a,label_b\nA,1,1\n"), POLICY, per_base=True)


def test_classes_are_ordered_by_number_or_name():
    assert class_names(["10", "2", "2", "-1"]) == ["-1", "2", "10"]
    assert class_names(iter(["neither", "donor", "acceptor"])) == ["acceptor", "donor", "neither"]
    assert class_names(["+", "-", "²"]) == ["+", "-", "²"]
    for labels, message in ((["1", "1"], "all training labels are '1'"), ([], "no training labels")):
        with pytest.raises(UserError, match=f"{message}; a classifier needs at least two classes"):
            class_names(labels)


def test_an_unknown_label_names_its_line(table):
    read = read_table(table("sequence,label\nAC,0\nAC,7\n", "test.csv"), POLICY)
    with pytest.raises(UserError, match=r"test\.csv, line 3: the label '7' does not occur"):
        label_ids(read, ["0", "1"])
    assert label_ids(read, ["0", "7"]) == [0, 1]


def test_finding_splits(table, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_tables(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no train\.csv"):
        find_tables(tmp_path)
    train, dev = table("x"), table("x", "valid.jsonl.gz")
    assert find_tables(str(tmp_path)) == {"train": Source(str(train), train), "dev": Source(str(dev), dev)}
    table("x", "dev.csv")
    with pytest.raises(UserError, match=r"dev\.csv and valid\.jsonl\.gz are both there"):
        find_tables(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_table(tmp_path / "test.csv", POLICY)
    with pytest.raises(UserError, match="is no table by its name"):
        read_table(table("x", "train.xlsx"), POLICY)


def test_many_rows_are_quick(table):
    path = table("sequence,label\n" + "ACGTACGTTT,1\nGGGTACGTTT,0\n" * 25_000)
    start = time.perf_counter()
    read = read_table(path, POLICY, PolicyReport())
    assert label_ids(read, ["0", "1"]) == [1, 0] * 25_000
    assert time.perf_counter() - start < 10  # a second or less; ten on a busy machine
