"""One run of the benchmark: a model, or a floor, on a task with one seed, as a record.

record = run_one("mini", all_tasks()["tf/0"], "GUE", "robust", 42, folder)    # see `run.py`, which does many
"""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch

from ..atomic import whole_file
from ..errors import UserError
from ..provenance import provenance
from ..tokenizer.policy import TextPolicy
from ..training.architectures import architecture_of, hidden_size
from ..training.arguments import parse_values
from ..training.finetune import run as finetune
from ..training.finetune_arguments import DataArguments, FineTuningArguments, ModelArguments, check_arguments
from ..training.finetune_results import peak_memory
from ..training.metrics import classification_scores, confidence_intervals
from ..training.problems import Problem, problem_of
from ..training.tables import SPLITS, Table, find_tables, read_table
from .check import leaked_rows
from .floors import FLOORS
from .recipes import recipe
from .tasks import Task

RESAMPLES = 1000
# Of a task whose sequences have no strand, both are read by the floors.
STRANDED = ("prom", "splice")


def run_one(
    model: str,
    task: Task,
    gue: Path,
    recipe_name: str,
    seed: int,
    folder: Path,
    overrides: dict | None = None,
    trust_remote_code: bool = False,
) -> dict:
    """
    Train and score; `folder` receives the model and its checkpoints, and continues what was interrupted there.

    Args:
        model: a floor's name, or whatever `finetune` takes.
        recipe_name: of `recipes.json`; floors have their own ways.
        overrides: settings of `finetune` instead of the recipe's.
        trust_remote_code: run the code that a foreign model brings along.

    Returns:
        The record of a finished run, with `predictions`, a table of columns, beside what is written.

    Raises:
        UserError: if the task's files, the model or the settings cannot be used.
    """
    folder = Path(folder)
    splits = task.split_files(gue)
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise UserError(f"{task.folder(gue)}: {' and '.join(missing)} missing; fetch the data with `gue download`.")
    tables, problem = read_task(task, gue)
    rows = {split: len(table.sequences) for split, table in tables.items()}
    if model in FLOORS:
        found = _floor(model, task, tables, problem, seed, overrides or {})
    else:
        settings = recipe(
            recipe_name,
            task,
            gpu=torch.cuda.is_available(),
            model=model,
            train_rows=rows["train"],
            hidden_size=hidden_size(model),
        )
        if architecture_of(model, trust_remote_code).code != "ours":
            del settings["pooling"]  # they bring their own head
        settings |= {"seed": seed, "trust_remote_code": trust_remote_code, **(overrides or {})}
        found = _finetuned(model, task, gue, {k: v for k, v in settings.items() if v is not None}, folder)
    data = {
        "rows": rows,
        "sha256": {split: hashlib.sha256(path.read_bytes()).hexdigest() for split, path in splits.items()},
    }
    return {"metric": task.metric, **found, **_without_leaks(tables, found["predictions"]), "data": data}


def _finetuned(model: str, task: Task, gue: Path, settings: dict, folder: Path) -> dict:
    options = {
        **settings,
        "model_name_or_path": model,
        "data_path": str(task.folder(gue)),
        "output_dir": str(folder),
        "class_names": list(task.label_names),
        "disable_tqdm": True,
    }
    arguments = check_arguments(parse_values((ModelArguments, DataArguments, FineTuningArguments), options))
    try:
        metrics = finetune(arguments)
    except UserError as error:
        if "holds a finished run" not in str(error):
            raise
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))  # killed before its record
    kept = ("test", "dev", "confidence", "restarts", "parameters", "trained_parameters", "train_seconds", "dead")
    kept += ("peak_memory_bytes", "truncation", "steps", "best_step", "best_by", "rc_average", "provenance")
    found = {key: metrics[key] for key in kept}
    found["predictions"] = _read_predictions(folder / "predictions.parquet", list(task.label_names))
    return found | {"settings": settings}


def _read_predictions(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """`label`, `prediction` as class ids, and `probabilities` (rows, classes)."""
    import pyarrow.parquet as pq

    columns = pq.read_table(path).to_pydict()
    ids = {name: i for i, name in enumerate(names)}
    return {
        "label": np.array([ids[name] for name in columns["label"]]),
        "prediction": np.array([ids[name] for name in columns["prediction"]]),
        "probabilities": np.array([columns[f"probability_{name}"] for name in names]).T,
    }


def _floor(name: str, task: Task, tables: dict[str, Table], problem: Problem, seed: int, overrides: dict) -> dict:
    if overrides:
        raise UserError(f"--set is for models that are fine-tuned; {name} chooses its settings itself, leave it out.")
    splits = {split: (table.sequences, problem.targets(table)) for split, table in tables.items()}
    device = "cuda" if torch.cuda.is_available() and name == "cnn" else "cpu"
    start = time.perf_counter()
    result = FLOORS[name](
        name,
        splits,
        classes=list(problem.names),
        strandless=task.family not in STRANDED,
        seed=seed,
        device=device,
        limits=None,
    )
    predictions = {
        "label": np.array(splits["test"][1]),
        "prediction": result.test_probabilities.argmax(axis=1),
        "probabilities": result.test_probabilities,
    }
    dev = np.array(splits["dev"][1]), result.dev_probabilities.argmax(axis=1), result.dev_probabilities
    arrays = tuple(predictions.values())
    return {
        "test": classification_scores(*arrays),
        "dev": classification_scores(*dev),
        "confidence": confidence_intervals(classification_scores, arrays, resamples=RESAMPLES, seed=seed),
        "restarts": [],
        "parameters": result.parameters,
        "train_seconds": round(time.perf_counter() - start, 1),
        "peak_memory_bytes": peak_memory(torch.device(device)),
        "notes": result.notes,
        "settings": result.settings,
        "provenance": provenance(device),
        "predictions": predictions,
    }


def read_task(task: Task, gue: Path) -> tuple[dict[str, Table], Problem]:
    """The tables of a task by split, and its problem."""
    policy = TextPolicy()
    tables = {split: read_table(source, policy) for split, source in find_tables(task.folder(gue)).items()}
    return tables, problem_of(tables["train"], None, list(task.label_names))


def _without_leaks(tables: dict[str, Table], predictions: dict[str, np.ndarray]) -> dict:
    """The test scores once more, without the rows that stand in train; None if there are no such rows."""
    keys = {
        split: list(zip(table.sequences, table.pairs, strict=True)) if table.pairs else table.sequences
        for split, table in tables.items()
    }
    leaked = leaked_rows(keys["train"], keys["test"])
    if not leaked:
        return {"test_without_train": None}
    kept = np.setdiff1d(np.arange(len(predictions["label"])), leaked)
    scores = classification_scores(*(values[kept] for values in predictions.values()))
    return {"test_without_train": {"rows_removed": len(leaked), **scores}}


def write_predictions(predictions: dict[str, np.ndarray], path: Path):
    """Parquet with the columns label, prediction (class ids) and a probability for each class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"label": predictions["label"], "prediction": predictions["prediction"]}
    columns |= {f"probability_{i}": column for i, column in enumerate(predictions["probabilities"].T)}
    with whole_file(path) as partial:
        pq.write_table(pa.table(columns), partial)
