"""Tables as files: Parquet, a folder of Parquet, npy with its rows beside it, TSV, JSON lines, or standard output."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic import whole_file
from ..errors import UserError

FORMATS = ("parquet", "dataset", "npy", "tsv", "jsonl")
OF_SUFFIX = {".parquet": "parquet", ".npy": "npy", ".tsv": "tsv", ".jsonl": "jsonl", "": "dataset"}
VCF = (".vcf", ".vcf.gz", ".vcf.bgz")
KEY = b"dnabert2"  # of Parquet's metadata: model, settings and circumstances
ROWS_OF_FILE = 1_000_000  # of a folder's files
ROWS_OF_TEXT = 2_048  # made into text at once


def format_of(output: Path, name: str | None, stdout: str, formats: tuple[str, ...] = FORMATS) -> str:
    """
    The format asked for: by name, else by the output's suffix; `stdout` is that of standard output.

    Args:
        formats: those that what is written can have.

    Raises:
        UserError: if neither says one of them.
    """
    if str(output) == "-":
        if name in ("parquet", "dataset", "npy"):
            raise UserError(f"--format {name}: cannot go to standard output; choose tsv or jsonl, or name a file.")
        return name or stdout
    found = name or ("vcf" if output.name.endswith(VCF) else OF_SUFFIX.get(output.suffix))
    if found not in formats:
        known = "no format" if found is None else f"{found}, which this cannot be written as"
        endings = [suffix for suffix, form in OF_SUFFIX.items() if suffix and form in formats]
        endings += [".vcf", ".vcf.gz"] if "vcf" in formats else []
        raise UserError(f"{output}: its name says {known}; end it in {', '.join(endings)}, or give --format.")
    return found


def writer(output: Path, form: str, schema: pa.Schema, described: dict) -> Callable[[Iterator[pa.Table]], None]:
    """
    A function that writes tables, whole or not at all (but standard output as they come).

    Args:
        schema: of the tables.
        described: what the file says of itself, JSON-ready; Parquet alone has a place for it.
    """
    schema = schema.with_metadata({KEY: json.dumps(described)})
    if form == "parquet":
        return lambda tables: _parquet(tables, output, schema)
    if form == "dataset":
        return lambda tables: _dataset(tables, output, schema)
    if form == "npy":
        return lambda tables: _npy(tables, output, schema)
    lines = _tsv if form == "tsv" else _json_lines
    return lambda tables: lines(tables, output, schema)


def _parquet(tables: Iterator[pa.Table], output: Path, schema: pa.Schema):
    with whole_file(output) as partial, pq.ParquetWriter(partial, schema) as file:
        for table in tables:
            file.write_table(table.replace_schema_metadata(schema.metadata))


def _dataset(tables: Iterator[pa.Table], output: Path, schema: pa.Schema):
    """A folder of files, which appears when all are there."""
    building = output.with_name(f"{output.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    file, rows, count = None, 0, 0
    for table in tables:
        if file is None or rows >= ROWS_OF_FILE:
            if file is not None:
                file.close()
            file, rows, count = pq.ParquetWriter(building / f"part-{count:05d}.parquet", schema), 0, count + 1
        file.write_table(table.replace_schema_metadata(schema.metadata))
        rows += len(table)
    if file is None:
        file = pq.ParquetWriter(building / "part-00000.parquet", schema)
    file.close()
    if output.is_dir():
        shutil.rmtree(output)
    building.rename(output)


def _npy(tables: Iterator[pa.Table], output: Path, schema: pa.Schema):
    """The vectors as (rows, hidden) float32, and the other columns beside them as `NAME.rows.tsv`."""
    if "embedding" not in schema.names:
        raise UserError(f"{output}: npy holds vectors, but there are none here; choose .parquet or .tsv.")
    size, rows = schema.field("embedding").type.list_size, 0
    beside = output.with_name(f"{output.name}.rows.tsv")
    others = pa.schema([schema.field(name) for name in schema.names if name != "embedding"])
    with (
        whole_file(output) as partial,
        whole_file(beside) as partial_rows,
        open(partial, "wb") as handle,
        open(partial_rows, "wb") as lines,
    ):
        _npy_header(handle, (0, size))
        lines.write(_header(others.names))
        for table in tables:
            vectors = _flat(table.column("embedding").combine_chunks()).reshape(-1, size)
            handle.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            lines.write(_tabs(table.select(others.names)))
            rows += len(table)
        handle.seek(0)
        _npy_header(handle, (rows, size))


def _npy_header(handle, shape: tuple[int, int]):
    # numpy leaves room in it for more digits of the first axis.
    np.lib.format.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})


def _flat(vectors) -> np.ndarray:
    """The numbers of a column of lists, none of them null."""
    return vectors.flatten().to_numpy(zero_copy_only=False)


def _tabs(table: pa.Table) -> bytes:
    return table.to_pandas().to_csv(sep="\t", index=False, header=False).encode()


def _header(names: list[str]) -> bytes:
    return ("\t".join(names) + "\n").encode()


@contextmanager
def _text(output: Path):
    """Bytes of a file that appears when it is whole, or standard output."""
    if str(output) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with whole_file(output) as partial, open(partial, "wb") as handle:
        yield handle


def _parts(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, few at a time: as text or Python's numbers they take ten times the memory."""
    for table in tables:
        for start in range(0, len(table), ROWS_OF_TEXT):
            yield table.slice(start, ROWS_OF_TEXT)


def _tsv(tables: Iterator[pa.Table], output: Path, schema: pa.Schema):
    with _text(output) as handle:
        handle.write(_header(_spread(schema.empty_table()).column_names))
        for part in _parts(tables):
            handle.write(_tabs(_spread(part)))
            handle.flush()


def _spread(table: pa.Table) -> pa.Table:
    """Vectors as one column a number, embedding_0, embedding_1, ...; other lists joined by commas."""
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            size = column.type.list_size
            values = _flat(column).reshape(-1, size)
            columns |= {f"{name}_{i}": pa.array(np.ascontiguousarray(values[:, i])) for i in range(size)}
        elif pa.types.is_list(column.type):
            columns[name] = pa.array([",".join(map(str, cell)) for cell in column.to_pylist()])
        else:
            columns[name] = column
    return pa.table(columns)


def _json_lines(tables: Iterator[pa.Table], output: Path, schema: pa.Schema):
    with _text(output) as handle:
        for part in _parts(tables):
            for row in part.to_pylist():
                handle.write((json.dumps(row) + "\n").encode())
            handle.flush()
