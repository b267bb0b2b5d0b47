"""Held-out bits per base of a masked language model, by group, beside Markov models counted on the same corpus.

    dnabert2 bench bits --model mini --corpus runs/mini-corpus --output benchmarks/results/bits.json
    dnabert2 bench bits --model mini --corpus runs/mini-corpus --sequences 8 --order 4      # seconds on a CPU

All are scored on the same bases, those of masked tokens at least `--order` bases from both ends of a window, in four
ways:

`model`: -log2 p(token | the rest). The token's probability also pays for how many bases it has.
`markov`: each base given the true bases before it, an interpolated Markov model of the best order up to `--order`.
`model_given_length`: p(token) among the tokens of as many bases; what remains is the bases alone.
`markov_given_length`: a Markov model with the same knowledge: the bases on both sides, and that the blank is a token
of so many bases.

The Markov models are counted on all of the corpus' training rows, of the group or of all groups, whichever is better;
order, prior and this choice are those that score best on the very bases scored, which favours them.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from ..bert_layers.losses import IGNORE_INDEX
from ..errors import UserError
from ..loading import load_model
from ..precision import resolve_dtype
from ..provenance import provenance
from ..tokenizer.files import load_tokenizer
from ..training.corpus_stream import Corpus
from ..training.evaluation import HeldOut, mask_held_out, read_held_out
from ..training.markov import ALPHAS, BaseTable, MarkovFiller, count_bases, markov_bits, probability_tables
from . import output

ALL = "all groups"  # counts of the whole corpus


@dataclass
class Blanks:
    """
    The masked tokens of one group that are scored.

    Attributes:
        rows, places: (blanks,) int64, where each stands in the held-out inputs.
        tokens, lengths: (blanks,) int64, its id and its bases.
        codes: (bases,) int8, the group's windows end to end with a gap of -1 after each.
        starts: (blanks,) int64, each blank's first base in `codes`.
    """

    rows: np.ndarray
    places: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    codes: np.ndarray
    starts: np.ndarray

    def total_bases(self) -> int:
        return int(self.lengths.sum())


def find_blanks(held_out: HeldOut, group: int, bases: BaseTable, margin: int) -> Blanks:
    """The masked tokens of a group with at least `margin` known bases of their window on both sides."""
    labels, inputs = held_out.labels.numpy(), held_out.inputs.numpy()
    found = {"rows": [], "places": [], "starts": []}
    codes, end = [], 0
    for row in np.flatnonzero(held_out.group_ids.numpy() == group):
        ids = np.where(labels[row] == IGNORE_INDEX, inputs[row], labels[row])
        spelt, _ = bases.bases(ids)
        lengths = bases.lengths[ids]
        starts = np.cumsum(lengths) - lengths
        unknown = np.concatenate([[0], np.cumsum(spelt < 0)])
        for place in np.flatnonzero(labels[row] != IGNORE_INDEX):
            low, high = starts[place] - margin, starts[place] + lengths[place] + margin
            if low >= 0 and high <= len(spelt) and unknown[low] == unknown[high]:
                found["rows"].append(row)
                found["places"].append(place)
                found["starts"].append(end + starts[place])
        codes += [spelt, [-1]]
        end += len(spelt) + 1
    rows, places, starts = (np.array(x, dtype=np.int64) for x in found.values())
    tokens = labels[rows, places]
    joined = np.concatenate(codes) if codes else np.zeros(0, dtype=np.int8)
    return Blanks(rows, places, tokens, bases.lengths[tokens], joined, starts)


@torch.no_grad()
def model_bits(model, held_out: HeldOut, bases: BaseTable, batch_size: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """
    Bits that the model gives each masked token.

    Returns:
        Two arrays like the labels, (sequences, length) float64: of the token, and of the token among those of its
        length; 0 where nothing is masked.
    """
    device = model.device
    # The model's output may be wider than the vocabulary; what stands for no token has no bases.
    lengths = np.zeros(model.config.vocab_size, dtype=np.int64)
    lengths[: len(bases.lengths)] = bases.lengths
    lengths = torch.from_numpy(lengths).to(device)
    whole, given_length = (torch.zeros(held_out.labels.shape, dtype=torch.float64) for _ in range(2))
    for start in range(0, len(held_out), batch_size):
        rows = slice(start, start + batch_size)
        inputs, labels = held_out.inputs[rows].to(device), held_out.labels[rows].to(device)
        is_labelled = labels != IGNORE_INDEX
        targets = labels[is_labelled][:, None]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(input_ids=inputs, labels=labels, labelled_only=True).logits
        scores = torch.log2(torch.softmax(logits.double(), dim=-1))
        token = scores.gather(1, targets)
        same = lengths[None] == lengths[targets]
        among = torch.logsumexp(scores.masked_fill(~same, -torch.inf) * np.log(2), dim=-1, keepdim=True) / np.log(2)
        whole[rows][is_labelled.cpu()] = -token[:, 0].cpu()
        given_length[rows][is_labelled.cpu()] = (among - token)[:, 0].cpu()
    return whole.numpy(), given_length.numpy()


def best_markov(blanks: Blanks, counts: dict[str, np.ndarray], names: list[str], bases: BaseTable) -> dict:
    """The best Markov models of a group: bits per base by order, and of a blank filled in with the same knowledge."""
    inside = np.repeat(blanks.starts, blanks.lengths) + _within(blanks.lengths)
    by_order, best = {}, None
    for name in names:
        for alpha in ALPHAS:
            probabilities = probability_tables(counts[name], alpha)
            for order, bits in enumerate(markov_bits(probabilities, blanks.codes)[:, inside].mean(axis=1)):
                by_order[order] = min(by_order.get(order, np.inf), float(bits))
                if best is None or bits < best["bits_per_base"]:
                    best = {"bits_per_base": float(bits), "order": order, "prior": alpha, "counted_on": name}
    filled = None
    for order in range(0, max(by_order) + 1, 2):
        probabilities = probability_tables(counts[best["counted_on"]], best["prior"])[order]
        filler = MarkovFiller(probabilities, bases)
        bits = sum(_fill(filler, blanks, i) for i in range(len(blanks.tokens))) / blanks.total_bases()
        if filled is None or bits < filled["bits_per_base"]:
            filled = {"bits_per_base": bits, "order": order, **{k: best[k] for k in ("prior", "counted_on")}}
    return {"markov": best, "markov_by_order": by_order, "markov_given_length": filled}


def _fill(filler: MarkovFiller, blanks: Blanks, i: int) -> float:
    start, length = blanks.starts[i], blanks.lengths[i]
    left = blanks.codes[start - filler.order : start]
    right = blanks.codes[start + length : start + length + filler.order]
    return filler.bits(int(blanks.tokens[i]), int(length), left, right)


def _within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... of each length, end to end."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def describe(scores: dict) -> str:
    """One line of a group's scores."""
    return ", ".join(
        f"{key.replace('_', ' ')} {scores[key]['bits_per_base']:.3f}"
        for key in ("model", "markov", "model_given_length", "markov_given_length")
    )


