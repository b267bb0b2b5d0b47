"""Scores against scikit-learn and scipy, hand-computed cases, undefined ones, and the bootstrap against its twin."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from dnabert2.errors import UserError
from dnabert2.training import resampling
from dnabert2.training.metrics import (
    CLASSIFICATION,
    MULTI_LABEL,
    REGRESSION,
    SELECTABLE,
    bootstrap_scores,
    classification_scores,
    confidence_intervals,
    greater_is_better,
    multi_label_scores,
    regression_scores,
)


def classifier(rows: int, classes: int, seed: int = 0, digits: int = 2):
    """Labels, predictions and probabilities of a classifier of some skill; rounded, so that many are tied."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(classes, rows, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    logits = draw.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += 1
    probabilities = np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), digits)
    return labels, probabilities.argmax(axis=1), probabilities


@pytest.fixture
def several_labels():
    draw = np.random.default_rng(1)
    labels = (draw.random((80, 4)) < [0.5, 0.3, 0.1, 0]).astype(int)  # the last label never occurs
    return labels, np.round(np.clip(0.4 * labels + 0.7 * draw.random((80, 4)), 0, 1), 2)


@pytest.fixture
def regressed():
    draw = np.random.default_rng(2)
    labels = np.round(draw.normal(size=(60, 3)), 1)
    return labels, np.round(labels * [1, 0.5, 0] + draw.normal(size=(60, 3)), 1)


def test_binary_by_hand():
    labels, predictions = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0])
    probabilities = np.array([[0.1, 0.9], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6], [0.9, 0.1]])
    assert classification_scores(labels, predictions, probabilities) == pytest.approx(
        {
            "matthews_correlation": (2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2),
            "f1": (2 / 3 + 1 / 2) / 2,
            "accuracy": 3 / 5,
            "precision": (2 / 3 + 1 / 2) / 2,
            "recall": (2 / 3 + 1 / 2) / 2,
            "auroc": 5 / 6,  # one of six pairs stands the wrong way round
            "auprc": (1 + 1 + 3 / 4) / 3,
        }
    )


def test_several_classes_agree_with_scikit_learn():
    labels, predictions, probabilities = classifier(300, 4)
    scores = classification_scores(labels, predictions, probabilities)
    assert tuple(scores) == CLASSIFICATION
    one_hot = np.eye(4)[labels]
    assert scores == pytest.approx(
        {
            "matthews_correlation": sk.matthews_corrcoef(labels, predictions),
            "f1": sk.f1_score(labels, predictions, average="macro"),
            "accuracy": sk.accuracy_score(labels, predictions),
            "precision": sk.precision_score(labels, predictions, average="macro"),
            "recall": sk.recall_score(labels, predictions, average="macro"),
            "auroc": sk.roc_auc_score(one_hot, probabilities, average="macro"),
            "auprc": sk.average_precision_score(one_hot, probabilities, average="macro"),
        }
    )
    names = np.array(["a", "b", "c", "d"])
    without = {name: scores[name] for name in CLASSIFICATION[:5]}
    assert classification_scores(names[labels], names[predictions]) == without


def test_several_labels_agree_with_scikit_learn(several_labels):
    labels, probabilities = several_labels
    scores = multi_label_scores(labels, probabilities)
    assert tuple(scores) == MULTI_LABEL
    guess = probabilities > 0.5
    assert scores == pytest.approx(
        {
            "matthews_correlation": sk.matthews_corrcoef(labels.ravel(), guess.ravel()),
            "f1": np.mean([sk.f1_score(labels[:, i], guess[:, i], zero_division=0) for i in range(4)]),
            "f1_micro": sk.f1_score(labels.ravel(), guess.ravel()),
            "accuracy": (labels == guess).all(axis=1).mean(),
            "auroc": sk.roc_auc_score(labels[:, :3], probabilities[:, :3], average="macro"),
            "auprc": sk.average_precision_score(labels[:, :3], probabilities[:, :3], average="macro"),
        }
    )
    single = multi_label_scores(labels[:, :1], probabilities[:, :1])
    assert single["f1"] == single["f1_micro"] == pytest.approx(sk.f1_score(labels[:, 0], guess[:, 0]))


