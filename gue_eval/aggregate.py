"""What GUE records come to: means over seeds, ranks over data sets, floors, failures, circumstances.

Scores are x 100, as the paper's. Two scores that print alike, at two decimals, count as equal.
"""

import json
import math
import statistics
from collections import defaultdict

from .comparisons import against_others, between_ours, points
from .floors import FLOORS
from .records import PROBE, PROTOCOLS, RUN, published_auroc, published_scores
from .statistics import average_ranks, critical_difference, friedman
from .tasks import all_tasks

UNGROUPED = "other data sets"
# Settings that say which run it is, or where it lies.
NOT_RECIPE = {"seed", "data_seed", "output_dir", "data_path", "logging_dir", "run_name", "tasks", "seeds", "output"}


def aggregate(records: list[dict], paper: bool = True, baseline: str | None = None, resamples: int = 10_000) -> dict:
    """
    Args:
        records: of `load_records`.
        paper: set the models of the paper's table 4, and published AUROCs, beside ours.
        baseline: a model, of ours or of the paper, that is compared with each of ours.
        resamples: of the paired bootstrap.

    Returns:
        JSON-ready: what `dnabert2 gue report` writes to report.json.

    Raises:
        UserError: if a file of predictions cannot be read.
    """
    runs = [record for record in records if record["benchmark"] == RUN]
    labels = run_labels(runs)
    by_cell = defaultdict(lambda: defaultdict(list))  # task -> label -> finished records
    for record in runs:
        if record["status"] == "finished":
            by_cell[record["task"]][labels[record["model"], record["recipe"]]].append(record)
    ours = list(labels.values())
    published = published_scores() if paper else {}
    rows = score_rows(by_cell, published)
    names = [*ours, *published]
    opponents = [name for name in (baseline, *published) if name is not None]
    known = all_tasks()
    return {
        "models": _models(labels, runs, rows),
        "paper_models": list(published),
        "baseline": baseline,
        "datasets": rows,
        "missing": [name for name in known if name not in by_cell],
        "incomplete": {
            label: gaps
            for label in ours
            if (gaps := [row["dataset"] for row in rows if label not in row["scores"]]) and len(gaps) < len(rows)
        },
        "groups": _groups(rows, names),
        "wins": {name: sum(1 / len(row["best"]) for row in rows if name in row["best"]) for name in names},
        "leagues": _leagues(rows, names, ours),
        "test_without_train": _without_train(by_cell, rows),
        "against": against_others(rows, ours, list(dict.fromkeys(opponents))),
        "pairs": between_ours(rows, by_cell, ours, resamples),
        "floors": _floors(rows, labels, names),
        "failures": [
            {key: record.get(key) for key in ("benchmark", "model", "recipe", "task", "seed", "error")}
            for record in records
            if record["status"] == "failed"
        ],
        "restarts": [
            {key: record.get(key) for key in ("model", "recipe", "task", "seed", "status")} | {"restart": restart}
            for record in records
            for restart in record.get("restarts") or []
        ],
        "circumstances": _circumstances(records),
        "settings": _settings(runs, labels),
        "data": _differing_data(records),
        "probes": _probes([x for x in records if x["benchmark"] == PROBE], published_auroc() if paper else {}),
    }


def run_labels(runs: list[dict]) -> dict[tuple[str, str], str]:
    """(model, recipe) -> what it is called: the model, with its recipe where the name alone is not one's own."""
    pairs = dict.fromkeys((record["model"], record["recipe"]) for record in runs)
    pairs = sorted(pairs, key=lambda pair: pair[0] in FLOORS)  # otherwise in the order of the records
    models, taken = [model for model, _ in pairs], published_scores()
    return {
        (model, recipe): f"{model} ({recipe})" if models.count(model) > 1 or model in taken else model
        for model, recipe in pairs
    }


def score_rows(by_cell: dict, published: dict[str, dict[str, float]]) -> list[dict]:
    """A row for each data set that has a result of ours: task by task, otherwise in the order of tasks.csv."""
    known = all_tasks()
    rows = []
    for dataset in [*(x for x in known if x in by_cell), *sorted(x for x in by_cell if x not in known)]:
        scores = {}
        for label, records in by_cell[dataset].items():
            records = sorted(records, key=lambda x: x["seed"])
            values = [100 * record["test"][record["metric"]] for record in records]
            scores[label] = {**_mean(values), "seeds": [record["seed"] for record in records], "values": values}
        row = {
            "dataset": dataset,
            "group": known[dataset].task if dataset in known else UNGROUPED,
            "metric": next(iter(by_cell[dataset].values()))[0]["metric"],
            "scores": scores,
            "paper": {name: column[dataset] for name, column in published.items() if dataset in column},
        }
        rows.append(row | {"best": best(points(row))})
    groups = list(dict.fromkeys(row["group"] for row in rows))
    return sorted(rows, key=lambda row: groups.index(row["group"]))


