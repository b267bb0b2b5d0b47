"""Long sequences in pieces, put together again: tokens of sequences of any length, and windows for a network.

    (tokens,) = tokenize(tokenizer, [chromosome])               # ids and ends of all tokens, those of the whole
    for window in split(len(tokens), 510, 64):
        values[window.keep] = network(tokens.ids[window.span])[window.kept]

A byte-pair tokenizer takes longer a base the longer the text, does not share a text among cores, and holds strings
for every token. `tokenize` therefore cuts the text into overlapping pieces and joins their tokens where two pieces
have the same one. That is exact: a row of tokens is what byte-pair encoding makes of a text if and only if each two
neighbours are what it makes of the two alone (Neubeck and van Antwerpen, "So many tokens, so little time", GitHub
2024; of merges whose parts were made by earlier ones), and all neighbours of the joined row stood side by side in one
of the pieces.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

PIECE, OVERLAP = 4_000, 200  # bases
PIECES_AT_ONCE = 2_000  # in one parallel call


@dataclass(frozen=True)
class Tokens:
    """
    The tokens of a sequence, without special ones.

    Attributes:
        ids: (tokens,) int32.
        ends: (tokens,) int64, the base behind each; a token starts where the one before it ends.
    """

    ids: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def spans(self) -> np.ndarray:
        """(tokens, 2), as `base_map` takes them."""
        starts = np.concatenate([[0], self.ends[:-1]]) if len(self.ends) else self.ends
        return np.stack([starts, self.ends], axis=1)


def tokenize(tokenizer, sequences: list[str], piece: int = PIECE, overlap: int = OVERLAP) -> list[Tokens]:
    """
    The tokens of sequences, the same whatever `piece` and `overlap`, made in parallel.

    Args:
        tokenizer: a fast byte-pair tokenizer of this family: every base in one token, no normaliser.
        sequences: without white space.
        piece: bases of a text at most; shorter sequences are not cut.
        overlap: bases that two pieces share. Where they have no token in common, as in a long repeat, the two are
            tokenised again as one.
    """
    if not 0 < 2 * overlap <= piece:
        raise ValueError(f"an overlap of {overlap} bases on either side does not fit into pieces of {piece}.")
    pieces: list[list[_Piece]] = [[] for _ in sequences]
    cuts = [
        (i, start)
        for i, sequence in enumerate(sequences)
        for start in range(0, max(len(sequence) - overlap, 1), piece - overlap)
    ]
    for first in range(0, len(cuts), PIECES_AT_ONCE):
        some = cuts[first : first + PIECES_AT_ONCE]
        texts = [sequences[i][start : start + piece] for i, start in some]
        for (i, start), tokens in zip(some, _encode(tokenizer, texts), strict=True):
            pieces[i].append(_Piece(start, tokens.ids, tokens.ends + start))
    return [_join(tokenizer, sequence, own) for sequence, own in zip(sequences, pieces, strict=True)]


@dataclass(frozen=True)
class _Piece:
    """Tokens of the sequence's bases from `start` on; ends count from the sequence's first base."""

    start: int
    ids: np.ndarray
    ends: np.ndarray


def _encode(tokenizer, texts: list[str]) -> list[Tokens]:
    backend = tokenizer.backend_tokenizer
    # Left there by whoever called the tokenizer last; transformers sets both again for every call of its own.
    backend.no_padding()
    backend.no_truncation()
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    return [
        Tokens(np.array(e.ids, dtype=np.int32), np.array(e.offsets, dtype=np.int64).reshape(-1, 2)[:, 1])
        for e in encodings
    ]


def _join(tokenizer, sequence: str, pieces: list[_Piece]) -> Tokens:
    """Pieces, in order, as one row of tokens: each goes on behind a token that the one before it has too."""
    row: list[_Piece] = []
    firsts, stops = [], []  # of each piece, the first token that counts and the one behind the last
    for piece in pieces:
        first = 0
        while row:
            joint = _joint(row[-1], piece)
            if joint is not None:
                stops[-1], first = joint[0] + 1, joint[1] + 1
                break
            start = row.pop().start
            del firsts[-1], stops[-1]
            (tokens,) = _encode(tokenizer, [sequence[start : piece.ends[-1]]])
            piece = _Piece(start, tokens.ids, tokens.ends + start)
        row.append(piece)
        firsts.append(first)
        stops.append(len(piece.ids))
    if len(row) == 1:
        return Tokens(row[0].ids, row[0].ends)
    counted = [slice(*both) for both in zip(firsts, stops, strict=True)]
    ids = np.concatenate([piece.ids[part] for piece, part in zip(row, counted, strict=True)])
    return Tokens(ids, np.concatenate([piece.ends[part] for piece, part in zip(row, counted, strict=True)]))


def _joint(one: _Piece, other: _Piece) -> tuple[int, int] | None:
    """The places in two pieces of a token of both; of several the middle one, far from where either was cut."""
    low = int(np.searchsorted(one.ends, other.start, side="right"))
    high = int(np.searchsorted(other.ends, one.ends[-1], side="right"))
    _, here, there = np.intersect1d(one.ends[low:], other.ends[:high], assume_unique=True, return_indices=True)
    here = here + low
    starts = np.where(here > 0, one.ends[here - 1], one.start)
    other_starts = np.where(there > 0, other.ends[there - 1], other.start)
    places = np.flatnonzero(starts == other_starts)
    if not len(places):
        return None
    middle = places[len(places) // 2]
    return int(here[middle]), int(there[middle])


@dataclass(frozen=True)
class Window:
    """
    A stretch of a row of tokens that the network reads at once, and the part of it that counts.

    Attributes:
        span: what is read.
        keep: what counts, in places of the whole row; these parts cover the row once.
        kept: the same in places of the window.
    """

    span: slice
    keep: slice

    @property
    def kept(self) -> slice:
        return slice(self.keep.start - self.span.start, self.keep.stop - self.span.start)


def split(length: int, window: int | None, overlap: int = 0) -> list[Window]:
    """
    Windows of a row of `length` items, as few and as equal as possible.

    Args:
        window: items of the longest; None for one window of everything.
        overlap: items that neighbours share at least; each keeps the half that is farther from its end.

    Raises:
        ValueError: if windows that overlap so much get nowhere.
    """
    if window is None or length <= window:
        return [Window(slice(0, length), slice(0, length))]
    if not 0 <= overlap < window:
        raise ValueError(f"an overlap of {overlap} leaves nothing of windows of {window}.")
    count = -(-(length - overlap) // (window - overlap))
    starts = [round(i * (length - window) / (count - 1)) for i in range(count)]
    borders = [0, *((a + window + b) // 2 for a, b in pairwise(starts)), length]
    return [
        Window(slice(start, start + window), slice(low, high))
        for start, (low, high) in zip(starts, pairwise(borders), strict=True)
    ]
