"""ALiBi, symmetric: attention with linear biases, `score[h, i, j] - slope[h] * |i - j|`.

Method: Press, Smith and Lewis, "Train Short, Test Long" (ICLR 2022); the symmetric form for encoders is MosaicBERT's.
Slopes and biases are float32 whatever the model's dtype: in bfloat16 a bias of -300 is off by up to 1, which is a
factor e in an attention weight.
"""

import math

import torch
from torch import nn


def alibi_slopes(num_heads: int) -> list[float]:
    """
    Slopes of `num_heads` heads, as in the ALiBi paper.

    A power of two n gives 2^(-8i/n) for i = 1..n. Any other number takes the nearest lower power of two's slopes and
    then every other slope of twice that many heads. Returns `num_heads` positive floats, in head order.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, but is {num_heads}.")
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    if power < num_heads:
        slopes += alibi_slopes(2 * power)[0::2][: num_heads - power]
    return slopes


class AlibiSlopes(nn.Module):
    """
    Holds the slopes as a buffer that every move, cast and load of a model leaves intact.

    `.to(torch.bfloat16)` and `from_pretrained(dtype=...)` cast floating-point buffers, which would round the slopes
    that are no power of two. The float32 bits are therefore kept as int32, which no cast touches, and read back bit
    for bit.
    """

    def __init__(self, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.register_buffer("bits", torch.empty(num_heads, dtype=torch.int32), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Fill the buffer, also after construction on the meta device, where a buffer has no values."""
        values = torch.tensor(alibi_slopes(self.num_heads), dtype=torch.float32, device="cpu")
        self.bits.copy_(values.view(torch.int32))

    def forward(self) -> torch.Tensor:
        """Slopes of shape (heads,), float32, on the model's device."""
        if torch.jit.is_tracing():  # TorchScript cannot view a tensor as another dtype
            return torch.tensor(alibi_slopes(self.num_heads), dtype=torch.float32, device=self.bits.device)
        return self.bits.view(torch.float32)


def alibi_bias(slopes: torch.Tensor, length: int) -> torch.Tensor:
    """
    The bias of one sequence, held whole: the readable form.

    Args:
        slopes: (heads,) float32.
        length: tokens in the sequence.

    Returns:
        (heads, length, length) float32, `-slopes[h] * |i - j|`.
    """
    position = torch.arange(length, device=slopes.device)
    distance = (position[:, None] - position[None, :]).abs()
    return -slopes[:, None, None] * distance


def flipped_alibi_bias(slopes: torch.Tensor, length: int) -> torch.Tensor:
    """
    The bias with its query axis reversed, as a view of O(length) memory.

    Reversing the queries turns |i - j| into |i' + j - (length - 1)|, which depends on i' + j alone: a Hankel matrix,
    every row of which is a window of one vector. The view reads like `alibi_bias(slopes, length).flip(1)` and its last
    stride is 1, but it holds `2 * length - 1` numbers a head, not `length ** 2`.

    Returns:
        (heads, length, length) float32, read-only: its rows overlap in memory.
    """
    offset = torch.arange(2 * length - 1, device=slopes.device) - (length - 1)
    values = -slopes[:, None] * offset.abs()
    # Not `unfold`, whose size is a plain integer: an exported program would take no other length than the one traced.
    return values.as_strided((slopes.shape[0], length, length), (2 * length - 1, 1, 1))


def alibi_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    skip: str | None = "fp32",
) -> torch.Tensor:
    """
    What `flash_alibi.alibi_attention` computes, written out in the precision of q: one sequence after the other, the
    bias held whole, nothing left out.

    Args:
        q, k, v: (total_tokens, heads, head_dim), any floating type; slopes: (heads,); cu_seqlens: (batch + 1,) int32.
        scale: of the scores; head_dim ** -0.5 if None.
        max_seqlen, skip: change nothing; there for one signature.

    Returns:
        (total_tokens, heads, head_dim). Softmax and bias are float32, or float64 if q is.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    outputs = []
    lengths = cu_seqlens.diff().tolist()
    for query, key, value in zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (q, k, v)), strict=True):
        scores = (query @ key.transpose(1, 2)).to(accurate) * scale
        weights = (scores + alibi_bias(slopes.to(accurate), query.shape[1])).softmax(dim=-1)
        outputs.append(weights.to(value.dtype) @ value)  # (heads, length, head_dim)
    return torch.cat(outputs, dim=1).transpose(0, 1)
