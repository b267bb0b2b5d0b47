"""The sections of a GUE report that hold scores: numbers of `aggregate` put into words and tables."""

from .aggregate import probe_score
from .comparisons import SIGNIFICANT, points
from .floors import FLOORS
from .records import PROTOCOLS
from .report_document import Cell, Section, Table, as_cell

METRICS = {"matthews_correlation": "MCC", "f1": "F1"}
DEMSAR = "Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006"


def score_sections(numbers: dict) -> list[Section]:
    """Sections from the scores to the probes; one that would be empty is left out, or says why it is."""
    made = [_scores(numbers), _groups(numbers), _ranks(numbers), _floors(numbers)] if numbers["datasets"] else []
    made += [_against(numbers), _pairs(numbers), _without_train(numbers), _probes(numbers)]
    return [section for section in made if section]


def names_of(numbers: dict) -> list[str]:
    """Models in the order of the columns: ours, then the paper's."""
    return [model["label"] for model in numbers["models"]] + numbers["paper_models"]


def spread(score: dict, digits: int = 2) -> str:
    """Mean ± standard deviation, which is left out if there is none."""
    deviation = score["standard_deviation"]
    return f"{score['mean']:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def datasets(count: int) -> str:
    return f"{count} data set{'' if count == 1 else 's'}"


def listed(names: list[str]) -> str:
    return ", ".join(names)


def p_value(p: float | None) -> str | Cell:
    if p is None:
        return ""
    text = f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"
    return Cell(text, "best" if p < SIGNIFICANT else "")


def plain(p: float | None) -> str:
    return as_cell(p_value(p)).text


def _titles(numbers: dict) -> list[str | Cell]:
    papers = numbers["paper_models"]
    return [Cell(name, "paper" if name in papers else "") for name in names_of(numbers)]


def _scores(numbers: dict) -> Section:
    rows = []
    for row in numbers["datasets"]:
        cells = []
        for name in names_of(numbers):
            score = row["scores"].get(name)
            if score:
                text = f"{spread(score)} ({len(score['seeds'])})"
            else:
                text = f"{row['paper'][name]:.2f}" if name in row["paper"] else ""
            cells.append(Cell(text, "best" if name in row["best"] else ""))
        rows.append([row["dataset"], METRICS.get(row["metric"], row["metric"]), *cells])
    note = (
        "Test scores x 100: mean ± standard deviation over the seeds, whose number stands in brackets. Bold is the "
        "best of a row at two decimals."
    )
    if numbers["paper_models"]:
        note += " In italics: table 4 of the DNABERT-2 paper, a single number each."
    blocks = [note, Table(["data set", "metric", *_titles(numbers)], "ll" + "r" * len(names_of(numbers)), rows)]
    if numbers["missing"]:
        blocks.append(f"Without a result: {listed(numbers['missing'])}.")
    blocks += [f"{label} has no result on {listed(gaps)}." for label, gaps in numbers["incomplete"].items()]
    return Section("Scores by data set", blocks)


def _groups(numbers: dict) -> Section:
    rows = []
    for group in numbers["groups"]:
        total, cells = len(group["datasets"]), []
        for name in names_of(numbers):
            mean = group["means"].get(name)
            text = f"{mean['mean']:.2f}" if mean else ""
            if mean and mean["datasets"] < total:
                text += f" ({mean['datasets']} of {total})"
            cells.append(Cell(text, "best" if name in group["best"] else ""))
        rows.append([group["group"], str(total), *cells])
    note = (
        "Means over the data sets above. A mean over fewer of them than the row has says over how many, and is not "
        "comparable with the others of its row."
    )
    table = Table(["task", "data sets", *_titles(numbers)], "lr" + "r" * len(names_of(numbers)), rows)
    return Section("Means by task", [note, table])


def _ranks(numbers: dict) -> Section:
    have = {name: sum(name in points(row) for row in numbers["datasets"]) for name in names_of(numbers)}
    wins = [[name, f"{won:g}", str(have[name])] for name, won in numbers["wins"].items() if have[name]]
    wins.sort(key=lambda row: -float(row[1]))
    blocks = [
        "Wins are data sets on which a model is the best of all shown; those who tie share the win.",
        Table(["model", "wins", "of data sets"], "lrr", [[_name(numbers, x), won, of] for x, won, of in wins]),
    ]
    for league in numbers["leagues"]:
        blocks += _league(numbers, league)
    return Section("Wins and average ranks", blocks)


