"""Vocabularies compared: byte pairs of every size beside k-mers, by length, cost, leakage and stability.

    dnabert2 bench vocab --input genomes/ --groups groups.tsv --output vocab.json
    dnabert2 bench vocab --input small.fa.gz --sizes 64 256 --max_bases 1e6            # seconds on a CPU

repeats the choice of a vocabulary by Zhou et al. (2024, figure 3). Byte pairs are trained once, at the largest size;
the smaller ones are its first merges. All is measured on windows which that training did not see, though other
windows of the same genomes did train it. The k-mers need no training.

FLOPs are those of one training pass of the 117M network over one window, [CLS] and [SEP] included: matrix products,
attention at that window's number of tokens, averaged over windows (`training.throughput.flops_per_token`). They are
stated without the masked-LM head, and with it at the masked tokens, where a larger vocabulary costs more; relative to
byte pairs of 4,096 entries, the published choice (of the size nearest to it, if that is not among `--sizes`).
"""

import argparse
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

from ..configuration_dnabert2 import DNABert2Config
from ..errors import UserError
from ..provenance import provenance
from ..tokenizer.files import SPECIAL_TOKENS
from ..tokenizer.kmer import SIZES, kmer_tokenizer
from ..tokenizer.policy import PolicyReport
from ..tokenizer.sampling import count_bases, draw_windows, fair_shares, find_groups
from ..tokenizer.train import cut_bpe, train_bpe
from ..training.throughput import flops_per_token
from . import tables
from .output import check_output, save
from .vocab_measures import EDITS, leakage, mask_spans, mask_tokens_alone, stability, token_lengths, tokenise
from .vocab_plot import plot_vocabularies

PUBLISHED_SIZE = 4096
SMALLEST_SIZE = len(SPECIAL_TOKENS) + 4
SMALLEST_WINDOW = 20
# No group gives more than this share of its bases to be measured on, so that small ones still train.
HELD_OUT_SHARE = 0.2


def run(options: argparse.Namespace):
    """
    Body of `bench vocab`: prints a table, writes `--output` and a plot beside it.

    Raises:
        UserError: for options or files that cannot be used, or too little sequence for the largest vocabulary.
    """
    from rich.console import Console
    from rich.progress import track

    sizes = _check(options)
    console = Console(stderr=True)

    def progress(items, doing):
        return track(items, doing, console=console, disable=not console.is_terminal)

    group_of = find_groups(options.input, options.groups, options.group_column)
    texts = Texts(group_of, options, progress)
    largest = train_bpe(texts.training(), sizes[-1], show_progress=console.is_terminal)
    texts.check(largest.get_vocab_size(), sizes[-1])
    rows = []
    tokenizers = [*_byte_pairs(largest, sizes), *_kmers(sorted(set(options.kmers)))]
    for description, backend in progress(tokenizers, "measuring"):
        span = description["k"] if description["kind"] == "overlapping" else None
        rows.append(description | measure(backend, texts.held_out, span, options))
    baseline = _relate_flops(rows)
    result = {
        "benchmark": "vocab",
        "settings": {
            "inputs": [Path(entry).name for entry in options.input],
            "groups": options.groups and Path(options.groups).name,
            **{name: getattr(options, name) for name in ("group_column", "kmers", "window", "seed", "masking")},
            "sizes": sizes,
            **{name: int(getattr(options, name)) for name in ("max_bases", "eval_bases", "shift_windows")},
            "tokenizers_version": metadata.version("tokenizers"),
        },
        "text": texts.describe(),
        "flops": {
            "network": "DNABERT-2-117M, its vocabulary resized to the tokenizer's entries",
            "counted": "matrix products of one training pass (3 times the forward pass) over one window with [CLS] "
            "and [SEP], attention at its number of tokens; mean over windows",
            "encoder": "without the masked-LM head",
            "with_head": f"and the head at {options.masking} of the tokens",
            "relative_to": baseline,
        },
        "tokenizers": rows,
        "provenance": provenance("cpu"),
    }
    save(result, options.output)
    if options.output is not None:
        plot = options.output.with_suffix(".png")
        try:
            plot_vocabularies(result, plot)
        except OSError as error:
            raise UserError(f"{plot} cannot be written: {error.strerror}; {options.output} is whole.") from error
    print(tables.vocab(result))


