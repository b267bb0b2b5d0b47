"""Train a byte-pair tokenizer on genomes.

    dnabert2 train-tokenizer --input genomes/ --groups groups.tsv --output my-tokenizer
    dnabert2 train-tokenizer --input small.fa.gz --vocab_size 256 --output small-tokenizer      # seconds on a CPU

Records are read twice and one at a time: once to count each group's bases, once to draw windows from it, so that
memory depends on `--max_bases` and not on the genomes. The merges are those of Hugging Face `tokenizers`' BPE, as for
the published
tokenizer, on windows rather than whole chromosomes: unsplit text costs a quadratic time (tokenizers issue 1313).
"""

import argparse
import csv
import hashlib
import json
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError, run_verb
from ..fasta import find_fasta_files, read_fasta
from .files import SPECIAL_TOKENS, write_tokenizer
from .policy import PolicyReport, TextPolicy, normalise

SHORTEST_WINDOW = 100


def read_groups(table: str, column: str) -> dict[str, str]:
    """
    File name -> group, from a tab-separated table with a `file` column and `column`.

    A qualifier behind the group's name is dropped: "plant (plastid)" and "plant/alga" are both "plant".

    Raises:
        UserError: if the table or a column is missing.
    """
    try:
        with open(table, newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle, delimiter="\t")
            missing = {"file", column} - set(reader.fieldnames or [])
            if missing:
                raise UserError(
                    f"{table}: no column {sorted(missing)[0]!r} in its header; it has {reader.fieldnames}."
                )
            return {Path(row["file"]).name: re.split(r"[/(,]", row[column])[0].strip() for row in reader}
    except FileNotFoundError as error:
        raise UserError(
            f"{table}: no such file; give a tab-separated table with the columns file and {column}."
        ) from error


def fair_shares(sizes: dict[str, int], total: int) -> dict[str, float]:
    """
    How many bases to take of each group so that groups are as equal as their sizes allow and add up to `total`.

    Small groups are taken whole; what they leave is shared by the larger ones.
    """
    shares, left = {}, float(total)
    for rank, (group, size) in enumerate(sorted(sizes.items(), key=lambda item: (item[1], item[0]))):
        shares[group] = min(size, left / (len(sizes) - rank))
        left -= shares[group]
    return shares


def windows(sequence: str, length: int) -> Iterator[str]:
    """Stretches of at most `length` bases between the Ns of a normalised sequence; very short ones are left out."""
    for match in re.finditer("[ACGT]+", sequence):
        for start in range(match.start(), match.end(), length):
            window = sequence[start : min(start + length, match.end())]
            if len(window) >= min(SHORTEST_WINDOW, length):
                yield window


def train_bpe(texts, vocab_size: int, length: int | None = None, show_progress: bool = False):
    """
    A BPE tokenizer of `vocab_size` entries, of which the first five are the special tokens and the next four A, C, G,
    T.

    Args:
        texts: iterable of upper-case ACGT strings.
        length: how many, for the progress bar.

    Returns:
        A `tokenizers.Tokenizer` laid out as the published one: no normaliser, [CLS] A [SEP] B [SEP] with types 0 and
        1.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=list("ACGT"),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer, length=length)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return tokenizer


def train_tokenizer(args: argparse.Namespace):
    """Body of the verb; writes `args.output` whole or not at all."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    output = Path(args.output)
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise UserError(f"{output}: already there; choose another --output or remove it first.")
    if args.vocab_size < len(SPECIAL_TOKENS) + 4:
        raise UserError(f"--vocab_size {args.vocab_size}: five special tokens and four bases need at least 9 entries.")
    if args.window < 1 or args.max_bases < 1:
        raise UserError("--window and --max_bases must be at least 1 base.")
    files = find_fasta_files(args.input)
    groups = read_groups(args.groups, args.group_column) if args.groups else {}
    group_of = {path: groups.get(path.name, path.parent.name if not args.groups else "other") for path in files}
    policy = TextPolicy(upper_case=not args.keep_case)
    report = PolicyReport(policy=policy)
    quiet = not console.is_terminal

    sizes = Counter()
    for path in track(files, "counting bases", console=console, disable=quiet):
        sizes[group_of[path]] += sum(len(sequence) for _, sequence in read_fasta(path))
    shares = fair_shares(sizes, min(int(args.max_bases), sum(sizes.values())))
    used = Counter()

    def draw() -> Iterator[str]:
        generator = random.Random(args.seed)
        for path in track(files, "reading windows", console=console, disable=quiet):
            group = group_of[path]
            for name, sequence in read_fasta(path):
                if not sequence.strip("Nn"):
                    continue
                try:
                    text = normalise(sequence, policy, report)
                except UserError as error:
                    raise UserError(f"{path}: record {name} {error}.") from error
                for window in windows(text, args.window):
                    if generator.random() * sizes[group] < shares[group]:
                        used[group] += len(window)
                        yield window

    tokenizer = train_bpe(draw(), args.vocab_size, show_progress=not quiet)
    if not used:
        raise UserError(
            f"{args.input[0]}: no stretch of {min(SHORTEST_WINDOW, args.window)} bases without N to train on."
        )
    if tokenizer.get_vocab_size() < args.vocab_size:
        raise UserError(
            f"--vocab_size {args.vocab_size}: {sum(used.values()):,} bases only give {tokenizer.get_vocab_size()} "
            f"entries; "
            "train on more sequence or ask for fewer."
        )
    partial = output.with_name(output.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer.save(str(partial / "tokenizer.json"))
    write_tokenizer(partial / "tokenizer.json", partial)
    manifest = {
        "vocab_size": args.vocab_size,
        "window": args.window,
        "seed": args.seed,
        "bases": sum(used.values()),
        "groups": {
            group: {"bases": sizes[group], "used": used[group], "files": sum(g == group for g in group_of.values())}
            for group in sorted(sizes)
        },
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "text": report.describe(),
    }
    (partial / "training.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if output.is_dir():
        output.rmdir()
    partial.rename(output)
    console.print(f"{report.describe()}\n{output}: {args.vocab_size} entries from {sum(used.values()):,} bases.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Train a byte-pair tokenizer on FASTA files, balanced over groups of species.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--input", nargs="+", required=True, help="FASTA files (also .gz) or folders of them")
    parser.add_argument("--output", required=True, help="folder to write: tokenizer.json and its configuration")
    parser.add_argument("--vocab_size", type=int, default=4096, help="entries, the five special tokens included")
    parser.add_argument(
        "--max_bases", type=float, default=100e6, help="bases to train on, about; 60 bytes of memory each"
    )
    parser.add_argument("--window", type=int, default=1000, help="bases a training text")
    parser.add_argument("--groups", help="tab-separated table that names each file's group; without it, its folder")
    parser.add_argument("--group_column", default="group", help="column of --groups that holds the group")
    parser.add_argument("--keep_case", action="store_true", help="leave soft-masked, lower-case bases out")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of windows")
    return run_verb(train_tokenizer, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