def best(scores: dict) -> list:
    """Keys of the highest value."""
    return [name for name, value in scores.items() if value == max(scores.values())]


def _mean(values: list[float]) -> dict:
    return {
        "mean": statistics.fmean(values),
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
    }


def _models(labels: dict, runs: list[dict], rows: list[dict]) -> list[dict]:
    described = []
    for (model, recipe), label in labels.items():
        own = [x for x in runs if (x["model"], x["recipe"]) == (model, recipe)]
        described.append(
            {
                "label": label,
                "model": model,
                "recipe": recipe,
                "parameters": next((x["parameters"] for x in own if x.get("parameters") is not None), None),
                "floor": model in FLOORS,
                "datasets": sum(label in row["scores"] for row in rows),
                "finished": sum(x["status"] == "finished" for x in own),
                "failed": sum(x["status"] == "failed" for x in own),
            }
        )
    return described


def _groups(rows: list[dict], names: list[str]) -> list[dict]:
    """Means by group of data sets, and of all; only models that have every data set of a group can be its best."""
    groups = {name: [row for row in rows if row["group"] == name] for name in dict.fromkeys(x["group"] for x in rows)}
    found = []
    for group, own in (groups | {"all": rows}).items():
        values = {name: [points(row)[name] for row in own if name in points(row)] for name in names}
        means = {name: {"mean": statistics.fmean(x), "datasets": len(x)} for name, x in values.items() if x}
        complete = {name: round(x["mean"], 2) for name, x in means.items() if x["datasets"] == len(own)}
        found.append(
            {"group": group, "datasets": [row["dataset"] for row in own], "means": means, "best": best(complete)}
        )
    return found


def _leagues(rows: list[dict], names: list[str], ours: list[str]) -> list[dict]:
    """
    Ranks among models over the data sets that all of them have: first of all models, then without those that have
    the fewest data sets, for as long as that leaves more data sets to compare on.
    """
    have = {name: sum(name in points(row) for row in rows) for name in names}
    remaining = [name for name in names if have[name]]
    leagues = []
    while any(name in ours for name in remaining):
        common = [row for row in rows if all(name in points(row) for name in remaining)]
        if common and (not leagues or len(common) > len(leagues[-1]["datasets"])):
            leagues.append(_league(common, remaining))
        fewest = min(have[name] for name in remaining)
        dropped = [name for name in remaining if have[name] == fewest]
        if not common:  # models that share nothing: one of them at a time
            dropped = dropped[-1:]
        remaining = [name for name in remaining if name not in dropped]
    return leagues


def _league(rows: list[dict], names: list[str]) -> dict:
    scores = [[points(row)[name] for name in names] for row in rows]
    ranks = average_ranks(scores)
    test = friedman(scores)  # Nemenyi's differences follow it, and mean nothing where it cannot be made
    winners = [best(dict(zip(names, line, strict=True))) for line in scores]
    models = [
        {
            "name": name,
            "rank": float(ranks[i]),
            "mean": statistics.fmean(line[i] for line in scores),
            "wins": sum(1 / len(x) for x in winners if name in x),
        }
        for i, name in enumerate(names)
    ]
    return {
        "datasets": [row["dataset"] for row in rows],
        "models": sorted(models, key=lambda x: x["rank"]),
        "friedman": test,
        "critical_difference": critical_difference(len(names), len(rows)) if test else None,
    }


def _without_train(by_cell: dict, rows: list[dict]) -> list[dict]:
    found = []
    for row in rows:
        for label, records in by_cell[row["dataset"]].items():
            both = [
                (x["test"][x["metric"]], x["test_without_train"][x["metric"]])
                for x in records
                if x.get("test_without_train")
            ]
            removed = {x["test_without_train"].get("rows_removed") for x in records if x.get("test_without_train")}
            if both:
                whole, without = (100 * statistics.fmean(x) for x in zip(*both, strict=True))
                found.append(
                    {
                        "dataset": row["dataset"],
                        "model": label,
                        "seeds": len(both),
                        "rows_removed": sorted(removed - {None}),
                        "test": whole,
                        "without": without,
                        "difference": without - whole,
                    }
                )
    return found


