"""The Triton kernels of attention with symmetric ALiBi: forward, backward in two halves, backward in one block.

`flash_alibi.py` launches them; the maths is in README.md. A program computes a tile of one head of one sequence.
Scores are in units of log2 (times scale * log2(e)), so that exp2 gives the weights. The *home* of a tile is the
stretch of TILE positions it lies in. Its blocks are visited first, with |i - j| written out, and with them the
sequence's last block if that is not full; then the *outer* blocks left and right of home in one loop, where the bias
is a vector along the row plus a vector along the column and nothing reaches beyond the sequence.

Prefixes: `i_` index, `o_` offsets, `b_` block of values, `p_` pointer, `m_` mask. Rows of q, k, v and of the gradients
have a stride a token and a stride a head; dimensions are contiguous. Addresses are 64-bit from the row on.
"""

from transformers.utils import is_triton_available

from .skipping import TILE as TILE_POSITIONS

if is_triton_available():  # nobody imports this file without it, but the Hub loader reads imports
    import triton
    import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
TILE = tl.constexpr(TILE_POSITIONS)


@triton.jit
def load_rows(p, row, count, stride, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows [row, row + ROWS) of a head, zero from `count` rows on."""  # [ROWS, BLOCK_D]
    o_r, o_d = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    m_rd = (o_r < count - row)[:, None]
    if DIM < BLOCK_D:
        m_rd = m_rd & (o_d < DIM)[None, :]
    return tl.load(p + row.to(tl.int64) * stride + (o_r[:, None] * stride + o_d[None, :]), mask=m_rd, other=0.0)


@triton.jit
def load_full_rows(p, row, stride, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """`load_rows` where every row is there."""  # [ROWS, BLOCK_D]
    o_r, o_d = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    p += row.to(tl.int64) * stride + (o_r[:, None] * stride + o_d[None, :])
    if DIM < BLOCK_D:
        b = tl.load(p, mask=(o_d < DIM)[None, :], other=0.0)
    else:
        b = tl.load(p)
    return b


@triton.jit
def store_rows(p, values, row, count, stride, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    o_r, o_d = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    # Not as in `load_rows`: the same expression would keep its predicates in registers from the load to here.
    m_rd = (row + o_r < count)[:, None] & (o_d < DIM)[None, :]
    p += row.to(tl.int64) * stride + (o_r[:, None] * stride + o_d[None, :])
    tl.store(p, values.to(p.dtype.element_ty), mask=m_rd)


@triton.jit
def load_slope(p_slopes, i_head):
    # Not zero, so that an infinite distance always means a bias of -inf; 1e-30 changes no score.
    return tl.maximum(tl.load(p_slopes + i_head) * LOG2E, 1e-30)


@triton.jit
def home_bias(row, column, b_c, slope, ROWS: tl.constexpr):
    """-slope * |i - j| written out; `b_c` counts the columns, see `real_columns`."""  # [ROWS, COLUMNS]
    b_r = tl.arange(0, ROWS).to(tl.float32) + (row - column).to(tl.float32)
    return -slope * tl.abs(b_r[:, None] - b_c[None, :])


@triton.jit
def count_home(first, length, high, BLOCK: tl.constexpr):
    """Blocks of home, and one more if the sequence ends, before `high`, in a block outside home that is not full."""
    last = length // BLOCK * BLOCK
    return tl.cdiv(tl.minimum(length - first, TILE), BLOCK) + ((last >= first + TILE) & (last < high)).to(tl.int32)


@triton.jit
def home_block(i_block, first, length, BLOCK: tl.constexpr):
    """First position of the i-th of these."""
    return tl.where(i_block * BLOCK < TILE, first + i_block * BLOCK, length // BLOCK * BLOCK)


@triton.jit
def count_outer(first, length, low, high, BLOCK: tl.constexpr):
    """Full blocks outside home that cover the positions from `low` to `high`."""
    high = tl.minimum(high, length // BLOCK * BLOCK)
    return tl.cdiv(first - low, BLOCK) + tl.cdiv(tl.maximum(high - first - TILE, 0), BLOCK)


@triton.jit
def outer_block(i_block, first, low, row, slope, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """
    The i-th block outside home: its first position, and its bias as `column[None, :] - row[:, None]`.

    Left of home -slope * (i - j) rises with j, right of it -slope * (j - i) falls. Distances are exact, counted from
    the block's first position.
    """
    blocks_left = tl.cdiv(first - low, BLOCK)
    is_left = i_block < blocks_left
    column = first + (i_block - blocks_left) * BLOCK + tl.where(is_left, 0, TILE)
    signed = tl.where(is_left, slope, -slope)
    b_column = signed * tl.arange(0, BLOCK).to(tl.float32)
    b_row = signed * ((row - column).to(tl.float32) + tl.arange(0, ROWS).to(tl.float32))
    return column, b_column, b_row


@triton.jit
def load_mask(p, m):
    # The maximum of one value: otherwise Triton sees bytes behind the operand of the second product, takes the product
    # for one of 8-bit values and shuffles the operand into their layout.
    return tl.max(tl.load(p, mask=m).to(tl.int32)[:, None], 1) != 0


@triton.jit
def real_columns(p_mask, start, column, length, BLOCK: tl.constexpr, HAS_MASK: tl.constexpr):
    """Columns of a block counted from 0, infinite where there is no token of the sequence, or a pad."""  # [BLOCK]
    # Compared as float32, which is at hand anyway: a second vector of integers would cost registers.
    o_c = tl.arange(0, BLOCK)
    b_c = o_c.to(tl.float32)
    m_c = b_c < (length - column).to(tl.float32)
    if HAS_MASK:
        m_c = m_c & load_mask(p_mask + start + column + o_c, m_c)
    return tl.where(m_c, b_c, float("inf"))


@triton.jit
def softmax_step(b_x, b_r, b_max, b_sum):
    """One step of the online softmax over scores `b_x - b_r[:, None]`: weights, rescaling, new maximum and sum."""
    b_new = tl.maximum(b_max, tl.max(b_x, 1) - b_r)
    b_p = tl.exp2(b_x - (b_new + b_r)[:, None])
    b_alpha = tl.exp2(b_max - b_new)
    return b_p, b_alpha, b_new, b_sum * b_alpha + tl.sum(b_p, 1)


@triton.jit
def load_tile(p_tiles, i_tile):
    """A row of the plan: the tile's slot, its sequence's first row and length, its first position."""
    slot = tl.load(p_tiles + i_tile * 4)
    start = tl.load(p_tiles + i_tile * 4 + 1).to(tl.int64)
    length = tl.load(p_tiles + i_tile * 4 + 2)
    first = tl.load(p_tiles + i_tile * 4 + 3)
    return slot, start, length, first


@triton.jit
def load_span(p_spans, i_head, slot, num_slots, length, HAS_SPANS: tl.constexpr):
    """The positions a tile visits. Read once for each loop, which is cheaper than to keep them through the first."""
    low, high = 0, length
    if HAS_SPANS:
        p = p_spans + (i_head.to(tl.int64) * num_slots + slot) * 2
        low, high = tl.load(p), tl.load(p + 1)
    return low, high


@triton.jit
def forward_kernel(
    p_q, p_k, p_v, p_out, p_lse, p_slopes, p_order, p_tiles, p_spans, p_mask,
    scale, stride_q, stride_qh, stride_k, stride_kh, stride_v, stride_vh, stride_o, stride_oh, rows, num_slots,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_SPANS: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles * TILE / BLOCK_M, heads). Writes the output and log2 of the sum of exp2(scores), (heads, rows)."""
    parts: tl.constexpr = TILE // BLOCK_M
    i_head = tl.load(p_order + tl.program_id(1))
    slot, start, length, first = load_tile(p_tiles, tl.program_id(0) // parts)
    row = first + (tl.program_id(0) % parts) * BLOCK_M
    if row >= length:
        return
    slope = load_slope(p_slopes, i_head)
    scale *= LOG2E
    p_q += start * stride_q + i_head * stride_qh
    p_k += start * stride_k + i_head * stride_kh
    p_v += start * stride_v + i_head * stride_vh
    b_q = load_rows(p_q, row, length, stride_q, BLOCK_M, DIM, BLOCK_D)
    # Finite, so that a row that has met no real key yet has weights of zero, and not of NaN.
    b_max = tl.full([BLOCK_M], -3e38, tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    low, high = load_span(p_spans, i_head, slot, num_slots, length, HAS_SPANS)
    for i_block in range(0, count_home(first, length, high, BLOCK_N)):
        column = home_block(i_block, first, length, BLOCK_N)
        b_k = load_rows(p_k, column, length, stride_k, BLOCK_N, DIM, BLOCK_D)
        b_x = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale
        b_c = real_columns(p_mask, start, column, length, BLOCK_N, HAS_MASK)
        b_x += home_bias(row, column, b_c, slope, BLOCK_M)
        b_p, b_alpha, b_max, b_sum = softmax_step(b_x, tl.zeros_like(b_max), b_max, b_sum)
        b_v = load_rows(p_v, column, length, stride_v, BLOCK_N, DIM, BLOCK_D)
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_alpha[:, None], input_precision=PRECISION)

    low, high = load_span(p_spans, i_head, slot, num_slots, length, HAS_SPANS)
    for i_block in range(0, count_outer(first, length, low, high, BLOCK_N)):
        column, b_c, b_r = outer_block(i_block, first, low, row, slope, BLOCK_M, BLOCK_N)
        b_k = load_full_rows(p_k, column, stride_k, BLOCK_N, DIM, BLOCK_D)
        if HAS_MASK:
            b_c = tl.where(load_mask(p_mask + start + column + tl.arange(0, BLOCK_N), None), b_c, -float("inf"))
        b_x = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale + b_c[None, :]
        b_p, b_alpha, b_max, b_sum = softmax_step(b_x, b_r, b_max, b_sum)
        b_v = load_full_rows(p_v, column, stride_v, BLOCK_N, DIM, BLOCK_D)
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_alpha[:, None], input_precision=PRECISION)

    if HAS_MASK:  # a row without a real key gives zeros, and takes no gradient
        b_max = tl.where(b_sum == 0.0, 0.0, b_max)
        b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)
    b_out = b_out / b_sum[:, None]
    store_rows(p_out + start * stride_o + i_head * stride_oh, b_out, row, length, stride_o, BLOCK_M, DIM, BLOCK_D)
    o_m = tl.arange(0, BLOCK_M)
    p_lse += i_head.to(tl.int64) * rows + start + row
    tl.store(p_lse + o_m, b_max + tl.log2(b_sum), mask=o_m < length - row)


