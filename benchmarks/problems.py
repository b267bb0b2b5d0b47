"""What the attention benchmark computes: unpadded q, k and v of sequences of stated lengths, and the FLOPs they take.

`equal` batches hold sequences of one length, `mixed` ones of every length from half of it up; both have the same
number of tokens. Random queries and keys are normal, with scores q.k / sqrt(head_dim) of a stated standard deviation:
their norms decide how much skipping can leave out.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..bert_layers.alibi import alibi_slopes
from ..bert_layers.skipping import TILE
from ..bert_layers.unpadding import SequenceLayout, packed_layout

LAYOUTS = ("equal", "mixed")
# Twice the products of the forward pass, and the scores once more. Fractions of two, so that FLOPs are integers.
FLOPS_IN_HALVES = {"forward": 2, "backward": 5, "both": 7}
DIRECTIONS = tuple(FLOPS_IN_HALVES)


@dataclass(eq=False)
class Problem:
    """
    One batch.

    Attributes:
        source: where q, k and v come from: "random", or a layer of a model.
        layout, length: a member of `LAYOUTS`, and the longest length it may hold.
        lengths: tokens of each sequence.
        qkv: (tokens, 3, heads, head_dim), one packed projection, as the network has it.
        slopes: (heads,) float32.
        cache: what a variant builds once a problem, outside what is timed.
    """

    source: str
    layout: str
    length: int
    lengths: list[int]
    qkv: torch.Tensor
    slopes: torch.Tensor
    cache: dict = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.qkv.shape[0]

    @property
    def heads(self) -> int:
        return self.qkv.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.qkv.dtype

    @property
    def device(self) -> torch.device:
        return self.qkv.device

    @cached_property
    def gradient(self) -> torch.Tensor:
        """(tokens, heads, head_dim): what is fed into the backward pass."""
        generator = torch.Generator(self.device).manual_seed(1)
        shape = (self.tokens, *self.qkv.shape[2:])
        return torch.randn(shape, device=self.device, generator=generator).to(self.dtype)

    def new_layout(self) -> SequenceLayout:
        """Where the sequences lie, with an empty cache."""
        lengths = torch.tensor(self.lengths, device=self.device)
        return packed_layout(torch.arange(max(self.lengths), device=self.device) < lengths[:, None])

    def flops(self, direction: str) -> int:
        return flops(self.lengths, self.heads, self.qkv.shape[3], direction)


def flops(lengths: list[int], heads: int, head_dim: int, direction: str) -> int:
    """
    Floating-point operations of attention, nothing left out: of the two products of the forward pass, 4 n^2 head_dim a
    head and sequence; of the five of the backward pass, 2.5 times that; of both directions, 3.5 times.
    """
    return 2 * sum(n * n for n in lengths) * head_dim * heads * FLOPS_IN_HALVES[direction]


def tile_flops(lengths: list[int], heads: int, head_dim: int, direction: str) -> int:
    """The same with every length rounded up to whole tiles of `TILE`: what a fused kernel cannot but compute."""
    return flops([-(-n // TILE) * TILE for n in lengths], heads, head_dim, direction)


def lengths_of(layout: str, length: int, tokens: int, generator: torch.Generator) -> list[int]:
    """
    Lengths of sequences of up to `length` tokens, `tokens` together: whole ones only, at least one.

    `equal`: all `length`. `mixed`: drawn evenly from half of `length` to `length`; the last one takes what is left.
    """
    count = max(1, tokens // length)
    if layout == "equal":
        return [length] * count
    left, drawn = count * length, []
    while left:
        low = max(1, length // 2)
        drawn.append(min(left, int(torch.randint(low, length + 1, (), generator=generator))))
        left -= drawn[-1]
    return drawn


def random_problem(
    layout: str,
    length: int,
    lengths: list[int],
    *,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    score_std: float = 1.0,
    seed: int = 0,
) -> Problem:
    """Normal q, k and v; q and k are scaled so that q.k / sqrt(head_dim) has the standard deviation `score_std`."""
    generator = torch.Generator(device).manual_seed(seed)
    qkv = torch.randn((sum(lengths), 3, heads, head_dim), device=device, generator=generator)
    qkv[:, :2] *= score_std**0.5
    slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float32, device=device)
    return Problem("random", layout, length, lengths, qkv.to(dtype), slopes)
