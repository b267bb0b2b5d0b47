"""The README's tables of GUE, from the records that `gue run` and `gue probe` wrote: see `tables.py`."""

from pathlib import Path

from ..gue_eval.records import PROBE, PROTOCOLS, RUN, load_records, published_auroc
from ..gue_eval.report import headline_table

FOLDER = "gue"  # of benchmarks/results
BESIDE = ("DNABERT-2", "Caduceus-Ph")  # published AUROCs to show


def runs(results: Path) -> str | None:
    """Test scores of our models by dataset, beside the paper's; None if there are no records."""
    records = [record for record in _records(results) if record["benchmark"] == RUN]
    if not records:
        return None
    return f"{headline_table(records)}\n\n{_origins(records)}"


def probes(results: Path) -> str | None:
    """AUROC x 100 of linear probes by dataset: all rows, ten and one a class; None if there are no records."""
    records = [x for x in _records(results) if x["benchmark"] == PROBE and x["status"] == "finished"]
    if not records:
        return None
    models = sorted({record["model"] for record in records})
    by_run = {(record["model"], record["task"]): record["protocols"] for record in records}
    published = published_auroc()
    titles = ["dataset", *(f"{model}: {' / '.join(PROTOCOLS)}" for model in models), *BESIDE]
    rows, sums = [], [[] for _ in (*models, *BESIDE)]
    for task in sorted({record["task"] for record in records}):
        values = [by_run.get((model, task)) for model in models]
        scores = [None if x is None else [100 * x[p]["auroc"]["mean"] for p in PROTOCOLS] for x in values]
        scores += [[100 * published[name][task]] if task in published[name] else None for name in BESIDE]
        for kept, score in zip(sums, scores, strict=True):
            kept.append(score)
        rows.append([task, *map(_cell, scores)])
    means = [
        [sum(column) / len(column) for column in zip(*kept, strict=True)] if None not in kept else None
        for kept in sums
    ]
    rows.append(["mean", *map(_cell, means)])
    rule = ["---", *["---:"] * (len(titles) - 1)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [titles, rule, *rows])
    return f"{table}\n\n{_origins(records)}"


def _records(results: Path) -> list[dict]:
    folder = results / FOLDER
    return load_records([folder]) if folder.is_dir() else []


def _means(scores: list[list[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*scores, strict=True)]


def _cell(scores: list[float] | None) -> str:
    return "" if scores is None else " / ".join(f"{score:.1f}" for score in scores)


def _origins(records: list[dict]) -> str:
    """Devices, versions and commits of all the records, in a sentence."""
    found = [record["provenance"] for record in records if record.get("provenance")]
    parts = [
        sorted({x["device"]["name"] for x in found}),
        sorted({f"torch {x['versions']['torch']}" for x in found}),
        sorted({f"transformers {x['versions']['transformers']}" for x in found}),
        sorted({_commit(x["git"]) for x in found}),
    ]
    dates = sorted({x["date"][:10] for x in found})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    link = f"[{FOLDER}](benchmarks/results/{FOLDER})"
    return f"{len(records)} records in {link}: {'; '.join(map(', '.join, parts))}; {when}."


def _commit(git: dict) -> str:
    commit = "no commit" if git["commit"] is None else f"commit {git['commit'][:10]}"
    return f"{commit}, modified" if git["dirty"] else commit


# name of the markers -> what stands between them
TABLES = {"gue": runs, "gue-probe": probes}
