"""Models of ours compared with each other and with others, data set by data set and over all of them."""

import itertools
import statistics
from pathlib import Path

from ..errors import UserError
from .statistics import holm, paired_bootstrap, welch, wilcoxon

SIGNIFICANT = 0.05


def points(row: dict) -> dict[str, float]:
    """Every model's score on a data set, of ours the mean, as it prints."""
    means = {label: score["mean"] for label, score in row["scores"].items()}
    return {name: round(value, 2) for name, value in (means | row["paper"]).items()}


def against_others(rows: list[dict], ours: list[str], opponents: list[str]) -> list[dict]:
    """Wilcoxon tests of each of our models against each opponent; Holm's correction is over those of one model."""
    found = []
    for name in ours:
        tests = [_over_datasets(rows, name, other) for other in opponents if other != name]
        for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
            found.append(test | {"p_holm": p})
    return [test for test in found if test["datasets"]]


def between_ours(rows: list[dict], by_cell: dict, ours: list[str], resamples: int) -> list[dict]:
    """
    Every two of our models: on each data set Welch's test over seeds and a bootstrap over test rows, Holm's
    correction over the data sets; over all data sets Wilcoxon's test, Holm's correction over the pairs.

    Args:
        by_cell: data set -> model -> finished records.
    """
    cache, pairs = {}, []
    for first, second in itertools.combinations(ours, 2):
        datasets = []
        for row in rows:
            if first not in row["scores"] or second not in row["scores"]:
                continue
            own = by_cell[row["dataset"]]
            scores = [row["scores"][name] for name in (first, second)]
            drawn, reason = _bootstrap(own[first], own[second], row["metric"], resamples, cache)
            datasets.append(
                {
                    "dataset": row["dataset"],
                    "difference": scores[0]["mean"] - scores[1]["mean"],
                    "welch_p": welch(scores[0]["values"], scores[1]["values"]),
                    "bootstrap": drawn,
                    "no_bootstrap": reason,
                }
            )
        if not datasets:
            continue
        corrected = {
            "welch_p_holm": holm([x["welch_p"] for x in datasets]),
            "bootstrap_p_holm": holm([x["bootstrap"]["p"] if x["bootstrap"] else None for x in datasets]),
        }
        for key, values in corrected.items():
            for entry, p in zip(datasets, values, strict=True):
                entry[key] = p
        pair = _over_datasets(rows, first, second) | {"by_dataset": datasets}
        for key in corrected:
            signs = [x["difference"] > 0 for x in datasets if x[key] is not None and x[key] < SIGNIFICANT]
            pair[key.removesuffix("_p_holm")] = {
                "tests": sum(x[key] is not None for x in datasets),
                "higher": sum(signs),
                "lower": len(signs) - sum(signs),
            }
        pairs.append(pair)
    for pair, p in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_holm"] = p
    return pairs


def _over_datasets(rows: list[dict], first: str, second: str) -> dict:
    both = [(x[first], x[second]) for x in map(points, rows) if first in x and second in x]
    differences = [a - b for a, b in both]
    return {
        "model": first,
        "other": second,
        "datasets": len(both),
        "higher": sum(x > 0 for x in differences),
        "lower": sum(x < 0 for x in differences),
        "mean_difference": statistics.fmean(differences) if both else None,
        "p": wilcoxon(*zip(*both, strict=True)) if both else None,
    }


def _bootstrap(first: list[dict], second: list[dict], metric: str, resamples: int, cache: dict):
    """What `paired_bootstrap` finds, x 100, and None; or None and why there is none."""
    sides = [[x for record in records if (x := _predictions(record, cache))] for records in (first, second)]
    if not all(sides):
        return None, "no predictions beside the records"
    labels = sides[0][0][0]
    if any(len(x) != len(labels) or (x != labels).any() for side in sides for x, _ in side):
        return None, "the files of predictions have other labels"
    found = paired_bootstrap(labels, *([guesses for _, guesses in side] for side in sides), metric, resamples)
    scaled = {key: 100 * found[key] for key in ("difference", "low", "high")}
    return found | scaled | {"seeds": [len(side) for side in sides]}, None


def _predictions(record: dict, cache: dict):
    """(labels, predictions) of the file beside a record; None if there is none."""
    import pyarrow
    import pyarrow.parquet as pq

    if "path" not in record:
        return None
    path = Path(record["path"])
    path = path.with_name(f"{path.stem}.predictions.parquet")
    if path not in cache:
        cache[path] = None
        if path.is_file():
            try:
                table = pq.read_table(path, columns=["label", "prediction"])
            except (OSError, pyarrow.ArrowException, KeyError) as error:
                raise UserError(
                    f"{path} is not a table of label and prediction ({str(error).splitlines()[0]}): delete it, or run "
                    "the task again."
                ) from error
            cache[path] = tuple(table[name].to_numpy() for name in ("label", "prediction"))
    return cache[path]
