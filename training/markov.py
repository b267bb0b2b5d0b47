"""What a model of DNA has to beat: the bases before a base, counted. Interpolated Markov models of order 0 to 10.

    p_k(b | context) = (n(context, b) + alpha * p_{k-1}(b | shorter context)) / (n(context) + alpha)

with p_{-1} = 1/4: each order falls back on the one below it where it has seen little (a Dirichlet prior; MacKay and
Bauman Peto 1995). The orders share one table of counts.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from .corpus_stream import Corpus

MOST = 10
ALPHAS = (1.0, 4.0, 16.0, 64.0, 256.0)
_CODES = np.full(256, -1, dtype=np.int8)
_CODES[np.frombuffer(b"ACGT", dtype=np.uint8)] = range(4)


class BaseTable:
    """Turns token ids into bases, A, C, G, T as 0 to 3; an [UNK] is one base, -1; special tokens are none."""

    def __init__(self, tokenizer):
        unknown, special = tokenizer.unk_token_id, set(tokenizer.all_special_ids)
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        texts = ["N" if i == unknown else "" if i in special else token for i, token in enumerate(tokens)]
        self.lengths = np.array([len(text) for text in texts])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.codes = _CODES[np.frombuffer("".join(texts).encode(), dtype=np.uint8)]

    def bases(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens,) ids -> (bases,) codes and, for each base, the place of its token in `ids`."""
        lengths = self.lengths[ids]
        token = np.repeat(np.arange(len(ids)), lengths)
        within = np.arange(len(token)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self.codes[self.starts[ids][token] + within], token


def contexts(codes: np.ndarray, order: int) -> np.ndarray:
    """
    (bases,) codes -> (bases,) int64: the `order` bases before each and itself as a number to base 4.

    -1 where one of them is missing or unknown.
    """
    index = np.zeros(len(codes), dtype=np.int64)
    known = np.ones(len(codes), dtype=bool)
    for back in range(order, -1, -1):
        index *= 4
        before = codes[: max(len(codes) - back, 0)]
        index[back:] += before
        known[back:] &= before >= 0
    known[:order] = False
    return np.where(known, index, -1)


def rows_by_group(corpus: Corpus) -> Iterator[tuple[str, pa.ListArray]]:
    """The training rows of a corpus, block by block: a group, and the ids of its rows in this block."""
    for shard in corpus.shards("train"):
        for table in corpus.rows(shard["file"]):
            groups = np.asarray(table["group"].to_pylist())
            ids = table["input_ids"].combine_chunks()
            for group in np.unique(groups):
                yield str(group), ids.take(np.flatnonzero(groups == group))


def count_bases(corpus: Corpus, tokenizer, order: int = MOST) -> dict[str, np.ndarray]:
    """
    How often each base follows each context, in the training rows of each group.

    Returns:
        Group -> (4 ** order, 4) int64.
    """
    table, counts = BaseTable(tokenizer), {}
    for group, rows in rows_by_group(corpus):
        # A gap after each row, so that no context reaches over its end.
        ends = rows.offsets.to_numpy()[1:]
        values = np.insert(rows.values.to_numpy().astype(np.int64), ends, tokenizer.unk_token_id)
        index = contexts(table.bases(values)[0], order)
        found = np.bincount(index[index >= 0], minlength=4 ** (order + 1))
        counts[group] = counts.get(group, 0) + found.reshape(-1, 4)
    return counts


def count_tokens(corpus: Corpus, vocab_size: int) -> dict[str, np.ndarray]:
    """Group -> (vocab_size,) int64: how often each token occurs in the group's training rows."""
    counts = {}
    for group, rows in rows_by_group(corpus):
        counts[group] = counts.get(group, 0) + np.bincount(rows.values.to_numpy(), minlength=vocab_size)
    return counts


def probability_tables(counts: np.ndarray, alpha: float) -> list[np.ndarray]:
    """
    Each order's interpolated probabilities.

    Args:
        counts: (4 ** order, 4), of the highest order; lower ones are its sums.
        alpha: how many observations the next lower order's opinion is worth.

    Returns:
        order + 1 arrays, (4 ** k, 4) float64: p_k(base | the k bases before it).
    """
    order = round(np.log2(len(counts)) / 2)
    tables, lower = [], np.full((1, 4), 0.25)
    for k in range(order + 1):
        seen = counts.reshape(-1, 4**k, 4).sum(axis=0)
        # The shorter context is the last k - 1 bases: the leading digit is dropped.
        prior = np.tile(lower, (4, 1)) if k else lower
        lower = (seen + alpha * prior) / (seen.sum(axis=1, keepdims=True) + alpha)
        tables.append(lower)
    return tables


def markov_bits(tables: list[np.ndarray], codes: np.ndarray) -> np.ndarray:
    """
    Bits that each base of a sequence costs under each order, given the bases before it.

    Args:
        tables: of `probability_tables`.
        codes: (bases,), -1 for unknown bases, which cost nothing.

    Returns:
        (orders, bases) float64; where fewer bases come before than the order asks for, the lower order counts.
    """
    probability = np.full(len(codes), 0.25)
    bits = np.zeros((len(tables), len(codes)))
    for k, table in enumerate(tables):
        index = contexts(codes, k)
        probability[index >= 0] = table.ravel()[index[index >= 0]]
        bits[k] = np.where(codes >= 0, -np.log2(probability), 0.0)
    return bits


class Candidates:
    """
    What may stand in a blank of so many bases between two tokenised stretches: the tokens of that length with which
    the tokenizer cuts the whole as it was cut. A network that sees the neighbours as tokens can know as much.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.bases = tokenizer.backend_tokenizer, BaseTable(tokenizer)
        self.tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.by_length = {}
        for id, token in enumerate(self.tokens):
            if set(token) <= set("ACGT"):
                self.by_length.setdefault(len(token), []).append(id)

    def between(self, left: list[int], token: int, right: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            left, right: ids of some tokens on either side.
            token: the id that stood there.

        Returns:
            (candidates,) ids, `token` among them, and (candidates, bases) int64 codes.
        """
        length = len(self.tokens[token])
        ids = self.by_length[length]
        before, after = ("".join(self.tokens[i] for i in side) for side in (left, right))
        texts = [before + self.tokens[id] + after for id in ids]
        cut = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        fitting = [id for id, found in zip(ids, cut, strict=True) if id == token or found.ids == [*left, id, *right]]
        ids = np.array(fitting)
        return ids, self.bases.codes[self.bases.starts[ids][:, None] + np.arange(length)].astype(np.int64)


def fill_bits(
    table: np.ndarray, ids: np.ndarray, codes: np.ndarray, token: int, left: np.ndarray, right: np.ndarray
) -> float:
    """
    A Markov chain filling in a blank as a masked language model does: with the bases on both sides, and knowing what
    may stand there. p(token | left, right) is the chain's probability of token and right-hand bases, normalised over
    all candidates: all that a chain of this order knows.

    Args:
        table: one of `probability_tables`, of order k.
        ids, codes: of `Candidates.between`.
        token: the id that stood there.
        left, right: (k,) codes of the bases before and behind it, all of them known.

    Returns:
        -log2 p(token | left, right).
    """
    order = len(left)
    spelt = [np.broadcast_to(left, (len(ids), order)), codes, np.broadcast_to(right, (len(ids), order))]
    spelt = np.concatenate(spelt, axis=1).astype(np.int64)
    scores = np.zeros(len(ids))
    for place in range(order, spelt.shape[1]):
        index = spelt[:, place - order : place + 1] @ (4 ** np.arange(order, -1, -1))
        scores += np.log2(table.ravel()[index])
    top = scores.max()
    return float(top + np.log2(np.exp2(scores - top).sum()) - scores[ids == token][0])
