"""SHA-256 sums of what a result depends on: the folder of a model, and the tables of a dataset.

from dnabert2.gue_eval.checksums import model_sha256
model_sha256("mini")          # "5f1c...", of the folder's configuration, tokenizer and weights
"""

import hashlib
from pathlib import Path

from ..bundled import locate
from .tasks import Task

CONFIGURATION = ("config.json", "tokenizer*", "vocab*")
WEIGHTS = ("*.safetensors", "*.bin")
BLOCK = 1 << 20


def folder_sha256(folder: Path, patterns: tuple[str, ...] = CONFIGURATION + WEIGHTS) -> str:
    """Of the names and the content of the files right in `folder` that a pattern fits."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        digest.update(path.name.encode())
        with open(path, "rb") as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def model_sha256(name: str) -> str | None:
    """Of a model's folder; None for a name on the Hub."""
    folder = Path(locate(name))
    return folder_sha256(folder) if folder.is_dir() else None


def tables_sha256(task: Task, gue: str | Path) -> dict[str, str]:
    """Of each split's file that is there."""
    return {split: hashlib.sha256(path.read_bytes()).hexdigest() for split, path in task.split_files(gue).items()}
