"""The exact map between bases and tokens, from the offsets of a fast tokenizer.

    from dnabert2.genome.base_map import base_to_token, spread, token_spans

    sequence = "ACGTNNACGT"
    (spans,) = token_spans(tokenizer, sequence)        # [CLS] (-1, -1), ACGT (0, 4), [UNK] (4, 5), ...
    base_to_token(spans, len(sequence))                # 1 1 1 1 2 3 4 4 4 4
    spread(scores_of_tokens, spans, len(sequence))     # the same scores, one a base
    share(attributions, spans, len(sequence))          # divided among the bases, so that their sum stays
    mean_of_bases(conservation, spans)                 # the other way: a track of bases, one value a token

Spans are half-open, count bases of the text the tokenizer was given, from 0, and come one a token of the model's
input: a special token, padding too, has (-1, -1). An [UNK] that stands for letters has their span. Bases that no token
covers, such as those cut off by truncation, have token -1 and values NaN. Overlapping tokens (k-mers) share bases.
"""

import numpy as np

from ..errors import UserError

NO_SPAN = -1
IGNORE = -100  # what the losses of transformers leave out


def token_spans(tokenizer, sequences: str | list[str], max_length: int | None = None) -> list[np.ndarray]:
    """
    Tokenise with special tokens and give the spans of each sequence's tokens.

    Args:
        tokenizer: a fast tokenizer of `transformers`.
        sequences: one sequence or several, without white space.
        max_length: cut after so many tokens, special ones included.

    Returns:
        An int64 array (tokens, 2) a sequence, start and end in bases.

    Raises:
        UserError: if the tokenizer is none of the fast ones, which alone know their offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} does not say which bases its tokens stand for; "
            "give a fast one, which has a tokenizer.json."
        )
    texts = [sequences] if isinstance(sequences, str) else list(sequences)
    if not texts:
        return []
    return batch_spans(tokenizer(texts, truncation=max_length is not None, max_length=max_length))


def batch_spans(batch) -> list[np.ndarray]:
    """`token_spans` of what a fast tokenizer returned for a list of single sequences, padded or not."""
    found = []
    for encoding in batch.encodings:
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        spans[np.array(encoding.special_tokens_mask, dtype=bool)] = NO_SPAN
        found.append(spans)
    return found


def longest_token(tokenizer) -> int:
    """Bases of the longest vocabulary entry that is no special token; 1 if there is none, for an [UNK] is a letter."""
    special = set(tokenizer.all_special_tokens)
    return max((len(token) for token in tokenizer.get_vocab() if token not in special), default=1)


def base_to_token(spans: np.ndarray, length: int) -> np.ndarray:
    """The token that covers each of `length` bases, the first if there are several: (length,) int64, -1 for none."""
    tokens, bases, _ = _pairs(spans, length)
    found = np.full(length, -1, dtype=np.int64)
    found[bases[::-1]] = tokens[::-1]  # of several that are assigned to one place, the last stays
    return found


def spread(token_values: np.ndarray, spans: np.ndarray, length: int) -> np.ndarray:
    """
    Give every base the value of its token, or the mean over the tokens that cover it.

    Args:
        token_values: (tokens, ...).
        spans: (tokens, 2).

    Returns:
        (length, ...) in the floating-point type of the values, float64 for integers; NaN where no token is.
    """
    token_values = np.asarray(token_values)
    _same_tokens(token_values, spans, "token_values")
    tokens, bases, _ = _pairs(spans, length)
    return _means(token_values[tokens], bases, length)


def share(token_values: np.ndarray, spans: np.ndarray, length: int) -> np.ndarray:
    """
    Divide what tokens have among their bases evenly: what bases have together is what tokens had, special ones aside.

    For attributions and attention, of which a longer token has no more because it is longer.

    Args:
        token_values: (tokens, ...).
        spans: (tokens, 2).

    Returns:
        (length, ...) float64; 0 where no token is, and sums where tokens overlap.
    """
    token_values = np.asarray(token_values, dtype=np.float64)
    _same_tokens(token_values, spans, "token_values")
    tokens, bases, _ = _pairs(spans, length)
    sizes = np.diff(np.asarray(spans), axis=1)[tokens].reshape(-1, *[1] * (token_values.ndim - 1))
    found = np.zeros((length, *token_values.shape[1:]))
    np.add.at(found, bases, token_values[tokens] / sizes)
    return found


def attention_of_bases(attention: np.ndarray, spans: np.ndarray, length: int) -> np.ndarray:
    """
    An attention map between tokens as one between bases.

    Args:
        attention: (..., tokens, tokens), each query's weights on all keys, as `output_attentions` gives them.
        spans: (tokens, 2).

    Returns:
        (..., length, length) float64: a base looks as its token does, and shares what its token is given with the
        token's other bases, so that a row sums to what its token gave to tokens that are not special.
    """
    attention = np.asarray(attention, dtype=np.float64)
    by_key = share(np.moveaxis(attention, -1, 0), spans, length)  # (keys in bases, ..., queries)
    by_query = spread(np.moveaxis(by_key, -1, 0), spans, length)  # (queries in bases, keys in bases, ...)
    return np.moveaxis(by_query, (0, 1), (-2, -1))


def mean_of_bases(base_values: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """
    Give every token the mean of its bases: the way back of `spread`, for tracks such as conservation.

    Args:
        base_values: (bases, ...).
        spans: (tokens, 2).

    Returns:
        (tokens, ...) float64; NaN for special tokens.
    """
    base_values = np.asarray(base_values, dtype=np.float64)
    tokens, bases, _ = _pairs(spans, len(base_values))
    sums = np.zeros((len(spans), *base_values.shape[1:]))
    np.add.at(sums, tokens, base_values[bases])
    counts = np.bincount(tokens, minlength=len(spans)).astype(float)
    counts[counts == 0] = np.nan
    return sums / counts.reshape(-1, *[1] * (base_values.ndim - 1))


def gather_base_labels(
    labels_per_base: np.ndarray, spans: np.ndarray, bases_per_token: int, ignore: int = IGNORE
) -> np.ndarray:
    """
    The labels of bases, token by token: row t holds those of the bases of token t in their order, then `ignore`.

    Args:
        labels_per_base: (bases,) integers.
        spans: (tokens, 2).
        bases_per_token: columns; at least the bases of the longest token, see `longest_token`.

    Returns:
        (tokens, bases_per_token) int64.

    Raises:
        ValueError: if a token has more bases than that, or ends beyond the labels.
    """
    labels_per_base = np.asarray(labels_per_base, dtype=np.int64)
    tokens, bases, places = _pairs(spans, len(labels_per_base), bases_per_token)
    found = np.full((len(spans), bases_per_token), ignore, dtype=np.int64)
    found[tokens, places] = labels_per_base[bases]
    return found


def scatter_base_logits(logits: np.ndarray, spans: np.ndarray, length: int) -> np.ndarray:
    """
    The way back of `gather_base_labels`: what each token says of its bases, in the order of the bases.

    Args:
        logits: (tokens, bases_per_token, classes).
        spans: (tokens, 2).

    Returns:
        (length, classes), the mean where tokens overlap, NaN where no token is.

    Raises:
        ValueError: if a token has more bases than `bases_per_token`, or ends beyond `length`.
    """
    logits = np.asarray(logits)
    _same_tokens(logits, spans, "logits")
    tokens, bases, places = _pairs(spans, length, logits.shape[1])
    return _means(logits[tokens, places], bases, length)


def _pairs(spans: np.ndarray, length: int, most: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every (token, base) that belong together, by token, and the base's place within its token."""
    starts, ends = np.asarray(spans).reshape(-1, 2).T
    if len(ends) and ends.max() > length:
        raise ValueError(f"a token ends at base {ends.max()}, but the sequence has {length}.")
    sizes = ends - starts
    if most is not None and len(sizes) and sizes.max() > most:
        raise ValueError(f"a token has {sizes.max()} bases, but there is room for {most} a token.")
    tokens = np.repeat(np.arange(len(sizes)), sizes)
    places = np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return tokens, starts[tokens] + places, places


def _means(values: np.ndarray, bases: np.ndarray, length: int) -> np.ndarray:
    kind = values.dtype if np.issubdtype(values.dtype, np.floating) else np.float64
    counts = np.bincount(bases, minlength=length)
    if counts.max(initial=0) <= 1:
        found = np.full((length, *values.shape[1:]), np.nan, dtype=kind)
        found[bases] = values
        return found
    sums = np.zeros((length, *values.shape[1:]))
    np.add.at(sums, bases, values)
    counts = np.where(counts > 0, counts, np.nan).reshape(-1, *[1] * (values.ndim - 1))
    return (sums / counts).astype(kind)


def _same_tokens(values: np.ndarray, spans: np.ndarray, name: str):
    if len(values) != len(spans):
        raise ValueError(f"{name} has {len(values)} tokens, but there are spans of {len(spans)}.")
