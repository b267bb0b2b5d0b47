"""How often each k-mer occurs in each sequence, as a sparse table: the features of the plainest classifier of DNA.

from dnabert2.gue_eval.kmer_counts import kmer_counts
counts = kmer_counts(["ACGTN", "TTTT"], lengths=(3, 4), both_strands=True)        # (2, 32 + 136) CSR
"""

from collections.abc import Sequence

import numpy as np

from ..training.markov import contexts

_CODES = np.full(256, -1, dtype=np.int8)
_CODES[np.frombuffer(b"ACGT", dtype=np.uint8)] = range(4)
CHUNK = 4_194_304  # bases counted at a time


def base_codes(text: str) -> np.ndarray:
    """(bases,) int8: A, C, G, T as 0 to 3, any other letter as -1."""
    return _CODES[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]


def strand_columns(k: int) -> tuple[np.ndarray, int]:
    """
    Which k-mers are one when strands are not told apart.

    Returns:
        (4 ** k,) int64, the column that a k-mer and its reverse complement share, and how many columns there are.
    """
    forward = np.arange(4**k)
    backward, rest = np.zeros_like(forward), forward
    for _ in range(k):
        backward, rest = 4 * backward + 3 - rest % 4, rest // 4
    _, columns = np.unique(np.minimum(forward, backward), return_inverse=True)
    return columns, int(columns.max()) + 1


def kmer_counts(sequences: Sequence[str], lengths: Sequence[int] = (3, 4, 5, 6), both_strands: bool = False):
    """
    Count overlapping k-mers; those with a letter that is no A, C, G or T do not count.

    Args:
        sequences: upper-case DNA.
        lengths: each k, 1 to 12.
        both_strands: add up a k-mer and its reverse complement, which then share a column: what the two strands of the
            sequence hold together, except that a palindrome counts once, not twice.

    Returns:
        `scipy.sparse.csr_matrix`, (sequences, columns) float32; the columns of the first k come first, in alphabetical
        order of the k-mers.
    """
    from scipy import sparse

    blocks, start, bases = [], 0, 0
    for end, sequence in enumerate(sequences, start=1):
        bases += len(sequence) + 1
        if bases >= CHUNK or end == len(sequences):
            blocks.append(_count(sequences[start:end], lengths, both_strands))
            start, bases = end, 0
    return sparse.vstack(blocks, format="csr")


def _count(sequences, lengths, both_strands):
    from scipy import sparse

    codes = base_codes("N".join(sequences) + "N")
    row = np.repeat(np.arange(len(sequences)), [len(sequence) + 1 for sequence in sequences])
    tables = []
    for k in lengths:
        index = contexts(codes, k - 1)
        known = index >= 0
        columns, width = strand_columns(k) if both_strands else (None, 4**k)
        place = columns[index[known]] if both_strands else index[known]
        ones = np.ones(len(place), dtype=np.float32)
        # The constructor adds up entries of the same place.
        tables.append(sparse.csr_matrix((ones, (row[known], place)), shape=(len(sequences), width)))
    return sparse.hstack(tables, format="csr")