class Texts:
    """
    Windows of genomes: some train, others are measured on; `held_out` fills while `training()` is read.

    Attributes:
        held_out: (group, window) of each, all of `--window` bases.
    """

    def __init__(self, group_of: dict[Path, str], options: argparse.Namespace, progress):
        self.group_of, self.options, self.progress = group_of, options, progress
        self.report = PolicyReport()
        self.sizes = count_bases(group_of, progress)
        most = {group: HELD_OUT_SHARE * size for group, size in self.sizes.items()}
        self.reserved = fair_shares(most, min(options.eval_bases, sum(most.values())))
        left = {group: size - self.reserved[group] for group, size in self.sizes.items()}
        self.shares = fair_shares(left, min(options.max_bases, sum(left.values())))
        self.used = Counter()
        self.held_out: list[tuple[str, str]] = []

    def training(self) -> Iterator[str]:
        drawn = draw_windows(self.group_of, self.options.window, self.options.seed, self.report, self.progress)
        for group, lot, window in drawn:
            if lot * self.sizes[group] < self.shares[group]:
                self.used[group] += len(window)
                yield window
            elif (1 - lot) * self.sizes[group] <= self.reserved[group] and len(window) == self.options.window:
                self.held_out.append((group, window))

    def check(self, entries: int, wanted: int):
        """Raise UserError if there was too little to train or to measure on."""
        if not self.used or not self.held_out:
            raise UserError(
                f"{self.options.input[0]}: too little sequence without N to hold windows of {self.options.window} "
                "bases out; give more, or a smaller --window."
            )
        if entries < wanted:
            raise UserError(
                f"--sizes {wanted}: {sum(self.used.values()):,} bases only give {entries} entries; train on more "
                "sequence or ask for fewer."
            )

    def describe(self) -> dict:
        """Bases of each group, what of them trained and what was measured on, and the files."""
        held_out = Counter()
        for group, window in self.held_out:
            held_out[group] += len(window)
        return {
            "training_bases": sum(self.used.values()),
            "held_out_bases": sum(held_out.values()),
            "held_out_windows": len(self.held_out),
            "groups": {
                group: {"bases": size, "training": self.used[group], "held_out": held_out[group]}
                for group, size in sorted(self.sizes.items())
            },
            "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.group_of},
            "policy": self.report.describe(),
        }


def measure(backend, held_out: list[tuple[str, str]], span: int | None, options: argparse.Namespace) -> dict:
    """
    Everything about one tokenizer.

    Args:
        backend: a `tokenizers.Tokenizer`.
        held_out: (group, window), all windows of one length.
        span: tokens masked together, for the k-mers that overlap; None masks tokens alone only.

    Returns:
        See the keys; shares are 0 to 1, token lengths and distances are in bases.
    """
    texts = [window for _, window in held_out]
    tokenised = tokenise(backend, texts)
    counts = np.array([len(tokens) for tokens in tokenised])
    bases = sum(map(len, texts))
    entries = backend.get_vocab_size()
    by_group = defaultdict(list)
    for (group, window), count in zip(held_out, counts, strict=True):
        by_group[group].append(count / len(window))
    # Every tokenizer gets the same edits and its own masks, whatever was measured before.
    draw = np.random.default_rng(options.seed)
    chosen = draw.permutation(len(texts))[: options.shift_windows]
    masks = {"alone": lambda count: mask_tokens_alone(count, options.masking, draw)}
    if span is not None:
        masks["spans"] = lambda count: mask_spans(count, span, options.masking, draw)
    leaked = {name: leakage(tokenised, mask) for name, mask in masks.items()}
    if not all(found["masked_tokens"] for found in leaked.values()):
        raise UserError(f"--masking {options.masking}: masks none of {counts.sum():,} tokens; give a larger share.")
    return {
        "entries": entries,
        "tokens_per_base": float(counts.sum() / bases),
        "tokens_per_1000_bases": float(1000 * counts.sum() / bases),
        "tokens_per_1000_bases_by_group": {group: 1000 * float(np.mean(x)) for group, x in sorted(by_group.items())},
        "token_bases": token_lengths(tokenised),
        "vocabulary_used": _ordinary(tokenised) / (entries - len(SPECIAL_TOKENS)),
        "flops_per_window": {
            "encoder": _flops(counts, entries, 0.0),
            "with_head": _flops(counts, entries, options.masking),
        },
        "stability": {
            kind: stability(backend, [texts[i] for i in chosen], kind, np.random.default_rng([options.seed, i]))
            for i, kind in enumerate(EDITS)
        },
        "leakage": leaked,
    }


