"""`dnabert2 gue report`: records of GUE runs and probes, summed up beside the paper's numbers, failures included.

    dnabert2 gue report --results results/gue --output report
    dnabert2 gue report --results runs more_runs --output report --models mini,cnn --baseline cnn --no_paper

writes report.md, report.html (one file that needs no other), report.png and report.json (all the numbers). It reads
records alone: minutes on a CPU where many files of predictions lie beside them, seconds otherwise.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..atomic import write_whole
from ..errors import UserError, run_verb
from .outputs import output_folder
from .records import RUN, load_records, published_scores

__all__ = ["headline_table", "load_records", "main", "report"]

DEFAULT_BASELINE = "DNABERT-2"
TITLE = "GUE: our models beside the paper's"
PICTURE = "report.png"


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if the report was written, 2 if records or options cannot be used."""
    parser = argparse.ArgumentParser(
        prog="dnabert2 gue report",
        description="Sum up GUE records: scores over seeds beside the paper's table 4, ranks, tests, failures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="folders with records of gue run")
    parser.add_argument("--output", type=Path, required=True, help="folder for report.md, .html, .png and .json")
    parser.add_argument(
        "--baseline", help=f"model that ours are compared with; {DEFAULT_BASELINE} unless --no_paper leaves it out"
    )
    parser.add_argument("--models", help="only these of our models, separated by commas; all if not given")
    parser.add_argument("--no_paper", action="store_true", help="leave the published numbers out")
    parser.add_argument("--resamples", type=int, default=10_000, help="resamples of the paired bootstrap")
    options = parser.parse_args(argv)
    return run_verb(report, options)


def report(options: argparse.Namespace):
    """
    Body of the verb.

    Raises:
        UserError: if a record is damaged, there is none, or a model of the options is not among them.
    """
    # Imports scipy; --help has been answered by now.
    from .aggregate import aggregate
    from .report_circumstances import closing_sections, opening_section
    from .report_document import Picture, Section, markdown
    from .report_html import page
    from .report_plot import plot_scores
    from .report_sections import datasets, score_sections

    if options.resamples < 100:
        raise UserError(f"--resamples is {options.resamples}: at least 100 are needed.")
    records = load_records(options.results)
    if not records:
        folders = ", ".join(map(str, options.results))
        raise UserError(f"There is no GUE record in {folders}: `dnabert2 gue run --output` writes them.")
    if options.models is not None:
        records = select(records, [name.strip() for name in options.models.split(",") if name.strip()])
    baseline = _baseline(records, options.baseline, not options.no_paper)
    output_folder(options.output)
    numbers = aggregate(records, not options.no_paper, baseline, options.resamples)

    sections = [opening_section(numbers)]
    pictures = {}
    if numbers["datasets"]:
        path = options.output / PICTURE
        plot_scores(numbers, path)
        pictures[PICTURE] = path.read_bytes()
        described = "Dot plot of the test scores by data set; the table below has the numbers."
        sections += [Section("At a glance", [Picture(PICTURE, described)])]
    sections += [*score_sections(numbers), *closing_sections(numbers)]
    title = "GUE: our models" if options.no_paper else TITLE
    write_whole(options.output / "report.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    write_whole(options.output / "report.md", markdown(title, sections))
    write_whole(options.output / "report.html", page(title, sections, pictures))
    print(f"{options.output / 'report.html'}: {len(records)} records, {datasets(len(numbers['datasets']))}")


def select(records: list[dict], names: Sequence[str]) -> list[dict]:
    """
    The records of models that `names` has, in its order; a name is a model's, or "model (recipe)" for its runs alone.

    Raises:
        UserError: for a name that no record has.
    """
    known = {name for record in records for name in _names(record)}
    for name in names:
        if name not in known:
            raise UserError(f"No record is of model {name!r}; there are {', '.join(sorted(known))}.")
    if not names:
        raise UserError("--models names no model.")
    chosen = {id(record): record for name in names for record in records if name in _names(record)}
    return list(chosen.values())


def _names(record: dict) -> set[str]:
    with_recipe = {f"{record['model']} ({record['recipe']})"} if record["benchmark"] == RUN else set()
    return {record["model"]} | with_recipe


def _baseline(records: list[dict], name: str | None, paper: bool) -> str | None:
    from .aggregate import run_labels

    if name is None:
        return DEFAULT_BASELINE if paper else None
    labels = run_labels([record for record in records if record["benchmark"] == RUN])
    known = [*labels.values(), *(published_scores() if paper else {})]
    if name not in known:
        raise UserError(f"--baseline {name} is not among the models: {', '.join(known)}.")
    return name


def headline_table(
    records: list[dict], models: Sequence[str] | None = None, paper_models: Sequence[str] = (DEFAULT_BASELINE,)
) -> str:
    """
    A compact Markdown table: a row a data set, mean ± standard deviation x 100 of our models beside the paper's.

    Args:
        records: of `load_records`, or the like from elsewhere; only finished runs of GUE count.
        models: ours, as `select` takes them; all of them if None.
        paper_models: columns of the paper's table 4. The last column is the best of all its models.

    Returns:
        The table; bold is the best of a row, and the last row holds means over the data sets that all columns have.

    Raises:
        UserError: for a model that is not there.
    """
    from .aggregate import aggregate, best
    from .report_document import Cell, Table, markdown_table
    from .report_sections import METRICS, spread

    records = [record for record in records if record["benchmark"] == RUN]
    records = records if models is None else select(records, models)
    # No files of predictions: the table needs no tests.
    numbers = aggregate([{key: x[key] for key in x if key != "path"} for x in records])
    labels, all_paper = [model["label"] for model in numbers["models"]], published_scores()
    for name in paper_models:
        if name not in all_paper:
            raise UserError(f"The paper's table 4 has no model {name!r}; it has {', '.join(all_paper)}.")
    rows, columns = [], []
    for row in numbers["datasets"]:
        own = [row["scores"].get(label) for label in labels]
        top = best(row["paper"])
        published = [row["paper"].get(name) for name in paper_models]
        highest = max(row["paper"].values(), default=None)
        values = [x and x["mean"] for x in own] + [*published, highest]
        shown = [None if value is None else round(value, 2) for value in values]
        bold = max(value for value in shown if value is not None)
        texts = [spread(x) if x else "" for x in own] + ["" if x is None else f"{x:.2f}" for x in published]
        texts.append(f"{highest:.2f} ({', '.join(top)})" if top else "")
        cells = [Cell(t, "best" if v == bold else "") for t, v in zip(texts, shown, strict=True)]
        metric = METRICS.get(row["metric"], row["metric"])
        rows.append([row["dataset"] + ("" if metric == "MCC" else f" ({metric})"), *cells])
        columns.append(values)
    common = [values for values in columns if None not in values]
    if common:
        means = [sum(column) / len(common) for column in zip(*common, strict=True)]
        cells = [Cell(f"{mean:.2f}", "best" if mean == max(means) else "") for mean in means]
        rows.append([f"mean, n = {len(common)}", *cells])
    titles = ["test score x 100", *labels, *(f"{name} (paper)" for name in paper_models), "best of the paper"]
    return markdown_table(Table(titles, "l" + "r" * (len(titles) - 1), rows))


if __name__ == "__main__":
    sys.exit(main())
