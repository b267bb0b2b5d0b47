"""The bootstrap of many rows at once: scores of a thousand resamples without a call of scikit-learn for each.

A resample is a vector of weights, how often each row is drawn, and every score here is a function of sums of weights:
over the rows of a class, over the rows above a score, or of moments. `metrics.bootstrap_scores`
chooses these functions where it has one and else computes the score resample by resample; the tests hold the two to
the same values for the same draws.
"""

from collections.abc import Iterator

import numpy as np

CHUNK = 2_000_000  # weights held at once: 16 MB
RANKED_WORK = 300_000_000  # rows x columns x resamples of AUROC and AUPRC: about ten seconds
RANKED_LEAST = 100  # with fewer resamples the ends of a 95 % interval are noise


def draw_rows(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers (rows,) of each resample: drawn with replacement, the same for the same seed."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield generator.integers(0, rows, rows)


def draw_weights(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """The same resamples as weights, in chunks (resamples of the chunk, rows)."""
    draws = draw_rows(rows, resamples, seed)
    while resamples > 0:
        size = min(resamples, max(1, CHUNK // rows))
        yield np.stack([np.bincount(next(draws), minlength=rows) for _ in range(size)]).astype(np.float64)
        resamples -= size


def classification(labels, predictions, probabilities=None, *, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """`metrics.classification_scores` of each resample; NaN where it is undefined."""
    classes, codes = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    rows = len(labels)
    truth, guess = codes[:rows], codes[rows:]
    columns = ranked_columns(labels, probabilities) if probabilities is not None else []
    ranked = ranked_resamples(rows, len(columns), resamples)
    parts = []
    for weights in draw_weights(rows, resamples, seed):
        hits, wanted, given = (
            class_sums(w, c, len(classes))
            for w, c in ((weights * (truth == guess), truth), (weights, truth), (weights, guess))
        )
        scores = class_scores(hits, wanted, given)
        if columns and ranked > 0:
            scores |= ranked_scores(weights[:ranked], columns)
            ranked -= len(weights)
        parts.append(scores)
    return join(parts)


def grouped_classification(
    groups, labels, predictions, probabilities=None, *, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """
    `classification` with groups of rows drawn instead of rows, such as the bases of a sequence (cluster bootstrap).

    Args:
        groups: (rows,) anything that is equal within a group; as many groups are drawn as there are.
    """
    members = np.unique(groups, return_inverse=True)[1]
    classes, codes = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    truth, guess = codes[: len(labels)], codes[len(labels) :]
    size, count = len(classes), members.max() + 1
    # Rows of a class that are found, that exist and that are predicted, for each group.
    cells = (members[truth == guess], truth[truth == guess]), (members, truth), (members, guess)
    counts = [np.bincount(group * size + code, minlength=count * size).reshape(count, size) for group, code in cells]
    columns = ranked_columns(labels, probabilities) if probabilities is not None else []
    ranked = ranked_resamples(len(labels), len(columns), resamples)
    parts = []
    for weights in draw_weights(count, resamples, seed):
        scores = class_scores(*(weights @ sums for sums in counts))
        if columns and ranked > 0:
            few = max(1, CHUNK // len(labels))  # a weight for every row is held
            drawn = weights[:ranked]
            pieces = [ranked_scores(drawn[i : i + few, members], columns) for i in range(0, len(drawn), few)]
            scores |= join(pieces)
            ranked -= len(weights)
        parts.append(scores)
    return join(parts)


def multi_label(labels, probabilities, *, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """`metrics.multi_label_scores` of each resample; NaN where it is undefined."""
    truth, guess = labels == 1, probabilities > 0.5
    (rows, size), parts = truth.shape, []
    counts = np.concatenate([truth & guess, truth, guess, (truth == guess).all(axis=1)[:, None]], axis=1)
    columns = list(zip(truth.T, probabilities.T, strict=True))
    ranked = ranked_resamples(rows, size, resamples)
    for weights in draw_weights(rows, resamples, seed):
        sums = weights @ counts
        hits, wanted, given = (sums[:, i * size : (i + 1) * size] for i in range(3))
        decisions = rows * size
        # All decisions as one problem of two classes, 1 and 0.
        ones = [x.sum(axis=1) for x in (hits, wanted, given)]
        zeros = [decisions - ones[1] - ones[2] + ones[0], decisions - ones[1], decisions - ones[2]]
        scores = {
            "matthews_correlation": matthews(*(np.stack(pair, axis=1) for pair in zip(ones, zeros, strict=True))),
            "f1": ratio(2 * hits, wanted + given).mean(axis=1),
            "f1_micro": ratio(2 * ones[0], ones[1] + ones[2]),
            "accuracy": sums[:, -1] / rows,
        }
        if ranked > 0:
            scores |= ranked_scores(weights[:ranked], columns)
            ranked -= len(weights)
        parts.append(scores)
    return join(parts)


def regression(labels, predictions, *, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """`metrics.regression_scores` of each resample; NaN where it is undefined."""
    labels, predictions = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in (labels, predictions))
    columns = list(zip(labels.T, predictions.T, strict=True))
    parts = []
    for weights in draw_weights(len(labels), resamples, seed):
        by_column = [column_scores(weights, *column) for column in columns]
        scores = {name: mean_of_defined([column[name] for column in by_column]) for name in by_column[0]}
        if len(columns) > 1:
            scores |= {f"{name}_{i}": value for i, column in enumerate(by_column) for name, value in column.items()}
        parts.append(scores)
    return join(parts)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """0 where the whole is 0, as the scores of counts are defined."""
    return part / np.where(whole == 0, 1, whole)


def class_sums(weights: np.ndarray, codes: np.ndarray, size: int) -> np.ndarray:
    """Sum of the weights (resamples, rows) of each class: (resamples, size)."""
    order, starts = tie_groups(codes)
    sums = np.zeros((len(weights), size))
    sums[:, codes[order][starts]] = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def matthews(hits: np.ndarray, truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """
    Gorodkin's correlation of several classes; 0 if all labels or all predictions are equal.

    Args:
        hits, truth, guess: (resamples, classes) rows of a class that are found, that exist, that are predicted.
    """
    total = truth.sum(axis=1)
    covariance = hits.sum(axis=1) * total - (truth * guess).sum(axis=1)
    spread = [total**2 - (x**2).sum(axis=1) for x in (truth, guess)]
    return ratio(covariance, np.sqrt(spread[0] * spread[1]))


def class_scores(hits: np.ndarray, truth: np.ndarray, guess: np.ndarray) -> dict[str, np.ndarray]:
    present = truth + guess > 0  # scikit-learn's macro average is over the classes that occur

    def macro(values):
        return (values * present).sum(axis=1) / present.sum(axis=1)

    return {
        "matthews_correlation": matthews(hits, truth, guess),
        "f1": macro(ratio(2 * hits, truth + guess)),
        "accuracy": hits.sum(axis=1) / truth.sum(axis=1),
        "precision": macro(ratio(hits, guess)),
        "recall": macro(ratio(hits, truth)),
    }


def ranked_columns(labels, probabilities) -> list[tuple[np.ndarray, np.ndarray]]:
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return [(labels == i, probabilities[:, i]) for i in classes]


def ranked_resamples(rows: int, columns: int, resamples: int) -> int:
    """How many of the resamples AUROC and AUPRC get: all, if that takes seconds; none, if too few would be left."""
    affordable = min(resamples, RANKED_WORK // max(1, rows * columns))
    return affordable if affordable >= min(RANKED_LEAST, resamples) else 0


def tie_groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of the rows by value, and the places in it where a new value starts."""
    order = np.argsort(values, kind="stable")
    return order, np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)


def ranked_scores(weights: np.ndarray, columns: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    both = [ranked_column(weights, *column) for column in columns if np.isfinite(column[1]).all()]
    undefined = [np.full(len(weights), np.nan)]
    return {
        "auroc": mean_of_defined([pair[0] for pair in both] or undefined),
        "auprc": mean_of_defined([pair[1] for pair in both] or undefined),
    }


def ranked_column(weights: np.ndarray, positive: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order, starts = tie_groups(-values)  # highest first
    drawn = weights[:, order]
    hits, drawn = (np.add.reduceat(x, starts, axis=1) for x in (drawn * positive[order], drawn))
    hits_so_far, drawn_so_far = hits.cumsum(axis=1), drawn.cumsum(axis=1)
    positives, negatives = hits_so_far[:, -1], drawn_so_far[:, -1] - hits_so_far[:, -1]
    undefined = (positives == 0) | (negatives == 0)
    # A negative is outranked by the positives above it, and by half of those of the same score.
    outranked = ((drawn - hits) * (hits_so_far - hits / 2)).sum(axis=1)
    precision = (hits * ratio(hits_so_far, drawn_so_far)).sum(axis=1)
    auroc = np.where(undefined, np.nan, ratio(outranked, positives * negatives))
    return auroc, np.where(undefined, np.nan, ratio(precision, positives))


def column_scores(weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> dict[str, np.ndarray]:
    names = ("pearson", "spearman", "mse", "r2")
    if not (np.isfinite(labels).all() and np.isfinite(predictions).all()):
        return {name: np.full(len(weights), np.nan) for name in names}
    ranks, distinct = zip(*(ranks_and_values(weights, x) for x in (labels, predictions)), strict=True)
    x, y = labels - labels.mean(), predictions - predictions.mean()
    correlated = (distinct[0] > 1) & (distinct[1] > 1)
    x_squares = (weights @ x**2) - (weights @ x) ** 2 / len(x)
    errors = weights @ (labels - predictions) ** 2
    values = (
        np.where(correlated, weighted_correlation(weights, x, y), np.nan),
        np.where(correlated, weighted_correlation(weights, *ranks), np.nan),
        errors / len(labels),
        np.where(distinct[0] > 1, 1 - ratio(errors, x_squares), np.nan),
    )
    return dict(zip(names, values, strict=True))


def ranks_and_values(weights: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean rank of each row within each resample (resamples, rows), and how many different values were drawn."""
    order, starts = tie_groups(values)
    drawn = np.add.reduceat(weights[:, order], starts, axis=1)
    group = np.zeros(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(values)))
    ranks = drawn.cumsum(axis=1) - (drawn - 1) / 2
    return ranks[:, group], (drawn > 0).sum(axis=1)


def weighted_correlation(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's of each resample; `x` and `y` are (rows,), or (resamples, rows)."""
    x, y = (v - (weights * v).sum(axis=1, keepdims=True) / weights.shape[1] for v in (x, y))
    xy, xx, yy = ((weights * v).sum(axis=1) for v in (x * y, x * x, y * y))
    return ratio(xy, np.sqrt(xx * yy))


def mean_of_defined(values: list[np.ndarray]) -> np.ndarray:
    values = np.stack(values)
    defined = np.isfinite(values)
    total = np.where(defined, values, 0).sum(axis=0)
    return np.where(defined.any(axis=0), ratio(total, defined.sum(axis=0)), np.nan)


def join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts if name in part]) for name in parts[0]}
