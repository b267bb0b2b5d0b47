"""What a tokenizer does to stretches of DNA, measured through the offsets of its tokens: lengths, leakage, stability.

Nothing here knows which tokenizer it is: that non-overlapping tokens leak nothing is found, not assumed.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

QUANTILES = (5, 25, 50, 75, 95)
EDITS = ("deletion_at_start", "insertion_at_start", "substitution_in_middle")
BASES = "ACGT"


@dataclass(frozen=True)
class Tokens:
    """
    One text's tokens, special tokens not counted, in order of their starts.

    Attributes:
        ids, starts, ends: (tokens,) int64; bases are 0-based, half-open.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def tokenise(backend, texts: list[str]) -> list[Tokens]:
    """The tokens of each text by a `tokenizers.Tokenizer`."""
    found = []
    for encoding in backend.encode_batch(texts, add_special_tokens=False):
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        found.append(Tokens(np.array(encoding.ids, dtype=np.int64), offsets[:, 0], offsets[:, 1]))
    return found


def summarise(values) -> dict[str, float]:
    """The mean and quantiles of some numbers."""
    values = np.asarray(values, dtype=np.float64)
    quantiles = np.percentile(values, QUANTILES)
    return {"mean": float(values.mean()), **{f"p{q}": float(x) for q, x in zip(QUANTILES, quantiles, strict=True)}}


def token_lengths(tokenised: list[Tokens]) -> dict:
    """Bases of a token: mean, quantiles, and `histogram`, a list of (bases, share of the tokens)."""
    lengths = np.concatenate([tokens.ends - tokens.starts for tokens in tokenised])
    histogram = sorted(Counter(lengths.tolist()).items())
    return {**summarise(lengths), "histogram": [[length, n / len(lengths)] for length, n in histogram]}


def mask_tokens_alone(count: int, probability: float, draw: np.random.Generator) -> np.ndarray:
    """(count,) bool: each token masked with `probability`, whatever its neighbours are (BERT)."""
    return draw.random(count) < probability


def mask_spans(count: int, k: int, probability: float, draw: np.random.Generator) -> np.ndarray:
    """
    (count,) bool: k neighbouring tokens masked around each of some centres, as DNABERT is pretrained (Ji et al. 2021).

    Centres are drawn with `probability` / k, so that about `probability` of the tokens are masked.
    """
    centres = np.flatnonzero(draw.random(count) < probability / k)
    around = centres[:, None] + np.arange(-((k - 1) // 2), k // 2 + 1)
    masked = np.zeros(count, dtype=bool)
    masked[around[(around >= 0) & (around < count)]] = True
    return masked


def spelt_shares(tokens: Tokens, masked: np.ndarray) -> np.ndarray:
    """
    Of each masked token, the share of its bases that tokens which are not masked spell too: nothing to predict there.

    Args:
        masked: (tokens,) bool.

    Returns:
        (masked tokens,) float64; 1 for a token that its neighbours give away altogether.
    """
    if not len(tokens):
        return np.zeros(0)
    seen = ~masked
    change = np.zeros(tokens.ends.max() + 1, dtype=np.int64)
    np.add.at(change, tokens.starts[seen], 1)
    np.add.at(change, tokens.ends[seen], -1)
    spelt = np.concatenate([[0], np.cumsum(np.cumsum(change) > 0)])
    starts, ends = tokens.starts[masked], tokens.ends[masked]
    return (spelt[ends] - spelt[starts]) / (ends - starts)


def leakage(tokenised: list[Tokens], mask) -> dict:
    """
    What neighbours tell of masked tokens, over all texts.

    Args:
        mask: `mask(count)` chooses among a text's tokens.

    Returns:
        `masked_tokens` counted, `masked_share` of all tokens, `wholly_spelt` share of the masked tokens of which
        neighbours spell every base, and `mean_share_spelt` of a masked token's bases. The last two are None if
        nothing was masked.
    """
    shares = [spelt_shares(tokens, mask(len(tokens))) for tokens in tokenised]
    together = np.concatenate(shares)
    return {
        "masked_tokens": len(together),
        "masked_share": len(together) / sum(map(len, tokenised)),
        "wholly_spelt": float((together == 1).mean()) if len(together) else None,
        "mean_share_spelt": float(together.mean()) if len(together) else None,
    }


def edit(text: str, kind: str, draw: np.random.Generator) -> tuple[str, int]:
    """
    Change one base of `text`: delete the first, put a random one before it, or replace the middle one by another.

    Returns:
        The edited text, and what to add to a place in it to get the same base's place in `text`.
    """
    if kind == "deletion_at_start":
        return text[1:], 1
    if kind == "insertion_at_start":
        return BASES[draw.integers(4)] + text, -1
    middle = len(text) // 2
    others = BASES.replace(text[middle], "")
    return text[:middle] + others[draw.integers(3)] + text[middle + 1 :], 0


def survivors(before: Tokens, after: Tokens, shift: int) -> np.ndarray:
    """
    (tokens before,) bool: whether the same token still stands over the same bases, `shift` being added after.

    No two tokens of a text start at the same base; an id that is not [UNK] says how many bases it spells.
    """
    ids = np.full(max(before.ends.max(initial=0), after.ends.max(initial=0) + shift) + 1, -1)
    inside = after.starts + shift >= 0
    ids[after.starts[inside] + shift] = after.ids[inside]
    return ids[before.starts] == before.ids


def stability(backend, texts: list[str], kind: str, draw: np.random.Generator) -> dict:
    """
    What one edited base does to the tokens of each text.

    Returns:
        `surviving_share`: of a text's tokens, those which still stand over the same bases. `disturbed_bases`: from
        the first base of the first token that does not to the last base of the last, 0 if all do; after an edit at
        the start it is the distance after which the tokens are in step again for good. Both are mean and quantiles
        over texts. `never_in_step`: share of the texts whose last token does not survive.
    """
    edited = [edit(text, kind, draw) for text in texts]
    shares, disturbed, never = [], [], 0
    pairs = zip(tokenise(backend, texts), tokenise(backend, [text for text, _ in edited]), strict=True)
    for (before, after), (_, shift) in zip(pairs, edited, strict=True):
        survives = survivors(before, after, shift)
        lost = np.flatnonzero(~survives)
        shares.append(survives.mean())
        disturbed.append(before.ends[lost[-1]] - before.starts[lost[0]] if len(lost) else 0)
        never += not survives[-1]
    return {
        "surviving_share": summarise(shares),
        "disturbed_bases": summarise(disturbed),
        "never_in_step": never / len(texts),
    }
