"""The masked-LM objective of BERT (Devlin et al. 2019), as DNABERT-2 was pretrained with."""

from dataclasses import dataclass

import numpy as np

from ..bert_layers.losses import IGNORE_INDEX


@dataclass(frozen=True)
class MaskingPolicy:
    """
    Attributes:
        probability: share of the tokens that are chosen; special tokens, [UNK] among them, never are.
        mask_id: id of [MASK].
        special_ids: ids that are never chosen and never put in.
        vocab_size: number of ids.
    """

    probability: float
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int

    @classmethod
    def of(cls, tokenizer, probability: float) -> "MaskingPolicy":
        return cls(probability, tokenizer.mask_token_id, tuple(sorted(tokenizer.all_special_ids)), len(tokenizer))


def mask_tokens(
    ids: np.ndarray, policy: MaskingPolicy, draw: np.random.Generator, always_mask: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """
    Choose tokens at random; of these 80 % become [MASK], 10 % a random token, 10 % stay.

    The number of random draws depends on the shape alone, so that neither padding nor content shifts the stream.

    Args:
        ids: (sequences, length) int64.
        always_mask: every chosen token becomes [MASK]. For evaluation: a token that stays would tell its own name.

    Returns:
        Inputs and labels, both like `ids`; a label is the original id where a token was chosen, else -100.
    """
    chosen, kind = draw.random(ids.shape), draw.random(ids.shape)
    ordinary = np.setdiff1d(np.arange(policy.vocab_size), policy.special_ids)
    replacement = ordinary[draw.integers(0, len(ordinary), ids.shape)]
    is_chosen = (chosen < policy.probability) & ~np.isin(ids, policy.special_ids)
    labels = np.where(is_chosen, ids, IGNORE_INDEX)
    masked = np.where(kind < 0.8, policy.mask_id, np.where(kind < 0.9, replacement, ids))
    if always_mask:
        masked = np.full_like(ids, policy.mask_id)
    return np.where(is_chosen, masked, ids), labels
