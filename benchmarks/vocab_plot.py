"""Vocabularies as a picture: length, cost, and what the two arguments against k-mers come to."""

from pathlib import Path

from ..atomic import whole_file

STYLES = {
    "bpe": {"color": "#2f5d8a", "marker": "o", "label": "byte pairs"},
    "overlapping": {"color": "#c0504d", "marker": "^", "label": "overlapping k-mers"},
    "non-overlapping": {"color": "#e0a030", "marker": "s", "label": "non-overlapping k-mers"},
}
LONGEST_SHOWN = 16  # bases; longer tokens are repeats, a fraction of a per cent


def plot_vocabularies(result: dict, path: Path):
    """
    Args:
        result: of `dnabert2 bench vocab`.
        path: PNG to write, whole or not at all.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    rows = result["tokenizers"]
    figure, ((tokens, lengths), (cost, trade)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for kind, style in STYLES.items():
        own = [row for row in rows if row["kind"] == kind]
        entries = [row["entries"] for row in own]
        line = {**style, "ms": 5, "lw": 1.2}
        tokens.plot(entries, [row["tokens_per_base"] for row in own], **line)
        cost.plot(entries, [row["flops_relative"]["encoder"] for row in own], **line)
        line |= {"ls": ":", "mfc": "none", "label": None}
        cost.plot(entries, [row["flops_relative"]["with_head"] for row in own], **line)
        leaked = [100 * row["leakage"]["alone"]["mean_share_spelt"] for row in own]
        kept = [100 * row["stability"]["deletion_at_start"]["surviving_share"]["mean"] for row in own]
        trade.plot(leaked, kept, ls="", **style)
    pairs = [row for row in rows if row["kind"] == "bpe"]
    for i, row in enumerate(pairs):
        points = [(bases, 100 * share) for bases, share in row["token_bases"]["histogram"] if bases <= LONGEST_SHOWN]
        colour = plt.cm.viridis(i / max(1, len(pairs) - 1))
        lengths.plot(*zip(*points, strict=True), marker=".", lw=1, color=colour, label=f"{row['entries']:,}")
    for axis in (tokens, cost):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(ticker.LogLocator(base=2, numticks=20))
        axis.set_xlabel("vocabulary, entries")
    tokens.set(ylabel="tokens per base", title="length")
    cost.set(ylabel=f"FLOPs, {result['flops']['relative_to']} = 1", title="cost (dotted: with the masked-LM head)")
    lengths.set(xlabel="bases of a token", ylabel="% of the tokens", title="byte pairs by vocabulary")
    trade.set(
        xlabel="% of a masked token's bases that its neighbours spell",
        ylabel="% of tokens that survive a lost first base",
        title="leakage and stability",
        xlim=(-5, 105),
        ylim=(-5, 105),
    )
    lengths.legend(frameon=False, fontsize=8)
    for axis in (tokens, cost, trade):
        axis.legend(frameon=False, fontsize=8)
    for axis in (tokens, lengths, cost, trade):
        axis.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=90, format="png", pil_kwargs={"optimize": True})
    plt.close(figure)