@triton.jit
def query_gradient_kernel(
    p_q, p_k, p_v, p_out, p_grad, p_lse, p_delta, p_dq, p_slopes, p_order, p_tiles, p_spans, p_mask,
    scale, stride_q, stride_qh, stride_k, stride_kh, stride_v, stride_vh, stride_o, stride_oh, stride_g, stride_gh,
    rows, num_slots,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_SPANS: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid as the forward's. Writes dq, and delta = sum over d of out * grad, (heads, rows), for the other half."""
    parts: tl.constexpr = TILE // BLOCK_M
    i_head = tl.load(p_order + tl.program_id(1))
    slot, start, length, first = load_tile(p_tiles, tl.program_id(0) // parts)
    row = first + (tl.program_id(0) % parts) * BLOCK_M
    if row >= length:
        return
    slope = load_slope(p_slopes, i_head)
    log_scale = scale * LOG2E
    p_k += start * stride_k + i_head * stride_kh
    p_v += start * stride_v + i_head * stride_vh
    p_out += start * stride_o + i_head * stride_oh
    o_m = tl.arange(0, BLOCK_M)
    i_row = i_head.to(tl.int64) * rows + start + row
    b_q = load_rows(p_q + start * stride_q + i_head * stride_qh, row, length, stride_q, BLOCK_M, DIM, BLOCK_D)
    b_g = load_rows(p_grad + start * stride_g + i_head * stride_gh, row, length, stride_g, BLOCK_M, DIM, BLOCK_D)
    b_o = load_rows(p_out, row, length, stride_o, BLOCK_M, DIM, BLOCK_D)
    b_delta = tl.sum(b_o.to(tl.float32) * b_g.to(tl.float32), 1)
    tl.store(p_delta + i_row + o_m, b_delta, mask=o_m < length - row)
    b_lse = tl.load(p_lse + i_row + o_m, mask=o_m < length - row, other=0.0)
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    low, high = load_span(p_spans, i_head, slot, num_slots, length, HAS_SPANS)
    for i_block in range(0, count_home(first, length, high, BLOCK_N)):
        column = home_block(i_block, first, length, BLOCK_N)
        b_k = load_rows(p_k, column, length, stride_k, BLOCK_N, DIM, BLOCK_D)
        b_v = load_rows(p_v, column, length, stride_v, BLOCK_N, DIM, BLOCK_D)
        b_x = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * log_scale
        b_c = real_columns(p_mask, start, column, length, BLOCK_N, HAS_MASK)
        b_x += home_bias(row, column, b_c, slope, BLOCK_M)
        b_p = tl.exp2(b_x - b_lse[:, None])
        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[:, None])
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)

    low, high = load_span(p_spans, i_head, slot, num_slots, length, HAS_SPANS)
    for i_block in range(0, count_outer(first, length, low, high, BLOCK_N)):
        column, b_c, b_r = outer_block(i_block, first, low, row, slope, BLOCK_M, BLOCK_N)
        b_k = load_full_rows(p_k, column, stride_k, BLOCK_N, DIM, BLOCK_D)
        b_v = load_full_rows(p_v, column, stride_v, BLOCK_N, DIM, BLOCK_D)
        if HAS_MASK:
            b_c = tl.where(load_mask(p_mask + start + column + tl.arange(0, BLOCK_N), None), b_c, -float("inf"))
        b_x = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * log_scale + b_c[None, :]
        b_p = tl.exp2(b_x - (b_lse + b_r)[:, None])
        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[:, None])
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)

    p_dq += (start * tl.num_programs(1) + i_head) * DIM
    store_rows(p_dq, b_dq * scale, row, length, tl.num_programs(1) * DIM, BLOCK_M, DIM, BLOCK_D)


