"""Tables of what inference costs and what variant scores are worth, for `tables.py`."""

from .markdown import markdown


def embed(result: dict) -> str:
    """Markdown for a result of `dnabert2 bench embed`."""
    errors = {row["variant"]: f"{row['relative_error']:.1e}" for row in result["agreement"]}
    cells = [
        [
            row["way"],
            f"{row['sequences_per_second']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ratio_to_published']:.2f}",
            errors.get(row["way"], ""),
        ]
        for row in result["results"]
    ]
    titles = ["way", "sequences/s", "real tokens/s", "x published", "relative difference"]
    texts, tokenization = result["sequences"], result["tokenization"]
    speeds = ", ".join(
        f"{row['length'] // 1000:,} kb {row['whole']:.1f} and {row['pieces']:.1f}"
        for row in tokenization["megabases_per_second"]
    )
    padded = result["padded_tokens"] / texts["tokens"]
    note = (
        f"{texts['count']:,} sequences of {texts['median']:,.0f} bases in the median, at most {texts['longest']:,}; "
        f"{texts['tokens']:,} tokens, {padded:.2f} times as many with the pads of batches of {result['batch_size']} "
        f"in input order; {result['parameters']:,} parameters; windows of {result['window']} tokens. Tokenization "
        f"takes {tokenization['seconds']:.2f} s; Mb/s of texts of a length, one by one and in pieces: {speeds}."
    )
    return f"{markdown(titles, 'lrrrr', cells)}\n\n{note}"


def brca1(result: dict) -> str:
    """Markdown for a result of `dnabert2 bench brca1`."""
    kinds = list(result["consequences"])
    titles = ["score", "by", "AUROC", "95 %", *kinds]
    cells = []
    for row in result["entries"]:
        by = [result["consequences"][kind].get(row["name"]) for kind in kinds]
        low, high = row["interval"]
        shown = ["" if own is None else f"{own['auroc']:.3f}" for own in by]
        cells.append([row["name"], row["kind"], f"{row['auroc']:.3f}", f"{low:.3f} to {high:.3f}", *shown])
    counts = result["counts"]
    by_kind = ", ".join(f"{kind} {result['consequences'][kind]['counts'][0]}" for kind in kinds)
    note = (
        f"{counts['lost']:,} loss-of-function and {counts['functional']:,} functional variants at "
        f"{counts['positions']:,} positions; {result['model']}, {result['identity']['dtype']}, {result['context']} "
        f"bases on either side; lost by kind: {by_kind}."
    )
    return f"{markdown(titles, 'll' + 'r' * (len(titles) - 2), cells)}\n\n{note}"
