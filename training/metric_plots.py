"""Pictures of a fine-tuned model: confusion matrix, ROC and precision-recall curves, regression, training curves.

Each function writes one PNG, whole or not at all. Figures are made without pyplot, so no state is shared and any
process or thread may draw.
"""

import math
from pathlib import Path

import numpy as np

from ..atomic import whole_file
from .metrics import SELECTABLE, greater_is_better, module, regression_scores

MOST_CURVES = 10
MOST_PANELS = 9
CELLS_WITH_TEXT = 20  # classes up to which a count can be read in its cell
LONG_NAMES = 4  # letters above which the names below an axis stand upright
DPI = 130


def new_figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure, path: str | Path):
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=DPI, format="png")


def shorten(name: str, most: int = 28) -> str:
    """Without its middle: names of classes tend to differ at the end."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"


def confusion_matrix_png(labels: np.ndarray, predictions: np.ndarray, names: list[str], path: str | Path):
    """
    Counts of (label, prediction), and their share of the row, which is also the colour.

    Args:
        labels, predictions: (rows,) class ids.
        names: name of each class id.
        path: PNG to write.
    """
    size = len(names)
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (np.asarray(labels), np.asarray(predictions)), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    width = min(14, 3 + 0.75 * size)
    figure = new_figure(width + 1, width)
    axis = figure.add_subplot()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = [shorten(name) for name in names]
    font = 10 if size <= CELLS_WITH_TEXT // 2 else 7
    upright = size > 2 and max(map(len, ticks)) > LONG_NAMES
    axis.set_xticks(range(size), ticks, rotation=90 if upright else 0, fontsize=font)
    axis.set_yticks(range(size), ticks, fontsize=font)
    axis.set(xlabel="prediction", ylabel="label", title=f"{counts.trace():,} of {counts.sum():,} right")
    if size <= CELLS_WITH_TEXT:
        for (row, column), count in np.ndenumerate(counts):
            share = shares[row, column]
            axis.text(
                column,
                row,
                f"{count:,}\n{share:.0%}",
                ha="center",
                va="center",
                fontsize=font if size <= CELLS_WITH_TEXT // 2 else 6,
                color="white" if share > 0.55 else "black",
            )
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the label's rows")
    save(figure, path)


def curves_png(labels: np.ndarray, probabilities: np.ndarray, names: list[str], path: str | Path):
    """
    ROC and precision-recall curves side by side, with the areas in the legends.

    Two classes give one curve, of class 1; more give one a class against all others, for the ten most frequent that
    occur and are not all. The same for the columns of several labels a row.

    Args:
        labels: (rows,) class ids, or (rows, classes) of 0 and 1.
        probabilities: (rows, classes).
        names: name of each class.
        path: PNG to write.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    positive = labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(len(names))
    total = positive.sum(axis=0)
    single = labels.ndim == 1 and len(names) == 2
    candidates = [1] if single else np.argsort(-total, kind="stable").tolist()
    defined = np.isfinite(probabilities).all(axis=0) & (total > 0) & (total < len(labels))
    drawable = [i for i in candidates if defined[i]]
    drawn = sorted(drawable[:MOST_CURVES])

    figure = new_figure(11, 6.4)
    left, right = figure.subplots(1, 2)
    for i in drawn:
        y, scores, name = positive[:, i], probabilities[:, i], shorten(names[i])
        areas = {key: module(key)._compute(prediction_scores=scores, references=y)[key] for key in ("auroc", "auprc")}
        false_positives, recall, _ = roc_curve(y, scores)
        left.plot(false_positives, recall, lw=1.4, label=f"{name}: {areas['auroc']:.3f}")
        precision, recall, _ = precision_recall_curve(y, scores)
        # A step, not a slope: average precision is the area below it.
        right.plot(recall, precision, lw=1.4, drawstyle="steps-post", label=f"{name}: {areas['auprc']:.3f}")
    left.plot([0, 1], [0, 1], color="grey", lw=0.8, ls=":", label="chance: 0.5")
    if len(drawn) == 1:
        share = total[drawn[0]] / len(labels)
        right.axhline(share, color="grey", lw=0.8, ls=":", label=f"chance: {share:.3f}")
    left.set(xlabel="false positives / negatives", ylabel="true positives / positives", title="ROC")
    right.set(xlabel="recall", ylabel="precision", title="precision and recall")
    for axis, title in ((left, "AUROC"), (right, "AUPRC")):
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        if axis.get_legend_handles_labels()[0]:
            # Below the axes, where it hides no curve.
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "frameon": False}
            axis.legend(title=title, fontsize=8, ncols=2 if len(drawn) > 2 else 1, **place)
    if len(drawn) < len(candidates):
        missing = len(candidates) - len(drawable)
        note = f"{len(drawn)} of {len(candidates)} classes drawn, the most frequent"
        note += f"; {missing} without a curve: none or all of the rows are positive" if missing else ""
        figure.suptitle(note, fontsize=9)
    save(figure, path)


