"""Checkpoints that come with the package, by name: wherever a model is asked for, `mini` is one."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "checkpoints"
BUNDLED = {"mini": FOLDER / "mini"}


def locate(name: str | Path) -> str:
    """The folder of a bundled checkpoint; any other name, path or Hub id as it is. `./mini` is a folder of yours."""
    return str(BUNDLED.get(str(name), name))
