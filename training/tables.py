"""Reads fine-tuning tables: `sequence[,sequence2],label`, one a split, every row checked before anything is trained.

    from dnabert2.training.tables import find_tables, read_table

    sources = find_tables("data/gue/prom/prom_core_tata")     # or a Hub data set, user/name[:config][@revision]
    table = read_table(sources["train"], TextPolicy())
    table.sequences[0], table.labels[0], table.where(0)       # "ACGT...", ["1"], "train.csv, line 2"

`genome/table_formats.py` knows the files, `table_hub.py` the Hub, `genome/table_cells.py` what may stand in a cell.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..genome.table_cells import base_labels, read_label, read_sequence
from ..genome.table_formats import SUFFIXES, Source, column_names, read_rows
from ..tokenizer.policy import PolicyReport, TextPolicy
from .table_hub import open_dataset

SPLITS = ("train", "dev", "test")
NAMES = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
IGNORE = -100  # what the losses of transformers leave out
UNLABELLED = ("", ".", "-", "-100")  # a base without a label
BINARY = {"0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
INTEGER = re.compile("-?[0-9]+")


@dataclass
class Table:
    """
    One split.

    Attributes:
        path: the file, or "user/name (split)", for messages.
        sequences: normalised.
        pairs: second sequences, normalised, if the table has their column.
        labels: of each row its labels as text, one a label column; of a per-base table one a base.
        lines: of each row its line of the file, or its number counted from 1.
        columns: the label columns.
        unit: "line" or "row", what `lines` counts.
    """

    path: str
    sequences: list[str] = field(default_factory=list)
    pairs: list[str] | None = None
    labels: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    columns: tuple[str, ...] = ("label",)
    unit: str = "line"

    def where(self, i: int) -> str:
        """Where row `i` stands: "train.csv, line 7"."""
        return f"{self.path}, {self.unit} {self.lines[i]}"


def find_tables(data_path: str | Path) -> dict[str, Source]:
    """
    The tables of a folder or of a Hub data set, by split; `train` is there.

    The development table may also be called validation, valid or val.

    Raises:
        UserError: if the folder, the data set or its training table is missing, or a split is there twice.
    """
    data_path = str(data_path)
    found, names = _find_files(Path(data_path)), []
    if not found:
        dataset = open_dataset(data_path)
        if dataset is None and not Path(data_path).is_dir():
            raise UserError(
                f"{data_path}: no such folder; --data_path takes a folder with train.csv, dev.csv and test.csv, or a "
                "Hub data set as user/name."
            )
        names = list(dataset or {})
        for split in SPLITS:
            found[split] = [Source(f"{data_path} ({n})", dataset=dataset[n]) for n in NAMES[split] if n in names]
    for split in SPLITS:
        if len(found[split]) > 1:
            twice = [source.path.name if source.path else source.name for source in found[split][:2]]
            raise UserError(f"{data_path}: {twice[0]} and {twice[1]} are both there; keep one.")
    if not found["train"]:
        if names:
            raise UserError(f"{data_path}: has no split train, only {', '.join(names)}; rename the one to train on.")
        endings = ", ".join(SUFFIXES)
        raise UserError(f"{data_path}: no train.csv in this folder; it may also end in one of {endings}.")
    return {split: sources[0] for split, sources in found.items() if sources}


def _find_files(folder: Path) -> dict[str, list[Source]]:
    found = {}
    for split in SPLITS:
        paths = [folder / f"{name}{suffix}" for name in NAMES[split] for suffix in SUFFIXES]
        found[split] = [Source.of(path) for path in paths if path.is_file()]
    return found if any(found.values()) else {}


def read_table(
    source: Source | str | Path,
    policy: TextPolicy,
    report: PolicyReport | None = None,
    *,
    sequence_column: str = "sequence",
    pair_column: str | None = "sequence2",
    label_columns: list[str] | None = None,
    per_base: bool = False,
) -> Table:
    """
    Read one table.

    Args:
        source: of `find_tables`, or a file.
        policy: applied to every sequence; what it met is counted in `report`.
        sequence_column: its header.
        pair_column: header of second sequences, read where the table has it; None to leave them.
        label_columns: their headers; by default `label`, or else every column called `label_...`.
        per_base: the one label column holds a label for every base: a list, one character a base, or labels with white
            space, commas or semicolons between them. Their number is that of the bases as written.

    Raises:
        UserError: naming the file and the line or row, if the header, a row, a sequence or a label cannot be used.
    """
    if not isinstance(source, Source):
        source = Source.of(source)
    if per_base and policy.n != "keep":
        raise UserError(
            f"N cannot be {'dropped' if policy.n == 'drop' else 'collapsed'} where every base has a label; keep N."
        )
    present = column_names(source)
    columns = _label_columns(source, present, sequence_column, label_columns)
    has_pairs = pair_column is not None and pair_column in present
    if per_base and (len(columns) > 1 or has_pairs):
        extra = pair_column if has_pairs else columns[1]
        raise UserError(
            f"{source.name}: labels of bases come in one column beside one sequence; leave out the column {extra}."
        )
    wanted = [sequence_column, *([pair_column] if has_pairs else []), *columns]
    for name in wanted:
        if present.count(name) > 1:
            raise UserError(f"{source.name}: has more than one column {name}; rename all but one.")
    table = Table(source.name, pairs=[] if has_pairs else None, columns=columns, unit=source.unit)
    for number, cells in read_rows(source, wanted):
        try:
            table.sequences.append(read_sequence(cells[0], "sequence", policy, report))
            if has_pairs:
                table.pairs.append(read_sequence(cells[1], "second sequence", policy, report))
            if per_base:
                table.labels.append(base_labels(cells[-1], len(table.sequences[-1])))
            else:
                table.labels.append([read_label(*x) for x in zip(cells[-len(columns) :], columns, strict=True)])
        except UserError as error:
            raise UserError(f"{source.name}, {source.unit} {number}: {error}.") from error
        table.lines.append(number)
    if not table.sequences:
        raise UserError(f"{source.name}: has {'a header but ' if source.unit == 'line' else ''}no rows; add some.")
    return table


def _label_columns(source: Source, present: list[str], sequence: str, labels: list[str] | None) -> tuple[str, ...]:
    columns = ["label"] if labels is None else list(labels)
    if labels is None and "label" not in present:
        columns = [name for name in present if name.startswith("label_")] or columns
    if not columns or len(set(columns)) < len(columns):
        raise UserError(
            f"{source.name}: the label columns {', '.join(columns)} must be one or more, none of them twice."
        )
    missing = [name for name in (sequence, *columns) if name not in present]
    if missing and source.form in (".csv", ".tsv"):
        wanted = f"{', '.join((sequence, *columns[:-1]))} and {columns[-1]}"
        raise UserError(
            f"{source.name}: line 1 is no header with the columns {wanted} (it reads {','.join(present)[:200]!r}); "
            "add one, or name the columns to read."
        )
    if missing:
        raise UserError(
            f"{source.name}: has no column {' and no column '.join(missing)} (its columns are "
            f"{', '.join(present)[:200]}); rename one, or name the columns to read."
        )
    return tuple(columns)


def class_names(labels: Iterable[str]) -> list[str]:
    """
    The classes among training labels: by number if all are integers, else by name.

    Raises:
        UserError: if there are fewer than two.
    """
    names = set(labels)
    if len(names) < 2:
        found = f"all training labels are {next(iter(names))!r}" if names else "there are no training labels"
        raise UserError(f"{found}; a classifier needs at least two classes.")
    if all(INTEGER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def per_base_names(table: Table) -> list[str]:
    """`class_names` of a per-base table: of all bases that have a label."""
    return class_names(set().union(*table.labels) - set(UNLABELLED))


def label_ids(table: Table, classes: list[str], column: int = 0) -> list[int]:
    """
    The id of each row's label in one of the label columns.

    Raises:
        UserError: naming file and line of the first label that is none of `classes`.
    """
    ids = {name: i for i, name in enumerate(classes)}
    for i, row in enumerate(table.labels):
        if row[column] not in ids:
            raise UserError(f"{table.where(i)}: the label {row[column]!r} {_unknown(classes)}")
    return [ids[row[column]] for row in table.labels]


def per_base_ids(table: Table, classes: list[str]) -> list[list[int]]:
    """
    The ids of each row's bases; IGNORE for a base without a label, written `.`, `-`, `-100` or left empty.

    Raises:
        UserError: naming file, line and base, from 1, of the first label that is none of `classes`.
    """
    ids = {name: i for i, name in enumerate(classes)} | dict.fromkeys(UNLABELLED, IGNORE)
    found = []
    for i, row in enumerate(table.labels):
        try:
            found.append([ids[label] for label in row])
        except KeyError as error:
            label = error.args[0]
            raise UserError(
                f"{table.where(i)}: the label {label!r} of base {row.index(label) + 1} {_unknown(classes)}"
            ) from error
    return found


def _unknown(classes: list[str]) -> str:
    known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    return f"does not occur in the training table (classes: {known})."


def float_labels(table: Table) -> np.ndarray:
    """
    Regression targets, (rows, columns) float32.

    Raises:
        UserError: naming file, line and column of the first that is no finite number.
    """

    with np.errstate(over="ignore"):  # too large for float32 is infinite, and refused
        values = np.array([[_number(cell) for cell in row] for row in table.labels]).astype(np.float32)
    _refuse(table, ~np.isfinite(values), "is no finite number")
    return values


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def multi_label_ids(table: Table) -> np.ndarray:
    """
    0 and 1 of each label column, (rows, columns) float32.

    Raises:
        UserError: naming file, line and column of the first cell that is anything else.
    """
    values = np.array([[BINARY.get(cell, math.nan) for cell in row] for row in table.labels], dtype=np.float32)
    _refuse(table, np.isnan(values), "is neither 0 nor 1")
    return values


def _refuse(table: Table, wrong: np.ndarray, reason: str):
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(
            f"{table.where(row)}: the label {table.labels[row][column]!r} in column {table.columns[column]} {reason}; "
            "mend it or remove the row."
        )
