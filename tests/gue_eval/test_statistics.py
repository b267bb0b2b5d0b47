"""Tests of differences agree with hand-worked numbers, with published tables and with scipy and scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from dnabert2.gue_eval.statistics import (
    average_ranks,
    critical_difference,
    friedman,
    holm,
    paired_bootstrap,
    welch,
    wilcoxon,
)

# Of Demsar (2006), table 6: AUC of four variants of C4.5 on 14 data sets, with his average ranks and statistics.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def test_holm_by_hand():
    # In order 0.01, 0.03, 0.04: times 3, 2 and 1; the last may not fall below the one before.
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_welch_is_scipys_and_says_when_it_cannot_be():
    first, second = [0.60, 0.62, 0.61], [0.55, 0.58]
    assert welch(first, second) == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)
    assert welch([0.5], second) is None
    assert welch([0.5, 0.5], [0.6, 0.6]) is None


def test_wilcoxon_is_scipys():
    draw = np.random.default_rng(0)
    first, second = draw.normal(60, 5, 12), draw.normal(58, 5, 12)
    assert wilcoxon(first, second) == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert wilcoxon([1, 2, 3], [1, 2, 3]) == 1.0
    assert wilcoxon([1], [2]) is None
    # Demsar's example, of the first two: R+ = 93 and R- = 12, so z = -2.54; scipy corrects z for ties.
    assert wilcoxon(DEMSAR[:, 0], DEMSAR[:, 1]) == pytest.approx(2 * stats.norm.cdf(-2.54), abs=2e-4)
    assert wilcoxon([5, 6, 7, 8, 9, 10], [0] * 6) == pytest.approx(2 / 2**6)  # all signs alike, by hand


def test_ranks_friedman_and_nemenyi_are_demsars():
    assert average_ranks([[3.0, 1.0, 3.0]]).tolist() == [1.5, 3.0, 1.5]
    assert average_ranks(DEMSAR) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=6e-4)
    found = friedman(DEMSAR)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert found["chi_square"] == pytest.approx(stats.friedmanchisquare(*DEMSAR.T).statistic)
    assert found["f"] == pytest.approx(13 * found["chi_square"] / (14 * 3 - found["chi_square"]))
    assert found["f_p"] == pytest.approx(stats.f.sf(found["f"], 3, 39))
    # The 9.28 that Demsar quotes leaves ties uncorrected, which makes it smaller.
    uncorrected = 12 * 14 / (4 * 5) * (np.sum(average_ranks(DEMSAR) ** 2) - 4 * 5**2 / 4)
    assert uncorrected == pytest.approx(9.28, abs=0.005) and found["chi_square"] > uncorrected


@pytest.mark.parametrize(("models", "q"), [(2, 1.960), (4, 2.569), (10, 3.164)])
def test_critical_values_are_demsars_table(models, q):
    assert critical_difference(models, 1) == pytest.approx(q * (models * (models + 1) / 6) ** 0.5, rel=5e-4)


def test_friedman_without_a_question():
    assert friedman([[1, 2], [2, 1], [1, 2]]) is None
    assert friedman([[1, 1, 1], [2, 2, 2]]) is None
    assert friedman([[1, 2, 3], [1, 2, 3]])["f"] is None


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        ("matthews_correlation", matthews_corrcoef),
        ("f1", lambda labels, x: f1_score(labels, x, average="macro", zero_division=0)),
        ("accuracy", accuracy_score),
    ],
)
def test_bootstrap_agrees_with_drawing_rows(metric, score):
    """The fast way, by patterns, beside the slow one that copies rows and scores them with scikit-learn."""
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 3, 150)
    noisy = [np.where(draw.random(150) < share, labels, draw.integers(0, 3, 150)) for share in (0.8, 0.7, 0.5)]
    first, second = noisy[:2], noisy[2:]
    found = paired_bootstrap(labels, first, second, metric, resamples=4000)

    def difference(rows):
        scores = [[score(labels[rows], x[rows]) for x in model] for model in (first, second)]
        return np.mean(scores[0]) - np.mean(scores[1])

    assert found["difference"] == pytest.approx(difference(np.arange(150)))
    slow = [difference(draw.integers(0, 150, 150)) for _ in range(300)]
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.05)
    assert found["p"] < 0.05


def test_bootstrap_of_equal_models_finds_nothing():
    labels = np.arange(40) % 2
    guesses = np.roll(labels, 3)
    found = paired_bootstrap(labels, [guesses], [guesses], "matthews_correlation", resamples=200)
    assert (found["difference"], found["p"]) == (0.0, 1.0)
    same = paired_bootstrap(labels, [labels], [1 - labels], "matthews_correlation", resamples=999)
    assert same["difference"] == 2.0 and same["p"] == pytest.approx(2 / 1000)


def test_bootstrap_is_reproducible_in_chunks(monkeypatch):
    labels, guesses = np.arange(60) % 3, (np.arange(60) // 2) % 3
    arguments = (labels, [labels], [guesses], "f1", 100)
    whole = paired_bootstrap(*arguments)
    monkeypatch.setattr("dnabert2.gue_eval.statistics.CHUNK", 1)
    assert paired_bootstrap(*arguments) == pytest.approx(whole)
