"""Scores of predictions, and bootstrap intervals around them.

Each score is an `evaluate` module of `metric_modules`, which anyone can load by its path. Here the modules' own
`_compute` is called without an instance: an instance writes to the cache of Hugging Face, which may be read-only or
shared by several processes. A score that the data do not define, such as the AUROC of rows of one class, is None:
JSON has no NaN.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import numpy as np

from ..errors import UserError
from . import resampling

CLASSIFICATION = ("matthews_correlation", "f1", "accuracy", "precision", "recall", "auroc", "auprc")
MULTI_LABEL = ("matthews_correlation", "f1", "f1_micro", "accuracy", "auroc", "auprc")
REGRESSION = ("pearson", "spearman", "mse", "r2")
# What `--metric_for_best_model` may name.
SELECTABLE = (*CLASSIFICATION, "f1_micro", *REGRESSION, "loss")
LOWER_IS_BETTER = ("loss", "mse")


@cache
def module(name: str) -> type:
    """The `evaluate.Metric` of `metric_modules/<name>/<name>.py`."""
    source = import_module(f".metric_modules.{name}.{name}", __package__)
    return getattr(source, "".join(part.capitalize() for part in name.split("_")))


def compute(name: str, **inputs) -> float | None:
    return module(name)._compute(**inputs)[name]


def greater_is_better(metric_name: str) -> bool:
    """False for a loss or an error; Trainer's prefix `eval_` and the number of an output (`mse_3`) do not matter."""
    return metric_name.removeprefix("eval_").rstrip("0123456789").rstrip("_") not in LOWER_IS_BETTER


def check_rows(*arrays: np.ndarray):
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(f"arrays of {[len(array) for array in arrays]} rows do not belong together")
    if not len(arrays[0]):
        raise UserError("there is nothing to score: the table has no rows; give one that has some.")


def classification_scores(
    labels: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray | None = None
) -> dict[str, float | None]:
    """
    Args:
        labels, predictions: (rows,) class ids; names will do if there are no probabilities.
        probabilities: (rows, classes), column i for class i.

    Returns:
        `matthews_correlation` (GUE's metric; 0 if all predictions are equal), `f1` (macro average, as the published
        scripts report it), `accuracy`, `precision` and `recall` (macro; 0 for a class that is never predicted, or
        never right). With probabilities also `auroc` and `auprc`: for two classes of class 1, else the mean over the
        classes, each against all others, of which some rows are and some are not. They are None if there is no such
        class, or if probabilities are not finite.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    check_rows(labels, predictions)
    inputs = {"references": labels, "predictions": predictions}
    scores = {name: compute(name, **inputs) for name in ("matthews_correlation", "accuracy")}
    scores |= {name: compute(name, **inputs, average="macro") for name in ("f1", "precision", "recall")}
    if probabilities is not None:
        probabilities = np.asarray(probabilities)
        check_rows(labels, probabilities)
        if probabilities.shape[1] == 2:
            inputs = {"references": labels == 1, "prediction_scores": probabilities[:, 1]}
        else:
            inputs = {"references": labels, "prediction_scores": probabilities}
        scores |= {name: compute(name, **inputs) for name in ("auroc", "auprc")}
    return {name: scores[name] for name in CLASSIFICATION if name in scores}


def multi_label_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """
    Args:
        labels: (rows, labels) of 0 and 1.
        probabilities: (rows, labels); a label is predicted above 0.5.

    Returns:
        `matthews_correlation` (of all rows x labels decisions as one), `f1` (macro: the mean over labels, 0 for one
        that neither occurs nor is predicted), `f1_micro` (of all decisions), `accuracy` (share of rows with every
        label right), `auroc` and `auprc` (mean over the labels that are 0 in some rows and 1 in others; None if there
        is none, or if probabilities are not finite).
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    check_rows(labels, probabilities)
    inputs = {"references": labels.astype(np.int64), "predictions": (probabilities > 0.5).astype(np.int64)}
    ranked = {"references": inputs["references"], "prediction_scores": probabilities}
    # One label needs no average, and scikit-learn takes its column for a single-label problem.
    several = labels.shape[1] > 1
    return {
        "matthews_correlation": compute("matthews_correlation", **inputs),
        "f1": compute("f1", **inputs, average="macro" if several else "binary"),
        "f1_micro": compute("f1", **inputs, average="micro" if several else "binary"),
        "accuracy": compute("accuracy", **inputs),
        "auroc": compute("auroc", **ranked),
        "auprc": compute("auprc", **ranked),
    }


