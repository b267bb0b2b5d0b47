"""FlashAttention with symmetric ALiBi over unpadded batches, in Triton; far key blocks that weigh nothing are skipped.

    from dnabert2.bert_layers.flash_alibi import alibi_attention
    output = alibi_attention(q, k, v, slopes, cu_seqlens, max_seqlen, skip="fp32")     # differentiable

Needs Triton and a GPU; without a GPU, TRITON_INTERPRET=1 set before the import runs the kernels on the CPU, slowly.
The readable twin is `alibi.alibi_attention_reference`, the maths in README.md, the kernels in `alibi_kernels.py` and
`span_kernels.py`. Method: FlashAttention-2 (Dao, 2023); the skipping is this project's.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from transformers.utils import is_triton_available

from .alibi_kernels import block_gradient_kernel, forward_kernel, key_gradient_kernel, query_gradient_kernel
from .kernel_configs import TF32, kernel_config, kind_of, one_block
from .skipping import BUDGET, KEY_BLOCK, LEAST_EXPONENT, SLACK, SLACK_TF32, TILE, check_skip
from .span_kernels import bound_kernel, plan_kernel, span_kernel, transpose_kernel

if is_triton_available():  # nobody imports this file without it, but the Hub loader reads imports
    import triton

MAX_HEAD_DIM = 128
# Up to this length the bound costs more than the blocks it saves.
SKIP_ABOVE = 512
IS_INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)


class Plan(NamedTuple):
    """
    What the programs of a batch compute; every layer of a network can share it.

    Attributes:
        tiles: (slots, 4) int32, a row a tile: its slot, its sequence's first row and length, its first position.
        order: (heads,) int32, heads from the smallest slope, which has the most work, to the largest.
    """

    tiles: torch.Tensor
    order: torch.Tensor


def alibi_attention(
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
    softmax(q k^T * scale - slope * |i - j|) v within each sequence of an unpadded batch.

    Args:
        q, k, v: (total_tokens, heads, head_dim), float16, bfloat16 or float32, head_dim at most 128. Views of one
            packed projection are read in place.
        slopes: (heads,) float32, not negative.
        cu_seqlens: (batch + 1,) int32: sequence b has the rows from `cu_seqlens[b]` to `cu_seqlens[b + 1]`; it begins
            with 0 and ends with total_tokens. Sequences may be empty.
        max_seqlen: tokens in the longest sequence, or more.
        scale: of the scores; head_dim ** -0.5 if None.
        skip: None computes every block; "exact" leaves out blocks whose weights underflow to zero, which gives the
            same bits; "fp32" leaves out at most 2^-24 of any row's weight. A batch of sequences up to 512 tokens is
            computed whole.

    Returns:
        (total_tokens, heads, head_dim) of q's type; scores, softmax and sums are float32. The same bits every time.

    Raises:
        ValueError: for shapes, types, devices or a mode that do not fit.
    """
    _check(q, k, v, slopes, cu_seqlens)
    plan = tile_plan(cu_seqlens[:-1], cu_seqlens.diff(), q.shape[0], slopes)
    return planned_attention(q, k, v, slopes, plan, max_seqlen, scale=scale, skip=skip)


def planned_attention(
    q, k, v, slopes, plan: Plan, max_seqlen: int, *, mask=None, covers: bool = True, scale=None, skip="fp32"
) -> torch.Tensor:
    """
    `alibi_attention` for a plan that is there already.

    Args:
        mask: (rows,) bool, False for pads among the rows of a sequence; None if there are none.
        covers: whether every row lies in a sequence; if not, those that do not give zeros.
    """
    check_skip(skip)
    if q.shape[0] == 0:
        return v.clone()
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    slopes, mask = slopes.contiguous(), None if mask is None else mask.contiguous()
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    return _forward_op(q, k, v, slopes, *plan, mask, max_seqlen, scale, skip or "none", covers)[0]


def tile_plan(starts: torch.Tensor, lengths: torch.Tensor, rows: int, slopes: torch.Tensor) -> Plan:
    """
    The plan of a batch, made without reading a length on the host.

    A batch of `rows` rows has at most `rows // TILE + batch` tiles: sequence b gets the slots from
    `starts[b] // TILE + b` on, which are as many as it can need. Longer sequences come first in the table, so that no
    program with much work starts last; rows of no tile have length 0 and come at its end.

    Args:
        starts, lengths: (batch,) int, first row and rows of each sequence, ascending and without overlap.
        rows: of q, k and v.
    """
    return Plan(*_plan_op(starts.contiguous(), lengths.contiguous(), rows, slopes.contiguous()))


