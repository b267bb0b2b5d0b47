"""Reads fine-tuning tables: `sequence,label`, one file a split, every row checked before anything is trained."""

import csv
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..tokenizer.policy import PolicyReport, TextPolicy, normalise

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SPLITS = ("train", "dev", "test")


@dataclass
class Table:
    """One split: normalised sequences, their labels as written, and the line of the file each came from."""

    path: Path
    sequences: list[str]
    labels: list[str]
    lines: list[int]


def find_tables(folder: str | Path) -> dict[str, Path]:
    """
    The split files of a folder, by split; `train` must be there.

    Raises:
        UserError: if the folder or its training table is missing, or a split is there twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --data_path takes a folder with train.csv, dev.csv and test.csv.")
    found = {}
    for split in SPLITS:
        paths = [folder / f"{split}{suffix}" for suffix in DELIMITERS if (folder / f"{split}{suffix}").is_file()]
        if len(paths) > 1:
            raise UserError(f"{folder}: {paths[0].name} and {paths[1].name} are both there; keep one.")
        if paths:
            found[split] = paths[0]
    if "train" not in found:
        raise UserError(f"{folder}: no train.csv or train.tsv in this folder.")
    return found


def read_table(path: str | Path, policy: TextPolicy, report: PolicyReport | None = None) -> Table:
    """
    Read one table with a header naming `sequence` and `label`.

    Args:
        path: a .csv or .tsv file.
        policy: applied to every sequence; what it met is counted in `report`.

    Raises:
        UserError: naming the file and the line, if the header, a row, a sequence or a label cannot be used.
    """
    path = Path(path)
    table = Table(path, [], [], [])
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, delimiter=DELIMITERS[path.suffix])
            header = next(reader, None)
            if header is None:
                raise UserError(f"{path}: the file is empty; it needs a header line sequence,label and rows below it.")
            header = [name.strip() for name in header]
            if not {"sequence", "label"} <= set(header):
                raise UserError(
                    f"{path}: line 1 is no header with the columns sequence and label (it reads "
                    f"{','.join(header)[:60]!r}); "
                    "add one."
                )
            sequence_column, label_column = header.index("sequence"), header.index("label")
            for row in reader:
                if not row:
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(row) != len(header):
                    raise UserError(f"{where}: {len(row)} fields where the header has {len(header)}; mend the row.")
                try:
                    sequence = normalise(row[sequence_column].strip(), policy, report)
                except UserError as error:
                    raise UserError(f"{where}: the sequence {error}.") from error
                if not row[label_column].strip():
                    raise UserError(f"{where}: the label is empty; fill it in or remove the row.")
                table.sequences.append(sequence)
                table.labels.append(row[label_column].strip())
                table.lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is not readable as text ({error}); save it as UTF-8 {path.suffix}.") from error
    if not table.sequences:
        raise UserError(f"{path}: has a header but no rows.")
    return table


def class_names(labels: list[str]) -> list[str]:
    """The classes of the training labels: by number if all are integers, else by name."""
    names = set(labels)
    if len(names) < 2:
        raise UserError(f"all training labels are {next(iter(names))!r}; a classifier needs at least two classes.")
    if all(name.lstrip("-").isdigit() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def label_ids(table: Table, classes: list[str]) -> list[int]:
    """
    The id of each row's label.

    Raises:
        UserError: naming file and line of the first label that is none of `classes`.
    """
    ids = {name: i for i, name in enumerate(classes)}
    for label, line in zip(table.labels, table.lines, strict=True):
        if label not in ids:
            known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise UserError(
                f"{table.path}, line {line}: the label {label!r} does not occur in the training table (classes: "
                f"{known})."
            )
    return [ids[label] for label in table.labels]
