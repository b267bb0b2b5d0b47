"""One run of the benchmark: a model, or a floor, on a task with one seed, as a record.

record = run_one("mini", all_tasks()["tf/0"], "GUE", "robust", 42, folder)    # see `run.py`, which does many
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..atomic import whole_file, write_whole
from ..errors import UserError
from ..provenance import provenance
from ..tokenizer.policy import TextPolicy
from ..training.arguments import parse_values
from ..training.finetune import run as finetune
from ..training.finetune_arguments import Arguments, FineTuningArguments, check_arguments
from ..training.finetune_results import peak_memory
from ..training.metrics import classification_scores, confidence_intervals
from ..training.problems import Problem, problem_of
from ..training.runs import run_settings
from ..training.tables import SPLITS, Table, find_tables, read_table
from .check import leaked_rows
from .checksums import tables_sha256
from .floors import FLOORS, fixed_settings, joined
from .jobs import Plan
from .settings import DATACLASSES, ModelFacts, finetune_settings, model_facts
from .tasks import Task

INPUTS = "inputs.json"
CPU = torch.device("cpu")


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
        folder: for this run alone; what another one left in it is removed.
        overrides: settings of `finetune` instead of the recipe's.
        trust_remote_code: run the code that a foreign model brings along.

    Returns:
        The record of a finished run, with `predictions`, a table of columns, beside what is written.

    Raises:
        UserError: if the task's files, the model or the settings cannot be used.
    """
    folder = Path(folder)
    data = {"sha256": tables_sha256(task, gue)}
    missing = [split for split in SPLITS if split not in data["sha256"]]
    if missing:
        raise UserError(f"{task.folder(gue)}: {' and '.join(missing)} missing; fetch the data with `gue download`.")
    tables, problem = read_task(task, gue)
    data = {"rows": {split: len(table.sequences) for split, table in tables.items()}, **data}
    if model in FLOORS:
        refuse_overrides(model, overrides)
        weights, found = {}, _floor(model, task, tables, problem, seed)
    else:
        facts = model_facts(model, trust_remote_code)
        plan = Plan(recipe_name, overrides=overrides or {}, trust_remote_code=trust_remote_code)
        settings = finetune_settings(model, facts, task, plan, seed, data["rows"]["train"])
        weights = {"model_sha256": facts.sha256, "model_revision": facts.revision}
        found = _finetuned(model, {**weights, "data_sha256": data["sha256"]}, task, gue, settings, folder)
    parts = {"metric": task.metric, **weights, **found}
    return {**parts, **_without_leaks(tables, found["predictions"]), "data": data}


def refuse_overrides(floor: str, overrides: dict | None):
    """Raise UserError if there are any: a floor has no settings to change."""
    if overrides:
        raise UserError(f"--set is for models that are fine-tuned; {floor} chooses its settings itself, leave it out.")


def check_values(model: str, facts: ModelFacts, task: Task, plan: Plan):
    """Raise UserError if `finetune` would refuse the settings of a run, whatever is in its tables."""
    settings = finetune_settings(model, facts, task, plan, 0)
    with _environment_as_before():
        _arguments(model, task, Path("."), settings, Path("."))


def _arguments(model: str, task: Task, gue: Path, settings: dict, folder: Path) -> Arguments:
    options = {
        **settings,
        "model_name_or_path": model,
        "data_path": str(task.folder(gue)),
        "output_dir": str(folder),
        "class_names": list(task.label_names),
        "disable_tqdm": True,
        "overwrite": True,
    }
    return check_arguments(parse_values(DATACLASSES, options))


def _finetuned(model: str, inputs: dict, task: Task, gue: Path, settings: dict, folder: Path) -> dict:
    with _environment_as_before():
        arguments = _arguments(model, task, gue, settings, folder)
        metrics = _metrics(arguments, inputs, folder)
    kept = ("test", "dev", "confidence", "restarts", "parameters", "trained_parameters", "train_seconds", "dead")
    kept += ("peak_memory_bytes", "truncation", "steps", "best_step", "best_by", "rc_average", "provenance")
    found = {key: metrics[key] for key in kept}
    found["predictions"] = _read_predictions(folder / "predictions.parquet", list(task.label_names))
    return found | {"settings": settings}


def _metrics(arguments: Arguments, inputs: dict, folder: Path) -> dict:
    """Of the run in `folder`, if it is this one and was killed before its record; else of one that is trained."""
    inputs = {**inputs, "settings": run_settings(*arguments)}
    if _read_json(folder / INPUTS) != inputs:
        if folder.exists():
            shutil.rmtree(folder)
        write_whole(folder / INPUTS, json.dumps(inputs) + "\n")
    elif metrics := _read_json(folder / "metrics.json"):
        return metrics
    before = peak_memory(CPU)
    metrics = finetune(arguments)
    return metrics | ({"peak_memory_bytes": new_peak(before)} if arguments[2].device.type == "cpu" else {})


def _read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def new_peak(before: int) -> int | None:
    """The most memory that the process ever held; None if that was before this run, whose own is not known then."""
    peak = peak_memory(CPU)
    return peak if peak > before else None


@contextmanager
def _environment_as_before() -> Iterator[None]:
    """transformers 4 leaves a run's precision in the environment, where the next run finds it."""
    before = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            del os.environ[name]
        os.environ.update(before)


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


def _floor(name: str, task: Task, tables: dict[str, Table], problem: Problem, seed: int) -> dict:
    splits = {split: (joined(table.sequences, table.pairs), problem.targets(table)) for split, table in tables.items()}
    on_gpu = torch.cuda.is_available() and name == "cnn"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    device, before = torch.device("cuda" if on_gpu else "cpu"), peak_memory(CPU)
    start = time.perf_counter()
    result = FLOORS[name](
        name,
        splits,
        classes=list(problem.names),
        strandless=not task.stranded,
        seed=seed,
        device=device.type,
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
        "confidence": confidence_intervals(
            classification_scores, arrays, resamples=FineTuningArguments.confidence_resamples, seed=seed
        ),
        "restarts": [],
        "parameters": result.parameters,
        "train_seconds": round(time.perf_counter() - start, 1),
        "peak_memory_bytes": peak_memory(device) if on_gpu else new_peak(before),
        "notes": result.notes,
        "settings": result.settings | fixed_settings(name, not task.stranded, task.pairs),
        "provenance": provenance(device.type),
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