@triton.jit
def key_gradient_kernel(
    p_q, p_k, p_v, p_grad, p_lse, p_delta, p_dk, p_dv, p_slopes, p_order, p_tiles, p_spans, p_mask,
    scale, stride_q, stride_qh, stride_k, stride_kh, stride_v, stride_vh, stride_g, stride_gh, rows, num_slots,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_SPANS: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles * TILE / BLOCK_N, heads); rows are keys here and the loop runs over queries. Writes dk and dv."""
    parts: tl.constexpr = TILE // BLOCK_N
    i_head = tl.load(p_order + tl.program_id(1))
    slot, start, length, first = load_tile(p_tiles, tl.program_id(0) // parts)
    row = first + (tl.program_id(0) % parts) * BLOCK_N
    if row >= length:
        return
    slope = load_slope(p_slopes, i_head)
    log_scale = scale * LOG2E
    p_q += start * stride_q + i_head * stride_qh
    p_grad += start * stride_g + i_head * stride_gh
    p_lse += i_head.to(tl.int64) * rows + start
    p_delta += i_head.to(tl.int64) * rows + start
    o_m = tl.arange(0, BLOCK_M)
    b_k = load_rows(p_k + start * stride_k + i_head * stride_kh, row, length, stride_k, BLOCK_N, DIM, BLOCK_D)
    b_v = load_rows(p_v + start * stride_v + i_head * stride_vh, row, length, stride_v, BLOCK_N, DIM, BLOCK_D)
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

    low, high = load_span(p_spans, i_head, slot, num_slots, length, HAS_SPANS)
    for i_block in range(0, count_home(first, length, high, BLOCK_M)):
        column = home_block(i_block, first, length, BLOCK_M)
        b_q = load_rows(p_q, column, length, stride_q, BLOCK_M, DIM, BLOCK_D)
        b_g = load_rows(p_grad, column, length, stride_g, BLOCK_M, DIM, BLOCK_D)
        m_m = o_m < length - column
        b_lse = tl.load(p_lse + column + o_m, mask=m_m, other=0.0)
        b_delta = tl.load(p_delta + column + o_m, mask=m_m, other=0.0)
        b_x = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * log_scale
        b_c = real_columns(p_mask, start, column, length, BLOCK_M, False)
        b_p = tl.exp2(b_x + home_bias(row, column, b_c, slope, BLOCK_N) - b_lse[None, :])
        b_dv = tl.dot(b_p.to(b_g.dtype), b_g, b_dv, input_precision=PRECISION)
        b_dp = tl.dot(b_v, tl.trans(b_g), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[None, :])
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)

    low, high = load_span(p_spans, i_head, slot, num_slots, length, HAS_SPANS)
    for i_block in range(0, count_outer(first, length, low, high, BLOCK_M)):
        column, b_c, b_r = outer_block(i_block, first, low, row, slope, BLOCK_N, BLOCK_M)
        b_q = load_full_rows(p_q, column, stride_q, BLOCK_M, DIM, BLOCK_D)
        b_g = load_full_rows(p_grad, column, stride_g, BLOCK_M, DIM, BLOCK_D)
        b_lse = tl.load(p_lse + column + o_m)
        b_delta = tl.load(p_delta + column + o_m)
        b_x = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * log_scale + (b_c - b_lse)[None, :]
        b_p = tl.exp2(b_x - b_r[:, None])
        b_dv = tl.dot(b_p.to(b_g.dtype), b_g, b_dv, input_precision=PRECISION)
        b_dp = tl.dot(b_v, tl.trans(b_g), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[None, :])
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)

    if HAS_MASK:  # a pad has no weight in any row
        is_pad = real_columns(p_mask, start, row, length, BLOCK_N, HAS_MASK) == float("inf")
        b_dk = tl.where(is_pad[:, None], 0.0, b_dk)
        b_dv = tl.where(is_pad[:, None], 0.0, b_dv)
    offset = (start * tl.num_programs(1) + i_head) * DIM
    stride = tl.num_programs(1) * DIM
    store_rows(p_dk + offset, b_dk * scale, row, length, stride, BLOCK_N, DIM, BLOCK_D)
    store_rows(p_dv + offset, b_dv, row, length, stride, BLOCK_N, DIM, BLOCK_D)


@triton.jit
def block_gradient_kernel(
    p_q, p_k, p_v, p_grad, p_lse, p_dq, p_dk, p_dv, p_slopes, p_tiles, p_mask,
    scale, stride_q, stride_qh, stride_k, stride_kh, stride_v, stride_vh, stride_g, stride_gh, rows, num_slots,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles, heads), for sequences that fit one block: all three gradients from one pass over the scores."""
    i_head = tl.program_id(1)
    _, start, length, first = load_tile(p_tiles, tl.program_id(0))
    if length == 0:
        return
    slope = load_slope(p_slopes, i_head)
    o_m = tl.arange(0, BLOCK_M)
    b_q = load_rows(p_q + start * stride_q + i_head * stride_qh, first, length, stride_q, BLOCK_M, DIM, BLOCK_D)
    b_g = load_rows(p_grad + start * stride_g + i_head * stride_gh, first, length, stride_g, BLOCK_M, DIM, BLOCK_D)
    b_k = load_rows(p_k + start * stride_k + i_head * stride_kh, first, length, stride_k, BLOCK_N, DIM, BLOCK_D)
    b_v = load_rows(p_v + start * stride_v + i_head * stride_vh, first, length, stride_v, BLOCK_N, DIM, BLOCK_D)
    b_lse = tl.load(p_lse + i_head.to(tl.int64) * rows + start + o_m, mask=o_m < length, other=float("inf"))
    b_x = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * (scale * LOG2E)
    b_c = real_columns(p_mask, start, first, length, BLOCK_N, HAS_MASK)
    b_x += home_bias(first, first, b_c, slope, BLOCK_M)
    b_p = tl.exp2(b_x - b_lse[:, None])
    offset = (start * tl.num_programs(1) + i_head) * DIM
    stride = tl.num_programs(1) * DIM
    b_dv = tl.dot(tl.trans(b_p.to(b_g.dtype)), b_g, input_precision=PRECISION)
    store_rows(p_dv + offset, b_dv, first, length, stride, BLOCK_N, DIM, BLOCK_D)
    b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
    b_ds = (b_p * (b_dp - tl.sum(b_p * b_dp, 1)[:, None])).to(b_q.dtype)
    b_dq = tl.dot(b_ds, b_k, input_precision=PRECISION) * scale
    store_rows(p_dq + offset, b_dq, first, length, stride, BLOCK_M, DIM, BLOCK_D)
    b_dk = tl.dot(tl.trans(b_ds), b_q, input_precision=PRECISION) * scale
    store_rows(p_dk + offset, b_dk, first, length, stride, BLOCK_N, DIM, BLOCK_D)
