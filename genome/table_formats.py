"""The file formats of fine-tuning tables: CSV, TSV, JSON lines, Parquet and `datasets.Dataset`, read row by row.

Text may be gzipped. A cell of CSV or TSV is a string; the other formats give numbers, booleans, lists and nulls as
they are, but a `ClassLabel` of `datasets` as its name.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".json")
TEXT = (*DELIMITERS, *JSON_LINES)
SUFFIXES = (*TEXT, *(f"{suffix}.gz" for suffix in TEXT), ".parquet")
BATCH = 1000  # rows in memory while a typed table is read
LONGEST_CELL = 2**31 - 1  # bytes; Python's own limit for CSV, 131,072, is less than some sequences have


@dataclass(frozen=True)
class Source:
    """
    Where the rows of one split are: a file, or a split of a `datasets` data set.

    Attributes:
        name: for messages.
        path: the file, if it is one.
        dataset: the `datasets.Dataset`, if it is one.
    """

    name: str
    path: Path | None = None
    dataset: Any = None

    @classmethod
    def of(cls, path: str | Path) -> "Source":
        """Raises UserError if there is no such file or its name ends in none of SUFFIXES."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file.")
        if not path.name.lower().endswith(SUFFIXES):
            raise UserError(f"{path}: is no table by its name; it must end in one of {', '.join(SUFFIXES)}.")
        return cls(str(path), path)

    @property
    def form(self) -> str:
        """The file's ending without .gz; empty for a data set."""
        return Path(self.path.name.lower().removesuffix(".gz")).suffix if self.path else ""

    @property
    def unit(self) -> str:
        """What numbers of `read_rows` count."""
        return "line" if self.form in TEXT else "row"


def column_names(source: Source) -> list[str]:
    """
    The columns of a table, from its header, its schema, or the first of its JSON lines.

    Raises:
        UserError: naming the file, if it is empty or cannot be read.
    """
    if source.form in DELIMITERS:
        with _text(source) as handle, _long_cells():
            header = next(_csv_lines(source, handle), (1, None))[1]
        if header is None:
            raise UserError(
                f"{source.name}: the file is empty; it needs a header line sequence,label and rows below it."
            )
        return [name.strip() for name in header]
    if source.form in JSON_LINES:
        first = next(_json_lines(source), (1, None))[1]
        if first is None:
            raise UserError(
                f'{source.name}: the file is empty; it needs lines like {{"sequence": "ACGT", "label": 0}}.'
            )
        return list(first)
    with _arrow(source) as table:
        return table.schema_arrow.names if source.path else table.column_names


def read_rows(
    source: Source, columns: list[str], skip_bad: bool = False
) -> Iterator[tuple[int, list]] | Iterator[tuple[int, list | UserError]]:
    """
    Yield line (of text) or row number, from 1, and the cells of `columns`, which must be there; None where empty.

    Args:
        skip_bad: give a line that is no row as the error that it is, and go on behind it.

    Raises:
        UserError: naming file and line, if something cannot be read.
    """
    if source.form in DELIMITERS:
        yield from _read_csv(source, columns, skip_bad)
    elif source.form in JSON_LINES:
        for number, row in _json_lines(source, skip_bad):
            yield number, row if isinstance(row, UserError) else [row.get(name) for name in columns]
    else:
        yield from _read_arrow(source, columns)


def _read_csv(source: Source, columns: list[str], skip_bad: bool) -> Iterator[tuple[int, list | UserError]]:
    with _text(source) as handle, _long_cells():
        lines = _csv_lines(source, handle, skip_bad)
        header = [name.strip() for name in next(lines)[1]]
        places = [header.index(name) for name in columns]
        for number, row in lines:
            if isinstance(row, UserError):
                yield number, row
            elif len(row) == len(header):
                yield number, [row[place] for place in places]
            elif row:
                counts = f"{len(row)} fields where the header has {len(header)}"
                error = UserError(f"{source.name}, line {number}: {counts}; mend the row.")
                if not skip_bad:
                    raise error
                yield number, error


def _csv_lines(source: Source, handle, skip_bad: bool = False) -> Iterator[tuple[int, list[str] | UserError]]:
    reader = csv.reader(handle, delimiter=DELIMITERS[source.form], strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            place = f"{source.name}, line {reader.line_num}"
            row = UserError(f"{place}: is no well-formed {source.form} text ({error}); mend the row.")
            if not skip_bad:
                raise row from error
        if row is None:
            return
        yield reader.line_num, row


def _json_lines(source: Source, skip_bad: bool = False) -> Iterator[tuple[int, dict | UserError]]:
    with _text(source) as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                row = error
            if not isinstance(row, dict):
                reason = f" ({row})" if isinstance(row, ValueError) else ""
                row = UserError(
                    f"{source.name}, line {number}: is no JSON object{reason}; write one object a line, such as "
                    '{"sequence": "ACGT", "label": 0}.'
                )
                if not skip_bad:
                    raise row
            yield number, row


@contextmanager
def _text(source: Source):
    opener = gzip.open if source.path.suffix.lower() == ".gz" else open
    try:
        with opener(source.path, "rt", newline="", encoding="utf-8-sig") as handle:
            yield handle
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source.name}: is not readable as text ({error}); save it as UTF-8 {source.form}."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(source, error) from error


@contextmanager
def _long_cells():
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_arrow(source: Source, columns: list[str]) -> Iterator[tuple[int, list]]:
    number = 0
    with _arrow(source) as table:
        if source.path:
            schema, batches = table.schema_arrow, table.iter_batches(BATCH, columns=columns)
        else:
            schema = table.features.arrow_schema
            batches = table.select_columns(columns).with_format("arrow").iter(BATCH)
        names = _class_label_names(schema)
        for batch in batches:
            cells = [_named(batch.column(name).to_pylist(), names.get(name)) for name in columns]
            for row in zip(*cells, strict=True):
                number += 1
                yield number, list(row)


@contextmanager
def _arrow(source: Source):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if source.path is None:
            yield source.dataset
        else:
            # Buffered ahead, the whole file would be in memory by its end.
            with pq.ParquetFile(source.path, pre_buffer=False) as table:
                yield table
    except (OSError, pa.ArrowException) as error:
        raise _damaged(source, error) from error


def _damaged(source: Source, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{source.name}: is damaged or cut short ({reason.rstrip('.')}); copy or download it again.")


def _class_label_names(schema) -> dict[str, list[str]]:
    """By column, the names that `datasets` keeps beside the integers of a `ClassLabel`, or of lists of them."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = (described.get("info") or {}).get("features") or {}
    found = {}
    for column, feature in features.items():
        while isinstance(feature, dict) and "feature" in feature:
            feature = feature["feature"]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            found[column] = feature["names"]
    return found


def _named(values: list, names: list[str] | None) -> list:
    if names is None:
        return values
    # -1 is how `datasets` says that there is no label.
    name_of = {None: None, -1: None, **dict(enumerate(names))}
    return [
        [name_of.get(x, x) for x in value] if isinstance(value, list) else name_of.get(value, value)
        for value in values
    ]
