"""A pretraining run as a picture: loss against step, and held-out bits per base by group."""

from pathlib import Path

from ..atomic import whole_file

SUFFIX = "_bits_per_base"


def plot_curve(history: list[dict], path: Path, title: str = ""):
    """
    Args:
        history: the Trainer's `log_history`.
        path: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if train:
        left.plot(*zip(*train, strict=True), lw=0.8, label="training", color="#7a9cc6")
    if held_out:
        left.plot(*zip(*held_out, strict=True), lw=1.6, marker="o", ms=3, label="held out", color="#c0504d")
    left.set(xlabel="step", ylabel="loss (nats a masked token)", title=title)
    if train or held_out:
        left.legend(frameon=False)
    names = sorted({key for entry in history for key in entry if key.startswith("eval_") and key.endswith(SUFFIX)})
    names.sort(key=lambda name: name == f"eval{SUFFIX}")  # all together last, and on top
    for i, name in enumerate(names):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        group = name.removeprefix("eval").removesuffix(SUFFIX).strip("_")
        style = {"color": "black", "lw": 2} if not group else {"color": plt.cm.tab10(i % 10), "lw": 1.2}
        right.plot(*zip(*points, strict=True), label=group.replace("_", " ") or "all", **style)
    right.axhline(2, color="grey", lw=0.8, ls=":")
    right.set(xlabel="step", ylabel="bits per base, held out", title="uniform bases: 2")
    if names:
        right.legend(frameon=False, fontsize=8, ncols=2)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
    plt.close(figure)