def regression_scores(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float | None]:
    """
    Args:
        labels, predictions: (rows,) or (rows, outputs) numbers.

    Returns:
        `pearson`, `spearman`, `mse` (mean squared error, in squared units of the label) and `r2` (share of the
        labels' variance that is explained, negative for worse than their mean). For several outputs these are means
        over the outputs that define them, and `pearson_0`, `pearson_1`, ... the single ones. A correlation with
        constant numbers, the r2 of constant labels, and every score of numbers that are not finite are None.
    """
    labels, predictions = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in (labels, predictions))
    check_rows(labels, predictions)
    by_output = [output_scores(*column) for column in zip(labels.T, predictions.T, strict=True)]
    if len(by_output) == 1:
        return by_output[0]
    scores = {}
    for name in REGRESSION:
        defined = [output[name] for output in by_output if output[name] is not None]
        scores[name] = float(np.mean(defined)) if defined else None
    return scores | {f"{name}_{i}": output[name] for i, output in enumerate(by_output) for name in REGRESSION}


def output_scores(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float | None]:
    scores = {name: compute(name, references=labels, predictions=predictions) for name in ("pearson", "spearman")}
    squares = (labels - predictions) ** 2
    if not np.isfinite(squares).all():
        return scores | {"mse": None, "r2": None}
    constant = (labels == labels[0]).all()
    r2 = None if constant else float(1 - squares.sum() / ((labels - labels.mean()) ** 2).sum())
    return scores | {"mse": float(squares.mean()), "r2": r2}


# Scores whose resamples are computed together: from minutes to a second.
TOGETHER = {
    classification_scores: resampling.classification,
    multi_label_scores: resampling.multi_label,
    regression_scores: resampling.regression,
}


def bootstrap_scores(
    score: Callable[..., dict[str, float | None]],
    arrays: tuple[np.ndarray, ...],
    groups: np.ndarray | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """
    Scores of resamples of the rows, each as many rows as there are, drawn with replacement (Efron 1979).

    The functions of this file are computed for many resamples at once (`resampling`), any other one by one, from the
    same draws.

    Args:
        score: called with the arrays' rows of a resample, gives names and numbers.
        arrays: arrays of the same number of rows, the arguments of `score`.
        groups: (rows,) rows with the same value are drawn together, as often as there are values: for rows that are no
            independent samples, such as the bases of a sequence.

    Returns:
        By name an array (resamples,), NaN where the resample does not define the score. Of `auroc` and `auprc` of very
        many rows or classes it holds fewer resamples (`resampling.RANKED_WORK`), or none.
    """
    arrays = tuple(np.asarray(array) for array in arrays)
    check_rows(*arrays)
    if groups is not None and score is classification_scores:
        return resampling.grouped_classification(groups, *arrays, resamples=resamples, seed=seed)
    if groups is None and score in TOGETHER:
        return TOGETHER[score](*arrays, resamples=resamples, seed=seed)
    members = None if groups is None else [np.flatnonzero(groups == value) for value in np.unique(groups)]
    draws = resampling.draw_rows(len(arrays[0] if members is None else members), resamples, seed)
    chosen = (draw if members is None else np.concatenate([members[i] for i in draw]) for draw in draws)
    drawn = [score(*(array[rows] for array in arrays)) for rows in chosen]
    # dtype makes NaN of None.
    return {name: np.array([scores[name] for scores in drawn], dtype=np.float64) for name in drawn[0]}


def confidence_intervals(
    score: Callable[..., dict[str, float | None]],
    arrays: tuple[np.ndarray, ...],
    groups: np.ndarray | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, list[float]]:
    """
    Percentile bootstrap over the rows, or groups, of `bootstrap_scores`: what another sample of test rows would give,
    of the same model. It says nothing of another training seed.

    Returns:
        By name [low, high], between which the middle `level` of the resamples lie. Resamples that do not define a
        score are left out of it; a score that fewer than half define has no interval and no key.
    """
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {}
    for name, values in bootstrap_scores(score, arrays, groups, resamples=resamples, seed=seed).items():
        defined = values[np.isfinite(values)]
        if 2 * len(defined) >= len(values) > 0:
            intervals[name] = [float(end) for end in np.quantile(defined, tails)]
    return intervals
