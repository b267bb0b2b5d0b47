"""Whether --output can be written, asked before the work is done rather than after it.

from dnabert2.gue_eval.outputs import output_folder
output_folder(Path("runs/gue"))
"""

import tempfile
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError


def output_folder(path: Path):
    """Make a folder for results; raises UserError if it is a file, or no file can be written in it."""
    if path.is_file():
        raise UserError(f"--output {path} cannot be a folder: it is a file; name another.")
    with _refused(path):
        _try(path)


def output_file(path: Path):
    """Make the folder of a file; raises UserError if `path` is a folder, or no file can be written beside it."""
    if path.is_dir():
        raise UserError(f"--output {path} cannot be a file: it is a folder; name a file in it.")
    with _refused(path):
        _try(path.parent)


def _try(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell, for root least of all
        pass


@contextmanager
def _refused(path: Path):
    try:
        yield
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}; name another place.") from error
