"""Is a local copy of GUE the released one? Counts, checksums, labels, and what else one should know of its rows.

    dnabert2 gue check --data GUE --output check.json
    dnabert2 gue check --data data/gue --tasks prom/prom_core_tata          # the bundled dataset, a second

Prints a table and what was found: what differs from the release, what is as released though one would not expect it
(rows of the test split that stand in train), and what can only be counted, for nothing is known to hold it against.
Missing splits are said. The exit code is 1 if something differs, and 2 if there is nothing to check.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from ..atomic import write_whole
from ..errors import RunFailed, UserError, run_verb
from ..genome.strands import reverse_complement
from .outputs import output_file
from .splits import Split, known_checksums, read_split
from .tasks import SPLITS, Task, available, select

DIFFERS, RELEASED, NEW = "differs", "as released", "not known"
LEAKS = (("train", "test"), ("train", "dev"), ("dev", "test"))
SENTENCES = {
    DIFFERS: "Differs from the release:",
    RELEASED: "As released, and worth knowing:",
    NEW: "Counted, with nothing known to compare with:",
}
HEADER = ("dataset", *SPLITS, "bases", "not ACGT", "repeated", "test in train", "dev in train", "state")


def leaked_rows(train_sequences: Iterable, test_sequences: Iterable) -> list[int]:
    """
    Positions in `test_sequences` of what also stands in `train_sequences`, letter by letter, upper or lower case.

    A sequence is text, or a pair of texts.
    """
    seen = {_upper(sequence) for sequence in train_sequences}
    return [i for i, sequence in enumerate(test_sequences) if _upper(sequence) in seen]


def _upper(sequence):
    return sequence.upper() if isinstance(sequence, str) else tuple(x.upper() for x in sequence)


def check(gue: str | Path, spec: str = "all,gue+", advance=lambda: None) -> dict:
    """
    Compare a local copy with the release.

    Args:
        gue: folder in the original layout.
        spec: datasets, as `tasks.select` reads them; those that are not there are only said.
        advance: called after each dataset.

    Returns:
        `datasets`: by name, `splits` (rows, checksums, labels, lengths, ...), `leaks` and `state`; `missing`: by name
        the splits that are not there; `findings`: dataset, level ("differs", "as released", "not known") and text.

    Raises:
        UserError: if there is no such folder or none of the datasets in it, or a file is no table.
    """
    missing = available(gue, spec)[1]
    report = {"benchmark": "gue-check", "data": str(gue), "datasets": {}, "missing": missing, "findings": []}
    for task in select(spec):
        splits = {name: read_split(path) for name, path in task.split_files(gue).items()}
        if splits:
            report["datasets"][task.dataset] = _check_task(task, splits, report["findings"])
        advance()
    if not report["datasets"]:
        raise UserError(f"{gue}: holds none of the datasets {spec}; put them there as <task>/<dataset>/train.csv.")
    return report


def _check_task(task: Task, splits: dict[str, Split], findings: list[dict]) -> dict:
    first, known = len(findings), known_checksums()

    def find(level: str, text: str):
        findings.append({"dataset": task.dataset, "level": level, "text": text})

    released = {
        name: known[task.dataset, name]["content_sha256"] == split.content_sha256
        for name, split in splits.items()
        if (task.dataset, name) in known
    }
    record = {"splits": {}, "leaks": {}}
    for name, split in splits.items():
        record["splits"][name] = _check_split(task, name, split, released.get(name), find)
    for source, target in LEAKS:
        if {source, target} <= set(splits):
            both = released.get(source) and released.get(target)
            pair = splits[source], splits[target]
            record["leaks"][f"{target} in {source}"] = _check_leak(task, source, target, *pair, both, find)
    if {"dev", "test"} <= set(splits) and splits["dev"].row_counts() == splits["test"].row_counts():
        find(NEW, "dev and test are the same rows: what is chosen by dev is chosen by test")
    if any(x["level"] == DIFFERS for x in findings[first:]):
        record["state"] = DIFFERS
    else:
        record["state"] = RELEASED if all(map(released.get, splits)) else "as far as known"
    return record


def _check_split(task: Task, name: str, split: Split, released: bool | None, find) -> dict:
    rows = len(split.labels) + len(split.unusable)
    expected = task.rows(name)
    if expected not in (None, rows):
        find(DIFFERS, f"{name} has {rows} rows, the release {expected}")
    elif released is False:
        find(DIFFERS, f"{name} has other rows than the release, or another order of them")
    elif released and split.file_sha256 != known_checksums()[task.dataset, name]["file_sha256"]:
        find(RELEASED, f"{name} has the released rows with other line ends or quotes")
    if split.unusable:
        lines = ", ".join(map(str, split.unusable[:3])) + (", ..." if len(split.unusable) > 3 else "")
        find(DIFFERS, f"{name} has {count(len(split.unusable), 'row')} that cannot be used (line {lines})")
    labels, expected = set(split.labels), {str(i) for i in range(task.classes)}
    if labels != expected:
        shown = ", ".join(sorted(labels)[:12]) or "none"
        # Of GUE+ the paper's numbers are all that is known, and users of the files report others.
        level = DIFFERS if task.benchmark == "GUE" else NEW
        find(level, f"{name} has the labels {shown}; 0 to {task.classes - 1} are expected")
    level = RELEASED if released else NEW
    lengths = split.lengths() or [0]
    if abs(statistics.median(lengths) - task.length_bp) > 0.01 * task.length_bp:
        find(level, f"{name} has a median length of {statistics.median(lengths):g} bases, not {task.length_bp}")
    if other := split.with_other_letters():
        find(level, f"{name} has {count(other, 'row')} with letters other than A, C, G, T")
    repeated, contradicting = split.repeats()
    if repeated:
        text = f"{name} has {count(repeated, 'repeat')} of earlier sequences"
        find(level, text + (f", {count(contradicting, 'sequence')} with several labels" if contradicting else ""))
    return {
        "rows": rows,
        "file_sha256": split.file_sha256,
        "content_sha256": split.content_sha256,
        "as_released": released,
        "labels": {label: split.labels.count(label) for label in sorted(labels)},
        "unusable_lines": split.unusable,
        "length": {"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths)},
        "rows_with_other_letters": other,
        "repeated_rows": repeated,
        "contradicting_sequences": contradicting,
    }


def count(number: int, what: str) -> str:
    """As a person writes it: 1 row, 2 rows."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def _check_leak(task, source: str, target: str, train: Split, test: Split, released: bool | None, find) -> dict:
    exact = len(leaked_rows(train.sequences, test.sequences))
    other_strand = ((reverse_complement(x) for x in row) for row in test.sequences)
    reverse = len(leaked_rows(train.sequences, map(tuple, other_strand)))
    known = getattr(task, f"{target}_rows_in_{source}", None)
    text = f"{exact} of {len(test.sequences)} {target} rows stand in {source} too"
    if known is not None and known != exact:
        find(DIFFERS, f"{text}; {known} do in the release")
    elif exact:
        find(NEW if known is None and not released else RELEASED, text)
    if reverse:
        text = f"{reverse} of {len(test.sequences)} {target} rows stand in {source} as their reverse complement"
        find(RELEASED if released else NEW, text)
    return {"rows": exact, "reverse_complement_rows": reverse}


