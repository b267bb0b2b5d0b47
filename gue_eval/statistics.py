"""Which differences between models are more than chance: tests over seeds, over test rows and over data sets.

Over data sets as Demsar advises (Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006):
Wilcoxon's signed-rank test for two models, Friedman's with Nemenyi's critical difference for more.

    from dnabert2.gue_eval.statistics import critical_difference
    critical_difference(models=4, datasets=14)          # 1.25 ranks
"""

import math

import numpy as np

from ..training.resampling import class_scores

CHUNK = 2**22  # counts held at once by the bootstrap


def holm(p_values: list[float | None]) -> list[float | None]:
    """
    Holm's step-down correction (1979) of one family of tests.

    Args:
        p_values: of each test; None for a test that could not be made, which then is not of the family.

    Returns:
        Adjusted p values, in the same order: at most 1, and never in another order than the p values themselves.
    """
    made = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(made):
        highest = max(highest, min(1.0, (len(made) - rank) * p))
        adjusted[i] = highest
    return adjusted


def welch(first: list[float], second: list[float]) -> float | None:
    """
    Two-sided p value of Welch's t-test over seeds; None without two seeds of each, or if neither varies.
    """
    from scipy import stats

    if min(len(first), len(second)) < 2 or (len(set(first)) == 1 and len(set(second)) == 1):
        return None
    described = [x for seeds in (first, second) for x in (np.mean(seeds), np.std(seeds, ddof=1), len(seeds))]
    return float(stats.ttest_ind_from_stats(*described, equal_var=False).pvalue)


def wilcoxon(first: list[float], second: list[float]) -> float | None:
    """
    Two-sided p value of Wilcoxon's signed-rank test over data sets; differences of zero are split between the signs,
    as Demsar has it. None without two data sets.

    Args:
        first, second: scores of two models on the same data sets, in the same order.
    """
    from scipy import stats

    differences = np.round(np.subtract(first, second), 9)  # 0.3 - 0.2 and 0.2 - 0.1 are a tie
    if len(differences) < 2:
        return None
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)


def average_ranks(scores: np.ndarray) -> np.ndarray:
    """
    Args:
        scores: (data sets, models), higher is better.

    Returns:
        (models,) mean ranks: 1 is the best; equal scores share the mean of their ranks.
    """
    from scipy import stats

    return stats.rankdata(-np.asarray(scores, dtype=float), axis=1).mean(axis=0)


def friedman(scores: np.ndarray) -> dict | None:
    """
    Friedman's test that all models rank alike, with Iman and Davenport's F, which is the less conservative.

    Args:
        scores: (data sets, models), higher is better.

    Returns:
        `chi_square` and `p`, `f` and `f_p` (None if all data sets rank the models alike); None for less than three
        models or two data sets, or if every data set ties all models.
    """
    from scipy import stats

    datasets, models = np.shape(scores)
    if models < 3 or datasets < 2:
        return None
    ranks = stats.rankdata(-np.asarray(scores, dtype=float), axis=1)
    if np.all(ranks == ranks[:, :1]):
        return None
    test = stats.friedmanchisquare(*ranks.T)
    chi_square, rest = float(test.statistic), datasets * (models - 1) - float(test.statistic)
    f = f_p = None
    if rest > 1e-9:
        f = (datasets - 1) * chi_square / rest
        f_p = float(stats.f.sf(f, models - 1, (models - 1) * (datasets - 1)))
    return {"chi_square": chi_square, "p": float(test.pvalue), "f": f, "f_p": f_p}


def critical_difference(models: int, datasets: int, alpha: float = 0.05) -> float:
    """Nemenyi's: average ranks of two of `models` that differ by less over `datasets` are not told apart."""
    from scipy import stats

    q = stats.studentized_range.ppf(1 - alpha, models, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(models * (models + 1) / (6 * datasets)))


def paired_bootstrap(
    labels: np.ndarray,
    first: list[np.ndarray],
    second: list[np.ndarray],
    metric: str,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict:
    """
    The difference of two models' scores when the test rows are drawn again with replacement, both models' alike.

    Rows that agree in their label and in every prediction are interchangeable, so a resample is one multinomial draw
    of how often each such pattern comes, which is exact and needs no row to be copied.

    Args:
        labels: (rows,) class ids.
        first, second: a list of (rows,) predictions, one a seed; a model's score is its mean over the seeds.
        metric: `matthews_correlation`, `f1` (macro) or `accuracy`.

    Returns:
        `difference` of the rows as they are, `low` and `high` (2.5 and 97.5 % of the resamples), two-sided `p`,
        `resamples`.
    """
    columns = np.stack([labels, *first, *second], axis=1)
    classes, coded = np.unique(columns, return_inverse=True)
    coded = coded.reshape(columns.shape)
    patterns, counts = np.unique(coded, axis=0, return_counts=True)
    # (pattern, predictor): the cell of that predictor's confusion matrix in which the pattern's rows stand
    cells = patterns[:, :1] * len(classes) + patterns[:, 1:]
    signs = np.r_[np.full(len(first), 1 / len(first)), np.full(len(second), -1 / len(second))]

    def differences(drawn: np.ndarray) -> np.ndarray:
        total = np.zeros(len(drawn))
        for predictor, sign in enumerate(signs):
            to_cell = np.zeros((len(patterns), len(classes) ** 2))
            to_cell[np.arange(len(patterns)), cells[:, predictor]] = 1
            matrices = (drawn @ to_cell).reshape(-1, len(classes), len(classes))
            # (resamples, label, prediction) counts
            hits, true, given = np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(axis=2), matrices.sum(axis=1)
            total += sign * class_scores(hits, true, given)[metric]
        return total

    draw = np.random.default_rng(seed)
    chunk = max(1, CHUNK // len(patterns))
    sizes = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    shares = counts / len(labels)
    drawn = np.concatenate(
        [differences(draw.multinomial(len(labels), shares, size).astype(np.float64)) for size in sizes]
    )
    below, above = (int(np.sum(x)) for x in (drawn <= 0, drawn >= 0))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "difference": float(differences(counts[None].astype(np.float64))[0]),
        "low": float(low),
        "high": float(high),
        "p": min(1.0, 2 * (min(below, above) + 1) / (resamples + 1)),
        "resamples": resamples,
    }