def _ordinary(tokenised: list) -> int:
    """How many entries were met, special tokens not counted."""
    met = np.unique(np.concatenate([tokens.ids for tokens in tokenised]))
    return int((met >= len(SPECIAL_TOKENS)).sum())


def _flops(counts: np.ndarray, entries: int, masked_share: float) -> float:
    lengths = counts + 2  # [CLS] and [SEP]
    return float((lengths * flops_per_token(DNABert2Config(vocab_size=entries), lengths, masked_share)).mean())


def _relate_flops(rows: list[dict]) -> str:
    """Add `flops_relative` to each row; returns the name of the row that is 1."""
    baseline = min((row for row in rows if row["kind"] == "bpe"), key=lambda row: abs(row["entries"] - PUBLISHED_SIZE))
    for row in rows:
        own, other = row["flops_per_window"], baseline["flops_per_window"]
        row["flops_relative"] = {name: own[name] / other[name] for name in own}
    return baseline["tokenizer"]


def _byte_pairs(largest, sizes: list[int]) -> list[tuple[dict, object]]:
    return [({"tokenizer": f"BPE {size:,}", "kind": "bpe", "k": None}, cut_bpe(largest, size)) for size in sizes]


def _kmers(sizes: list[int]) -> list[tuple[dict, object]]:
    return [
        (
            {"tokenizer": f"{k}-mer, {kind}", "kind": kind, "k": k},
            kmer_tokenizer(k, kind == "overlapping").backend_tokenizer,
        )
        for kind in ("overlapping", "non-overlapping")
        for k in sizes
    ]


def _check(options: argparse.Namespace) -> list[int]:
    """The sizes in order; raises UserError for options that cannot be used."""
    for size in options.sizes:
        if size < SMALLEST_SIZE:
            raise UserError(
                f"--sizes {size}: five special tokens and four bases need at least {SMALLEST_SIZE} entries."
            )
    for k in options.kmers:
        if k not in SIZES:
            raise UserError(f"--kmers {k}: k-mers have {SIZES[0]} to {SIZES[-1]} bases.")
    if options.window < SMALLEST_WINDOW:
        raise UserError(f"--window {options.window}: give at least {SMALLEST_WINDOW} bases.")
    for name in ("max_bases", "eval_bases", "shift_windows"):
        if not 1 <= getattr(options, name) < float("inf"):
            raise UserError(f"--{name} {getattr(options, name)}: give a number of at least 1.")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: give 0 or more.")
    if not 0 < options.masking < 1:
        raise UserError(f"--masking {options.masking}: is a share of the tokens, between 0 and 1.")
    check_output(options.output)
    if options.output is not None:
        plot = options.output.with_suffix(".png")
        if plot == options.output:
            raise UserError(f"--output {plot}: names the plot; name the JSON file, the plot goes beside it.")
        check_output(plot)
    return sorted(set(options.sizes))
