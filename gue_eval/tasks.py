"""The benchmark as data: a row of `tasks.csv` is a dataset, of GUE (28) or of GUE+ (8, longer sequences).

    python -m dnabert2.gue_eval.tasks                          # list all datasets
    python -m dnabert2.gue_eval.tasks tf,EMP/H3 --data GUE     # some of them, and which splits a local copy has

A dataset's name is its folder in the original layout, `<task>/<dataset>/{train,dev,test}.csv`; `flat_name` is what the
copies on the Hugging Face Hub call it, with an underscore. GUE+ is known by its flat names alone, read here as the
others are (`EPI_K562` is `EPI/K562`). Lengths and split sizes are those of the released files where these were
counted, and the paper's (Zhou et al., ICLR 2024) elsewhere; `note` says so. What the ids 0 and 1 mean was never
published: the names follow from the sequences, where class 1 carries TATA boxes, CpG, and the motifs of the factors.
"""

import argparse
import csv
import difflib
import fnmatch
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, run_verb

HERE = Path(__file__).parent
SPLITS = ("train", "dev", "test")
BENCHMARKS = {"all": "GUE", "gue": "GUE", "gue+": "GUE+"}  # as a user may write them


@dataclass(frozen=True)
class Task:
    """
    One dataset.

    Attributes:
        dataset, flat_name: "tf/0", and "human_tf_0" as it is called on the Hub.
        length_bp: typical length of a sequence, in bases.
        pairs: a row has two sequences.
        stranded: the label belongs to the strand as it is written, as a promoter's or a splice site's does; else the
            reverse complement has the same label. Genomes of the coronavirus are all written in the same direction.
        label_names: names of the classes 0, 1, ...; the ids themselves where nobody knows.
        metric: the score that counts, "matthews_correlation" or "f1" (macro).
        train, dev, test: rows of a split, None if not known.
        test_rows_in_train, dev_rows_in_train: rows whose sequence stands in the training split too, None if not known.
    """

    dataset: str
    flat_name: str
    task: str
    benchmark: str
    species: str
    length_bp: int
    pairs: bool
    stranded: bool
    classes: int
    label_names: tuple[str, ...]
    metric: str
    train: int | None
    dev: int | None
    test: int | None
    test_rows_in_train: int | None
    dev_rows_in_train: int | None
    note: str

    @property
    def family(self) -> str:
        """The part of the name before the slash: EMP, tf, ..."""
        return self.dataset.split("/")[0]

    def rows(self, split: str) -> int | None:
        """Rows of "train", "dev" or "test"; None if not known."""
        return getattr(self, split)

    def folder(self, gue: str | Path) -> Path:
        """Its folder below `gue` or below `gue`/GUE, under either name; where it belongs, if there is none."""
        places = [Path(gue, top, name) for top in ("", "GUE") for name in (self.dataset, self.flat_name)]
        return next((place for place in places if place.is_dir()), places[0])

    def split_files(self, gue: str | Path) -> dict[str, Path]:
        """The .csv files of the splits that are there."""
        files = {split: self.folder(gue) / f"{split}.csv" for split in SPLITS}
        return {split: path for split, path in files.items() if path.is_file()}


@functools.cache
def _table() -> tuple[Task, ...]:
    tasks = []
    with open(HERE / "tasks.csv", newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            for name in ("length_bp", "classes", *SPLITS, "test_rows_in_train", "dev_rows_in_train"):
                row[name] = int(row[name]) if row[name] else None
            for name in ("pairs", "stranded"):
                row[name] = row[name] == "yes"
            row["label_names"] = tuple(row["label_names"].split("|"))
            tasks.append(Task(**row))
    return tuple(tasks)


def all_tasks() -> dict[str, Task]:
    """Every dataset of GUE and GUE+ by name, in the table's order."""
    return {task.dataset: task for task in _table()}


def select(spec: str) -> list[Task]:
    """
    The datasets that `spec` names, each once.

    Args:
        spec: names with commas between them: a dataset (`tf/0`, or `human_tf_0`), a task (`tf`), a pattern
            (`prom/prom_core_*`), `all` for the 28 of GUE, `gue+` for the 8 of GUE+.

    Raises:
        UserError: for a name that none of them has, with names that are close.
    """
    chosen = {}
    for name in (part.strip().strip("/") for part in spec.split(",")):
        if name:
            chosen |= {task.dataset: task for task in _named(name)}
    if not chosen:
        raise UserError("no task is named; name datasets such as tf/0, tasks such as tf, or all.")
    return list(chosen.values())


def _named(name: str) -> list[Task]:
    found = [task for task in _table() if task.benchmark == BENCHMARKS.get(name.lower())]
    found = found or [
        task for task in _table() if name in (task.family, task.flat_name) or fnmatch.fnmatchcase(task.dataset, name)
    ]
    if not found:
        known = {x for task in _table() for x in (task.dataset, task.family, task.flat_name)} | set(BENCHMARKS)
        lower = {x.lower(): x for x in sorted(known)}
        close = [lower[x] for x in difflib.get_close_matches(name.lower(), lower, n=3)]
        hint = f"did you mean {' or '.join(close)}?" if close else "give a dataset such as tf/0, a task, or all."
        raise UserError(f"there is no GUE task {name!r}; {hint}")
    return found


def available(gue: str | Path, spec: str = "all") -> tuple[list[Task], dict[str, list[str]]]:
    """
    What of `spec` a local copy has.

    Returns:
        Datasets with all three splits; and the others by name, each with the splits that it lacks.

    Raises:
        UserError: if `gue` is no folder, or `spec` names nothing.
    """
    if not Path(gue).is_dir():
        raise UserError(f"{gue}: no such folder; name one that holds <task>/<dataset>/train.csv, as tf/0/train.csv.")
    complete, incomplete = [], {}
    for task in select(spec):
        found = task.split_files(gue)
        if len(found) == len(SPLITS):
            complete.append(task)
        else:
            incomplete[task.dataset] = [split for split in SPLITS if split not in found]
    return complete, incomplete


def main(argv: list[str] | None = None) -> int:
    """Print one line a dataset; exit code 2 for names that do not exist."""
    parser = argparse.ArgumentParser(
        prog="python -m dnabert2.gue_eval.tasks",
        description="List the datasets of GUE and GUE+.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("tasks", nargs="?", default="all,gue+", help="datasets, tasks, all or gue+, with commas")
    parser.add_argument("--data", type=Path, help="a local copy: say which splits it has")
    options = parser.parse_args(argv)
    return run_verb(_list, options)


def _list(options: argparse.Namespace):
    missing = available(options.data, options.tasks)[1] if options.data else {}
    for task in select(options.tasks):
        sizes = "/".join("?" if task.rows(split) is None else str(task.rows(split)) for split in SPLITS)
        about = f"{task.dataset:<22} {task.benchmark:<5} {task.classes:>2} classes {task.length_bp:>6} bp  {sizes:<18}"
        if options.data:
            about += f" lacks {', '.join(missing[task.dataset])}" if task.dataset in missing else " complete"
        print(about.rstrip())


if __name__ == "__main__":
    sys.exit(main())
