"""The `triton` backend: whether `flash_alibi.py` works here, found out once, and the call from a batch's layout to it.

Triton is imported at the first use, and never where it cannot be used.
"""

import functools

import torch
from transformers.utils import is_triton_available, logging

from .alibi import alibi_attention_reference, alibi_slopes
from .kernel_configs import allows_tf32, gpu_architecture, has_tensor_cores
from .unpadding import SequenceLayout

logger = logging.get_logger(__name__)

# Sequences of the self-check: the first batch has blocks to skip, the second the one-block backward pass.
CHECK_LENGTHS = ([600, 77], [77, 20])


def default_implementation() -> str | None:
    """What `attn_implementation` is if the user names none; None leaves the choice to transformers."""
    if not torch.cuda.is_available() or not is_triton_available():
        return None
    # Without them the kernels work, but PyTorch's own, which do reach the tensor cores of a T4, should be faster.
    return "triton" if has_tensor_cores(gpu_architecture(torch.device("cuda"))) else None


def triton_attention(q, k, v, slopes, layout: SequenceLayout, dropout: float = 0.0):
    """See `attention.py` for the signature. Raises ValueError for dropout, which the kernels do not have."""
    from .flash_alibi import planned_attention

    if dropout:
        raise ValueError(
            'triton has no attention dropout: set attention_probs_dropout_prob=0 or choose attn_implementation="sdpa".'
        )
    if "tiles" not in layout.cache:
        layout.cache["tiles"] = _tiles(layout, slopes)
    plan, mask = layout.cache["tiles"]
    if layout.is_packed:
        return planned_attention(q, k, v, slopes, plan, layout.max_seqlen), None
    shape = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    output = planned_attention(q, k, v, slopes, plan, layout.max_seqlen, mask=mask, covers=mask is None)
    return output.unflatten(0, shape), None


def _tiles(layout: SequenceLayout, slopes: torch.Tensor):
    """
    The plan and the mask of a batch, without reading a length on the host.

    In a padded batch each sequence runs from its first token to its last, and pads between them are masked.
    """
    from .flash_alibi import tile_plan

    rows = layout.batch_size * layout.length
    if layout.is_packed:
        cu_seqlens = layout.cu_seqlens
        return tile_plan(cu_seqlens[:-1], cu_seqlens.diff(), sum(layout.lengths), slopes), None
    starts = torch.arange(layout.batch_size, device=slopes.device) * layout.length
    if layout.mask is None:
        return tile_plan(starts, torch.full_like(starts, layout.length), rows, slopes), None
    position = torch.arange(layout.length, device=slopes.device)
    first = torch.where(layout.mask, position, layout.length).amin(dim=1)
    past = torch.where(layout.mask, position + 1, 0).amax(dim=1)
    lengths = (past - first).clamp(min=0)
    starts = starts + torch.where(lengths > 0, first, 0)
    return tile_plan(starts, lengths, rows, slopes), layout.mask.flatten()


@torch.compiler.assume_constant_result
def triton_or_fallback(device: torch.device, dtype: torch.dtype, head_dim: int, dropout: float, backward: bool) -> str:
    """ "triton" if it works for these, otherwise "sdpa", with one warning that says why."""
    reason = _reason_against(device, dtype, head_dim, dropout, backward)
    if reason is None:
        return "triton"
    logger.warning_once(f'Attention falls back from "triton" to "sdpa": {reason}.')
    return "sdpa"


def _reason_against(device, dtype, head_dim, dropout, backward) -> str | None:
    if not is_triton_available():
        return "Triton is not installed"
    try:
        from .flash_alibi import IS_INTERPRETED, MAX_HEAD_DIM
    except Exception as error:  # whatever a broken installation raises: it must not keep a model from working
        return f"Triton cannot be imported ({_sentence(error)})"
    if dropout:
        return f"it has no attention dropout, and attention_probs_dropout_prob is {dropout}"
    if head_dim > MAX_HEAD_DIM:
        return f"heads of {head_dim} dimensions are larger than its {MAX_HEAD_DIM}"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it does not compute in {str(dtype).removeprefix('torch.')}"
    if IS_INTERPRETED:
        if dtype == torch.bfloat16:
            return "Triton's interpreter has no bfloat16 products"
    elif device.type != "cuda":
        return f"it needs a GPU, and the model is on {device.type}"
    if torch.jit.is_tracing():
        return "a TorchScript program would need it wherever it runs"
    if torch.compiler.is_exporting():  # the check below would become part of the exported program
        return None
    return _fault(device, dtype, head_dim, backward)


@functools.cache
def _fault(device: torch.device, dtype: torch.dtype, head_dim: int, backward: bool) -> str | None:
    """Run the kernels once on small batches beside the readable twin; what is wrong, or None."""
    try:
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            errors = [_relative_error(lengths, device, dtype, head_dim, backward) for lengths in CHECK_LENGTHS]
    except Exception as error:  # compilers and drivers raise what they like; the reason goes into the warning
        return f"its first run failed ({_sentence(error)})"
    if dtype == torch.float32:
        bound = 2.0**-9 if allows_tf32() else 1e-5
    else:
        bound = torch.finfo(dtype).eps
    if max(errors) <= bound:
        return None
    return f"its first run was off by a relative error of {max(errors):.1e}, above {bound:.1e}"


def _relative_error(lengths, device, dtype, head_dim, backward) -> float:
    """The largest relative error (Frobenius norm) of output and, with `backward`, gradients; infinite if NaN."""
    from .flash_alibi import alibi_attention

    heads = 2
    generator = torch.Generator().manual_seed(0)
    qkv, grad = (
        torch.randn((sum(lengths), parts, heads, head_dim), generator=generator).to(device, dtype) for parts in (3, 1)
    )
    slopes = torch.tensor(alibi_slopes(heads), device=device)
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)

    def results(attention, qkv):
        with torch.set_grad_enabled(backward):
            qkv = qkv.detach().requires_grad_(backward)
            output = attention(*qkv.unbind(1), slopes, cu_seqlens, max(lengths))
        if not backward:
            return [output]
        return [output.detach(), *torch.autograd.grad(output, qkv, grad[:, 0].to(output.dtype))[0].unbind(1)]

    pairs = zip(results(alibi_attention, qkv), results(alibi_attention_reference, qkv.float()), strict=True)
    errors = [float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in pairs]
    return max(error if error == error else float("inf") for error in errors)


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
