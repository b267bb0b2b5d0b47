"""Attention on a CPU over long sequences: queries attend only the keys that `skipping.key_spans` cannot rule out.

    output = windowed_attention(q, k, v, slopes)    # one sequence, or None where that saves too little

The window of a run of queries is the union of their tiles' spans. Windows of about equal size, of any heads and
places, are copied side by side and attended in one call of PyTorch's fused CPU kernel. Time and memory grow as the
windows do: linearly with the length, once it exceeds them. The readable twin is `attention.eager_attention`.
"""

from typing import NamedTuple

import torch

from .skipping import TILE, key_spans

# Below this length the bound and the copies cost what the windows save; bfloat16 is for CPUs with instructions for it,
# which make the kernel several times faster and the bound no faster.
WINDOWS_FROM = {torch.float32: 1536, torch.float16: 1536, torch.bfloat16: 3584}
# What a window costs beside its scores: a key copied as much as this many queries that attend it, and the reverse.
OVERHEAD = 64
# Queries that may share a window, a choice made for each head: more of them make it wider, fewer make more windows.
QUERIES = (TILE, 2 * TILE, 4 * TILE)
# Keys that a call holds at most, if that gives each thread a window; a call's windows are at least NARROWEST of its
# widest, to which they are all extended.
CALL_KEYS = 2**15
NARROWEST = 0.9


class Window(NamedTuple):
    """A run of `queries` of a head, from position `first` on, and the run of `keys` from `low` on that they attend."""

    queries: int
    keys: int
    head: int
    first: int
    low: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.queries)

    @property
    def columns(self) -> slice:
        return slice(self.low, self.low + self.keys)


def takes_windows(q: torch.Tensor, length: int, dropout: float) -> bool:
    """Whether `windowed_attention` is for sequences of `length` tokens with queries such as q."""
    return (
        q.dtype in WINDOWS_FROM
        and length >= WINDOWS_FROM[q.dtype]
        and q.device.type == "cpu"
        and dropout == 0.0
        and torch.backends.cuda.flash_sdp_enabled()  # of the CPU's kernel too: torch.nn.attention.sdpa_kernel sets it
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    )


def windowed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor | None:
    """
    softmax(q k^T * head_dim ** -0.5 - slope * |i - j|) v, but for at most 2^-24 of the weight of any row.

    Args:
        q, k, v: (length, heads, head_dim), for which `takes_windows` holds; slopes: (heads,) float32.

    Returns:
        (length, heads, head_dim), differentiable, once; None if one call over all keys is as fast.
    """
    length, heads, _ = q.shape
    windows = _choose_windows(key_spans(q, k, slopes), length)
    if sum((x.queries + OVERHEAD) * (x.keys + OVERHEAD) for x in windows) > heads * length**2:
        return None
    return _WindowedAttention.apply(q, k, v, slopes, _group(windows))[0]


class _WindowedAttention(torch.autograd.Function):
    """
    Autograd through slices would fill a gradient of full size for each; this adds every window's into one.

    The kernel is what `scaled_dot_product_attention` calls on a CPU, which keeps to itself the logarithms of the rows'
    sums that the backward pass starts from.
    """

    @staticmethod
    def forward(q, k, v, slopes, calls):
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, sums = q.new_empty(q.shape), []
        for call in calls:
            query, key, value, bias = _gather(call, q, k, v, slopes)
            outputs, logs = attend(query, key, value, attn_mask=bias)
            for window, rows in zip(call, outputs[:, 0].flip(1), strict=True):
                output[window.rows, window.head] = rows
            sums.append(logs.flatten())
        return output, torch.cat(sums)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.calls = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, grad, _):
        attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        q, k, v, slopes, output, sums = ctx.saved_tensors
        dq = q.new_empty(q.shape)
        dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
        sums = sums.split([len(call) * call[0].queries for call in ctx.calls])
        for call, logs in zip(ctx.calls, sums, strict=True):
            query, key, value, bias = _gather(call, q, k, v, slopes)
            arguments = (_queries(grad, call), query, key, value, _queries(output, call), logs.view(query.shape[:3]))
            gradients = attend_backward(*arguments, 0.0, False, attn_mask=bias)
            for window, *rows in zip(call, *(x[:, 0] for x in gradients), strict=True):
                dq[window.rows, window.head] = rows[0].flip(0)
                dk[window.columns, window.head] += rows[1]
                dv[window.columns, window.head] += rows[2]
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None


def _choose_windows(spans: torch.Tensor, length: int) -> list[Window]:
    """Windows that cover the spans (heads, tiles, 2), the largest first."""
    tiles = spans.shape[1]
    choices, costs = [], []
    for queries in QUERIES:
        first = torch.arange(0, length, queries, device=spans.device)
        tile = torch.arange(len(first) * (queries // TILE), device=spans.device).clamp(max=tiles - 1)
        low, high = spans[:, tile].unflatten(1, (len(first), -1)).unbind(3)
        low, keys = low.amin(2), high.amax(2) - low.amin(2)  # (heads, windows)
        counts = (length - first).clamp(max=queries)
        choices.append([x.tolist() for x in (counts, first, keys, low)])
        costs.append(((counts + OVERHEAD) * (keys + OVERHEAD)).sum(1))
    windows = []
    for head, choice in enumerate(torch.stack(costs).argmin(0).tolist()):
        counts, first, keys, low = choices[choice]
        fields = zip(counts, keys[head], first, low[head], strict=True)
        windows += [Window(count, width, head, start, least) for count, width, start, least in fields]
    return sorted(windows, reverse=True)


def _group(windows: list[Window]) -> list[list[Window]]:
    """The windows of each call, which have one size."""
    calls = []
    for window in windows:
        if calls:
            queries, keys = calls[-1][0][:2]
            most = max(torch.get_num_threads(), CALL_KEYS // keys)
            if window.queries == queries and window.keys >= NARROWEST * keys and len(calls[-1]) < most:
                low = max(0, window.low + window.keys - keys)
                calls[-1].append(window._replace(keys=keys, low=low))
                continue
        calls.append([window])
    return calls


def _gather(call, q, k, v, slopes):
    """Queries (windows, 1, queries, head_dim), keys, values, and bias of a call."""
    queries, keys = call[0][:2]
    key, value = (torch.stack([x[window.columns, window.head] for window in call])[:, None] for x in (k, v))
    # Reversed queries make the bias of a window a view of one vector, see `alibi.flipped_alibi_bias`.
    size = queries + keys - 1
    own = torch.tensor([[window.first + queries - 1 - window.low] for window in call], device=q.device)
    bias = -slopes[[window.head for window in call], None] * (torch.arange(size, device=q.device) - own).abs()
    return _queries(q, call), key, value, bias.as_strided((len(call), 1, queries, keys), (size, size, 1, 1))


def _queries(x, call):
    """(length, heads, head_dim) -> (windows, 1, queries, head_dim), reversed."""
    return torch.stack([x[window.rows, window.head] for window in call]).flip(1)[:, None]
