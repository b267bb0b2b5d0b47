"""Every output format holds the same rows, is whole or not there, and reads back exactly."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dnabert2.errors import UserError
from dnabert2.inference import outputs
from dnabert2.inference.outputs import FORMATS, format_of, writer

SIZE = 5
VECTOR = pa.list_(pa.float32(), SIZE)
SCHEMA = pa.schema(
    [("id", pa.string()), ("start", pa.int64()), ("bases", pa.list_(pa.float32())), ("embedding", VECTOR)]
)
VECTORS = (np.random.default_rng(0).normal(size=(7, SIZE)) * 10.0 ** np.arange(-2, 3)).astype(np.float32)
NAMES = ["a", "tab\there", 'a "quote"', "é", "e", "f", "g"]


def tables(schema: pa.Schema = SCHEMA) -> list[pa.Table]:
    """Of three, none and four rows."""
    made = []
    for part in (slice(0, 3), slice(3, 3), slice(3, 7)):
        columns = {
            "id": NAMES[part],
            "start": np.arange(7)[part],
            "bases": [[0.5, float(i)] for i in range(7)][part],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(VECTORS[part].reshape(-1)), SIZE),
        }
        made.append(pa.table({name: columns[name] for name in schema.names}, schema=schema))
    return made


def write(output: Path, form: str, schema: pa.Schema = SCHEMA, some: list | None = None):
    writer(output, form, schema, {"model": "m", "layer": 2})(iter(tables(schema) if some is None else some))


@pytest.mark.parametrize("form", ["parquet", "dataset"])
@pytest.mark.parametrize("rows_of_file", [1, 1_000])
def test_parquet_and_folders_of_it(tmp_path, form, rows_of_file, monkeypatch):
    monkeypatch.setattr(outputs, "ROWS_OF_FILE", rows_of_file)
    output = tmp_path / "out"
    write(output, form)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and output.is_dir() == (form == "dataset")
    read = pq.read_table(output)
    assert read.to_pylist() == pa.concat_tables(tables()).to_pylist()
    assert json.loads(read.schema.metadata[b"dnabert2"]) == {"model": "m", "layer": 2}
    if form == "dataset":
        assert len(list(output.iterdir())) == (2 if rows_of_file == 1 else 1)
    write(output, form, some=[])
    assert pq.read_table(output).num_rows == 0 and pq.read_table(output).schema.names == SCHEMA.names


def test_npy_and_its_rows(tmp_path):
    schema = pa.schema([SCHEMA.field(name) for name in ("id", "start", "embedding")])
    write(tmp_path / "out.npy", "npy", schema)
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert vectors.dtype == np.float32 and np.array_equal(vectors, VECTORS)
    rows = pd.read_csv(tmp_path / "out.npy.rows.tsv", sep="\t")
    assert rows["id"].tolist() == NAMES and rows["start"].tolist() == list(range(7))
    write(tmp_path / "out.npy", "npy", schema, [])
    assert np.load(tmp_path / "out.npy").shape == (0, SIZE)
    assert (tmp_path / "out.npy.rows.tsv").read_text() == "id\tstart\n"
    with pytest.raises(UserError, match="npy holds vectors, but there are none here"):
        write(tmp_path / "b.npy", "npy", pa.schema([("id", pa.string())]))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("to_stdout", [False, True])
@pytest.mark.parametrize("rows_of_text", [2, 2_048])
def test_text_reads_back_exactly(tmp_path, capsysbinary, to_stdout, rows_of_text, monkeypatch):
    monkeypatch.setattr(outputs, "ROWS_OF_TEXT", rows_of_text)

    def text_of(form: str, some: list | None = None) -> str:
        output = Path("-") if to_stdout else tmp_path / "out"
        write(output, form, some=some)
        return (capsysbinary.readouterr().out if to_stdout else output.read_bytes()).decode()

    rows = [json.loads(line) for line in text_of("jsonl").splitlines()]
    assert [row["id"] for row in rows] == NAMES and rows[1]["bases"] == [0.5, 1.0]
    assert np.array_equal(np.array([row["embedding"] for row in rows], dtype=np.float32), VECTORS)
    found = pd.read_csv(
        io.StringIO(text_of("tsv")), sep="\t", dtype={f"embedding_{i}": "float32" for i in range(SIZE)}
    )
    assert list(found.columns) == ["id", "start", "bases", *(f"embedding_{i}" for i in range(SIZE))]
    assert found["id"].tolist() == NAMES and found["bases"][1] == "0.5,1.0"
    assert np.array_equal(found.iloc[:, 3:].to_numpy(), VECTORS)
    assert text_of("jsonl", []) == "" and text_of("tsv", []).count("\n") == 1


@pytest.mark.parametrize("form", FORMATS)
def test_what_stood_there_stays_until_the_new_one_is_whole(tmp_path, form):
    schema = pa.schema([SCHEMA.field(name) for name in ("id", "embedding")])
    output = tmp_path / "out"
    write(output, form, schema)

    def contents():
        return {path.relative_to(tmp_path): path.read_bytes() for path in output.parent.rglob("*") if path.is_file()}

    def interrupted():
        yield tables(schema)[0]
        raise KeyboardInterrupt

    before = contents()
    with pytest.raises(KeyboardInterrupt):
        writer(output, form, schema, {})(interrupted())
    after = contents()
    assert {path: after[path] for path in before} == before
    left = {path.parts[0] for path in set(after) - set(before)}
    assert left == ({"out.building"} if form == "dataset" else set())
    write(output, form, schema)
    assert contents() == before


def test_formats_by_name_and_suffix():
    cases = {"a.parquet": "parquet", "a.npy": "npy", "a.tsv": "tsv", "a.jsonl": "jsonl", "folder": "dataset"}
    for name, form in cases.items():
        assert format_of(Path(name), None, "tsv") == form
    assert format_of(Path("a.csv"), "tsv", "jsonl") == "tsv"
    assert format_of(Path("-"), None, "tsv") == "tsv" and format_of(Path("-"), "jsonl", "tsv") == "jsonl"
    with pytest.raises(
        UserError, match=r"a\.csv: its name says no format; end it in \.parquet, \.npy, \.tsv, \.jsonl"
    ):
        format_of(Path("a.csv"), None, "tsv")
    with pytest.raises(UserError, match=r"a\.vcf: its name says vcf, which this cannot be written as"):
        format_of(Path("a.vcf"), None, "tsv")
    for form in ("parquet", "dataset", "npy"):
        with pytest.raises(UserError, match=f"--format {form}: cannot go to standard output"):
            format_of(Path("-"), form, "tsv")