def _name(numbers: dict, name: str) -> Cell:
    return Cell(name, "paper" if name in numbers["paper_models"] else "")


def _league(numbers: dict, league: dict) -> list[str | Table]:
    models, count = league["models"], len(league["datasets"])
    test, difference = league["friedman"], league["critical_difference"]
    absent = [name for name in names_of(numbers) if name not in [x["name"] for x in models]]
    text = f"Average ranks of {len(models)} models over the {datasets(count)} that all of them have"
    text += f" (without {listed(absent)}, which lack some): " if absent else ": "
    text += "all that are shown." if count == len(numbers["datasets"]) else f"{listed(league['datasets'])}."
    rows = []
    for model in models:
        row = [_name(numbers, model["name"]), f"{model['rank']:.2f}", f"{model['mean']:.2f}", f"{model['wins']:g}"]
        if test:
            row.append("yes" if model["rank"] - models[0]["rank"] < difference else "no")
        rows.append(row)
    titles = ["model", "average rank", f"mean, n = {count}", "wins among these"]
    if test:
        titles.append("not told apart from the first")
    blocks = [text, Table(titles, "lrrrl"[: len(titles)], rows)]
    if test:
        told = f"Friedman's test: chi-square {test['chi_square']:.2f}, p {plain(test['p'])}"
        if test["f"] is not None:
            told += f"; Iman and Davenport's F {test['f']:.2f}, p {plain(test['f_p'])}"
        blocks.append(
            f"{told}. Nemenyi's critical difference at 0.05 is {difference:.2f} ranks: models that are nearer to each "
            f"other are not told apart ({DEMSAR})."
        )
    return blocks


def _floors(numbers: dict) -> Section:
    floors, title = numbers["floors"], "Where a floor wins"
    if not floors["datasets"]:
        return Section(title, [f"No floor ({listed(list(FLOORS))}) was run on these data sets, so nothing is known."])
    rows = [
        [x["dataset"], f"{x['score']:.2f}", listed(x["floors"]), listed(x["beaten"])]
        for x in floors["datasets"]
        if x["beaten"]
    ]
    note = (
        f"Floors ({listed(floors['names'])}) learn from a data set's own training rows alone. Where the best of them "
        "is above a pretrained model, the data set does not show what pretraining is worth."
    )
    if not rows:
        return Section(title, [note, f"On none of {datasets(len(floors['datasets']))} is a floor above such a model."])
    lost = [
        [_name(numbers, name), f"{x['datasets']} of {x['of']}"] for name, x in floors["lost"].items() if x["datasets"]
    ]
    everywhere = [x["dataset"] for x in floors["datasets"] if x["above_all"]]
    told = f"A floor is above at least one of these models on {len(rows)} of {datasets(len(floors['datasets']))}"
    told += f", and above every one on {listed(everywhere)}." if everywhere else ", and above every one on none."
    tables = [
        Table(["data set", "floor's score", "floor", "models below it"], "lrll", rows),
        Table(["model", "data sets on which a floor is above it"], "lr", lost),
    ]
    return Section(title, [note, told, *tables])


def _against(numbers: dict) -> Section | None:
    if not numbers["against"]:
        return None
    rows = [
        [
            x["model"],
            _name(numbers, x["other"]),
            str(x["datasets"]),
            f"{x['higher']} / {x['lower']}",
            f"{x['mean_difference']:+.2f}",
            plain(x["p"]),
            p_value(x["p_holm"]),
        ]
        for x in numbers["against"]
    ]
    baseline = f"The baseline is {numbers['baseline']}. " if numbers["baseline"] else ""
    note = (
        f"{baseline}Wilcoxon's signed-rank test of paired scores over the data sets that both models have; Holm's "
        "correction is over the tests of one model, and bold is below 0.05. With fewer than six data sets no "
        "difference can be."
    )
    if numbers["paper_models"]:
        note += " The paper's table has one number for each score, without its spread."
    titles = ["model", "against", "data sets", "higher / lower", "mean difference", "p", "p, Holm"]
    title = "Against the baseline and the paper" if numbers["paper_models"] else "Against the baseline"
    return Section(title, [note, Table(titles, "llrrrrr", rows)])


