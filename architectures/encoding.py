"""DNA as a model's tokenizer wants it: as it is, or as k-mers, within the positions the model has.

encode(tokenizer, ["ACGTACGTTTAC"], None, architecture)     # {"input_ids": [[...]], "attention_mask": [[...]]}
"""

import inspect

from ..errors import UserError
from .rows import Architecture

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def prepare_text(sequence: str, architecture: Architecture) -> str:
    """
    What the model's tokenizer is given for a sequence: itself, or its overlapping k-mers ("ACG CGT GTA") as DNABERT
    (Ji et al. 2021) was trained on.

    Raises:
        UserError: if the sequence is shorter than one k-mer.
    """
    k = architecture.kmer
    if k is None:
        return sequence
    if len(sequence) < k:
        raise UserError(
            f"the sequence {sequence!r} is shorter than the {k} bases of one k-mer of {architecture.name}; remove it "
            "or use another model."
        )
    return " ".join(sequence[i : i + k] for i in range(len(sequence) - k + 1))


def max_tokens(architecture: Architecture, config) -> int | None:
    """
    The most tokens, special ones included, that the model has positions for or was made for; None if any number.

    Args:
        config: the model's configuration.
    """
    if architecture.limit is None:
        return None
    return getattr(config, architecture.limit["config"]) - architecture.limit.get("less", 0)


class TooManyTokens(UserError):
    """
    Attributes:
        rows: which sequences are too long, counted from 0.
    """

    def __init__(self, message: str, rows: list[int]):
        super().__init__(message)
        self.rows = rows


def encode(
    tokenizer,
    sequences: list[str],
    pairs: list[str] | None,
    architecture: Architecture,
    max_length: int | None = None,
    truncation: bool = False,
) -> dict[str, list[list[int]]]:
    """
    Sequences, or pairs of them, as token ids, not padded.

    Returns:
        `input_ids` and, where the model takes them, `attention_mask` and `token_type_ids`: one list a sequence each.

    Raises:
        UserError: if the model takes no pairs, or a sequence is shorter than a k-mer.
        TooManyTokens: if a sequence has more than `max_length` tokens and `truncation` is False.
    """
    if pairs is not None and not architecture.pairs:
        raise UserError(f"{architecture.name} takes single sequences only; use another model for pairs of sequences.")
    texts = [prepare_text(sequence, architecture) for sequence in sequences]
    seconds = None if pairs is None else [prepare_text(sequence, architecture) for sequence in pairs]
    cut = truncation and max_length is not None
    encoded = tokenizer(
        texts,
        seconds,
        truncation=cut,
        max_length=max_length if cut else None,
        return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
        return_attention_mask="attention_mask" in tokenizer.model_input_names,
        verbose=False,  # of lengths above the tokenizer's own limit; ours are checked below and by the caller
    )
    columns = {name: encoded[name] for name in INPUTS if name in tokenizer.model_input_names}
    too_long = [i for i, ids in enumerate(columns["input_ids"]) if max_length is not None and len(ids) > max_length]
    if too_long:
        raise TooManyTokens(
            f"{len(too_long)} of {len(sequences)} sequences have more than {max_length} tokens, the first is number "
            f"{too_long[0] + 1}; allow more, cut them, or use a model that takes longer ones.",
            too_long,
        )
    return columns


def fit_tokenizer(tokenizer, model):
    """Make tokenizer and model agree: no inputs that the forward does not name, and a pad id in the configuration."""
    taken = inspect.signature(model.forward).parameters
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
