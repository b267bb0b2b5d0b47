"""The sections of a GUE report that hold no scores: which models ran, what failed, and where all was run."""

import json

from .report_document import Cell, Section, Table
from .report_sections import datasets, listed

LONGEST = 60  # characters of a setting's value


def opening_section(numbers: dict) -> Section:
    """What was compared."""
    rows = [
        [
            model["label"],
            model["recipe"],
            "" if model["parameters"] is None else f"{model['parameters']:,}",
            str(model["datasets"]),
            str(model["finished"]),
            str(model["failed"]),
        ]
        for model in numbers["models"]
    ]
    titles = ["model", "recipe", "parameters", "data sets", "runs finished", "runs failed"]
    beside = f" beside {len(numbers['paper_models'])} models of the paper" if numbers["paper_models"] else ""
    count = len(rows)
    text = f"{count} model{'' if count == 1 else 's'} of ours on {datasets(len(numbers['datasets']))}{beside}."
    if not rows:
        return Section("Models", ["No run of GUE is among the records."])
    return Section("Models", [text, Table(titles, "llrrrr", rows)])


def closing_sections(numbers: dict) -> list[Section]:
    """What went wrong, and where all numbers come from."""
    return [_failures(numbers), _circumstances(numbers)]


def _failures(numbers: dict) -> Section:
    blocks = []
    if numbers["failures"]:
        rows = []
        for x in numbers["failures"]:
            seed = "" if x["seed"] is None else str(x["seed"])
            rows.append([x["model"], x["recipe"] or "probe", x["task"], seed, _text(x["error"])])
        blocks += ["Failed:", Table(["model", "recipe", "data set", "seed", "why"], "lllrl", rows)]
    if numbers["restarts"]:
        rows = []
        for x in numbers["restarts"]:
            restart = x["restart"] if isinstance(x["restart"], dict) else {"reason": x["restart"]}
            rows.append([x["model"], x["recipe"], x["task"], _text(restart.get("seed")), _text(restart.get("reason"))])
        blocks += [
            "Runs that died and were started again, with the seed they died with:",
            Table(["model", "recipe", "data set", "seed", "why"], "lllrl", rows),
        ]
    return Section("Failures and restarts", blocks or ["No run failed, and none had to be started again."])


def _circumstances(numbers: dict) -> Section:
    rows = []
    for x in numbers["circumstances"]:
        commit = "not recorded" if x["commit"] is None else x["commit"][:10] + (", modified" if x["dirty"] else "")
        dates = sorted({date[:10] for date in (x["first"], x["last"]) if date})
        versions = listed([f"{name} {version}" for name, version in x["versions"].items()])
        origin = [x["device"] or "not recorded", versions, commit, " to ".join(dates)]
        rows.append([*origin, str(x["records"]), listed(x["models"])])
    titles = ["device", "versions", "commit", "dates", "records", "models"]
    blocks = [Table(titles, "llllrl", rows)]
    if numbers["settings"]:
        rows = []
        for x in numbers["settings"]:
            values = [f"{_short(value)}: {datasets(len(used))}" for value, used in x["values"].items()]
            seeds = listed(x["between_seeds_of"])
            rows.append([x["model"], x["setting"], "; ".join(values), Cell(seeds, "best") if seeds else "none"])
        blocks += [
            "Settings that are not the same in all runs of a model. A recipe may differ between data sets; where it "
            "differs between the seeds of one, their mean is of unlike runs.",
            Table(["model", "setting", "values", "differs between seeds of"], "llll", rows),
        ]
    if numbers["data"]:
        rows = [
            [x["dataset"], f"version {i}", listed(models)]
            for x in numbers["data"]
            for i, models in enumerate(x["versions"].values(), start=1)
        ]
        blocks += [
            "Not all models read the same files of these data sets (checksums are in report.json), so their scores "
            "are not comparable.",
            Table(["data set", "files", "models"], "lll", rows),
        ]
    return Section("Where the numbers come from", blocks)


def _text(value) -> str:
    if value is None:
        return "not recorded"
    return value if isinstance(value, str) else json.dumps(value)


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else value[: LONGEST - 3] + "..."