def _pairs(numbers: dict) -> Section | None:
    if not numbers["pairs"]:
        return None
    rows, each = [], []
    for pair in numbers["pairs"]:
        tests = [pair[key] for key in ("welch", "bootstrap")]
        told = [f"{x['higher']} / {x['lower']} of {x['tests']}" if x["tests"] else "" for x in tests]
        difference = [f"{pair['higher']} / {pair['lower']}", f"{pair['mean_difference']:+.2f}"]
        rows.append([pair["model"], pair["other"], str(pair["datasets"]), *difference, p_value(pair["p_holm"]), *told])
        for x in pair["by_dataset"]:
            drawn = x["bootstrap"]
            interval = f"{drawn['low']:+.2f} to {drawn['high']:+.2f}" if drawn else x["no_bootstrap"]
            tested = [p_value(x["welch_p_holm"]), interval, p_value(x["bootstrap_p_holm"])]
            each.append([x["dataset"], pair["model"], pair["other"], f"{x['difference']:+.2f}", *tested])
    note = (
        "Two tests on each data set: Welch's t-test over seeds (two of each model at least), and a bootstrap over "
        "test rows where the predictions lie beside the records; Holm's correction is over the data sets of a pair. "
        "Told apart: on how many data sets the first is above / below the second with p < 0.05. Over the data sets: "
        "Wilcoxon's test, corrected over the pairs."
    )
    titles = ["first", "second", "data sets", "higher / lower", "mean difference", "p over data sets, Holm"]
    told = ["told apart over seeds", "told apart over test rows"]
    single = ["data set", "first", "second", "difference", "p over seeds, Holm"]
    single += ["95 % of the bootstrap", "p over test rows, Holm"]
    tables = [
        Table([*titles, *told], "llrrrrrr", rows),
        Table(single, "lllrrrr", each, folded="Each pair on each data set"),
    ]
    return Section("Our models among each other", [note, *tables])


def _without_train(numbers: dict) -> Section | None:
    if not numbers["test_without_train"]:
        return None
    rows = [
        [
            x["dataset"],
            x["model"],
            listed([f"{n:,}" for n in x["rows_removed"]]),
            str(x["seeds"]),
            f"{x['test']:.2f}",
            f"{x['without']:.2f}",
            f"{x['difference']:+.2f}",
        ]
        for x in numbers["test_without_train"]
    ]
    note = (
        "Some test rows stand in the training split too. The same models on the test rows as they are, and without "
        "those rows."
    )
    titles = ["data set", "model", "rows left out", "seeds", "whole test split", "without them", "difference"]
    return Section("With and without test rows that stand in train", [note, Table(titles, "llrrrrr", rows)])


def _probes(numbers: dict) -> Section | None:
    probes = numbers["probes"]
    if not probes["datasets"]:
        return None
    rows = []
    for row in probes["datasets"]:
        cells = []
        for name, protocol in probes["columns"]:
            value = probe_score(row, name, protocol)
            text = "" if value is None else f"{value:.4f}"
            if value is not None and protocol in PROTOCOLS:
                text = spread({"standard_deviation": None} | row["auroc"][name][protocol], digits=4)
            cells.append(Cell(text, "best" if name in row["best"] and protocol in ("full", None) else ""))
        rows.append([row["dataset"], *cells])
    if probes["means"]:
        rows.append([f"mean, n = {len(probes['common'])}", *(f"{mean:.4f}" for mean in probes["means"])])
    titles = [Cell(name, "paper") if p is None else f"{name}, {p}" for name, p in probes["columns"]]
    note = (
        "AUROC of a classifier on frozen, mean-pooled embeddings: all training rows (full), ten and one of each "
        "class; mean ± standard deviation over seeds. Bold is the best of those on all rows. The mean is over the "
        "data sets that every column has."
    )
    if numbers["paper_models"]:
        note += (
            " In italics: published, by another protocol of classifiers (Feng et al., Nature Communications 16:10780, "
            "2025, tables 1-3)."
        )
    return Section("Frozen embeddings", [note, Table(["data set", *titles], "l" + "r" * len(titles), rows)])