def test_regression_agrees_with_scipy(regressed):
    labels, predictions = regressed
    scores = regression_scores(labels, predictions)
    for i, (x, y) in enumerate(zip(labels.T, predictions.T, strict=True)):
        expected = {
            "pearson": stats.pearsonr(x, y).statistic,
            "spearman": stats.spearmanr(x, y).statistic,
            "mse": sk.mean_squared_error(x, y),
            "r2": sk.r2_score(x, y),
        }
        assert {name: scores[f"{name}_{i}"] for name in REGRESSION} == pytest.approx(expected)
        assert regression_scores(x, y) == pytest.approx(expected)
    assert scores["spearman"] == pytest.approx(np.mean([scores[f"spearman_{i}"] for i in range(3)]))
    assert regression_scores([0, 1, 2], [0, 2, 1]) == pytest.approx(
        {"pearson": 0.5, "spearman": 0.5, "mse": 2 / 3, "r2": 0}
    )


@pytest.mark.filterwarnings("error")
def test_undefined_scores_are_none_and_json_stays_valid():
    ones = np.ones(4, dtype=int)
    half = np.full((4, 2), 0.5)
    scores = classification_scores(ones, 0 * ones, half)
    assert scores["auroc"] is None and scores["auprc"] is None
    assert [scores[name] for name in CLASSIFICATION[:5]] == [0] * 5
    assert classification_scores(ones, ones)["matthews_correlation"] == 0  # constant, though all are right
    diverged = classification_scores(np.array([0, 1, 1, 0]), 0 * ones, half * np.nan)
    assert diverged["auroc"] is None and diverged["matthews_correlation"] == 0
    labels = np.array([[1, 1], [1, 1]])
    scores |= multi_label_scores(labels, labels * 0.9)
    assert scores["accuracy"] == 1 and scores["auroc"] is None
    # A class that is absent is left out of the mean.
    y, _, p = classifier(60, 3)
    kept = y < 2
    two = [sk.roc_auc_score(y[kept] == i, p[kept, i]) for i in range(2)]
    assert classification_scores(y[kept], y[kept], p[kept])["auroc"] == pytest.approx(np.mean(two))
    numbers = np.arange(4.0)
    constant = regression_scores(numbers, numbers * 0)
    assert (constant["pearson"], constant["spearman"]) == (None, None) and constant["r2"] == pytest.approx(-1.8)
    assert regression_scores(numbers * 0, numbers)["r2"] is None
    assert set(regression_scores(numbers, numbers * np.nan).values()) == {None}
    both = regression_scores(np.stack([numbers, 0 * numbers], 1), np.stack([numbers, numbers], 1))
    assert both["pearson"] == both["pearson_0"] == pytest.approx(1) and both["pearson_1"] is None
    for values in (scores, diverged, constant, both):
        json.dumps(values, allow_nan=False)
    with pytest.raises(UserError, match="no rows"):
        classification_scores([], [])
    with pytest.raises(ValueError, match="do not belong together"):
        classification_scores([0, 1], [0])


def one_by_one(score):
    """The readable twin of the scores that are computed for all resamples together."""
    return lambda *arrays: score(*arrays)


def assert_same(score, arrays, groups=None, resamples=60):
    fast = bootstrap_scores(score, arrays, groups, resamples=resamples, seed=5)
    slow = bootstrap_scores(one_by_one(score), arrays, groups, resamples=resamples, seed=5)
    assert fast.keys() == slow.keys()
    for name in slow:
        np.testing.assert_allclose(fast[name], slow[name], atol=1e-12, err_msg=name)
    return fast


@pytest.mark.parametrize("classes", [2, 3])
def test_resamples_together_are_resamples_one_by_one(classes, monkeypatch):
    monkeypatch.setattr(resampling, "CHUNK", 700)  # several chunks, the last one shorter
    assert_same(classification_scores, classifier(100, classes))
    assert_same(classification_scores, classifier(100, classes)[:2])
    names = np.array(["x", "y", "z"])
    assert_same(classification_scores, tuple(names[x] for x in classifier(100, classes)[:2]), resamples=10)
    # So few rows that classes go missing, and AUROC with them.
    labels = np.array([0, 1, 1])
    tiny = assert_same(classification_scores, (labels, labels[::-1], classifier(3, classes)[2]))
    assert np.isnan(tiny["auroc"]).any() and np.isfinite(tiny["auroc"]).any()


