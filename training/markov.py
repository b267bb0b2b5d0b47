"""What a model of DNA has to beat: the bases before a base, counted. Interpolated Markov models of order 0 to 10.

    p_k(b | context) = (n(context, b) + alpha * p_{k-1}(b | shorter context)) / (n(context) + alpha)

with p_{-1} = 1/4: each order falls back on the one below it where it has seen little (a Dirichlet prior; MacKay and
Bauman Peto 1995). The orders share one table of counts.
"""

import numpy as np

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


def count_bases(corpus: Corpus, tokenizer, order: int = MOST, most_rows: int | None = None) -> dict[str, np.ndarray]:
    """
    How often each base follows each context, in the training rows of each group.

    Returns:
        Group -> (4 ** order, 4) int64.
    """
    table = BaseTable(tokenizer)
    counts, rows = {}, 0
    for shard in corpus.shards("train"):
        for rows_table in corpus.rows(shard["file"]):
            groups = np.asarray(rows_table["group"].to_pylist())
            ids = rows_table["input_ids"].combine_chunks()
            for group in np.unique(groups):
                picked = ids.take(np.flatnonzero(groups == group))
                lengths = np.diff(picked.offsets.to_numpy())
                # A gap after each row, so that no context reaches over its end.
                values = np.insert(
                    picked.values.to_numpy().astype(np.int64), np.cumsum(lengths), tokenizer.unk_token_id
                )
                index = contexts(table.bases(values)[0], order)
                found = np.bincount(index[index >= 0], minlength=4 ** (order + 1))
                counts[group] = counts.get(group, 0) + found.reshape(-1, 4)
            rows += len(rows_table)
            if most_rows is not None and rows >= most_rows:
                return counts
    return counts


def markov_bits(counts: np.ndarray, codes: np.ndarray, alpha: float) -> np.ndarray:
    """
    Bits that each base of a sequence costs under each order.

    Args:
        counts: (4 ** order, 4).
        codes: (bases,), -1 for unknown bases, which cost nothing.

    Returns:
        (order + 1, bases) float64; where fewer bases come before than the order asks for, the lower order counts.
    """
    order = round(np.log2(len(counts)) / 2)
    probability = np.full(len(codes), 0.25)
    bits = np.zeros((order + 1, len(codes)))
    for k in range(order + 1):
        # Of a longer context, the last k bases: the leading digits are summed out.
        seen = counts.reshape(-1, 4**k, 4).sum(axis=0) if k < order else counts
        index = contexts(codes, k)
        known = index >= 0
        context, base = index[known] // 4, index[known] % 4
        total = seen.sum(axis=1)[context]
        probability = probability.copy()
        probability[known] = (seen[context, base] + alpha * probability[known]) / (total + alpha)
        bits[k] = np.where(codes >= 0, -np.log2(probability), 0.0)
    return bits
