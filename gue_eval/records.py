"""Records of GUE runs and probes, read and checked, and the published numbers they are set beside.

from dnabert2.gue_eval.records import load_records
records = load_records(["results/gue"])
"""

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError

RUN, PROBE = "gue", "gue-probe"
DATA = Path(__file__).resolve().parent / "data"
COMMON = {"model": str, "task": str, "status": str}
PROTOCOLS = ("full", "10-shot", "1-shot")


def load_records(folders: Iterable[str | Path]) -> list[dict]:
    """
    All records of runs and probes in `*.json` under the folders, in the order of their paths; other JSON files are
    left alone.

    Returns:
        The records as they were written, each with the `path` it was read from.

    Raises:
        UserError: for a folder that is none, a file that is not JSON, a record that lacks something, or two that are
            the same run.
    """
    records, runs = [], {}
    for path in _files(folders):
        record = _read(path)
        if not isinstance(record, dict) or record.get("benchmark") not in (RUN, PROBE):
            continue
        _check(record, path)
        run = (record["benchmark"], record["model"], record["task"], record.get("recipe"), record.get("seed"))
        if record["status"] == "finished" and runs.setdefault(run, path) != path:
            raise UserError(f"{runs[run]} and {path} record the same run ({_name(record)}): leave one of them out.")
        records.append(record | {"path": str(path)})
    return records


def published_scores() -> dict[str, dict[str, float]]:
    """Model of the paper -> data set -> test score x 100 (table 4 of the DNABERT-2 paper), in the table's order."""
    return _columns(DATA / "gue_table4.csv", "dataset")


def published_auroc() -> dict[str, dict[str, float]]:
    """Model -> data set -> AUROC of frozen, mean-pooled embeddings (Feng et al., 2025), a fraction."""
    return _columns(DATA / "frozen_auc.csv", "gue_dataset")


def _columns(path: Path, key: str) -> dict[str, dict[str, float]]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[key]]
    models = [name for name in rows[0] if name not in ("dataset", "gue_dataset")]
    return {model: {row[key]: float(row[model]) for row in rows if row[model]} for model in models}


def _files(folders: Iterable[str | Path]) -> list[Path]:
    found = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: --results takes the folders that `dnabert2 gue run` wrote.")
        for path in sorted(folder.rglob("*.json")):
            # The Trainer's own files; a run that was killed may leave them half-written.
            if not any(part.startswith("checkpoint-") for part in path.relative_to(folder).parts):
                found.setdefault(path.resolve(), path)
    return list(found.values())


def _read(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}); delete the file and run the task again."
        ) from error


def _name(record: dict) -> str:
    parts = [record["model"], record["task"], record.get("recipe"), record.get("seed")]
    return ", ".join(str(part) for part in parts if part is not None)


def _check(record: dict, path: Path):
    expected = dict(COMMON)
    if record["benchmark"] == RUN:
        expected |= {"recipe": str, "seed": int}
    for key, kind in expected.items():
        if not isinstance(record.get(key), kind):
            _refuse(path, f"{key!r} is {record.get(key)!r}, not {'text' if kind is str else 'a whole number'}")
    if record["status"] not in ("finished", "failed"):
        _refuse(path, f"'status' is {record['status']!r}, neither 'finished' nor 'failed'")
    if record["status"] == "failed":
        return
    if record["benchmark"] == RUN:
        for block in ("test", "test_without_train"):
            if block == "test" or record.get(block) is not None:
                _check_number(record, path, block, record.get("metric"))
    else:
        if not isinstance(record.get("protocols"), dict):
            _refuse(path, "it has no 'protocols'")
        for protocol in record["protocols"]:
            _check_number(record, path, "protocols", protocol, "auroc", "mean")


def _check_number(record: dict, path: Path, *keys):
    value = record
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(path, f"{' / '.join(map(str, keys))} is {value!r}, not a number")


def _refuse(path: Path, reason: str):
    raise UserError(f"{path} is no whole GUE record: {reason}; delete the file and run the task again.")
