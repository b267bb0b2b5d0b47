"""`sdpa` on a CPU over long sequences: queries attend only the keys that `skipping.key_spans` cannot rule out.

    output = windowed_attention(q, k, v, slopes)    # one sequence: (tokens, heads, head_dim)
"""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .skipping import TILE, key_spans

WINDOWS_FROM = 1024
WORTHWHILE = 0.9
CALL_BUDGET = 2**21
A, B = 64, 32

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Window(NamedTuple):
    rows: int
    keys: int
    head: int
    first: int
    low: int


def takes_windows(q: torch.Tensor, length: int, dropout: float) -> bool:
    """Whether `windowed_attention` is for sequences of up to `length` tokens with queries such as q."""
    return (
        length >= WINDOWS_FROM
        and q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and dropout == 0.0
        and torch.backends.cuda.flash_sdp_enabled()
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    )


def windowed_attention(q, k, v, slopes):
    length, heads, _ = q.shape
    windows = _windows(key_spans(q, k, slopes), length)
    if sum((x.rows + B) * (x.keys + A) for x in windows) > WORTHWHILE * heads * length**2:
        return None
    return _WindowedAttention.apply(q, k, v, slopes, windows)[0]


class _WindowedAttention(torch.autograd.Function):
    @staticmethod
    def forward(q, k, v, slopes, windows):
        output, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
        for call in _calls(windows, q.shape[2]):
            query, key, value, bias = _inputs(call, q, k, v, slopes)
            out, sums = _attend(query, key, value, attn_mask=bias)
            for x, o, s in zip(call, out[:, 0].flip(1), sums[:, 0].flip(1)):
                output[x.first : x.first + x.rows, x.head] = o
                lse[x.first : x.first + x.rows, x.head] = s
        return output, lse

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.windows = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        q, k, v, slopes, output, lse = ctx.saved_tensors
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros(x.shape, dtype=torch.float32) for x in (k, v))
        for call in _calls(ctx.windows, q.shape[2]):
            query, key, value, bias = _inputs(call, q, k, v, slopes)
            g, o, l = (torch.stack([x[w.first : w.first + w.rows, w.head] for w in call]).flip(1)[:, None] for x in (grad, output, lse))
            dq_, dk_, dv_ = _attend_backward(g, query, key, value, o, l, 0.0, False, attn_mask=bias)
            for i, w in enumerate(call):
                dq[w.first : w.first + w.rows, w.head] = dq_[i, 0].flip(0)
                dk[w.low : w.low + w.keys, w.head] += dk_[i, 0]
                dv[w.low : w.low + w.keys, w.head] += dv_[i, 0]
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None


def _windows(spans, length):
    low, high = spans.unbind(2)
    rows, levels, costs = TILE, [], []
    while True:
        first = torch.arange(low.shape[1]) * rows
        n = (length - first).clamp(max=rows)
        levels.append((n.tolist(), first.tolist(), low, high))
        costs.append(((n + B) * (high - low + A)).sum(1))
        if low.shape[1] == 1:
            break
        rows *= 2
        if low.shape[1] % 2:
            low, high = (torch.cat([x, x[:, -1:]], 1) for x in (low, high))
        low, high = low.unflatten(1, (-1, 2)).amin(2), high.unflatten(1, (-1, 2)).amax(2)
    best = torch.stack(costs).argmin(0).tolist()
    windows = []
    for head, level in enumerate(best):
        n, first, low, high = levels[level]
        windows += [Window(r, hi - lo, head, f, lo) for r, f, lo, hi in zip(n, first, low[head].tolist(), high[head].tolist())]
    return sorted(windows, reverse=True)


def _calls(windows, dim):
    call = []
    for w in windows:
        if call and (w.rows < call[0].rows or w.keys < 0.8 * call[0].keys or (len(call) + 1) * max(call[0].keys, w.rows) * dim > CALL_BUDGET):
            yield call
            call = []
        if call: # as wide as the first
            keys = call[0].keys
            low = max(0, w.low + w.keys - keys)  # extends to the left
            w = w._replace(keys=keys, low=low)
        call.append(w)
    if call:
        yield call


def _inputs(call, q, k, v, slopes):
    rows, width = call[0].rows, call[0].keys
    query = torch.stack([q[x.first : x.first + rows, x.head] for x in call]).flip(1)[:, None]
    key, value = (torch.stack([x[w.low : w.low + width, w.head] for w in call])[:, None] for x in (k, v))
    columns = rows + width - 1
    distance = torch.arange(columns) - torch.tensor([[x.first + rows - 1 - x.low] for x in call])
    slope = slopes[[x.head for x in call], None]
    bias = (-slope * distance.abs()).as_strided((len(call), 1, rows, width), (columns, 0, 1, 1))
    return query, key, value, bias
