"""Fetch GUE from a dataset repository of the Hugging Face Hub, into the original layout, and check what came.

    dnabert2 gue download --dataset USER/GUE --output GUE
    dnabert2 gue download --dataset USER/GUE --output GUE --tasks mouse/2,tf     # some 15 MB

The repository, one that you name, holds `tf/0/train.csv` and so on, or `human_tf_0/train.csv` as copies on the Hub
call it; with or without a top folder `GUE`; as .csv or .parquet, in one file a split or in parts. HF_ENDPOINT, HF_HOME
and HF_TOKEN mean what they always do. What is interrupted continues when it is started again.
"""

import argparse
import csv
import importlib.util
import io
import re
import sys
from pathlib import Path

from ..atomic import whole_file
from ..errors import RunFailed, UserError, run_verb
from . import check
from .splits import HEADERS
from .tasks import SPLITS, Task, select

SPLIT_NAMES = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "test": "test"}
# GUE/tf/0/train.csv, human_tf_0/train-00000-of-00002.parquet, emp_H3/train/0000.parquet
FILE = re.compile(rf"(?:GUE/)?(?P<folder>.+?)/(?P<split>{'|'.join(SPLIT_NAMES)})(?:[-/][^/]+)?\.(?P<kind>csv|parquet)")
LABELS = ("label", "labels", "target")


def plan(files: list[str], tasks: list[Task]) -> dict[tuple[str, str], list[str]]:
    """
    Which of a repository's files are which split.

    Returns:
        (dataset, split) -> its files, one or the parts in order; CSV where both kinds are there.
    """
    names = {name: task.dataset for task in tasks for name in (task.flat_name, task.dataset)}
    found = {}
    for path in sorted(files):
        match = FILE.fullmatch(path)
        if match and match["folder"] in names:
            key = names[match["folder"]], SPLIT_NAMES[match["split"]]
            found.setdefault(key, {}).setdefault(match["kind"], []).append(path)
    return {key: kinds.get("csv") or kinds["parquet"] for key, kinds in found.items()}


def download(
    repository: str, output: str | Path, spec: str = "all,gue+", revision: str | None = None, overwrite: bool = False
) -> dict[str, list[str]]:
    """
    Fetch what a repository has of some datasets.

    Args:
        repository: id of a dataset repository on the Hub.
        output: folder for `<task>/<dataset>/<split>.csv`; other files in it stay.
        spec: datasets, as `tasks.select` reads them.
        revision: branch, tag or commit.
        overwrite: replace files that are there with other content.

    Returns:
        Dataset -> splits that are now in `output`.

    Raises:
        UserError: if there is no such repository or none of the datasets in it, or if a file is in the way.
        RunFailed: if the network fails; what came is kept.
    """
    output, tasks = Path(output), {task.dataset: task for task in select(spec)}
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: a file is in the way; choose another --output.")
    wanted, folder = _fetch(repository, list(tasks.values()), spec, revision)
    sources = {output / name / f"{split}.csv": (tasks[name], paths) for (name, split), paths in wanted.items()}
    if not overwrite:
        for target, (task, paths) in sources.items():
            if target.exists() and target.read_bytes() != _as_csv([folder / path for path in paths], task):
                raise UserError(f"{target}: is there with other rows; choose another --output or add --overwrite.")
    try:
        for target, (task, paths) in sources.items():
            with whole_file(target) as partial:
                partial.write_bytes(_as_csv([folder / path for path in paths], task))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error}); choose another --output or make room.") from error
    return {name: [split for split in SPLITS if (name, split) in wanted] for name in tasks if _any(wanted, name)}


def _any(wanted: dict, name: str) -> bool:
    return any(dataset == name for dataset, _ in wanted)


def _fetch(repository: str, tasks: list[Task], spec: str, revision: str | None) -> tuple[dict, Path]:
    """The plan, and the folder of the Hub's cache that holds its files."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    network = (OSError,)  # of huggingface_hub before 1.0; later ones use httpx, whose errors are none
    if importlib.util.find_spec("httpx"):
        from httpx import HTTPError

        network += (HTTPError,)
    where = {"repo_type": "dataset", "revision": revision}
    hub = HfApi()
    try:
        wanted = plan(hub.list_repo_files(repository, **where), tasks)
        if not wanted:
            raise UserError(
                f"{repository}: holds none of the datasets {spec}; name a repository with files such as "
                "tf/0/train.csv or human_tf_0/train.csv."
            )
        files = [path for paths in wanted.values() for path in paths]
        return wanted, Path(hub.snapshot_download(repository, allow_patterns=files, **where))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{repository}: the Hub has no such dataset repository{f' at {revision}' if revision else ''}, or it asks "
            "for a token (`hf auth login`); check the spelling."
        ) from error
    except network as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise RunFailed(f"{repository}: the download stopped ({reason}); run the same command to continue.") from error


def _as_csv(paths: list[Path], task: Task) -> bytes:
    """The bytes of one file with a header that `finetune` reads; a file that has it already comes as it is."""
    rows = []
    for path in paths:
        body = path.read_bytes()
        if path.suffix == ".parquet":
            header, found = _read_parquet(path)
        else:
            header, *found = _read_csv(path, body)
            if header in HEADERS and len(paths) == 1:
                return body
        order = _columns(header, task, path)
        rows += [[row[i] for i in order] for row in found]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADERS[task.pairs])
    writer.writerows(rows)
    return text.getvalue().encode()


def _read_csv(path: Path, body: bytes) -> list[list[str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(body.decode("utf-8-sig"), newline="")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); name another repository.") from error
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise UserError(f"{path}: is empty, or its rows have different numbers of fields; name another repository.")
    return rows


def _read_parquet(path: Path) -> tuple[list[str], list[tuple]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); name another repository.") from error
    return table.column_names, list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _columns(header: list[str], task: Task, path: Path) -> list[int]:
    """Places of the sequences and of the label; sequences are taken by name, or else are all that is left."""
    label = next((header.index(name) for name in LABELS if name in header), None)
    sequences = [header.index(name) for name in HEADERS[task.pairs][:-1] if name in header]
    if len(sequences) != 1 + task.pairs:
        sequences = [i for i in range(len(header)) if i != label]
    if label is None or len(sequences) != 1 + task.pairs:
        raise UserError(
            f"{path}: has the columns {', '.join(header)[:80]}; {','.join(HEADERS[task.pairs])} are needed, name "
            "another repository."
        )
    return [*sequences, label]


def run(options: argparse.Namespace):
    """Body of `gue download`: fetch, then check what came; raises as `download` and `check.run` do."""
    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    came = download(options.dataset, options.output, options.tasks, options.revision, options.overwrite)
    splits, datasets = check.count(sum(map(len, came.values())), "split"), check.count(len(came), "dataset")
    print(f"{options.output}: {splits} of {datasets} from {options.dataset}.")
    check.run(argparse.Namespace(data=options.output, tasks=",".join(came), output=None))


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if what came is as released, 1 if not or if the network failed, 2 for what cannot be downloaded."""
    parser = argparse.ArgumentParser(
        prog="dnabert2 gue download",
        description="Fetch GUE from a dataset repository of the Hugging Face Hub.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, help="dataset repository on the Hub, user/name")
    parser.add_argument("--output", type=Path, required=True, help="folder to write <task>/<dataset>/<split>.csv to")
    parser.add_argument("--tasks", default="all,gue+", help="datasets (tf/0), tasks (tf), all or gue+, with commas")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--overwrite", action="store_true", help="replace files in --output that have other rows")
    return run_verb(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
