"""Fine-tuning tables of the Hub, and of local folders that the `datasets` library wrote or knows how to read.

A data set is named `user/name`, with a configuration `user/name:config`, with a revision `user/name@revision`, or with
both. A local folder is one if it has a dataset card, shards such as `train-00000-of-00001.parquet`, a `data` folder,
or `dataset_dict.json`, which `DatasetDict.save_to_disk` writes.
"""

import re
import sys
from pathlib import Path

from ..errors import UserError

NAME, PART = r"[\w.-]+/[\w.-]+", r"[^:@]+"
HUB_NAME = re.compile(rf"(?P<name>{NAME})(?::(?P<config>{PART}))?(?:@(?P<revision>{PART}))?")
REVISION_FIRST = re.compile(rf"(?P<name>{NAME})@(?P<revision>{PART}):(?P<config>{PART})")


def is_dataset_folder(folder: Path) -> bool:
    """
    Whether `datasets` is to read this folder.

    Not every folder that it could read: it would take all tables below a folder of tasks for one.
    """
    card = folder / "README.md"
    if card.is_file():
        with open(card, encoding="utf-8", errors="replace") as handle:
            if handle.readline().strip() == "---":
                return True
    patterns = ("dataset_dict.json", "data/*", "*-of-*.parquet")
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def open_dataset(data_path: str) -> dict | None:
    """
    The splits of a data set, by its own names for them, each a `datasets.Dataset`; None if no such name is meant.

    What comes from the Hub is kept in the cache of `datasets` and memory-mapped from there.

    Raises:
        UserError: if there is no such data set, configuration or revision, or it cannot be read.
    """
    place, _, config = data_path.rpartition(":")
    if Path(data_path).is_dir():
        return _load(data_path, data_path, None, None) if is_dataset_folder(Path(data_path)) else None
    if place and Path(place).is_dir():
        return _load(data_path, place, config, None)
    match = HUB_NAME.fullmatch(data_path) or REVISION_FIRST.fullmatch(data_path)
    return _load(data_path, match["name"], match["config"], match["revision"]) if match else None


def _load(data_path: str, name: str, config: str | None, revision: str | None) -> dict:
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError
    from pyarrow import ArrowException

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(name))
        return dict(datasets.load_dataset(name, config, revision=revision))
    except (OSError, ValueError, DatasetsError, HfHubHTTPError, ArrowException) as error:
        cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        reason = " ".join(str(cause).split())[:300].rstrip(".") or type(cause).__name__
        if Path(name).is_dir():
            raise UserError(f"{data_path}: `datasets` cannot load this folder ({reason}); mend or copy it.") from error
        raise UserError(
            f"{data_path}: neither a folder nor a data set that the Hub gives ({reason}); give a folder with "
            "train.csv, dev.csv and test.csv, or user/name[:config][@revision]."
        ) from error
