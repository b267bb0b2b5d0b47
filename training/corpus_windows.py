"""From a stretch of a chromosome to rows of the corpus: windows of tokens with the coordinates of their bases."""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..genome.strands import reverse_complement
from ..tokenizer.files import load_tokenizer
from ..tokenizer.policy import TextPolicy

BASES_PER_TOKEN = 5  # about; byte pairs of DNA are a little shorter


@dataclass(frozen=True)
class WindowPolicy:
    """
    Attributes:
        tokenizer: folder or `tokenizer.json`.
        window_tokens: tokens of a whole window, special tokens not counted.
        min_tokens: shorter windows, at the ends of stretches, are left out.
        n: "split" cuts at every N (and ambiguity code); "keep" leaves them, each an [UNK].
        soft_mask: "upper" reads lower case as upper; "split" leaves soft-masked (repeat) sequence out.
    """

    tokenizer: str
    window_tokens: int = 126
    min_tokens: int = 16
    n: str = "split"
    soft_mask: str = "upper"


@dataclass
class Windows:
    """
    Rows that follow each other on one strand.

    Attributes:
        values: (tokens,) uint16, the windows' ids end to end.
        offsets: (windows + 1,) int64, where each begins in `values`.
        starts, ends: (windows,) int64, 0-based half-open coordinates on the forward strand.
    """

    values: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@cache
def _tokenizer(name: str):
    """The `tokenizers.Tokenizer`, and how many bases each id stands for (an [UNK] is one letter)."""
    tokenizer = load_tokenizer(name)
    return tokenizer.backend_tokenizer, token_bases(tokenizer)


def token_bases(tokenizer) -> np.ndarray:
    """(vocabulary,) int64: bases of each token; 1 for [UNK], 0 for the other special tokens."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens)
    bases = np.array([0 if token in special else len(token) for token in tokens], dtype=np.int64)
    bases[tokenizer.unk_token_id] = 1
    return bases


def cut_windows(text: str, start: int, reverse: bool, policy: WindowPolicy, draw: np.random.Generator) -> Windows:
    """
    Cut a chunk of a record into windows that do not overlap and leave out nothing but what the policy drops.

    The first window of every stretch has a random length, so that another pass over the same bases cuts elsewhere.

    Args:
        text: the chunk, as it stands in the file.
        start: its 0-based place in the record.
        reverse: take the reverse complement; coordinates stay those of the forward strand.
    """
    tokenizer, bases_of = _tokenizer(policy.tokenizer)
    text = text.translate(TextPolicy(upper_case=False).table())  # U and ambiguity codes only
    text = text.upper() if policy.soft_mask == "upper" else re.sub("[a-z]", ".", text)
    rows, starts, ends = [], [], []
    for stretch in re.finditer("[ACGT]+" if policy.n == "split" else "[ACGTN]+", text):
        if not stretch.group().strip("N"):
            continue
        piece = reverse_complement(stretch.group()) if reverse else stretch.group()
        for ids, offset in _cut_stretch(piece, tokenizer, bases_of, policy, draw):
            length = int(bases_of[ids].sum())
            first = stretch.end() - offset - length if reverse else stretch.start() + offset
            rows.append(ids)
            starts.append(start + first)
            ends.append(start + first + length)
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.concatenate(rows) if rows else np.zeros(0, dtype=np.uint16)
    return Windows(values, offsets, np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64))


def _cut_stretch(text: str, tokenizer, bases_of: np.ndarray, policy: WindowPolicy, draw: np.random.Generator):
    """
    Yield (ids, place of their first base in `text`).

    A block of some windows is tokenised at a time, since long texts cost more a base; its last window is left to the
    next block, because the block's end may have cut its last token.
    """
    block = 8 * policy.window_tokens * BASES_PER_TOKEN
    place = 0
    length = int(draw.integers(min(policy.min_tokens, policy.window_tokens), policy.window_tokens + 1))
    while place < len(text):
        is_last = place + block >= len(text)
        [encoding] = tokenizer.encode_batch_fast([text[place : place + block]], add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.uint16)
        used = 0
        while used < len(ids) and (is_last or used + length < len(ids)):
            window = ids[used : used + length]
            if len(window) >= policy.min_tokens:
                yield window, place + int(bases_of[ids[:used]].sum())
            used += length
            length = policy.window_tokens
        if is_last:
            return
        place += int(bases_of[ids[:used]].sum())