def run(options):
    """Body of `bench bits`: measure, print and write."""
    output.check_output(options.output)
    if options.order < 0 or options.order > 12 or options.sequences < 1:
        raise UserError("--order must be from 0 to 12, --sequences at least 1.")
    corpus = Corpus.open(options.corpus)
    tokenizer = load_tokenizer(corpus.tokenizer_source())
    model = load_model("DNABert2ForMaskedLM", options.model, dtype=torch.float32).to(options.device).eval()
    if load_tokenizer(options.model).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{options.corpus}: was built with another tokenizer than {options.model} has; build it anew.")
    dtype = resolve_dtype(options.precision, options.device)
    rows = read_held_out(corpus, options.sequences)
    max_length = corpus.manifest["settings"]["window_tokens"] + 2
    held_out = mask_held_out(rows, tokenizer, max_length, options.mlm_probability)
    bases = BaseTable(tokenizer)
    whole, given_length = model_bits(model, held_out, bases, options.batch_size, dtype)
    start = time.perf_counter()
    counts = count_bases(corpus, tokenizer, options.order)
    counts[ALL] = sum(counts.values())
    counting_seconds = time.perf_counter() - start
    results = []
    for number, group in enumerate(held_out.groups):
        blanks = find_blanks(held_out, number, bases, options.order)
        if not len(blanks.tokens):
            continue
        total = blanks.total_bases()
        scores = {
            "group": group,
            "sequences": len(rows[group]),
            "tokens": len(blanks.tokens),
            "bases": total,
            "model": {"bits_per_base": float(whole[blanks.rows, blanks.places].sum() / total)},
            "model_given_length": {"bits_per_base": float(given_length[blanks.rows, blanks.places].sum() / total)},
            **best_markov(blanks, counts, [name for name in (group, ALL) if name in counts], bases),
        }
        results.append(scores)
        print(f"{group}: {describe(scores)}", flush=True)
    result = {
        "benchmark": "bits",
        "model": options.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "corpus": corpus.manifest["splits"]["train"]["bases"],
        "settings": {
            key: getattr(options, key) for key in ("sequences", "order", "mlm_probability", "precision", "batch_size")
        },
        "dtype": str(dtype).removeprefix("torch."),
        "counting_seconds": round(counting_seconds, 1),
        "results": results,
        "provenance": provenance(options.device),
    }
    output.save(result, options.output)
