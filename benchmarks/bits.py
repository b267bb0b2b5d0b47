"""Held-out bits per base of a masked language model, by group, beside Markov models counted on the same corpus.

    dnabert2 bench bits --model mini --corpus runs/mini-corpus --sequences 512 --output benchmarks/results/bits.json
    dnabert2 bench bits --model mini --corpus runs/mini-corpus --sequences 8 --order 4      # seconds on a CPU

All are scored on the same bases, those of masked tokens at least `--order` bases from both ends of a window:

`model`: -log2 p(token | the rest). The token's probability also pays for how many bases it has.
`markov`: each base given the true bases before it, an interpolated Markov model of the best order up to `--order`.
`model_given_cuts`: p(token) among the tokens that may stand there: those of as many bases with which the tokenizer
cuts the window as it was cut. What remains is the bases alone.
`markov_given_cuts`: a Markov model with the same knowledge: the same candidates, and the bases on both sides.
`frequency`, `frequency_given_cuts`: the token's share of the group's training tokens, of all or of the candidates': a
model without context.

The Markov models are counted on all of the corpus' training rows, of the group or of all groups. Counts, prior and
order of `markov` are those that score best on the very bases scored, which favours it; `markov_given_cuts` takes its
counts and prior, and the order that is best for itself. The true neighbours count even where they are masked too.
"""

import time
from dataclasses import dataclass
from pathlib import Path

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
from ..training.markov import (
    ALPHAS,
    BaseTable,
    Candidates,
    count_bases,
    count_tokens,
    fill_bits,
    markov_bits,
    probability_tables,
)
from . import output, tables
from .variants import check_device

ALL = "all groups"  # counts of the whole corpus
KINDS = ("model", "markov", "frequency", "model_given_cuts", "markov_given_cuts", "frequency_given_cuts")
NEIGHBOURS = 4  # tokens on either side of a blank that decide how it can be cut


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
def model_bits(
    model, held_out: HeldOut, candidates: dict[tuple[int, int], np.ndarray], batch_size: int, dtype
) -> tuple[np.ndarray, np.ndarray]:
    """
    Bits that the model gives each masked token.

    Args:
        candidates: (row, place) of a blank -> ids that may stand there.

    Returns:
        Two arrays like the labels, (sequences, length) float64: of the token, and of the token among its candidates;
        0 where there is no blank.
    """
    device = model.device
    whole, given_cuts = (np.zeros(held_out.labels.shape) for _ in range(2))
    for start in range(0, len(held_out), batch_size):
        rows = slice(start, start + batch_size)
        inputs, labels = held_out.inputs[rows].to(device), held_out.labels[rows].to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(input_ids=inputs, labels=labels, labelled_only=True).logits
        scores = torch.log_softmax(logits.double(), dim=-1).cpu().numpy() / np.log(2)
        for (row, place), found in zip((labels != IGNORE_INDEX).nonzero().tolist(), scores, strict=True):
            ids = candidates.get((start + row, place))
            if ids is not None:
                token = found[labels[row, place]]
                whole[start + row, place] = -token
                given_cuts[start + row, place] = np.log2(np.exp2(found[ids]).sum()) - token
    return whole, given_cuts


def find_candidates(blanks: Blanks, held_out: HeldOut, candidates: Candidates) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and codes of what may stand in each blank, by `NEIGHBOURS` tokens on either side."""
    whole = torch.where(held_out.labels != IGNORE_INDEX, held_out.labels, held_out.inputs).numpy()
    found = []
    for row, place, token in zip(blanks.rows, blanks.places, blanks.tokens, strict=True):
        sides = whole[row, max(place - NEIGHBOURS, 0) : place], whole[row, place + 1 : place + 1 + NEIGHBOURS]
        left, right = ([int(i) for i in side if candidates.bases.lengths[i]] for side in sides)
        found.append(candidates.between(left, int(token), right))
    return found


def best_markov(blanks: Blanks, counts: dict[str, np.ndarray], names: list[str], candidates: list) -> dict:
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
    filled = {}
    for order, table in enumerate(probability_tables(counts[best["counted_on"]], best["prior"])):
        bits = sum(_fill(table, order, blanks, i, *candidates[i]) for i in range(len(blanks.tokens)))
        filled[order] = bits / blanks.total_bases()
    order = min(filled, key=filled.get)
    given_cuts = {"bits_per_base": filled[order], "order": order, **{k: best[k] for k in ("prior", "counted_on")}}
    return {
        "markov": best,
        "markov_by_order": by_order,
        "markov_given_cuts": given_cuts,
        "markov_given_cuts_by_order": filled,
    }


def _fill(table: np.ndarray, order: int, blanks: Blanks, i: int, ids: np.ndarray, codes: np.ndarray) -> float:
    start, end = blanks.starts[i], blanks.starts[i] + blanks.lengths[i]
    left, right = blanks.codes[start - order : start], blanks.codes[end : end + order]
    return fill_bits(table, ids, codes, int(blanks.tokens[i]), left, right)


def frequency_bits(blanks: Blanks, frequencies: np.ndarray, candidates: list) -> dict:
    """Bits per base of tokens drawn by `frequencies` (vocabulary,), from all and from each blank's candidates."""
    own = np.log2(frequencies[blanks.tokens])
    among = np.log2([frequencies[ids].sum() for ids, _ in candidates])
    total = blanks.total_bases()
    return {
        "frequency": {"bits_per_base": float((np.log2(frequencies.sum()) - own).sum() / total)},
        "frequency_given_cuts": {"bits_per_base": float((among - own).sum() / total)},
    }