def regression_png(labels: np.ndarray, predictions: np.ndarray, path: str | Path):
    """
    Prediction against label, a panel for each of the first nine outputs.

    Args:
        labels, predictions: (rows,) or (rows, outputs) numbers.
        path: PNG to write.
    """
    labels, predictions = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in (labels, predictions))
    outputs = labels.shape[1]
    shown = min(outputs, MOST_PANELS)
    columns = math.ceil(math.sqrt(shown))
    rows = math.ceil(shown / columns)
    figure = new_figure(max(5, 4 * columns), max(5, 4 * rows))
    for i, axis in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if i >= shown:
            axis.set_axis_off()
            continue
        x, y = labels[:, i], predictions[:, i]
        scores = regression_scores(x, y)
        alpha = min(0.7, max(0.1, 1000 / len(x)))  # so that many points show where they are dense
        axis.scatter(x, y, s=8, alpha=alpha, lw=0, color="#3b6ea5")
        finite = np.concatenate([x, y])[np.isfinite(np.concatenate([x, y]))]
        if len(finite):
            ends = [finite.min(), finite.max()]
            axis.plot(ends, ends, color="grey", lw=0.8, ls=":")
        title = " ".join(f"{name} {scores[name]:.3f}" for name in ("pearson", "spearman") if scores[name] is not None)
        axis.set_title(f"output {i}: {title}" if outputs > 1 else title, fontsize=10)
        axis.set(xlabel="label", ylabel="prediction")
    if shown < outputs:
        figure.suptitle(f"the first {shown} of {outputs} outputs", fontsize=9)
    save(figure, path)


def series(log_history: list[dict], key: str) -> list[tuple[float, float]]:
    points = [(entry["step"], entry[key]) for entry in log_history if entry.get(key) is not None]
    return [(step, value) for step, value in points if math.isfinite(value)]


def training_png(log_history: list[dict], path: str | Path, metrics: tuple[str, ...] | None = None):
    """
    Loss of training and development rows against the step, and the development scores.

    Args:
        log_history: `state.log_history` of a Trainer.
        path: PNG to write.
        metrics: names of the scores to draw, without `eval_`; by default each that is better when greater. The best
            point of the first is marked.
    """
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    for key, label, style in (
        ("loss", "train", {"color": "#7a9cc6", "lw": 1}),
        ("eval_loss", "dev", {"color": "#c0504d", "lw": 1.6, "marker": "o", "ms": 3}),
    ):
        if points := series(log_history, key):
            left.plot(*zip(*points, strict=True), label=label, **style)
    names = metrics or [name for name in SELECTABLE if greater_is_better(name)]
    for i, name in enumerate(names):
        points = series(log_history, f"eval_{name}")
        if not points:
            continue
        right.plot(*zip(*points, strict=True), marker="o", ms=3, lw=1.4, color=f"C{i}", label=name.replace("_", " "))
        if i == 0:
            best = (max if greater_is_better(name) else min)(points, key=lambda point: point[1])
            right.plot(*best, marker="o", ms=9, mfc="none", color="C0", ls="none", label=f"best: {best[1]:.4f}")
    left.set(xlabel="step", ylabel="loss", title="loss")
    right.set(xlabel="step", ylabel="score", title="development rows")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
        else:
            axis.text(0.5, 0.5, "nothing logged", transform=axis.transAxes, ha="center", color="grey")
    save(figure, path)