def _table(report: dict) -> list[tuple[str, ...]]:
    return [HEADER] + [_line(name, record) for name, record in report["datasets"].items()]


def _line(name: str, record: dict) -> tuple[str, ...]:
    splits, leaks = record["splits"], record["leaks"]

    def leak(key: str) -> str:
        found = leaks.get(key)
        if found is None:
            return "-"
        return str(found["rows"]) + (
            f" (+{found['reverse_complement_rows']} rc)" if found["reverse_complement_rows"] else ""
        )

    shortest, longest = (pick(x["length"][pick.__name__] for x in splits.values()) for pick in (min, max))
    return (
        name,
        *(str(splits[split]["rows"]) if split in splits else "-" for split in SPLITS),
        str(shortest) if shortest == longest else f"{shortest}-{longest}",
        str(sum(x["rows_with_other_letters"] for x in splits.values())),
        str(sum(x["repeated_rows"] for x in splits.values())),
        leak("test in train"),
        leak("dev in train"),
        record["state"] + ("" if len(splits) == len(SPLITS) else ", incomplete"),
    )


def print_report(report: dict):
    """The table, the findings by level, and what is missing, on standard output; plain text when not a terminal."""
    table = _table(report)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        rich_table = Table(*table[0])
        for line in table[1:]:
            rich_table.add_row(*line)
        Console().print(rich_table)
    else:
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for level, sentence in SENTENCES.items():
        found = [x for x in report["findings"] if x["level"] == level]
        if found:
            print(f"\n{sentence}")
            for x in found:
                print(f"  {x['dataset']}: {x['text']}.")
    incomplete = {name: splits for name, splits in report["missing"].items() if name in report["datasets"]}
    absent = [name for name in report["missing"] if name not in incomplete]
    print()
    for name, splits in incomplete.items():
        print(f"{name} lacks {', '.join(splits)}.")
    if absent:
        print(f"Not there: {', '.join(absent)}.")


def run(options: argparse.Namespace):
    """
    Body of `gue check`: print the table and the findings, write `--output`.

    Raises:
        UserError: for input that cannot be checked. RunFailed: if something differs from the release.
    """
    from rich.console import Console
    from rich.progress import Progress

    if options.output is not None:
        output_file(options.output)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("reading", total=len(select(options.tasks)))
        report = check(options.data, options.tasks, lambda: progress.advance(bar))
    print_report(report)
    if options.output is not None:
        write_whole(options.output, json.dumps(report, indent=1) + "\n")
    differing = [name for name, record in report["datasets"].items() if record["state"] == DIFFERS]
    if differing:
        raise RunFailed(f"{options.data}: {', '.join(differing)} is not as released; fetch it again, or say so.")


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if nothing differs from the release, 1 if something does, 2 if it cannot be checked."""
    parser = argparse.ArgumentParser(
        prog="dnabert2 gue check",
        description="Compare a local copy of GUE with the released one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with <task>/<dataset>/train.csv and so on")
    parser.add_argument("--tasks", default="all,gue+", help="datasets (tf/0), tasks (tf), all or gue+, with commas")
    parser.add_argument("--output", type=Path, help="JSON file to write the report to")
    return run_verb(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