def _within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... of each length, end to end."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def describe(scores: dict) -> str:
    """One line of a group's scores."""
    return ", ".join(f"{key.replace('_', ' ')} {scores[key]['bits_per_base']:.3f}" for key in KINDS)


def run(options):
    """Body of `bench bits`: measure, print and write."""
    output.check_output(options.output)
    device = check_device(options.device)
    if options.order < 0 or options.order > 12 or options.sequences < 1 or options.batch_size < 1:
        raise UserError("--order must be from 0 to 12, --sequences and --batch_size at least 1.")
    if not 0 < options.mlm_probability < 1:
        raise UserError(f"--mlm_probability {options.mlm_probability}: must be between 0 and 1.")
    corpus = Corpus.open(options.corpus)
    tokenizer = load_tokenizer(corpus.tokenizer_source())
    model = load_model("DNABert2ForMaskedLM", options.model, dtype=torch.float32).to(device).eval()
    if load_tokenizer(options.model).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{options.corpus}: was built with another tokenizer than {options.model} has; build it anew.")
    dtype = resolve_dtype(options.precision, device)
    rows = read_held_out(corpus, options.sequences)
    max_length = corpus.manifest["settings"]["window_tokens"] + 2
    held_out = mask_held_out(rows, tokenizer, max_length, options.mlm_probability)
    candidates = Candidates(tokenizer)
    blanks = [find_blanks(held_out, i, candidates.bases, options.order) for i in range(len(held_out.groups))]
    fitting = [find_candidates(of_group, held_out, candidates) for of_group in blanks]
    by_place = {
        (row, place): ids
        for of_group, found in zip(blanks, fitting, strict=True)
        for row, place, (ids, _) in zip(of_group.rows, of_group.places, found, strict=True)
    }
    whole, given_cuts = model_bits(model, held_out, by_place, options.batch_size, dtype)
    start = time.perf_counter()
    counts = count_bases(corpus, tokenizer, options.order)
    counts[ALL] = sum(counts.values())
    token_counts = count_tokens(corpus, len(tokenizer))
    counting_seconds = time.perf_counter() - start
    results = []
    for group, of_group, found in zip(held_out.groups, blanks, fitting, strict=True):
        if not len(of_group.tokens):
            continue
        total = of_group.total_bases()
        scores = {
            "group": group,
            "sequences": len(rows[group]),
            "tokens": len(of_group.tokens),
            "bases": total,
            "candidates_mean": float(np.mean([len(ids) for ids, _ in found])),
            "model": {"bits_per_base": float(whole[of_group.rows, of_group.places].sum() / total)},
            "model_given_cuts": {"bits_per_base": float(given_cuts[of_group.rows, of_group.places].sum() / total)},
            # One more of each: a token that the group's training rows lack can still stand there.
            **frequency_bits(of_group, token_counts.get(group, sum(token_counts.values())) + 1.0, found),
            **best_markov(of_group, counts, [name for name in (group, ALL) if name in counts], found),
        }
        results.append(scores)
        print(f"{group}: {describe(scores)}", flush=True)
    result = {
        "benchmark": "bits",
        # Of a folder its name: where it is on this machine is nobody's business.
        "model": Path(options.model).resolve().name if Path(options.model).is_dir() else options.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "corpus": {"training_bases": corpus.manifest["splits"]["train"]["bases"], "sha256": corpus.sha256()},
        "settings": {
            key: getattr(options, key) for key in ("sequences", "order", "mlm_probability", "precision", "batch_size")
        },
        "dtype": str(dtype).removeprefix("torch."),
        "counting_seconds": round(counting_seconds, 1),
        "groups": results,
        "provenance": provenance(device),
    }
    output.save(result, options.output)
    print(tables.bits(result))
