"""The ways to compute attention that the benchmark compares: ours, and what else users have. One row each in `RIVALS`.

Each gets what it can prepare once a batch for free (the plan of tiles, a compiled kernel, a bias), because a network
shares that between its layers; its memory is counted. All read q, k and v as views of one packed projection.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention import flex_attention as flex
from transformers.utils import is_triton_available

from ..errors import UserError
from .problems import Problem
from .published import published_attention, published_bias

HALF = (torch.float16, torch.bfloat16)
# A function of q, k and v that returns the output in the same shape.
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Rival:
    """
    One way to compute attention.

    Attributes:
        bind: prepares a problem and returns its `Attention`.
        what: for people.
        alibi: whether it computes ALiBi; else its output is another, and only its speed is of interest.
        ours, skip: whether it is this project's kernel, and its mode.
        batched: takes (batch, heads, length, head_dim) and so equal lengths only; else (tokens, heads, head_dim).
        rounded_bias: holds the bias in the precision of q, which costs accuracy.
        bias_bytes: the least it holds for a problem beside inputs and outputs, for those that hold a bias.
        needs: why it cannot run on a (device, dtype), None if it can.
    """

    name: str
    bind: Callable[[Problem], Attention]
    what: str
    alibi: bool = True
    ours: bool = False
    skip: str | None = None
    batched: bool = False
    rounded_bias: bool = False
    bias_bytes: Callable[[Problem], int] = lambda problem: 0
    needs: Callable[[torch.device, torch.dtype], str | None] = lambda device, dtype: None

    def reason_to_skip(self, layout: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot be measured; None if it can."""
        if self.batched and layout != "equal":
            return "takes sequences of equal length only"
        return self.needs(device, dtype)

    def native(self, packed: torch.Tensor, problem: Problem) -> torch.Tensor:
        """(tokens, heads, head_dim) as this rival takes it, a view."""
        if not self.batched:
            return packed
        return packed.unflatten(0, (-1, problem.lengths[0])).transpose(1, 2)

    def packed(self, native: torch.Tensor) -> torch.Tensor:
        """What it returns, as (tokens, heads, head_dim)."""
        return native.transpose(1, 2).flatten(0, 1) if self.batched else native

    def inputs(self, problem: Problem, with_gradients: bool) -> list[torch.Tensor]:
        """q, k and v of a problem as leaves of a graph of its own."""
        native = [self.native(x, problem).detach() for x in problem.qkv.unbind(1)]
        return [x.requires_grad_(with_gradients) for x in native]


def rivals_named(names: list[str]) -> list[Rival]:
    """Those called `names`, in this order; raises UserError for a name that is none."""
    for name in names:
        if name not in RIVALS:
            raise UserError(f"{name!r} is not a variant of attention: choose among {', '.join(RIVALS)}.")
    return [RIVALS[name] for name in dict.fromkeys(names)]


def reason_without_triton(device: torch.device) -> str | None:
    """Why this project's Triton kernels do not run on `device`; None if they do."""
    if not is_triton_available():
        return "Triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton's kernels need a GPU (TRITON_INTERPRET=1 interprets them on a CPU, slowly)"
    return None


def forget_compiled():
    """Drop what `torch.compile` made, which otherwise stops compiling after eight shapes of one function."""
    torch._dynamo.reset()


def _no_triton(device, dtype):
    if reason_without_triton(device) is None and device.type != "cuda" and dtype == torch.bfloat16:
        return "Triton's interpreter has no bfloat16 products"
    return reason_without_triton(device)


def _no_cuda(device, dtype):
    return None if device.type == "cuda" else "needs a CUDA device"


def _no_half(device, dtype):
    return _no_cuda(device, dtype) or (None if dtype in HALF else "computes in half precision only")


def _no_sdpa_flash(device, dtype):
    return None if device.type == "cpu" else _no_half(device, dtype)


def _no_flash_attn(device, dtype):
    if importlib.util.find_spec("flash_attn") is None:
        return "the flash-attn package is not installed"
    return _no_half(device, dtype)


def _no_varlen(device, dtype):
    try:
        importlib.import_module("torch.nn.attention.varlen")
    except ImportError:
        return "this torch has no torch.nn.attention.varlen"
    return _no_half(device, dtype)


def _ours(problem: Problem, skip: str | None = None, with_slopes: bool = True) -> Attention:
    kernels = importlib.import_module("..bert_layers.flash_alibi", __package__)
    slopes = problem.slopes if with_slopes else torch.zeros_like(problem.slopes)
    layout = problem.new_layout()
    plan = kernels.tile_plan(layout.cu_seqlens[:-1], layout.cu_seqlens.diff(), problem.tokens, slopes)
    return lambda q, k, v: kernels.planned_attention(q, k, v, slopes, plan, layout.max_seqlen, skip=skip)


