"""SHA-256 sums of the files of a model, which a result depends on.

from dnabert2.checksums import model_sha256
model_sha256("mini")          # "5f1c...", of the folder's configuration, tokenizer and weights
"""

import hashlib
from pathlib import Path

from .bundled import locate

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
