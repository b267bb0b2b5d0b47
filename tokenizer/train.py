"""Train a byte-pair tokenizer on genomes.

    dnabert2 train-tokenizer --input genomes/ --groups groups.tsv --output my-tokenizer
    dnabert2 train-tokenizer --input small.fa.gz --vocab_size 256 --output small-tokenizer      # seconds on a CPU

Records are read twice and one at a time: once to count each group's bases, once to draw windows from it, so that
memory depends on `--max_bases` and not on the genomes. The merges are those of Hugging Face `tokenizers`' BPE, as for
the published
tokenizer, on windows rather than whole chromosomes: unsplit text costs a quadratic time (tokenizers issue 1313).
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError, run_verb
from .files import SPECIAL_TOKENS, write_tokenizer
from .policy import PolicyReport, TextPolicy
from .sampling import SHORTEST_WINDOW, count_bases, draw_windows, fair_shares, find_groups


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


def cut_bpe(tokenizer, vocab_size: int):
    """
    What `train_bpe` would have given for the same texts and this smaller `vocab_size`: the first merges.

    Each merge is chosen by what the merges before it made of the texts, so that smaller vocabularies are nested in
    larger ones.

    Args:
        tokenizer: of `train_bpe`.

    Raises:
        ValueError: if it has fewer entries, or its special tokens and bases alone are more.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.to_str())
    ids, merges = state["model"]["vocab"], state["model"]["merges"]
    fewest = len(ids) - len(merges)
    if not fewest <= vocab_size <= len(ids):
        raise ValueError(f"vocab_size = {vocab_size}: this tokenizer can be cut to {fewest} to {len(ids)} entries.")
    state["model"]["merges"] = merges[: vocab_size - fewest]
    state["model"]["vocab"] = {token: i for token, i in ids.items() if i < vocab_size}
    return Tokenizer.from_str(json.dumps(state))


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
    group_of = find_groups(args.input, args.groups, args.group_column)
    report = PolicyReport(policy=TextPolicy(upper_case=not args.keep_case))
    quiet = not console.is_terminal

    def progress(files, doing):
        return track(files, doing, console=console, disable=quiet)

    sizes = count_bases(group_of, progress)
    shares = fair_shares(sizes, min(int(args.max_bases), sum(sizes.values())))
    used = Counter()

    def draw() -> Iterator[str]:
        for group, lot, window in draw_windows(group_of, args.window, args.seed, report, progress):
            if lot * sizes[group] < shares[group]:
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
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in group_of},
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
