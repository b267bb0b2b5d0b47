"""The file a benchmark writes: found unusable before minutes of work, written whole, and again while work goes on."""

import json
from pathlib import Path

from ..atomic import write_whole
from ..errors import UserError


def check_output(path: Path | None):
    """Make the folder of `path`; raises UserError if it cannot hold a file of that name. None is no file."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--output {path} is a folder: name a JSON file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}.") from error


def save(result: dict, path: Path | None):
    """Write `result` as JSON, if there is a path."""
    if path is None:
        return
    try:
        write_whole(path, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}.") from error


def check_rounds(repetitions: int, warmup: int, seconds: float | None):
    """Raise UserError unless there can be rounds."""
    if repetitions < 1 or warmup < 0:
        raise UserError("--repetitions must be at least 1 and --warmup at least 0.")
    if seconds is not None and not seconds > 0:
        raise UserError(f"--seconds must be more than 0, not {seconds}.")
