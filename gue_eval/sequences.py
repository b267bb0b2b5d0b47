"""The training splits as FASTA, to go on pretraining on them, as the paper's second row of DNABERT-2 did.

    dnabert2 gue sequences --data GUE --output gue-train.fa.gz
    dnabert2 build-corpus --input gue-train.fa.gz --min_tokens 8 --output corpus
    dnabert2 pretrain --model_name_or_path mini --corpus corpus --output_dir runs/further ...

Sequences that also stand in the development or test split of any task, on either strand, are left out: what is scored
has not been read before. A model that went on like this is to be reported as such.
"""

import argparse
import gzip
import sys
from pathlib import Path

from ..atomic import whole_file
from ..errors import UserError, run_verb
from ..genome.strands import reverse_complement
from .outputs import output_file
from .splits import read_split
from .tasks import Task, select


def training_sequences(gue: Path, tasks: list[Task]) -> tuple[dict[str, list[str]], int]:
    """
    Sequences of the training splits, each once, by dataset.

    Returns:
        dataset -> sequences, those of a pair one by one; and how many were left out because they are scored.

    Raises:
        UserError: if no training split is there.
    """
    scored, found = set(), {}
    for task in tasks:
        for split in ("dev", "test"):
            if split in task.split_files(gue):
                rows = read_split(task.split_files(gue)[split]).sequences
                scored |= {sequence for row in rows for sequence in row}
    seen, left_out = set(), 0
    for task in tasks:
        if "train" not in task.split_files(gue):
            continue
        kept = []
        for row in read_split(task.split_files(gue)["train"]).sequences:
            for sequence in row:
                strands = {sequence, reverse_complement(sequence)}
                if strands & scored:
                    left_out += 1
                elif not strands & seen:
                    seen.add(sequence)
                    kept.append(sequence)
        found[task.dataset] = kept
    if not found:
        raise UserError(f"{gue}: no training split of {', '.join(task.dataset for task in tasks)} is here.")
    return found, left_out


def run(options: argparse.Namespace):
    """Body of the command."""
    output_file(options.output)
    found, left_out = training_sequences(options.data, select(options.tasks))
    writer = gzip.open if options.output.suffix == ".gz" else open
    with whole_file(options.output) as partial, writer(partial, "wt", encoding="ascii") as handle:
        for dataset, sequences in found.items():
            for i, sequence in enumerate(sequences):
                handle.write(f">{dataset.replace('/', '_')}_{i}\n{sequence}\n")
    total = sum(map(len, found.values()))
    print(
        f"{options.output}: {total:,} sequences of {len(found)} training splits, {left_out:,} that are scored left out"
    )


def main(argv: list[str] | None = None) -> int:
    """Write the sequences; exit code 2 for a folder without training splits."""
    parser = argparse.ArgumentParser(
        prog="dnabert2 gue sequences",
        description="Write the training splits as FASTA, to go on pretraining on them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with GUE in its original layout")
    parser.add_argument("--tasks", default="all", help="datasets or tasks, with commas")
    parser.add_argument("--output", type=Path, required=True, help="a .fa or .fa.gz file")
    return run_verb(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
