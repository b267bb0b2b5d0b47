"""SHA-256 sums of the tables of a dataset, which a result depends on."""

import hashlib
from pathlib import Path

from .tasks import Task


def tables_sha256(task: Task, gue: str | Path) -> dict[str, str]:
    """Of each split's file that is there."""
    return {split: hashlib.sha256(path.read_bytes()).hexdigest() for split, path in task.split_files(gue).items()}
