"""Where the real tokens are: sequences are laid end to end once, at the embeddings, and padded again once, at the end.

A batch is either *packed* - hidden states (tokens, ...) with the pads left out, the default - or *padded* - hidden
states (batch, length, ...) with a mask, for `eager`, for masks with holes and for tracing, which needs static shapes.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch


@dataclass
class SequenceLayout:
    """
    Where each sequence of a batch lies; every attention backend gets one beside q, k and v.

    Attributes:
        batch_size, length: shape of the padded batch.
        mask: (batch, length) bool, True for real tokens; in a packed batch of which every token is real, None.
        indices: (tokens,) int64, the real tokens' places in the flattened batch; None in a padded layout.
        cu_seqlens: (batch + 1,) int32, where each sequence starts and ends among the packed tokens; None if padded.
        lengths: tokens of each sequence as Python integers; None if padded.
        cache: what a backend computes once a batch and reuses in every layer.
    """

    batch_size: int
    length: int
    mask: torch.Tensor | None
    indices: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    lengths: list[int] | None = None
    cache: dict = field(default_factory=dict)

    @property
    def is_packed(self) -> bool:
        return self.lengths is not None

    @property
    def max_seqlen(self) -> int:
        return max(self.lengths, default=0) if self.is_packed else self.length

    @cached_property
    def by_length(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The order that puts packed tokens with those of equally long sequences, the shortest first, and the order that
        takes them back: (tokens,) int64 each, for `index_select`.
        """
        counts = self.cu_seqlens.diff().long()
        order = counts.repeat_interleave(counts).argsort(stable=True)
        return order, torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))

    def gather(self, padded: torch.Tensor) -> torch.Tensor:
        """(batch, length, ...) -> (tokens, ...) if packed; unchanged if padded."""
        if not self.is_packed:
            return padded
        flat = padded.flatten(0, 1)
        return flat if self.indices is None else flat[self.indices]

    def scatter(self, hidden: torch.Tensor) -> torch.Tensor:
        """Back to (batch, length, ...), with exact zeros where there is no real token."""
        if not self.is_packed:
            return hidden if self.mask is None else hidden.masked_fill(~self.mask[..., None], 0.0)
        if self.indices is None:
            return hidden.unflatten(0, (self.batch_size, self.length))
        padded = hidden.new_zeros((self.batch_size * self.length, *hidden.shape[1:]))
        return padded.index_copy(0, self.indices, hidden).unflatten(0, (self.batch_size, self.length))


def padded_layout(mask: torch.Tensor | None, batch_size: int, length: int) -> SequenceLayout:
    """A layout that leaves the batch as it is; `mask` (batch, length) bool, or None if every token is real."""
    return SequenceLayout(batch_size, length, mask)


def packed_layout(mask: torch.Tensor) -> SequenceLayout:
    """
    A layout that leaves the pads out, wherever they stand.

    ALiBi's distances are distances between places in the padded batch. They survive packing only if a sequence's real
    tokens stand together, so a mask with a hole in a sequence falls back to the padded layout.

    Args:
        mask: (batch, length) bool, True for real tokens. Reading its counts costs one device synchronisation.
    """
    batch_size, length = mask.shape
    counts = mask.sum(dim=1, dtype=torch.int32)
    # A sequence in one piece has exactly one step from pad to token, counting the step into its first token.
    starts = mask[:, :1].sum(dim=1) + (mask[:, 1:] & ~mask[:, :-1]).sum(dim=1)
    lengths, pieces = torch.stack([counts, starts.to(counts.dtype)]).tolist()
    if any(piece > 1 for piece in pieces):
        return padded_layout(mask, batch_size, length)
    cu_seqlens = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    if sum(lengths) == batch_size * length:
        return SequenceLayout(batch_size, length, None, None, cu_seqlens, lengths)
    indices = mask.flatten().nonzero().flatten()
    return SequenceLayout(batch_size, length, mask, indices, cu_seqlens, lengths)
