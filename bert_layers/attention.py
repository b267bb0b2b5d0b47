"""Attention backends: one signature, one table, chosen by `attn_implementation`.

    attention = attention_function(model.config._attn_implementation)
    output, weights = attention(q, k, v, slopes, layout, dropout=0.0)

Every backend takes q, k and v of shape (..., heads, head_dim), where `...` is (tokens,) in a packed layout and
(batch, length) in a padded one, the float32 ALiBi slopes (heads,), and the `SequenceLayout`; it scales scores by
head_dim ** -0.5, adds `-slope * |i - j|` in float32, gives pad keys a weight of exactly zero, and returns the output
in the shape of q, and the attention weights (batch, heads, length, length) if it can, else None.

`eager` is the readable reference and the only one that returns weights and holds a whole (heads, length, length) bias.
The others hold none, or pieces of a fixed size (`BIAS_BUDGET`, `SHORT_BUDGET`); a program exported with `sdpa` is the
exception, since it makes one call for every length.
"""

import importlib
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .alibi import alibi_bias, flipped_alibi_bias
from .flex import flex_attention
from .triton_backend import triton_attention
from .unpadding import SequenceLayout, padded_layout
from .windows import takes_windows, windowed_attention

# Elements of additive bias that a padded `sdpa` call may hold at once (float32: 64 MiB).
BIAS_BUDGET = 2**24
# Up to this many, short sequences of unequal length are padded for one call instead of one for each length: a call's
# overhead, and on a busy CPU its threads' waiting for each other, costs more than the pads.
SHORT_BUDGET = 2**22
# Up to this length, and this many scores of a batch (6 bytes each in every layer: 48 MiB), scores are held for a
# backward pass in half precision on a CPU, where the fused kernel's takes two to five times what products take.
PRODUCTS_LENGTH = 256
PRODUCTS_BUDGET = 2**23


