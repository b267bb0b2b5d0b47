"""A result of `bench length` as a picture: bits per base against length by model, and the first model's by group."""

from pathlib import Path

from ..atomic import whole_file


def plot_length(result: dict, path: Path):
    """
    Args:
        result: what `bench length` writes.
        path: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for i, model in enumerate(result["models"]):
        rows = _measured(model)
        label = f"{model['model']} ({model['positions']})"
        if len(rows) < len(model["results"]):
            label += ", no further"
        bits, errors = ([row[key] or 0 for row in rows] for key in ("bits_per_base", "standard_error"))
        style = {"marker": "o", "ms": 4, "capsize": 2, "lw": 1.4, "color": plt.cm.tab10(i % 10)}
        left.errorbar([row["length"] for row in rows], bits, errors, label=label, **style)
    left.set(ylabel="bits per base, held out", title="the same masked tokens at every length")
    first = result["models"][0]
    rows = _measured(first)
    for i, group in enumerate(result["data"]["stretches_by_group"]):
        of_group = [row["groups"][group] for row in rows]
        changes, errors = ([x[key] or 0 for x in of_group] for key in ("difference", "standard_error"))
        style = {"marker": "o", "ms": 3, "capsize": 2, "lw": 1, "color": plt.cm.tab10(i % 10)}
        right.errorbar([row["length"] for row in rows], changes, errors, label=group, **style)
    right.axhline(0, color="grey", lw=0.8, ls=":")
    right.set(ylabel=f"change from {result['lengths'][0]:,} tokens, bits per base", title=f"{first['model']} by group")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(result["lengths"], [f"{length:,}" for length in result["lengths"]])
        axis.set_xlabel("tokens of a sequence")
        axis.legend(frameon=False, fontsize=8, ncols=1 if axis is left else 2)
        axis.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
    plt.close(figure)


def _measured(model: dict) -> list[dict]:
    return [row for row in model["results"] if row["status"] == "measured"]
