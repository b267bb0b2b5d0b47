"""GUE scores as a picture: a row a data set, our models with their spread over seeds, the paper's as thin marks."""

from pathlib import Path

from ..atomic import whole_file

EMPHASISED = "DNABERT-2"  # of the paper
# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow, which white paper swallows.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#444444")
MARKERS = "osD^vPX<>ph"
ROW = 0.3  # inches


def plot_scores(numbers: dict, path: Path):
    """
    Args:
        numbers: of `aggregate`.
        path: PNG to write, whole or not at all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = numbers["datasets"]
    places, groups = _places(rows)
    lowest = max(places, default=0) + 1
    figure = Figure(figsize=(9.5, 1.7 + ROW * lowest), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    labels = [model["label"] for model in numbers["models"] if model["datasets"]]
    others = [name for name in numbers["paper_models"] if name != EMPHASISED]
    marks = [(x, y) for row, y in zip(rows, places, strict=True) for n, x in row["paper"].items() if n in others]
    if marks:
        label = f"{len(others)} other models of the paper"
        axis.plot(*zip(*marks, strict=True), "|", ms=8, mew=0.9, color="#9a9a9a", label=label, zorder=2)
    marks = [(row["paper"][EMPHASISED], y) for row, y in zip(rows, places, strict=True) if EMPHASISED in row["paper"]]
    if marks:
        style = {"ms": 13, "mew": 2.6, "color": "black", "zorder": 3}
        axis.plot(*zip(*marks, strict=True), "|", label=f"{EMPHASISED} (paper)", **style)
    for i, label in enumerate(labels):
        # Models side by side within a row, so that equal scores do not hide each other.
        offset = 0 if len(labels) < 2 else 0.5 * (i / (len(labels) - 1) - 0.5)
        own = [(row["scores"].get(label), y + offset) for row, y in zip(rows, places, strict=True)]
        own = [(score, y) for score, y in own if score]
        axis.errorbar(
            [score["mean"] for score, _ in own],
            [y for _, y in own],
            xerr=[score["standard_deviation"] or 0 for score, _ in own],
            fmt=MARKERS[i % len(MARKERS)],
            ms=4.5,
            lw=1.2,
            color=COLOURS[i % len(COLOURS)],
            label=label,
            zorder=4,
        )
    axis.set_ylim(lowest - 0.3, -1.1)
    axis.set_yticks(places, [_row_name(row) for row in rows], fontsize=9)
    axis.tick_params(axis="y", length=0)
    for group, place in groups.items():
        axis.text(0, place, group, transform=axis.get_yaxis_transform(), fontsize=9, weight="bold", va="center")
    axis.hlines(places, *axis.get_xlim(), color="#ececec", lw=0.8, zorder=0)
    axis.set_xlim(*axis.get_xlim())
    axis.grid(axis="x", color="#ececec", lw=0.8)
    axis.set_axisbelow(True)
    axis.set_xlabel("test MCC x 100 (F1 where marked), mean and standard deviation over seeds")
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(4, len(labels) + 2), frameon=False, fontsize=9)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png", pil_kwargs={"optimize": True})


def _places(rows: list[dict]) -> tuple[list[int], dict[str, int]]:
    """Height of each row, and of the line above a group's first that holds its name."""
    places, groups, height = [], {}, -1
    for row in rows:
        if row["group"] not in groups:
            height += 1
            groups[row["group"]] = height
        height += 1
        places.append(height)
    return places, groups


def _row_name(row: dict) -> str:
    return row["dataset"] + (" (F1)" if row["metric"] == "f1" else "")