def eager_attention(q, k, v, slopes, layout: SequenceLayout, dropout: float = 0.0):
    """Softmax attention written out; takes padded layouts only. Softmax and bias are float32."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (batch, heads, length, head_dim)
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    scores = scores + alibi_bias(slopes, q.shape[2])
    if layout.mask is not None:
        # The lowest finite number, not -inf: a row of pads only must not become NaN. exp() of it is exactly zero
        # beside any real key.
        scores = scores.masked_fill(~layout.mask[:, None, None, :], torch.finfo(torch.float32).min)
    weights = scores.softmax(dim=-1).to(v.dtype)
    output = F.dropout(weights, dropout) @ v
    return output.transpose(1, 2), weights


def sdpa_attention(q, k, v, slopes, layout: SequenceLayout, dropout: float = 0.0):
    """
    PyTorch's fused attention. Of packed sequences, those of one length are attended together, or all at once if they
    are short.

    On a CPU the bias is a view of O(length) memory (`flipped_alibi_bias`), so queries and outputs are reversed around
    the call, and from `windows.WINDOWS_FROM` tokens on, keys that weigh nothing are left out (`windowed_attention`).
    Elsewhere, and under a mask, the bias is built for a slab of query rows at a time.
    """
    padded_scores = layout.batch_size * slopes.numel() * layout.length**2
    attend = _sdpa_padded
    if _has_slow_backward(q) and layout.max_seqlen <= PRODUCTS_LENGTH:
        scores = slopes.numel() * sum(n**2 for n in layout.lengths) if layout.is_packed else padded_scores
        attend = _products if scores <= PRODUCTS_BUDGET else _sdpa_padded
    if not layout.is_packed:
        return attend(q, k, v, slopes, layout.mask, dropout), None
    if len(set(layout.lengths)) != 1 and padded_scores <= SHORT_BUDGET:
        q, k, v = (layout.scatter(x) for x in (q, k, v))
        return layout.gather(attend(q, k, v, slopes, layout.mask, dropout)), None
    return _sdpa_by_length(attend, q, k, v, slopes, layout, dropout), None


def _sdpa_by_length(attend, q, k, v, slopes, layout, dropout):
    """Many sequences have few lengths, and one call for each of them needs neither pads nor a mask."""
    groups = sorted(Counter(layout.lengths).items())
    is_mixed = len(groups) > 1
    if is_mixed:
        q, k, v = (x.index_select(0, layout.by_length[0]) for x in (q, k, v))
    pieces = zip(*(x.split([length * count for length, count in groups]) for x in (q, k, v)), strict=True)
    output = torch.cat(
        [_sdpa_equal(attend, *piece, slopes, *group, dropout) for piece, group in zip(pieces, groups, strict=True)]
    )
    return output.index_select(0, layout.by_length[1]) if is_mixed else output


def _sdpa_equal(attend, q, k, v, slopes, length, count, dropout):
    """`count` sequences of `length` tokens, laid end to end."""
    if not takes_windows(q, length, dropout):
        return attend(*(x.unflatten(0, (count, length)) for x in (q, k, v)), slopes, None, dropout).flatten(0, 1)
    outputs = []
    for piece in zip(*(x.split(length) for x in (q, k, v)), strict=True):
        output = windowed_attention(*piece, slopes)
        outputs.append(_sdpa_padded(*(x[None] for x in piece), slopes, None, dropout)[0] if output is None else output)
    return torch.cat(outputs)


def _sdpa_padded(q, k, v, slopes, mask, dropout):
    length = q.shape[1]
    if length == 0:
        return v
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    flipped = flipped_alibi_bias(slopes, length)
    if mask is None and q.device.type == "cpu":
        return _fused_attention(q.flip(2), k, v, flipped[None], dropout).flip(2).transpose(1, 2)
    return _sdpa_in_slabs(q, k, v, flipped, mask, dropout).transpose(1, 2)


def _products(q, k, v, slopes, mask, dropout):
    """What `_sdpa_padded` gives, from `eager`."""
    return eager_attention(q, k, v, slopes, padded_layout(mask, *q.shape[:2]), dropout)[0]


def _has_slow_backward(q):
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.requires_grad
        and not (torch.compiler.is_exporting() or torch.jit.is_tracing())
    )


def _sdpa_in_slabs(q, k, v, flipped, mask, dropout):
    batch_size, heads, length, _ = q.shape
    dtype = q.dtype
    if q.device.type != "cpu":
        # Fused GPU kernels want a bias of the queries' type; ALiBi stays float32, so the queries follow it.
        q, k, v = (x.to(flipped.dtype) for x in (q, k, v))
    key_bias = None
    if mask is not None:
        key_bias = torch.zeros(mask.shape, dtype=flipped.dtype, device=mask.device)
        key_bias = key_bias.masked_fill(~mask, torch.finfo(flipped.dtype).min)[:, None, None, :]
    queries, bias_slabs = [q.flip(2)], [flipped[None]]
    # An exported program has one call for every length; a loop over slabs would fix the length it was traced with.
    if not (torch.compiler.is_exporting() or torch.jit.is_tracing()):
        rows = max(1, min(length, BIAS_BUDGET // (batch_size * heads * length)))
        queries, bias_slabs = (x[0].split(rows, dim=2) for x in (queries, bias_slabs))
    outputs = []
    for query, bias in zip(queries, bias_slabs, strict=True):
        bias = bias.contiguous() if key_bias is None else bias + key_bias
        outputs.append(_fused_attention(query, k, v, bias, dropout))
    return torch.cat(outputs, dim=2).flip(2).to(dtype)


def _fused_attention(q, k, v, bias, dropout):
    if torch.is_autocast_enabled(q.device.type):
        # It would cast the bias along with the queries, which are in half precision already.
        with torch.autocast(q.device.type, enabled=False):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def flash_attention_2(q, k, v, slopes, layout: SequenceLayout, dropout: float = 0.0):
    """Dao-AILab's flash-attn with `alibi_slopes` (symmetric when not causal); half precision, packed layouts."""
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"flash_attention_2 is half precision only, and the model is in {str(q.dtype).removeprefix('torch.')}: "
            'load it with dtype=torch.bfloat16 or choose attn_implementation="sdpa".'
        )
    if not layout.is_packed:
        raise ValueError(
            "flash_attention_2 takes sequences without holes in their attention mask, and no tracing: "
            'choose attn_implementation="sdpa" here.'
        )
    # An import statement would make the Hub loader demand flash-attn of everybody.
    output = importlib.import_module("flash_attn").flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=layout.cu_seqlens,
        cu_seqlens_k=layout.cu_seqlens,
        max_seqlen_q=layout.max_seqlen,
        max_seqlen_k=layout.max_seqlen,
        dropout_p=dropout,
        alibi_slopes=slopes,
    )
    return output, None


# A new backend is a function of the signature above and a line here.
ATTENTION_FUNCTIONS: dict[str, Callable] = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
    "flex_attention": flex_attention,
    "flash_attention_2": flash_attention_2,
    "triton": triton_attention,
}
# Backends that attend packed tokens, and backends that can also do with a padded batch (for tracing).
PACKED_BACKENDS = {"sdpa", "flex_attention", "flash_attention_2", "triton"}
PADDED_BACKENDS = {"eager", "sdpa", "flex_attention", "triton"}


def attention_function(name: str) -> Callable:
    """The backend called `name`; raises ValueError with the names there are."""
    if name not in ATTENTION_FUNCTIONS:
        raise ValueError(
            f"attn_implementation={name!r} is not a backend of DNABERT-2: "
            f"choose one of {', '.join(ATTENTION_FUNCTIONS)}."
        )
    return ATTENTION_FUNCTIONS[name]