def _floors(rows: list[dict], labels: dict, names: list[str]) -> dict:
    """Where the best of the floors is above models that are none."""
    floors = [label for (model, _), label in labels.items() if model in FLOORS]
    others = [name for name in names if name not in floors]
    lost = {name: [0, 0] for name in others}
    datasets = []
    for row in rows:
        scores = points(row)
        reached = {name: scores[name] for name in floors if name in scores}
        if not reached:
            continue
        top = max(reached.values())
        beside = [name for name in others if name in scores]
        beaten = [name for name in beside if scores[name] < top]
        for name in beside:
            lost[name][0] += name in beaten
            lost[name][1] += 1
        found = {"dataset": row["dataset"], "floors": best(reached), "score": top, "beaten": beaten}
        datasets.append(found | {"above_all": bool(beaten) and beaten == beside})
    return {
        "names": floors,
        "datasets": datasets,
        "lost": {name: {"datasets": n, "of": of} for name, (n, of) in lost.items() if of},
    }


def _circumstances(records: list[dict]) -> list[dict]:
    """Devices, versions and commits, and how many records came of each."""
    groups = defaultdict(list)
    for record in records:
        origin = record.get("provenance") or {}
        device, git = origin.get("device") or {}, origin.get("git") or {}
        versions = origin.get("versions") or {}
        key = (device.get("name"), tuple(versions.items()), git.get("commit"), git.get("dirty"))
        groups[key].append(record)
    found = []
    for (device, versions, commit, dirty), own in groups.items():
        dates = sorted(date for x in own if (date := (x.get("provenance") or {}).get("date")))
        found.append(
            {
                "device": device,
                "versions": dict(versions),
                "commit": commit,
                "dirty": dirty,
                "first": dates[0] if dates else None,
                "last": dates[-1] if dates else None,
                "records": len(own),
                "models": sorted({x["model"] for x in own}),
            }
        )
    return found


def _settings(runs: list[dict], labels: dict) -> list[dict]:
    """Settings that are not the same in all runs of a model and recipe."""
    found = []
    for (model, recipe), label in labels.items():
        own = [x for x in runs if (x["model"], x["recipe"]) == (model, recipe) and x.get("settings")]
        for key in dict.fromkeys(key for x in own for key in x["settings"] if key not in NOT_RECIPE):
            values = defaultdict(set)  # value -> data sets
            for x in own:
                values[json.dumps(x["settings"].get(key), sort_keys=True)].add(x["task"])
            if len(values) > 1:
                tasks = [task for used in values.values() for task in used]
                found.append(
                    {
                        "model": label,
                        "setting": key,
                        "values": {value: sorted(used) for value, used in values.items()},
                        "between_seeds_of": sorted({task for task in tasks if tasks.count(task) > 1}),
                    }
                )
    return found


def _differing_data(records: list[dict]) -> list[dict]:
    """Data sets that not all records read from the same files."""
    seen = defaultdict(lambda: defaultdict(set))
    for record in records:
        checksums = (record.get("data") or {}).get("sha256")
        if checksums:
            seen[record["task"]][json.dumps(checksums, sort_keys=True)].add(record["model"])
    return [
        {"dataset": task, "versions": {checksums: sorted(models) for checksums, models in versions.items()}}
        for task, versions in seen.items()
        if len(versions) > 1
    ]


def _probes(records: list[dict], published: dict[str, dict[str, float]]) -> dict:
    by_task = defaultdict(dict)
    for record in records:
        if record["status"] == "finished":
            label = f"{record['model']} (here)" if record["model"] in published else record["model"]
            by_task[record["task"]][label] = {name: x["auroc"] for name, x in record["protocols"].items()}
    known = all_tasks()
    rows = []
    for task in [*(x for x in known if x in by_task), *sorted(x for x in by_task if x not in known)]:
        beside = {name: values[task] for name, values in published.items() if task in values}
        full = {name: x["full"]["mean"] for name, x in by_task[task].items() if "full" in x}
        shown = {name: round(value, 4) for name, value in (full | beside).items()}
        rows.append({"dataset": task, "auroc": by_task[task], "published": beside, "best": best(shown)})
    models = sorted({name for row in rows for name in row["auroc"]})
    columns = [(name, protocol) for name in models for protocol in PROTOCOLS] + [(name, None) for name in published]
    columns = [column for column in columns if any(probe_score(row, *column) is not None for row in rows)]
    common = [row for row in rows if all(probe_score(row, *column) is not None for column in columns)]
    means = [math.fsum(probe_score(row, *column) for row in common) / len(common) for column in columns if common]
    return {"columns": columns, "datasets": rows, "common": [row["dataset"] for row in common], "means": means}


def probe_score(row: dict, name: str, protocol: str | None) -> float | None:
    """Mean AUROC of a model of ours under a protocol; without one, the published AUROC."""
    if protocol is None:
        return row["published"].get(name)
    return row["auroc"].get(name, {}).get(protocol, {}).get("mean")
