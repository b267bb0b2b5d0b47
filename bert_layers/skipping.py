"""Which key blocks attention with ALiBi can leave out: the bound of README.md, readable, and what drives the CPU path.

    spans = key_spans(q, k, slopes, skip="fp32")    # one sequence: (heads, tiles, 2), from the first to the last key

A tile is TILE consecutive queries; key blocks of KEY_BLOCK are judged for a tile as a whole, each side from its far
end inwards. All quantities are in units of log2. `span_kernels.py` computes the same on a GPU.
"""

import math

import torch
import torch.nn.functional as F

TILE = 128
KEY_BLOCK = 64
# Consecutive positions, a query's own among them, whose scores give the floor under its row.
HOME = TILE
# exp2 of this and less is zero in float32, denormal numbers included (the smallest is 2^-149); one is for rounding.
LEAST_EXPONENT = -151.0
# The weight left out of a row, on each side: together 2^-24, the rounding of float32.
BUDGET = 2.0**-25
# What rounding in a score can be, relative to the norms of query and key: accumulation in float32 over at most 128
# dimensions, and products of inputs cut to tf32.
SLACK, SLACK_TF32 = 2.0**-13, 2.0**-9
# Numbers computed at a time: what a CPU's cache holds.
WORK = 2**18

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
    with torch.autocast(q.device.type, enabled=False):  # it would cut the scores to half precision
        reach, floor, peak = _bound(q, k, slopes, scale, skip)
    reach, floor = (x.unflatten(1, (tiles, TILE)) for x in (reach, floor))
    # A row's own distance to a block: its place in the tile tilts the bound, down on the left side, up on the right.
    tilt = (slopes * torch.arange(TILE, device=q.device))[:, None]
    # Sum of exp2(-slope * t) over the KEY_BLOCK distances in a block, as a product: no digits cancel at a small slope.
    powers = 2 ** torch.arange(KEY_BLOCK.bit_length() - 1, device=q.device)
    in_block = (1 + torch.exp2(-slopes * powers)).prod(1)[:, None, None]
    slopes = slopes[:, :, None]

    def passed(bounds: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        """
        How many blocks can be left out, (heads, tiles), counted from the far end, which is the first column.

        `bounds` (heads, tiles, blocks) on the weight of a key; `side` (tiles, blocks) bool, the blocks to judge.
        """
        if skip == "exact":
            weights, budget = 1.0 - (bounds < LEAST_EXPONENT).float(), 0.0
        else:
            weights, budget = torch.exp2(bounds) * in_block, BUDGET
        return ((weights.masked_fill(~side, 0.0).cumsum(2) <= budget) & side).sum(2)

    block = torch.arange(blocks, device=q.device)
    for part in torch.arange(tiles, device=q.device).split(max(1, WORK // (heads * blocks))):
        first = part[:, None] * TILE
        bounds = _highest(reach[:, part], floor[:, part] + tilt, peak) - slopes * (first - (block + 1) * KEY_BLOCK + 1)
        spans[:, part, 0] = passed(bounds, block < first // KEY_BLOCK) * KEY_BLOCK
        bounds = _highest(reach[:, part], floor[:, part] - tilt, peak) - slopes * (block * KEY_BLOCK - first)
        left_out = passed(bounds.flip(2), (block >= (first + TILE) // KEY_BLOCK).flip(1))
        spans[:, part, 1] = ((blocks - left_out) * KEY_BLOCK).clamp(max=length)
    return spans


def _bound(q, k, slopes, scale, skip):
    """
    What the bound on a score is made of: `reach` (heads, rows) of a query, `peak` (heads, blocks) of a key block, and
    `floor` (heads, rows), below which no row's maximum (or, for "fp32", the log of its sum) lies, so that

        score[i, j] - bias[i, j] <= reach[i] * peak[block of j] - floor[i]   in terms of the row's largest weight.

    Rows are the queries, and after them some that bound nothing, up to whole tiles.
    """
    length, heads, _ = q.shape
    # Softmax does not change if one vector is taken off every key; without their mean the keys are shorter.
    samples = min(length, KEY_BLOCK)
    centre = k[torch.arange(samples, device=k.device) * length // samples].float().mean(0)  # (heads, head_dim)
    rows = -(-length // TILE) * TILE
    sizes = (HOME, HOME, HOME // KEY_BLOCK)
    reach, floor, peak = (torch.zeros(rows // HOME, heads, size, device=q.device) for size in sizes)
    position = torch.arange(HOME, device=q.device)
    bias = -slopes[:, :, None] * (position[:, None] - position).abs()
    step = max(1, WORK // bias.numel())
    bias = bias.repeat(step, 1, 1)
    for home, (query, key) in enumerate(zip(*(x.split(step * HOME) for x in (q, k)), strict=True)):
        here = slice(home * step, home * step + -(-len(query) // HOME))
        pads = -len(query) % HOME
        query, key = _in_homes(query.float()), _in_homes(key.float() - centre)  # (homes * heads, HOME, head_dim)
        scores = torch.baddbmm(bias[: len(query)], query, key.transpose(1, 2), alpha=scale)
        scores[-heads:, :, HOME - pads :] = -math.inf
        largest = scores.amax(2)
        if skip == "fp32":
            largest += scores.sub_(largest[:, :, None]).exp2_().sum(2).log2_()
        floor[here] = largest.unflatten(0, (-1, heads))
        reach[here] = query.norm(dim=2).unflatten(0, (-1, heads))
        peak[here] = key.norm(dim=2).unflatten(1, (-1, KEY_BLOCK)).amax(2).unflatten(0, (-1, heads))
    floor -= SLACK * abs(scale) * reach * (2 * centre.norm(dim=1)[:, None] + peak.amax(2, keepdim=True))
    reach, floor, peak = (x.transpose(0, 1).flatten(1) for x in (reach, floor, peak))
    floor[:, length:] = math.inf
    return reach, floor, peak[:, : -(-length // KEY_BLOCK)] * (abs(scale) * (1 + SLACK))


def _in_homes(x):
    """(rows, heads, head_dim) -> (homes * heads, HOME, head_dim), the last home filled up with zeros."""
    pads = -len(x) % HOME
    if pads:
        x = F.pad(x, (0, 0, 0, 0, 0, pads))
    return x.unflatten(0, (-1, HOME)).transpose(1, 2).flatten(0, 1)


def _highest(reach, floor, peak):
    """
    max over i of reach[..., i] * peak[..., j] - floor[..., i], (heads, tiles, blocks), from the few i that matter.

    Each i is a line over `peak`. Between the smallest peak and the largest only a few lines are ever on top; each is
    the first to cross the one before.
    """
    low, high = peak.amin(1).nan_to_num(0.0)[:, None, None], peak.amax(1).nan_to_num(math.inf)[:, None, None]
    top = (reach * low - floor).argmax(2, keepdim=True)
    bounds = torch.tensor(-math.inf, device=peak.device)
    while True:
        rise, offset = reach.gather(2, top), floor.gather(2, top)
        bounds = torch.maximum(bounds, rise * peak[:, None] - offset)
        crossing = ((floor - offset) / (reach - rise)).where(reach > rise, math.inf)
        crossing, following = crossing.min(2, keepdim=True)
        if not (crossing < high).any():
            return bounds
        top = following.where(crossing < high, top)
