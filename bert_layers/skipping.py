"""Which key blocks attention with ALiBi can leave out: the bound of README.md, readable, and what drives the CPU path.

    spans = key_spans(q, k, slopes, skip="fp32")    # one sequence: (heads, tiles, 2), from the first to the last key

A tile is TILE consecutive queries; key blocks of KEY_BLOCK are judged for a tile as a whole, each side from its far end
inwards. All quantities are in units of log2. `span_kernels.py` computes the same on a GPU.
"""

import math

import torch

TILE = 128
KEY_BLOCK = 64
# exp2 of this and less is zero in float32, denormal numbers included (the smallest is 2^-149); one is for rounding.
LEAST_EXPONENT = -151.0
# The weight left out of a row, on each side: together 2^-24, the rounding of float32.
BUDGET = 2.0**-25
# What rounding in a score can be, relative to the norms of query and key: accumulation in float32 over at most 128
# dimensions, and products of inputs cut to tf32.
SLACK, SLACK_TF32 = 2.0**-13, 2.0**-9

SKIP_MODES = (None, "exact", "fp32")


def check_skip(skip: str | None) -> None:
    """Raise ValueError unless `skip` is None, "exact" or "fp32"."""
    if skip not in SKIP_MODES:
        raise ValueError(f'skip={skip!r} is not a mode: choose None, "exact" or "fp32".')


@torch.no_grad()
def key_spans(
    q: torch.Tensor,
    k: torch.Tensor,
    slopes: torch.Tensor,
    *,
    scale: float | None = None,
    skip: str | None = "fp32",
) -> torch.Tensor:
    """
    The keys each tile of queries has to visit, in one sequence.

    Args:
        q, k: (length, heads, head_dim).
        slopes: (heads,), not negative.
        scale: of the scores; head_dim ** -0.5 if None.
        skip: None leaves nothing out; "exact" leaves out keys whose weight underflows to zero in float32 beside the
            largest of the row; "fp32" leaves out keys whose weights sum up to at most 2^-24 of any row's.

    Returns:
        (heads, tiles, 2) int64: first key and one past the last. Every tile's own positions are among them. A bound
        that is not a number leaves nothing out.
    """
    check_skip(skip)
    length, heads, head_dim = q.shape
    tiles, blocks = -(-length // TILE), -(-length // KEY_BLOCK)
    spans = torch.tensor([0, length], device=q.device).expand(heads, tiles, 2).clone()
    if skip is None or tiles < 2:
        return spans
    scale = (head_dim**-0.5 if scale is None else scale) * math.log2(math.e)
    slopes = slopes.float()[:, None] * math.log2(math.e)  # (heads, 1)
    q, k = q.transpose(0, 1).float(), k.transpose(0, 1).float()  # (heads, length, head_dim)
    reach, floor, peak = _bound(q, k, slopes, scale, skip)
    in_block = (1 - torch.exp2(-slopes * KEY_BLOCK)) / (1 - torch.exp2(-slopes))

    def passed(bounds: torch.Tensor) -> torch.Tensor:
        """How many blocks, from the far end (the first column), can be left out; `bounds` (heads, blocks)."""
        if skip == "exact":
            weights, budget = 1.0 - (bounds < LEAST_EXPONENT).float(), 0.0
        else:
            weights, budget = torch.exp2(bounds) * in_block, BUDGET
        return (weights.cumsum(1) <= budget).sum(1)

    for tile in range(tiles):
        first, last = tile * TILE, min((tile + 1) * TILE, length)
        tile_reach, tile_floor = reach[:, first:last, None], floor[:, first:last, None]
        # A row's own distance to the block: its place in the tile tilts the bound, up on one side, down on the other.
        tilt = (slopes * torch.arange(last - first, device=q.device))[:, :, None]
        block = torch.arange(first // KEY_BLOCK, device=q.device)
        if len(block):
            bounds = (tile_reach * peak[:, None, block] - (tile_floor + tilt)).amax(1)
            spans[:, tile, 0] = passed(bounds - slopes * (first - (block + 1) * KEY_BLOCK + 1)) * KEY_BLOCK
        block = torch.arange(blocks - 1, (first + TILE) // KEY_BLOCK - 1, -1, device=q.device)
        if len(block):
            bounds = (tile_reach * peak[:, None, block] - (tile_floor - tilt)).amax(1)
            left_out = passed(bounds - slopes * (block * KEY_BLOCK - first))
            spans[:, tile, 1] = ((blocks - left_out) * KEY_BLOCK).clamp(max=length)
    return spans


def _bound(q, k, slopes, scale, skip):
    """
    What the bound on a score is made of: `reach` (heads, length) of a query, `peak` (heads, blocks) of a key block,
    and `floor` (heads, length), below which no row's maximum (or, for "fp32", the log of its sum) lies, so that

        score[i, j] - bias[i, j] <= reach[i] * peak[block of j] - floor[i]   in terms of the row's largest weight.
    """
    heads, length, _ = q.shape
    samples = min(length, KEY_BLOCK)
    # Softmax does not change if one vector is taken off every key; without their mean the keys are shorter.
    centre = k[:, torch.arange(samples, device=k.device) * length // samples].mean(1, keepdim=True)
    k = k - centre
    norms = k.norm(dim=-1)
    reach = q.norm(dim=-1)
    peak = torch.stack([x.amax(1) for x in norms.split(KEY_BLOCK, dim=1)], dim=1)
    position = torch.arange(TILE, device=q.device)
    bias = -slopes[:, :, None] * (position[:, None] - position[None, :]).abs()
    floor = torch.empty_like(reach)
    for first in range(0, length, TILE):
        home = slice(first, min(first + TILE, length))
        size = home.stop - home.start
        scores = scale * q[:, home] @ k[:, home].transpose(1, 2) + bias[:, :size, :size]
        largest = scores.amax(2) if skip == "exact" else torch.logsumexp(scores * math.log(2), 2) / math.log(2)
        rounding = 2 * centre.norm(dim=-1) + norms[:, home].amax(1, keepdim=True)
        floor[:, home] = largest - SLACK * scale * reach[:, home] * rounding
    return reach, floor, peak * (scale * (1 + SLACK))
