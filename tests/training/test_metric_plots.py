"""Each picture is a whole PNG of a size, with something drawn where something was given."""

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.metrics import auc

from dnabert2.training import metric_plots
from dnabert2.training.metric_plots import (
    DPI,
    confusion_matrix_png,
    curves_png,
    regression_png,
    shorten,
    training_png,
)


@pytest.fixture
def drawn(monkeypatch):
    """The figures drawn by the test, to look into."""
    figures = []
    new_figure = metric_plots.new_figure
    monkeypatch.setattr(metric_plots, "new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1])
    return figures


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def legend(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def check(path, figure):
    """A PNG of the figure's size with ink on it, and no partial file beside it."""
    assert path.read_bytes().startswith(b"\x89PNG") and [path] == list(path.parent.iterdir())
    pixels = imread(path)
    width, height = figure.get_size_inches()
    assert pixels.shape[:2] == (int(height * DPI), int(width * DPI))
    assert 0.001 < (pixels[..., :3].min(axis=2) < 0.9).mean() < 0.9


def probabilities(labels, classes):
    logits = np.random.default_rng(0).normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += 1
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_confusion_matrix(drawn, tmp_path):
    confusion_matrix_png([0, 0, 0, 1, 1], [0, 0, 1, 1, 1], ["no", "promoter"], tmp_path / "a.png")
    check(tmp_path / "a.png", drawn[0])
    axis = drawn[0].axes[0]
    assert texts(axis) == ["2\n67%", "1\n33%", "0\n0%", "2\n100%"]
    assert axis.get_title() == "4 of 5 right" and axis.get_xlabel() == "prediction"
    assert [t.get_rotation() for t in axis.get_xticklabels()] == [0, 0]


def test_confusion_matrix_of_many_classes(drawn, tmp_path):
    """Long names stand upright and keep their ends; past twenty classes colour alone is legible."""
    names = [f"a transcription factor of family {i}" for i in range(25)]
    labels = np.repeat(np.arange(24), 4)  # the last class has no rows
    confusion_matrix_png(labels, labels[::-1], names, tmp_path / "a.png")
    check(tmp_path / "a.png", drawn[0])
    axis = drawn[0].axes[0]
    assert not texts(axis) and axis.get_xticklabels()[0].get_rotation() == 90
    shown = [t.get_text() for t in axis.get_yticklabels()]
    assert len(set(shown)) == 25 and all(len(name) <= 28 for name in shown)
    assert shorten("short") == "short"


def test_curves_of_two_classes(drawn, tmp_path):
    labels = np.array([1, 1, 1, 0, 0])
    scores = np.array([0.9, 0.8, 0.4, 0.6, 0.1])
    curves_png(labels, np.stack([1 - scores, scores], axis=1), ["other", "promoter"], tmp_path / "a.png")
    check(tmp_path / "a.png", drawn[0])
    left, right = drawn[0].axes
    assert legend(left) == ["promoter: 0.833", "chance: 0.5"]
    assert legend(right) == ["promoter: 0.917", "chance: 0.600"]
    x, y = left.lines[0].get_data()
    assert auc(x, y) == pytest.approx(5 / 6)


def test_curves_of_many_classes_are_ten_at_most(drawn, tmp_path):
    labels = np.concatenate([np.arange(11), np.repeat(np.arange(1, 11), 3)])
    names = [f"class {i}" for i in range(12)]
    curves_png(labels, probabilities(labels, 12), names, tmp_path / "a.png")
    check(tmp_path / "a.png", drawn[0])
    left, _ = drawn[0].axes
    assert [entry.split(":")[0] for entry in legend(left)[:-1]] == names[1:11]  # the rarest is left out
    note = drawn[0].get_suptitle()
    assert note.startswith("10 of 12 classes drawn") and "1 without a curve" in note


def test_curves_of_several_labels_and_of_none(drawn, tmp_path):
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]])
    curves_png(labels, labels * 0.5 + 0.2, ["a", "b", "c"], tmp_path / "a.png")
    assert legend(drawn[0].axes[0])[:-1] == ["a: 1.000", "c: 1.000"]
    curves_png(np.array([1, 1]), np.full((2, 2), 0.5), ["a", "b"], tmp_path / "a.png")  # one class: nothing to draw
    check(tmp_path / "a.png", drawn[1])
    assert "1 without a curve" in drawn[1].get_suptitle()


def test_regression(drawn, tmp_path):
    labels = np.arange(8.0)
    regression_png(labels, labels * 2, tmp_path / "a.png")
    check(tmp_path / "a.png", drawn[0])
    assert drawn[0].axes[0].get_title() == "pearson 1.000 spearman 1.000"
    several = np.random.default_rng(0).normal(size=(20, 11))
    several[:, 1] = 0  # a constant output has no correlation
    several[3, 2] = np.nan
    regression_png(several, several + 0.1, tmp_path / "a.png")
    check(tmp_path / "a.png", drawn[1])
    assert [axis.get_title().split(":")[0] for axis in drawn[1].axes] == [f"output {i}" for i in range(9)]
    assert drawn[1].get_suptitle() == "the first 9 of 11 outputs"


def test_training(drawn, tmp_path):
    history = [
        {"step": 10, "loss": 1.0, "learning_rate": 1e-4},
        {"step": 10, "eval_loss": 0.9, "eval_matthews_correlation": 0.5, "eval_f1": 0.6, "eval_auroc": None},
        {"step": 20, "loss": 0.5},
        {"step": 20, "eval_loss": float("nan"), "eval_matthews_correlation": 0.4, "eval_f1": 0.7, "eval_auroc": 0.8},
        {"step": 20, "train_loss": 0.75, "train_runtime": 3.0},
    ]
    training_png(history, tmp_path / "a.png")
    check(tmp_path / "a.png", drawn[0])
    left, right = drawn[0].axes
    assert legend(left) == ["train", "dev"] and legend(right) == [
        "matthews correlation",
        "best: 0.5000",
        "f1",
        "auroc",
    ]
    assert left.lines[0].get_xydata().tolist() == [[10, 1.0], [20, 0.5]]
    assert left.lines[1].get_xydata().tolist() == [[10, 0.9]]  # no point where the loss was not a number
    training_png(history, tmp_path / "a.png", metrics=("f1",))
    assert legend(drawn[1].axes[1]) == ["f1", "best: 0.7000"]
    training_png([], tmp_path / "a.png")
    check(tmp_path / "a.png", drawn[2])
    assert [texts(axis) for axis in drawn[2].axes] == [["nothing logged"]] * 2
