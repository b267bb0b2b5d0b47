"""Triton kernels of what is known before attention: the plan of a batch, and the bound that lets it skip far blocks.

Notation as in `alibi_kernels.py`. Key blocks of KEY_BLOCK positions are judged for a whole tile of queries; the
readable form of that is `skipping.py`.
"""

from transformers.utils import is_triton_available

from .alibi_kernels import LOG2E, TILE, load_rows, real_columns
from .skipping import KEY_BLOCK as KEY_BLOCK_POSITIONS

if is_triton_available():
    import triton
    import triton.language as tl

KEY_BLOCK = tl.constexpr(KEY_BLOCK_POSITIONS)
KEY_BLOCK_BITS = tl.constexpr(KEY_BLOCK_POSITIONS.bit_length() - 1)
# `tl.max` passes over NaN: norms that are infinite or NaN become HUGE, others at least TINY, so that every product of
# them is a number, and a large one if either is HUGE.
HUGE, TINY = tl.constexpr(3e38), tl.constexpr(1e-30)
# Key blocks judged at a time.
CHUNK = tl.constexpr(64)


@triton.jit
def plan_kernel(
    p_starts, p_lengths, p_slopes, p_tiles, p_order, batch, heads,
    BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Grid: (batch / BLOCK rounded up,). The tables of `flash_alibi.Plan`, each sorted by counting what precedes."""
    o_b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_b = o_b < batch
    b_start = tl.load(p_starts + o_b, mask=m_b, other=0).to(tl.int32)
    b_length = tl.load(p_lengths + o_b, mask=m_b, other=0).to(tl.int32)
    b_place = tl.zeros([BLOCK], tl.int32)
    for i_chunk in range(0, tl.cdiv(batch, BLOCK)):
        o_c = i_chunk * BLOCK + tl.arange(0, BLOCK)
        b_other = tl.load(p_lengths + o_c, mask=o_c < batch, other=0).to(tl.int32)
        m_bc = b_other[None, :] > b_length[:, None]
        m_bc = m_bc | ((b_other[None, :] == b_length[:, None]) & (o_c[None, :] < o_b[:, None]))
        b_place += tl.sum(tl.where(m_bc, tl.cdiv(b_other, TILE)[None, :], 0), 1)
    p_row = p_tiles + b_place * 4
    for i_tile in range(0, tl.cdiv(tl.max(b_length, 0), TILE)):
        m_t = m_b & (i_tile * TILE < b_length)
        tl.store(p_row + i_tile * 4, b_start // TILE + o_b + i_tile, mask=m_t)
        tl.store(p_row + i_tile * 4 + 1, b_start, mask=m_t)
        tl.store(p_row + i_tile * 4 + 2, b_length, mask=m_t)
        tl.store(p_row + i_tile * 4 + 3, tl.zeros([BLOCK], tl.int32) + i_tile * TILE, mask=m_t)
    if tl.program_id(0) == 0:
        o_h = tl.arange(0, HEADS)
        m_h = o_h < heads
        b_slope = tl.load(p_slopes + o_h, mask=m_h, other=float("inf"))
        m_hh = (b_slope[None, :] < b_slope[:, None]) | (
            (b_slope[None, :] == b_slope[:, None]) & (o_h[None, :] < o_h[:, None])
        )
        tl.store(p_order + tl.sum(m_hh.to(tl.int32), 1), o_h, mask=m_h)


@triton.jit
def bound_kernel(
    p_q, p_k, p_reach, p_floor, p_peak, p_slopes, p_tiles, p_mask,
    scale, slack, stride_q, stride_qh, stride_k, stride_kh, rows, num_slots,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    EXACT: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """
    Grid: (2 * tiles, heads), KEY_BLOCK rows a program. Writes what the bound is made of, see `skipping.py`: `reach`
    and `floor` (heads, rows) of each query, `peak` (heads, slots, 2) of each key block.
    """
    i_head = tl.program_id(1)
    slot = tl.load(p_tiles + tl.program_id(0) // 2 * 4)
    start = tl.load(p_tiles + tl.program_id(0) // 2 * 4 + 1).to(tl.int64)
    length = tl.load(p_tiles + tl.program_id(0) // 2 * 4 + 2)
    first = tl.load(p_tiles + tl.program_id(0) // 2 * 4 + 3)
    part = tl.program_id(0) % 2
    row = first + part * KEY_BLOCK
    if row >= length:
        return
    slope = tl.load(p_slopes + i_head) * LOG2E
    scale *= LOG2E
    size = tl.abs(scale)
    o_r, o_d = tl.arange(0, KEY_BLOCK), tl.arange(0, BLOCK_D)
    p_k += start * stride_k + i_head * stride_kh

    # Any vector will do for the centre; that of some keys spread over the sequence is close to the mean.
    samples = tl.minimum(length, KEY_BLOCK)
    o_s = (o_r.to(tl.int64) * length) // samples
    m_sd = (o_r < samples)[:, None] & (o_d < DIM)[None, :]
    b_s = tl.load(p_k + o_s[:, None] * stride_k + o_d[None, :], mask=m_sd, other=0.0).to(tl.float32)
    b_centre = tl.sum(b_s, 0) / samples  # [BLOCK_D]
    centre_norm = tl.sqrt(tl.sum(b_centre * b_centre, 0))

    b_q = load_rows(p_q + start * stride_q + i_head * stride_qh, row, length, stride_q, KEY_BLOCK, DIM, BLOCK_D)
    b_q32 = b_q.to(tl.float32)
    b_reach = tl.sqrt(tl.sum(b_q32 * b_q32, 1))
    b_centred = tl.sum(b_q32 * b_centre[None, :], 1)
    b_max = tl.full([KEY_BLOCK], -float("inf"), tl.float32)
    b_sum = tl.zeros([KEY_BLOCK], tl.float32)
    peak, home_peak = 0.0, 0.0
    for i_block in range(0, tl.cdiv(tl.minimum(length - first, TILE), BLOCK_N)):
        column = first + i_block * BLOCK_N
        b_k = load_rows(p_k, column, length, stride_k, BLOCK_N, DIM, BLOCK_D)
        m_n = real_columns(p_mask, start, column, length, BLOCK_N, HAS_MASK) < float("inf")
        b_kc = b_k.to(tl.float32) - b_centre[None, :]
        b_peak = tl.sqrt(tl.sum(b_kc * b_kc, 1))
        b_peak = tl.where(b_peak < HUGE, b_peak, HUGE)
        block_peak = tl.max(tl.where(m_n, b_peak, 0.0), 0)
        home_peak = tl.maximum(home_peak, block_peak)
        peak = tl.maximum(peak, tl.where(column // KEY_BLOCK == row // KEY_BLOCK, block_peak, 0.0))
        b_x = (tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) - b_centred[:, None]) * scale
        o_n = tl.arange(0, BLOCK_N)
        b_x -= slope * tl.abs((row - column).to(tl.float32) + (o_r[:, None] - o_n[None, :]).to(tl.float32))
        b_x = tl.where(m_n[None, :], b_x, -float("inf"))
        b_new = tl.maximum(b_max, tl.max(b_x, 1))
        b_safe = tl.where(b_new == -float("inf"), 0.0, b_new)
        b_sum = b_sum * tl.exp2(b_max - b_safe) + tl.sum(tl.exp2(b_x - b_safe[:, None]), 1)
        b_max = b_new
    tl.store(p_peak + (i_head.to(tl.int64) * num_slots + slot) * 2 + part, peak * (size + slack * size))
    b_floor = b_max
    if not EXACT:
        b_floor = b_max + tl.log2(b_sum)
        b_floor = tl.where(b_max == -float("inf"), b_max, b_floor)
    b_floor -= slack * size * b_reach * (2 * centre_norm + home_peak)
    b_floor = tl.where(b_floor < float("inf"), b_floor, -float("inf"))
    b_reach = tl.where(b_reach < HUGE, tl.maximum(b_reach, TINY), HUGE)
    o_out = i_head.to(tl.int64) * rows + start + row + o_r
    tl.store(p_reach + o_out, b_reach, mask=o_r < length - row)
    tl.store(p_floor + o_out, b_floor, mask=o_r < length - row)


@triton.jit
def pass_blocks(b_bound, m_j, in_block, passed, total, budget, least, EXACT: tl.constexpr):
    """How many blocks can be left out, and their total weight, with these after those; `b_bound` is a key's weight."""
    if EXACT:
        b_weight = tl.where(b_bound < least, 0.0, 1.0)
    else:
        b_weight = tl.exp2(b_bound) * in_block
    b_weight = tl.where(m_j, b_weight, 0.0)
    b_total = total + tl.cumsum(b_weight, 0)
    passed += tl.sum(((b_total <= budget) & m_j).to(tl.int32), 0)
    return passed, total + tl.sum(b_weight, 0)


@triton.jit
def span_kernel(
    p_reach, p_floor, p_peak, p_spans, p_slopes, p_tiles, budget, least, rows, num_slots, EXACT: tl.constexpr
):
    """
    Grid: (tiles, heads). Writes `spans` (heads, slots, 2): a tile's first key visited and the one after its last.

    Each side is judged from its far end inwards, by the largest total weight that the blocks passed can have.
    """
    i_head = tl.program_id(1)
    slot = tl.load(p_tiles + tl.program_id(0) * 4)
    start = tl.load(p_tiles + tl.program_id(0) * 4 + 1).to(tl.int64)
    length = tl.load(p_tiles + tl.program_id(0) * 4 + 2)
    first = tl.load(p_tiles + tl.program_id(0) * 4 + 3)
    if first >= length:
        return
    slope = tl.load(p_slopes + i_head) * LOG2E
    # Sum of exp2(-slope * t) over the KEY_BLOCK distances in a block, as a product: no digits cancel at a small slope.
    in_block = 1.0
    for power in tl.static_range(KEY_BLOCK_BITS):
        in_block *= 1.0 + tl.exp2(-slope * (1 << power))
    o_m = tl.arange(0, TILE)
    m_m = o_m < length - first
    p_row = i_head.to(tl.int64) * rows + start + first + o_m
    b_reach = tl.load(p_reach + p_row, mask=m_m, other=0.0)
    b_floor = tl.load(p_floor + p_row, mask=m_m, other=float("inf"))
    p_peak += (i_head.to(tl.int64) * num_slots + slot) * 2 - first // KEY_BLOCK  # of the sequence's first block
    o_b = tl.arange(0, CHUNK)
    b_tilt = slope * o_m.to(tl.float32)

    blocks = first // KEY_BLOCK
    passed, total = 0, 0.0
    for chunk in range(0, blocks, CHUNK):
        o_j = chunk + o_b
        m_j = o_j < blocks
        b_peak = tl.load(p_peak + o_j, mask=m_j, other=0.0)
        b_bound = tl.max(b_reach[:, None] * b_peak[None, :] - (b_floor + b_tilt)[:, None], 0)
        b_bound -= slope * (first - (o_j + 1) * KEY_BLOCK + 1).to(tl.float32)
        passed, total = pass_blocks(b_bound, m_j, in_block, passed, total, budget, least, EXACT)
    low = passed * KEY_BLOCK

    end = tl.cdiv(length, KEY_BLOCK)
    blocks = tl.maximum(end - (first + TILE) // KEY_BLOCK, 0)
    passed, total = 0, 0.0
    for chunk in range(0, blocks, CHUNK):
        o_j = end - 1 - (chunk + o_b)
        m_j = chunk + o_b < blocks
        b_peak = tl.load(p_peak + o_j, mask=m_j, other=0.0)
        b_bound = tl.max(b_reach[:, None] * b_peak[None, :] - (b_floor - b_tilt)[:, None], 0)
        b_bound -= slope * (o_j * KEY_BLOCK - first).to(tl.float32)
        passed, total = pass_blocks(b_bound, m_j, in_block, passed, total, budget, least, EXACT)
    high = tl.minimum((end - passed) * KEY_BLOCK, length)

    p_spans += (i_head.to(tl.int64) * num_slots + slot) * 2
    tl.store(p_spans, low)
    tl.store(p_spans + 1, high)


@triton.jit
def transpose_kernel(p_spans, p_transposed, p_tiles, num_slots):
    """Grid: (tiles, heads). For a tile of keys, the queries from the first tile that visits it to the last."""
    i_head = tl.program_id(1)
    slot = tl.load(p_tiles + tl.program_id(0) * 4)
    length = tl.load(p_tiles + tl.program_id(0) * 4 + 2)
    first = tl.load(p_tiles + tl.program_id(0) * 4 + 3)
    if first >= length:
        return
    p_row = (i_head.to(tl.int64) * num_slots + slot) * 2
    p_spans += p_row - first // TILE * 2  # of the sequence's first tile
    tiles = tl.cdiv(length, TILE)
    o_t = tl.arange(0, CHUNK)
    low, high = first // TILE, first // TILE
    for chunk in range(0, tiles, CHUNK):
        m_t = chunk + o_t < tiles
        b_low = tl.load(p_spans + (chunk + o_t) * 2, mask=m_t, other=0)
        b_high = tl.load(p_spans + (chunk + o_t) * 2 + 1, mask=m_t, other=0)
        m_t = m_t & (b_low < first + TILE) & (b_high > first)
        low = tl.minimum(low, tl.min(tl.where(m_t, chunk + o_t, low), 0))
        high = tl.maximum(high, tl.max(tl.where(m_t, chunk + o_t, high), 0))
    tl.store(p_transposed + p_row, low * TILE)
    tl.store(p_transposed + p_row + 1, tl.minimum((high + 1) * TILE, length))
