"""Fine-tuning tables: what is read, and what is refused with file and line."""

import pytest

from dnabert2.errors import UserError
from dnabert2.tokenizer.policy import PolicyReport, TextPolicy
from dnabert2.training.tables import class_names, find_tables, label_ids, read_table


@pytest.fixture
def table(tmp_path):
    def write(content, name="train.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_rows_columns_and_policy(table):
    report = PolicyReport()
    read = read_table(table("id,label,sequence\n1,b,acgu\n\n2,a,ACGN\n"), TextPolicy(), report)
    assert read.sequences == ["ACGT", "ACGN"] and read.labels == ["b", "a"] and read.lines == [2, 4]
    assert (report.sequences, report.uracil, report.n) == (2, 1, 1)
    assert read_table(table("sequence\tlabel\nAC\t0\n", "dev.tsv"), TextPolicy()).sequences == ["AC"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("ACGT,1\nAC,0\n", "line 1 is no header"),
        ("sequence,label\n", "has a header but no rows"),
        ("sequence,label\nACGT,1\nACGT\n", "line 3: 1 fields where the header has 2"),
        ("sequence,label\nACGT,1,x\n", "line 2: 3 fields"),
        ("sequence,label\nACGT,1\nNNNN,0\n", "line 3: the sequence holds no base but N"),
        ("sequence,label\nMKVLE,1\n", "line 2: the sequence holds 'E' 'L'"),
        ("sequence,label\n,1\n", "line 2: the sequence is empty"),
        ("sequence,label\nACGT,\n", "line 2: the label is empty"),
        (b"sequence,label\n\xff\xfe\x00,1\n", "not readable as text"),
    ],
)
def test_unusable_tables_name_file_and_line(table, content, message):
    path = table(content)
    with pytest.raises(UserError) as caught:
        read_table(path, TextPolicy())
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_classes_are_ordered_by_number_or_name():
    assert class_names(["10", "2", "2", "0"]) == ["0", "2", "10"]
    assert class_names(["neither", "donor", "acceptor"]) == ["acceptor", "donor", "neither"]
    with pytest.raises(UserError, match="at least two classes"):
        class_names(["1", "1"])


def test_an_unknown_label_names_its_line(table):
    read = read_table(table("sequence,label\nAC,0\nAC,7\n", "test.csv"), TextPolicy())
    with pytest.raises(UserError, match=r"test\.csv, line 3: the label '7' does not occur"):
        label_ids(read, ["0", "1"])
    assert label_ids(read, ["0", "7"]) == [0, 1]


def test_finding_splits(table, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_tables(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no train\.csv"):
        find_tables(tmp_path)
    train = table("x")
    dev = table("x", "dev.tsv")
    assert find_tables(tmp_path) == {"train": train, "dev": dev}
    table("x", "dev.csv")
    with pytest.raises(UserError, match="are both there"):
        find_tables(tmp_path)
