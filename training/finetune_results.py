"""What a fine-tuning run leaves behind: the model, scores with confidence intervals, predictions and plots."""

import json
import math
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

from ..architectures.adapters import save_adapters
from ..architectures.rows import Architecture
from ..atomic import whole_file, write_whole
from ..remote_code import make_self_contained
from .examples import Examples
from .finetune_arguments import ModelArguments
from .finetuner import FineTuner, flat_targets, is_flat, rows_of_labelled_bases
from .metric_plots import confusion_matrix_png, curves_png, regression_png, training_png
from .metrics import confidence_intervals
from .problems import Problem
from .tables import SPLITS, Table

ADAPTER = "adapter"


def save_run(
    trainer: FineTuner,
    tables: dict[str, Table],
    examples: dict[str, Examples],
    model_args: ModelArguments,
    architecture: Architecture,
    found: dict,
) -> dict:
    """
    Score, write everything and, last, `metrics.json`, whose presence says that the run is whole.

    Args:
        found: what is known of the run already, added to the record.

    Returns:
        The record.
    """
    args, problem, output = trainer.args, trainer.problem, Path(trainer.args.output_dir)
    scores, intervals, predicted = {}, {}, {}
    for split in SPLITS[1:]:
        if split not in examples:
            continue
        logits, loss = trainer.logits_and_loss(examples[split])  # in all processes
        predicted[split] = logits, flat_targets(examples[split])
        arrays = problem.score_arrays(*predicted[split])
        scores[split] = {**problem.score(*arrays), "loss": loss}
        if split == "test" and args.confidence_resamples and args.process_index == 0:
            groups = rows_of_labelled_bases(examples[split])
            intervals = confidence_intervals(
                problem.score, arrays, groups, resamples=args.confidence_resamples, seed=args.seed
            )
    save_model(trainer, model_args, architecture)
    record = {
        **scores,
        "confidence": intervals,
        # peft keeps what it replaces.
        "parameters": sum(p.numel() for n, p in trainer.model.named_parameters() if "original_module" not in n),
        "best_dev": trainer.state.best_metric,
        "best_by": args.metric_for_best_model if trainer.state.best_metric is not None else None,
        "best_step": trainer.state.best_global_step,
        "steps": trainer.state.global_step,
        "dead": {split: is_flat(problem, *values) for split, values in predicted.items()}.get("dev", False),
        "peak_memory_bytes": peak_memory(args.device),
        **found,
    }
    record = _finite(record)
    if args.process_index == 0:
        if "test" in predicted:
            write_predictions(tables["test"], problem, predicted["test"][0], output / "predictions.parquet")
            write_plots(problem, *predicted["test"], output)
        training_png(trainer.state.log_history, output / "training.png")
        for folder in output.glob("checkpoint-*"):  # only of use to continue a run that is not whole
            shutil.rmtree(folder)
        write_whole(output / "metrics.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
        say(record, output)
    trainer.accelerator.wait_for_everyone()
    return record


def save_model(trainer: FineTuner, model_args: ModelArguments, architecture: Architecture):
    """
    The model and its tokenizer, as a folder that loads with the Auto classes.

    With LoRA that folder holds the adapters, the head and the name of the base they belong to, and no config.json, by
    which transformers would take it for a whole model; with `--merge_lora` it holds the whole model, and its folder
    `adapter` those.
    """
    output = Path(trainer.args.output_dir)
    if not model_args.lora:
        trainer.save_model(str(output))
    elif trainer.args.process_index == 0:
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_adapters(
            model, output / ADAPTER if model_args.merge_lora else output, model_args.model_name_or_path, architecture
        )
        if model_args.merge_lora:
            model.merge_and_unload().save_pretrained(output)
        trainer.processing_class.save_pretrained(output)
    is_whole = not model_args.lora or model_args.merge_lora
    if architecture.code == "ours" and is_whole and trainer.args.process_index == 0:
        make_self_contained(output)


def write_predictions(table: Table, problem: Problem, logits: np.ndarray, path: Path):
    """Parquet with the sequences, their labels as written, predictions and probabilities."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"sequence": table.sequences}
    if table.pairs is not None:
        columns["sequence2"] = table.pairs
    with whole_file(path) as partial:
        pq.write_table(pa.table(columns | problem.columns(table, logits)), partial)


def write_plots(problem: Problem, logits: np.ndarray, targets: np.ndarray, output: Path):
    """The confusion matrix and curves of classes, a scatter of numbers."""
    if problem.kind == "regression":
        regression_png(targets, logits, output / "regression.png")
        return
    if problem.kind == "multi_label_classification":
        curves_png(targets, problem.probabilities(logits), list(problem.names), output / "curves.png")
        return
    labels, predictions, probabilities = problem.score_arrays(logits, targets)
    confusion_matrix_png(labels, predictions, list(problem.names), output / "confusion.png")
    curves_png(labels, probabilities, list(problem.names), output / "curves.png")


def peak_memory(device: torch.device) -> int:
    """Bytes, at most, allocated on the GPU since training began, or held by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def say(record: dict, output: Path):
    """The scores in a few lines."""
    for split in ("dev", "test"):
        if split in record:
            values = {k: v for k, v in record[split].items() if isinstance(v, float)}
            print(split, " ".join(f"{name} {value:.4f}" for name, value in values.items()))
    if record["dead"]:
        print("warning: all predictions are the same or no numbers; try another learning rate.")
    best = next((name for name in ("matthews_correlation", "pearson") if name in record.get("test", {})), None)
    if best is not None and record["test"][best] is not None:
        name = {"matthews_correlation": "MCC", "pearson": "Pearson"}[best]
        between = record["confidence"].get(best)
        interval = "" if not between else f", 95 % between {between[0]:.4f} and {between[1]:.4f}"
        print(f"test {name} {record['test'][best]:.4f}{interval} ({output}/metrics.json)")


def _finite(value):
    """The same record, with None for numbers that JSON has no words for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
