"""From the states of tokens to one vector a sequence."""

import numpy as np
import torch


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """
    (batch, length, hidden) states of which `mask` (batch, length) says which are real -> (batch, hidden).

    "mean" weighs every real token alike, special ones included, as the published code does; "cls" takes the first
    real token; "max" the greatest value of each dimension.
    """
    if pooling == "cls":
        return hidden[range(len(hidden)), mask.long().argmax(dim=1)]
    is_real = mask[..., None].bool()
    if pooling == "max":
        return hidden.masked_fill(~is_real, float("-inf")).amax(dim=1)
    return hidden.masked_fill(~is_real, 0.0).sum(dim=1) / is_real.sum(dim=1)


class Pool:
    """
    `pool` of sequences that come in windows, in any order: no state of a token is kept.

    A token that two windows hold counts in one of them, and special tokens where the sequence begins and ends, so
    that what comes out is the pooled row of all tokens; "cls" is the mean of all windows' summary tokens.
    """

    def __init__(self, rows: int, pooling: str):
        self.pooling = pooling
        self.counts = np.zeros(rows)
        self.vectors: np.ndarray | None = None

    def add(self, hidden: torch.Tensor, counts: torch.Tensor, rows: np.ndarray):
        """
        Args:
            hidden: (windows, length, hidden) float32.
            counts: (windows, length) bool, which tokens count; with "cls" which are real.
            rows: (windows,) the sequence each belongs to.
        """
        if self.pooling == "mean":
            made = hidden.masked_fill(~counts[..., None], 0.0).sum(dim=1)
            weights = counts.sum(dim=1).cpu().numpy()
        else:
            made, weights = pool(hidden, counts, self.pooling), np.ones(len(rows))
        made = made.cpu().numpy()
        if self.vectors is None:
            fill = -np.inf if self.pooling == "max" else 0.0
            # Sums of a chromosome's many windows lose digits in float32.
            kind = np.float32 if self.pooling == "max" else np.float64
            self.vectors = np.full((len(self.counts), made.shape[1]), fill, dtype=kind)
        (np.maximum if self.pooling == "max" else np.add).at(self.vectors, rows, made)
        np.add.at(self.counts, rows, weights)

    def result(self) -> np.ndarray:
        """(rows, hidden) float32."""
        if self.pooling == "max":
            return self.vectors
        return (self.vectors / self.counts[:, None]).astype(np.float32)
