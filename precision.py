"""Number formats: float32 everywhere by default, half precision on request and only where the hardware computes in it.

    from dnabert2.precision import resolve_dtype
    model = DNABert2Model.from_pretrained("path/or/hub-id", dtype=resolve_dtype("auto", "cpu"))

A CPU without half-precision instructions emulates them: about ten times slower than float32, and less exact.
"""

import torch

from .errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def has_fast_bfloat16(device: str | torch.device) -> bool:
    """
    Whether `device` has bfloat16 arithmetic: AMX tiles or AVX512-BF16 on a CPU, compute capability 8.0 on CUDA.

    False for devices this project has no way to ask.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _cpu_supports("_is_amx_tile_supported") or _cpu_supports("_is_avx512_bf16_supported")
    return _cuda_capability_is_at_least(device, (8, 0))


def has_fast_float16(device: str | torch.device) -> bool:
    """The same for float16: AMX-FP16 on a CPU, compute capability 7.0 (tensor cores) on CUDA."""
    device = torch.device(device)
    if device.type == "cpu":
        return _cpu_supports("_is_amx_fp16_supported")
    return _cuda_capability_is_at_least(device, (7, 0))


def resolve_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """
    The dtype called `name`: "float32", "bfloat16", "float16", or "auto": bfloat16 where it is fast, else float32.

    Raises:
        UserError: for any other name.
    """
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise UserError(f"there is no precision {name!r}: choose one of {', '.join(DTYPES)} or auto.")
    return DTYPES[name]


def _cpu_supports(question: str) -> bool:
    # Private names of torch: a release that renames one must not break us, only leave the slow format unused.
    ask = getattr(torch.cpu, question, None)
    return ask is not None and bool(ask())


def _cuda_capability_is_at_least(device: torch.device, capability: tuple[int, int]) -> bool:
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= capability
