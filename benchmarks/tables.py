"""The README's tables of measurements, written from benchmarks/results/*.json and never by hand.

    python -m dnabert2.benchmarks.tables               # rewrite what stands between the markers
    python -m dnabert2.benchmarks.tables --check       # exit code 1 if that would change README.md

A table stands between `<!-- begin table: NAME -->` and `<!-- end table: NAME -->`.
"""

import argparse
import json
import sys
from pathlib import Path

from ..atomic import write_whole
from ..errors import UserError, run_verb

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
    for name, render in TABLES.items():
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        try:
            table = render(json.loads(_read(path)))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a result of {name!r}: {error!r}; measure it again.") from error
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


def encoder_cpu(result: dict) -> str:
    """Markdown for a result of `dnabert2 bench encoder`."""
    rows = []
    for row in result["results"]:
        if row["status"] != "measured":
            continue
        ratio = row["ratio_to_published"]
        rows.append(
            [
                row["shape"],
                row["variant"],
                f"{row['tokens_per_second']['p50']:,.0f}",
                "" if ratio is None else f"{ratio:.2f}",
                f"{row['peak_memory_bytes_above_weights'] / 2**20:,.0f}",
            ]
        )
    titles = ["batch x tokens", "variant", "tokens/s (median)", "x published", "peak MiB above the weights"]
    table = _markdown(titles, "llrrr", rows)
    reasons = dict.fromkeys(f"{x['variant']}: {x['reason']}" for x in result["results"] if x["status"] != "measured")
    unmeasured = f" Not measured: {'; '.join(reasons)}." if reasons else ""
    return f"{table}\n\n{_origin(result['provenance'], 'encoder-cpu')}{unmeasured}"


def demo(result: dict) -> str:
    """Markdown for the fine-tuning demo."""
    test = result["test"]
    row = [
        f"{result['parameters']:,}",
        f"{result['train_seconds']:,.0f}",
        *(f"{test[metric]:.3f}" for metric in ("matthews_correlation", "f1", "accuracy")),
    ]
    table = _markdown(["parameters", "training, seconds", "test MCC", "test F1", "test accuracy"], "rrrrr", [row])
    return f"{table}\n\n{_origin(result['provenance'], 'demo')}"


def _markdown(titles: list[str], alignment: str, rows: list[list[str]]) -> str:
    rule = ["---:" if letter == "r" else "---" for letter in alignment]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [titles, rule, *rows])


def _origin(provenance: dict, name: str) -> str:
    device, versions, git = provenance["device"], provenance["versions"], provenance["git"]
    commit = "no commit" if git["commit"] is None else f"commit {git['commit'][:10]}"
    modified = ", modified" if git["dirty"] else ""
    return (
        f"{device['name']} ({device['capability']}), {provenance['threads']} threads; torch {versions['torch']}, "
        f"transformers {versions['transformers']}, Python {versions['python']}; {commit}{modified}; "
        f"{provenance['date'][:10]}; [{name}.json]({REPOSITORY_FOLDER}/{name}.json)."
    )


# The name of a table is that of its markers and of its result file.
TABLES = {"encoder-cpu": encoder_cpu, "demo": demo}


if __name__ == "__main__":
    sys.exit(main())
