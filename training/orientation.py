"""Left and right, which ALiBi does not know.

Its bias says how far away a token stands, not on which side: to attention a sequence is the same read from either end,
but for [CLS] and [SEP]. A network that makes nothing of these two cannot tell which of a token's neighbours comes
first, and so lacks what a Markov chain of order 1 knows. To make a place out of the distances to them, and a side out
of two places, is a long way for what masked tokens alone pay for it: a network of 7.6 million parameters had not begun
after 18 million tokens (docs/log.md, 2026-11-25). Two things help it there, neither of which changes the network:

- `NeighbourLoss`: the state of each masked token also has to name the token to its left and the one to its right.
- `cut_into_pieces`: training begins on pieces of sequences, in which places are easy to tell, and the pieces grow.

Far from both ends of a sequence much longer than those of training the sides are lost again, in any such network.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ..bert_layers.losses import IGNORE_INDEX

SHARES = (1 / 8, 1 / 8, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)  # of the full length, for as many steps each
SHORTEST = 8  # tokens


def piece_length(step: int, short_steps: int, max_length: int) -> int:
    """Tokens of the longest pieces at a step, [CLS] and [SEP] included; `max_length` after `short_steps`."""
    if step >= short_steps:
        return max_length
    return min(max(round(max_length * SHARES[step * len(SHARES) // short_steps]), SHORTEST), max_length)


def cut_into_pieces(
    inputs: np.ndarray, labels: np.ndarray, length: int, cls_id: int, sep_id: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    Cut sequences into as few pieces of about equal length as possible, each with its own [CLS] and [SEP].

    Args:
        inputs, labels: (sequences, max_length), each sequence `[CLS] tokens [SEP]`, padded on the right.
        length: tokens of the longest piece, both special tokens included.

    Returns:
        Inputs and labels, (pieces, length), every token in one of them; labels of special tokens are -100.
    """
    pieces = []
    for row, own in zip(inputs, labels, strict=True):
        end = int((row != pad_id).sum()) - 1
        count = max(-(-(end - 1) // (length - 2)), 1)
        pieces += zip(np.array_split(row[1:end], count), np.array_split(own[1:end], count), strict=True)
    cut_inputs = np.full((len(pieces), length), pad_id, dtype=inputs.dtype)
    cut_labels = np.full((len(pieces), length), IGNORE_INDEX, dtype=labels.dtype)
    for i, (tokens, own) in enumerate(pieces):
        cut_inputs[i, 0], cut_inputs[i, len(tokens) + 1] = cls_id, sep_id
        cut_inputs[i, 1 : len(tokens) + 1], cut_labels[i, 1 : len(tokens) + 1] = tokens, own
    return cut_inputs, cut_labels


class NeighbourLoss:
    """
    How badly the states of masked tokens name their neighbours: the mean of two cross-entropies.

    A state is turned by a fixed random rotation, one for each side, and compared with the word embeddings, which this
    loss does not train: it adds no weight to the network. A neighbour that is hidden itself is not asked for.

    Args:
        hidden_size: of the states.
        seed: of the two rotations.
    """

    def __init__(self, hidden_size: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.rotations = [
            torch.linalg.qr(torch.randn(hidden_size, hidden_size, generator=generator))[0] for _ in range(2)
        ]

    def __call__(
        self, states: torch.Tensor, embeddings: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            states: (batch, length, hidden), the encoder's output.
            embeddings: (vocabulary, hidden).
            inputs, labels: (batch, length) int64, as the model had them.

        Returns:
            The sum over the masked tokens in nats, a scalar; of two equally good guesses each costs log 2.
        """
        is_masked = labels != IGNORE_INDEX
        # What was there before masking, where it can still be seen.
        visible = inputs.masked_fill(is_masked & (inputs != labels), IGNORE_INDEX)
        chosen, embeddings = states[is_masked], embeddings.detach()
        total = 0.0
        for rotation, shift in zip(self.rotations, (1, -1), strict=True):
            scores = (chosen @ rotation.to(chosen)) @ embeddings.to(chosen).t()
            targets = visible.roll(shift, dims=1)[is_masked]
            total = total + F.cross_entropy(scores.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum") / 2
        return total
