"""The README's tables of measurements, written from benchmarks/results/*.json and never by hand.

    python -m dnabert2.benchmarks.tables               # rewrite what stands between the markers
    python -m dnabert2.benchmarks.tables --check       # exit code 1 if that would change README.md

A table stands between `<!-- begin table: NAME -->` and `<!-- end table: NAME -->`.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

from ..atomic import write_whole
from ..errors import UserError, run_verb
from . import gue_tables
from .goals import number
from .inference_tables import brca1, embed
from .markdown import join, markdown

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY_FOLDER = "benchmarks/results"  # as the README links to it


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if README is up to date, 1 if `--check` finds it is not, 2 if a result or marker is unusable."""
    parser = argparse.ArgumentParser(
        prog="python -m dnabert2.benchmarks.tables",
        description="Write README.md's tables from the result files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the page that holds the tables")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of JSON files")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a table is out of date")
    options = parser.parse_args(argv)
    stale = []
    code = run_verb(lambda: stale.extend(update(options.readme, options.results, write=not options.check)))
    if code == 0 and stale and options.check:
        print(f"{options.readme} is out of date ({', '.join(stale)}): run `make tables`.", file=sys.stderr)
        return 1
    return code


def update(readme: Path, results: Path, write: bool = True) -> list[str]:
    """
    Bring the tables of `readme` up to date with the files in `results`; a table without its file stays as it is.

    Returns:
        Names of the tables that were out of date.

    Raises:
        UserError: if a file cannot be read or lacks a key, or a table that has a file has no markers in the README.
    """
    before = _read(readme)
    text, stale = before, []
    for pattern, render in TABLES.items():
        for path in sorted(results.glob(f"{pattern}.json")):
            try:
                result = json.loads(_read(path))
                table = f"{render(result)}\n\n{_origin(result['provenance'], path.stem)}{_unmeasured(result)}"
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path} is not a result of {path.stem!r}: {error!r}; measure it again.") from error
            updated = _replace(text, path.stem, table, readme)
            if updated != text:
                stale.append(path.stem)
            text = updated
    for name, of_folder in gue_tables.TABLES.items():
        table = of_folder(results)
        if table is not None:
            updated = _replace(text, name, table, readme)
            if updated != text:
                stale.append(name)
            text = updated
    if write and text != before:
        write_whole(readme, text)
    return stale


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _replace(text: str, name: str, table: str, readme: Path) -> str:
    begin, end = f"<!-- begin table: {name} -->", f"<!-- end table: {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(
            f"{readme} has no place for the table {name!r}: add the lines {begin} and {end}, in this order."
        )
    head, rest = text.split(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def encoder(result: dict) -> str:
    """Markdown for a result of `dnabert2 bench encoder`."""
    rows = [x for x in result["results"] if x["status"] == "measured"]
    # Results older than training steps do not name their direction.
    directions = list(dict.fromkeys(x.get("direction", "forward") for x in rows))
    titles = ["batch x tokens", "variant", "tokens/s (median)", "x published", "peak MiB above the weights"]
    cells = []
    for row in rows:
        ratio = row["ratio_to_published"]
        cells.append(
            [
                *([row["direction"]] if len(directions) > 1 else []),
                row["shape"],
                row["variant"],
                f"{row['tokens_per_second']['p50']:,.0f}",
                "" if ratio is None else f"{ratio:.2f}",
                f"{row['peak_memory_bytes_above_weights'] / 2**20:,.0f}",
            ]
        )
    if len(directions) > 1:
        titles = ["direction", *titles]
    return join(_goals(result), markdown(titles, "l" * (len(titles) - 3) + "rrr", cells))


def attention(result: dict, layouts=("equal",), directions=("forward", "backward")) -> str:
    """Markdown for a result of `dnabert2 bench attention`: the goals, then TFLOP/s by variant and length."""
    tables = [_goals(result)]
    for direction, layout in itertools.product(directions, layouts):
        # Of a checkpoint the layers together: the same FLOPs in each.
        rows = [x for x in result["results"] if (x["direction"], x["layout"]) == (direction, layout)]
        lengths = sorted({x["length"] for x in rows})
        cells = [
            [variant, *(_speed([x for x in rows if (x["variant"], x["length"]) == (variant, n)]) for n in lengths)]
            for variant in dict.fromkeys(x["variant"] for x in rows)
        ]
        cells = [row for row in cells if any(row[1:])]
        if cells:
            titles = [f"{direction}, {layout}: TFLOP/s", *(f"{length:,}" for length in lengths)]
            tables.append(markdown(titles, "l" + "r" * len(lengths), cells))
    return join(*tables, *_skipped_shares(result))


def report(result: dict) -> str:
    """What a benchmark prints: its tables with every layout and direction, and what was not measured."""
    if result["benchmark"] == "attention":
        text = attention(result, result["layouts"], result["directions"])
    else:
        text = encoder(result)
    return join(text, "\n".join(f"{x}." for x in _reasons(result)))


def _speed(rows: list[dict]) -> str:
    """Median TFLOP/s of one variant, over all layers if there are several; nothing unless all were measured."""
    if not rows or any(x["status"] != "measured" for x in rows):
        return ""
    return f"{len(rows) / sum(1 / x['tflops']['p50'] for x in rows):,.3g}"


def _skipped_shares(result: dict) -> list[str]:
    """A table of the share of query-key pairs that skipping leaves to compute, the mean over heads and layers."""
    problems = [x for x in result["problems"] if x["layout"] == "equal"]
    lengths = sorted({x["length"] for x in problems})
    if not lengths:
        return []
    cells = []
    for mode in ("exact", "fp32"):
        shares = [[x["norms"]["computed_share"][mode] for x in problems if x["length"] == n] for n in lengths]
        flat = [[share for heads in found for share in heads] for found in shares]
        cells.append([mode, *(f"{100 * sum(found) / len(found):.3g}" for found in flat)])
    return [markdown(["% computed with skip=", *(f"{n:,}" for n in lengths)], "l" + "r" * len(lengths), cells)]


def _goals(result: dict) -> str:
    """A table of the goals that were measured; nothing if none was."""
    cells = [
        [x["goal"], f"{x['sense']} {number(x['target'])} {x['unit']}", number(x["measured"]), x["where"], x["status"]]
        for x in result.get("goals", [])
        if x["measured"] is not None
    ]
    return markdown(["goal", "target", "measured", "at", "status"], "llrll", cells) if cells else ""


def _unmeasured(result: dict) -> str:
    reasons = _reasons(result)
    return f" Not measured: {'; '.join(reasons)}." if reasons else ""


def _reasons(result: dict) -> list[str]:
    """Why what is not measured is not, each once; by length too where that matters."""
    rows = [x for x in result.get("results", []) if x.get("status", "measured") != "measured"]
    return list(dict.fromkeys(f"{x['variant']}: {x['reason']}" for x in rows))


def demo(result: dict) -> str:
    """Markdown for a result of `dnabert2 bench demo`."""
    titles = ["start", "parameters", "training, seconds", "test MCC", "test F1", "test accuracy"]
    cells = []
    for row in result["starts"]:
        scores = [row["test"][metric] for metric in ("matthews_correlation", "f1", "accuracy")]
        spread = [x["standard_deviation"] for x in scores]
        shown = [
            f"{x['mean']:.3f}" + ("" if s is None else f" ± {s:.3f}") for x, s in zip(scores, spread, strict=True)
        ]
        cells.append([row["start"], f"{row['parameters']:,}", f"{row['train_seconds']:,.0f}", *shown])
    return join(markdown(titles, "lrrrrr", cells), f"Mean and standard deviation of {result['seeds']} seeds.")


def pretraining(result: dict) -> str:
    """Markdown for the record of a pretraining run that `hub.bundle` wrote, below the runs that it went on from."""
    rows, run = [], result
    while run:
        rows.insert(0, _pretraining_row(run))
        run = run.get("before")
    titles = [
        "parameters",
        "steps x sequences",
        "tokens",
        "tokens/s, median",
        "hours at that",
        "held-out loss",
        "accuracy, %",
    ]
    return markdown([*titles, "bits per base"], "r" * len(rows[0]), rows)


def _pretraining_row(run: dict) -> list[str]:
    recipe, scores = run["recipe"], run["evaluation"]
    tokens = run["steps"] * recipe["global_batch_size"] * recipe["max_length"]
    return [
        f"{run['parameters']:,}",
        f"{run['steps']:,} x {recipe['global_batch_size']}",
        f"{tokens / 1e6:.1f}M",
        f"{run['tokens_per_second_median']:,.0f}",
        f"{tokens / run['tokens_per_second_median'] / 3600:.1f}",
        f"{scores['loss']:.3f}",
        f"{100 * scores['accuracy']:.2f}",
        f"{scores['bits_per_base']:.3f}",
    ]


def bits(result: dict) -> str:
    """Markdown for a result of `dnabert2 bench bits`."""
    titles = ["model", "Markov", "token frequency"]
    keys = ("model", "markov", "frequency")
    titles = ["group", "bases", *titles, *(f"{title}, cuts known" for title in titles)]
    cells = []
    for row in result["groups"]:
        shown = []
        for key in (*keys, *(f"{key}_given_cuts" for key in keys)):
            order = f" ({row[key]['order']})" if "order" in row[key] else ""
            shown.append(f"{row[key]['bits_per_base']:.3f}{order}")
        cells.append([row["group"], f"{row['bases']:,}", *shown])
    return markdown(titles, "l" + "r" * (len(titles) - 1), cells)


def vocab(result: dict) -> str:
    """Markdown for a result of `dnabert2 bench vocab`."""
    titles = [
        "tokenizer",
        "entries",
        "used, %",
        "tokens per 1,000 bases",
        f"FLOPs, {result['flops']['relative_to']} = 1",
        "with the head",
        "masked bases spelt by neighbours, %",
        "tokens that survive a lost first base, %",
        "bases disturbed (median, 95 %)",
    ]
    cells = []
    for row in result["tokenizers"]:
        leaked, lost = row["leakage"], row["stability"]["deletion_at_start"]
        spelt = [f"{100 * leaked[name]['mean_share_spelt']:.1f}" for name in leaked]
        cells.append(
            [
                row["tokenizer"],
                f"{row['entries']:,}",
                f"{100 * row['vocabulary_used']:.0f}",
                f"{row['tokens_per_1000_bases']:.0f}",
                *(f"{row['flops_relative'][name]:.2f}" for name in ("encoder", "with_head")),
                " / ".join(spelt),
                f"{100 * lost['surviving_share']['mean']:.1f}",
                f"{lost['disturbed_bases']['p50']:.0f}, {lost['disturbed_bases']['p95']:.0f}",
            ]
        )
    text, settings = result["text"], result["settings"]
    edited = min(settings["shift_windows"], text["held_out_windows"])
    note = (
        f"Byte pairs are trained on {text['training_bases'] / 1e6:.1f} Mb of {len(text['groups'])} groups; all is "
        f"measured on {text['held_out_windows']:,} other windows of {settings['window']:,} bases, edits on {edited:,} "
        f"of them; {100 * settings['masking']:g} % of the tokens are masked."
    )
    return join(markdown(titles, "l" + "r" * (len(titles) - 1), cells), note)


def length(result: dict) -> str:
    """Markdown for a result of `dnabert2 bench length`: bits per base by model and length."""
    lengths = result["lengths"]
    cells = []
    for model in result["models"]:
        rows = {row["length"]: row for row in model["results"]}
        shown = [f"{rows[n]['bits_per_base']:.3f}" if rows[n]["status"] == "measured" else "cannot" for n in lengths]
        last = rows[lengths[-1]]
        change = ""
        if last["status"] == "measured":
            error = last["standard_error"]
            change = f"{last['difference']:+.4f}" + ("" if error is None else f" ± {error:.4f}")
        cells.append([model["model"], model["positions"], *shown, change])
    change = f"{lengths[-1]:,} against {lengths[0]:,}"
    titles = ["bits per base", "positions", *(f"{n:,}" for n in lengths), change]
    return markdown(titles, "ll" + "r" * (len(lengths) + 1), cells)


def _origin(provenance: dict, name: str) -> str:
    device, versions, git = provenance["device"], provenance["versions"], provenance["git"]
    commit = "no commit" if git["commit"] is None else f"commit {git['commit'][:10]}"
    modified = ", modified" if git["dirty"] else ""
    return (
        f"{device['name']} ({device['capability']}), {provenance['threads']} threads; torch {versions['torch']}, "
        f"transformers {versions['transformers']}, Python {versions['python']}; {commit}{modified}; "
        f"{provenance['date'][:10]}; [{name}.json]({REPOSITORY_FOLDER}/{name}.json)."
    )


# The name of a table is that of its markers and of its result file; a pattern stands for one of each device.
TABLES = {
    "attention-*": attention,
    "encoder-*": encoder,
    "demo": demo,
    "pretrain-mini": pretraining,
    "bits": bits,
    "vocab": vocab,
    "length": length,
    "embed-*": embed,
    "brca1": brca1,
}


if __name__ == "__main__":
    sys.exit(main())