def _check(q, k, v, slopes, cu_seqlens):
    if q.dim() != 3 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(
            f"q, k and v must be (total_tokens, heads, head_dim) alike, but have shapes {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}."
        )
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32) or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"q, k and v must be float16, bfloat16 or float32 alike, but are {q.dtype}, {k.dtype} and {v.dtype}."
        )
    if not 1 <= q.shape[2] <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be 1 to {MAX_HEAD_DIM}, but is {q.shape[2]}.")
    if slopes.shape != q.shape[1:2] or slopes.dtype != torch.float32:
        raise ValueError(f"slopes must be ({q.shape[1]},) float32, but are {tuple(slopes.shape)} {slopes.dtype}.")
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.shape[0] < 1:
        raise ValueError(
            f"cu_seqlens must be (batch + 1,) int32, but is {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}."
        )
    if len({x.device for x in (q, k, v, slopes, cu_seqlens)}) > 1:
        raise ValueError("q, k, v, slopes and cu_seqlens must be on one device.")


def _launch(kernel, q, mask, plan, max_seqlen, arguments, *, tile=None, **constants):
    """One of the attention kernels on every tile and head; `tile` names the block of a program, if not a tile."""
    name = kernel.fn.__name__.removesuffix("_kernel")
    config = kernel_config(name, *kind_of(q), max_seqlen)
    constants |= _constants(q, mask) | {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    programs = 1 if tile is None else TILE // constants[tile]
    with _on_device(q):
        kernel[plan.tiles.shape[0] * programs, q.shape[1]](
            *arguments, **constants, num_warps=config.num_warps, num_stages=config.num_stages
        )


def _constants(q, mask) -> dict:
    _, block_d, kind = kind_of(q)
    precision = "tf32" if kind == TF32 else "ieee"
    return {"DIM": q.shape[2], "BLOCK_D": block_d, "HAS_MASK": mask is not None, "PRECISION": precision}


def _on_device(q: torch.Tensor):
    # Triton launches on the current device, which need not be that of the tensors.
    return torch.cuda.device(q.device) if q.device.type == "cuda" else nullcontext()


def _strides(*tensors: torch.Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def _skips(skip: str, max_seqlen: int) -> bool:
    return skip != "none" and max_seqlen > SKIP_ABOVE


def _new(q: torch.Tensor, covers: bool) -> torch.Tensor:
    return (torch.empty if covers else torch.zeros)(q.shape, dtype=q.dtype, device=q.device)


def _find_spans(q, k, slopes, plan, mask, scale, skip, spans):
    """Fill `spans` (heads, slots, 2) with the keys that each tile of queries visits."""
    rows, heads, _ = q.shape
    slots = plan.tiles.shape[0]
    exact = skip == "exact"
    reach, floor = torch.empty((2, heads, rows), dtype=torch.float32, device=q.device)
    peak = torch.empty((heads, slots, TILE // KEY_BLOCK), dtype=torch.float32, device=q.device)
    slack = SLACK_TF32 if kind_of(q)[2] == TF32 else SLACK
    config = kernel_config("bound", *kind_of(q), TILE)
    with _on_device(q):
        bound_kernel[slots * TILE // KEY_BLOCK, heads](
            *(q, k, reach, floor, peak, slopes, plan.tiles, plan.tiles if mask is None else mask, scale, slack),
            *(*_strides(q, k), rows, slots),
            **_constants(q, mask),
            BLOCK_N=config.block_n,
            EXACT=exact,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        span_kernel[slots, heads](
            *(reach, floor, peak, spans, slopes, plan.tiles, 0.0 if exact else BUDGET, LEAST_EXPONENT, rows, slots),
            EXACT=exact,
        )


# `torch.library` ops, so that `torch.compile` and `torch.export` see one node. A Hub folder's copy of this file is
# another module beside the package's, and may be another version: each registers ops of its own name.
_NAME = "dnabert2::alibi_attention" + ("" if __name__.startswith("dnabert2.") else "_" + __name__.replace(".", "_"))


@torch.library.custom_op(_NAME + "_plan", mutates_args=())
def _plan_op(
    starts: torch.Tensor, lengths: torch.Tensor, rows: int, slopes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two tables of a `Plan`."""
    tiles, order = _plan_shapes(starts, lengths, rows, slopes)
    tiles.zero_()
    batch, heads, block = starts.shape[0], slopes.shape[0], 64
    with _on_device(slopes):
        plan_kernel[max(1, triton.cdiv(batch, block)),](
            *(starts, lengths, slopes, tiles, order, batch, heads),
            BLOCK=block,
            HEADS=triton.next_power_of_2(heads),
        )
    return tiles, order


@_plan_op.register_fake
def _plan_shapes(starts, lengths, rows, slopes):
    tiles = torch.empty((rows // TILE + starts.shape[0], 4), dtype=torch.int32, device=slopes.device)
    return tiles, torch.empty(slopes.shape, dtype=torch.int32, device=slopes.device)


@torch.library.custom_op(_NAME, mutates_args=())
def _forward_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    tiles: torch.Tensor,
    order: torch.Tensor,
    mask: torch.Tensor | None,
    max_seqlen: int,
    scale: float,
    skip: str,
    covers: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, log2 of the sums of exp2(scores) (heads, rows) and spans (heads, slots, 2)."""
    plan = Plan(tiles, order)
    output, lse, spans = _forward_shapes(q, k, v, slopes, tiles, order, mask, max_seqlen, scale, skip, covers)
    skips = _skips(skip, max_seqlen)
    if skips:
        _find_spans(q, k, slopes, plan, mask, scale, skip, spans)
    _launch(
        forward_kernel,
        *(q, mask, plan, max_seqlen),
        (
            *(q, k, v, output, lse, slopes, order, tiles, spans, tiles if mask is None else mask, scale),
            *(*_strides(q, k, v, output), q.shape[0], tiles.shape[0]),
        ),
        tile="BLOCK_M",
        HAS_SPANS=skips,
    )
    return output, lse, spans


@_forward_op.register_fake
def _forward_shapes(q, k, v, slopes, tiles, order, mask, max_seqlen, scale, skip, covers):
    lse = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)
    spans = torch.empty((q.shape[1], tiles.shape[0], 2), dtype=torch.int32, device=q.device)
    return _new(q, covers), lse, spans


@torch.library.custom_op(_NAME + "_backward", mutates_args=())
def _backward_op(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    spans: torch.Tensor,
    slopes: torch.Tensor,
    tiles: torch.Tensor,
    order: torch.Tensor,
    mask: torch.Tensor | None,
    max_seqlen: int,
    scale: float,
    skip: str,
    covers: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v."""
    plan = Plan(tiles, order)
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    dq, dk, dv = (_new(q, covers) for _ in range(3))
    masked = tiles if mask is None else mask
    sizes = (q.shape[0], tiles.shape[0])
    common = (q, mask, plan, max_seqlen)
    if max_seqlen <= one_block(*kind_of(q)):
        arguments = (q, k, v, grad, lse, dq, dk, dv, slopes, tiles, masked, scale, *_strides(q, k, v, grad), *sizes)
        _launch(block_gradient_kernel, *common, arguments)
        return dq, dk, dv
    skips = _skips(skip, max_seqlen)
    delta = torch.empty_like(lse)
    arguments = (q, k, v, output, grad, lse, delta, dq, slopes, order, tiles, spans, masked, scale)
    arguments += (*_strides(q, k, v, output, grad), *sizes)
    _launch(query_gradient_kernel, *common, arguments, tile="BLOCK_M", HAS_SPANS=skips)
    transposed = spans
    if skips:
        transposed = torch.empty_like(spans)
        with _on_device(q):
            transpose_kernel[tiles.shape[0], q.shape[1]](spans, transposed, tiles, tiles.shape[0])
    arguments = (q, k, v, grad, lse, delta, dk, dv, slopes, order, tiles, transposed, masked, scale)
    arguments += (*_strides(q, k, v, grad), *sizes)
    _launch(key_gradient_kernel, *common, arguments, tile="BLOCK_N", HAS_SPANS=skips)
    return dq, dk, dv


@_backward_op.register_fake
def _backward_shapes(grad, q, k, v, output, lse, spans, slopes, tiles, order, mask, max_seqlen, scale, skip, covers):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def _save(ctx, inputs, output):
    q, k, v, slopes, tiles, order, mask, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, slopes, tiles, order, mask)
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx, grad, *_):
    return *_backward_op(grad, *ctx.saved_tensors, *ctx.options), *[None] * 8


_forward_op.register_autograd(_gradients, setup_context=_save)