def test_resamples_of_labels_and_numbers_one_by_one(several_labels, regressed):
    assert_same(multi_label_scores, several_labels)
    assert_same(multi_label_scores, tuple(x[:4, :1] for x in several_labels))
    assert_same(regression_scores, regressed)
    few = assert_same(regression_scores, tuple(x[:3, 0] for x in regressed))
    assert np.isnan(few["pearson"]).any() and np.isfinite(few["mse"]).all()
    broken = assert_same(regression_scores, (regressed[0][:, 0], regressed[1][:, 0] * np.nan), resamples=5)
    assert np.isnan(broken["mse"]).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_groups_are_drawn_together(classes, monkeypatch):
    monkeypatch.setattr(resampling, "CHUNK", 700)
    draw = np.random.default_rng(1)
    for rows, count in ((100, 12), (3, 2)):
        assert_same(classification_scores, classifier(rows, classes), draw.integers(0, count, rows))
    arrays = classifier(100, classes)
    assert_same(classification_scores, arrays[:2], np.arange(100) // 10)
    alone, single = (bootstrap_scores(classification_scores, arrays, g, seed=5) for g in (None, np.arange(100)))
    for name in alone:
        np.testing.assert_allclose(alone[name], single[name], atol=1e-12)
    # Rows of a group that are right or wrong together: ten times the rows say no more than a tenth of them.
    labels = draw.integers(0, 2, 100)
    guesses = np.where(draw.random(100) < 0.7, labels, 1 - labels)
    many = tuple(x.repeat(10) for x in (labels, guesses))
    intervals = [
        confidence_intervals(classification_scores, (labels, guesses)),
        confidence_intervals(classification_scores, many, np.arange(100).repeat(10)),
        confidence_intervals(classification_scores, many),
    ]
    assert intervals[1] == {name: pytest.approx(between) for name, between in intervals[0].items()}
    widths = [between["accuracy"][1] - between["accuracy"][0] for between in intervals]
    assert widths[2] < 0.5 * widths[0]


def test_an_interval_covers_the_truth_and_shrinks():
    """Accuracy of a guesser that is right in 70 % of rows: 19 of 20 intervals hold 0.7, as wide as theory has it."""
    draw = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(100):
        labels = draw.integers(0, 2, 200)
        predictions = np.where(draw.random(200) < 0.7, labels, 1 - labels)
        low, high = confidence_intervals(classification_scores, (labels, predictions), resamples=300)["accuracy"]
        covered += low <= 0.7 <= high
        widths.append(high - low)
    assert 88 <= covered <= 99
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 200), rel=0.1)
    large, small = (confidence_intervals(classification_scores, classifier(n, 2)) for n in (3200, 200))
    for name in CLASSIFICATION:
        ratio = (small[name][1] - small[name][0]) / (large[name][1] - large[name][0])
        assert 2.5 < ratio < 6, name  # 16 times the rows, a quarter of the width


def test_intervals_are_repeatable_and_leave_out_what_is_undefined():
    arrays = classifier(50, 2)
    intervals = confidence_intervals(classification_scores, arrays, resamples=200)
    assert intervals == confidence_intervals(classification_scores, arrays, resamples=200)
    assert intervals != confidence_intervals(classification_scores, arrays, resamples=200, seed=1)
    narrow = confidence_intervals(classification_scores, arrays, resamples=200, level=0.5)
    for name, (low, high) in intervals.items():
        assert low <= narrow[name][0] <= narrow[name][1] <= high
    labels, predictions, probabilities = (x[:10] for x in arrays)
    alone = confidence_intervals(classification_scores, (labels * 0, predictions, probabilities), resamples=20)
    assert "auroc" not in alone and "accuracy" in alone
    median = confidence_intervals(lambda x: {"median": np.median(x)}, (np.arange(101.0),), resamples=100)
    assert median["median"][0] < 50 < median["median"][1]


def test_very_many_rows_get_fewer_ranked_resamples(monkeypatch):
    arrays = classifier(100, 3)
    monkeypatch.setattr(resampling, "RANKED_WORK", 100 * 3 * 150)
    monkeypatch.setattr(resampling, "CHUNK", 100 * 40)
    values = bootstrap_scores(classification_scores, arrays, resamples=200)
    assert len(values["auroc"]) == len(values["auprc"]) == 150 and len(values["f1"]) == 200
    whole = bootstrap_scores(one_by_one(classification_scores), arrays, resamples=3)
    np.testing.assert_allclose(values["auroc"][:3], whole["auroc"])
    monkeypatch.setattr(resampling, "RANKED_WORK", 100 * 3 * 99)
    assert "auroc" not in confidence_intervals(classification_scores, arrays, resamples=200)


def test_the_direction_of_every_selectable_score():
    assert set(SELECTABLE) == {*CLASSIFICATION, *MULTI_LABEL, *REGRESSION, "loss"}
    assert [name for name in SELECTABLE if not greater_is_better(name)] == ["mse", "loss"]
    assert greater_is_better("eval_f1") and greater_is_better("pearson_2")
    assert not greater_is_better("eval_loss") and not greater_is_better("mse_12")