def _sdpa(problem: Problem, backend: SDPBackend, with_bias: bool = False) -> Attention:
    bias = _bias(problem) if with_bias else None

    def attend(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    return attend


def _bias(problem: Problem) -> torch.Tensor:
    """(1, heads, length, length) in the type of q, which the fused kernels demand; made head by head."""
    length = problem.lengths[0]
    bias = torch.empty((1, problem.heads, length, length), dtype=problem.dtype, device=problem.device)
    position = torch.arange(length, dtype=torch.float32, device=problem.device)
    for head, slope in enumerate(problem.slopes.tolist()):
        bias[0, head] = (position[:, None] - position).abs_().mul_(-slope)
    return bias


def _bias_bytes(problem: Problem) -> int:
    return problem.heads * max(problem.lengths) ** 2 * problem.dtype.itemsize


def _flash_varlen(problem: Problem) -> Attention:
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    layout = problem.new_layout()
    where = (layout.cu_seqlens, layout.cu_seqlens, layout.max_seqlen, layout.max_seqlen)
    return lambda q, k, v: varlen_attn(q, k, v, *where)


def _flash_attn(problem: Problem) -> Attention:
    function = importlib.import_module("flash_attn").flash_attn_varlen_func
    layout = problem.new_layout()
    where = (layout.cu_seqlens, layout.cu_seqlens, layout.max_seqlen, layout.max_seqlen)
    return lambda q, k, v: function(q, k, v, *where, alibi_slopes=problem.slopes)


def _flex(problem: Problem) -> Attention:
    """Equal lengths as a batch without a mask; mixed ones packed, under a mask whose whole blocks are told apart."""
    if "flex" not in problem.cache:
        slopes, mask = problem.slopes, None

        def score_mod(score, batch, head, i, j):
            return score - slopes[head] * (i - j).abs()

        if problem.layout != "equal":
            places = torch.arange(len(problem.lengths), device=problem.device)
            sequence = places.repeat_interleave(torch.tensor(problem.lengths, device=problem.device))

            def same_sequence(batch, head, i, j):
                return sequence[i] == sequence[j]

            mask = flex.create_block_mask(same_sequence, None, None, problem.tokens, problem.tokens, problem.device)
        problem.cache["flex"] = partial(
            torch.compile(flex.flex_attention, dynamic=False), score_mod=score_mod, block_mask=mask
        )
    attend = problem.cache["flex"]
    if problem.layout == "equal":
        shape = (-1, problem.lengths[0])
        return lambda q, k, v: _of_batch(attend, q, k, v, shape)
    return lambda q, k, v: attend(*(x.transpose(0, 1)[None] for x in (q, k, v)))[0].transpose(0, 1)


def _of_batch(attend: Attention, q, k, v, shape) -> torch.Tensor:
    output = attend(*(x.unflatten(0, shape).transpose(1, 2) for x in (q, k, v)))
    return output.transpose(1, 2).flatten(0, 1)


def _published(problem: Problem) -> Attention:
    layout = problem.new_layout()
    layout.cache["bias"] = published_bias(problem.slopes, layout, problem.dtype)
    return lambda q, k, v: published_attention(q, k, v, problem.slopes, layout)[0]


def _published_bytes(problem: Problem) -> int:
    # The bias, the scores, their sum and the weights are held at once.
    return 4 * len(problem.lengths) * _bias_bytes(problem)


_SDPA = {"alibi": False, "batched": True}
_SDPA_BIAS = {"batched": True, "rounded_bias": True, "bias_bytes": _bias_bytes, "needs": _no_cuda}
_OURS = {"ours": True, "needs": _no_triton}
_ROWS = [
    Rival("triton", _ours, "ours, every block", **_OURS),
    Rival("triton_exact", partial(_ours, skip="exact"), "ours, skip=exact", skip="exact", **_OURS),
    Rival("triton_fp32", partial(_ours, skip="fp32"), "ours, skip=fp32", skip="fp32", **_OURS),
    Rival("triton_no_bias", partial(_ours, with_slopes=False), "ours, slopes of zero", alibi=False, **_OURS),
    Rival(
        "sdpa_flash",
        partial(_sdpa, backend=SDPBackend.FLASH_ATTENTION),
        "SDPA, flash, no bias",
        needs=_no_sdpa_flash,
        **_SDPA,
    ),
    Rival(
        "sdpa_cudnn",
        partial(_sdpa, backend=SDPBackend.CUDNN_ATTENTION),
        "SDPA, cuDNN, no bias",
        needs=_no_half,
        **_SDPA,
    ),
    Rival("flash_varlen", _flash_varlen, "torch's varlen_attn, no bias", alibi=False, needs=_no_varlen),
    Rival(
        "sdpa_bias_efficient",
        partial(_sdpa, backend=SDPBackend.EFFICIENT_ATTENTION, with_bias=True),
        "SDPA, memory-efficient kernel, materialised bias",
        **_SDPA_BIAS,
    ),
    Rival(
        "sdpa_bias_cudnn",
        partial(_sdpa, backend=SDPBackend.CUDNN_ATTENTION, with_bias=True),
        "SDPA, cuDNN, materialised bias",
        **_SDPA_BIAS,
    ),
    Rival("flex_alibi", _flex, "FlexAttention, compiled", needs=_no_cuda),
    Rival("flash_attn_alibi", _flash_attn, "flash-attn with alibi_slopes", needs=_no_flash_attn),
    Rival(
        "published",
        _published,
        "the published code's algorithm",
        rounded_bias=True,
        bias_bytes=_published_bytes,
    ),
]
RIVALS = {rival.name: rival for rival in _ROWS}
