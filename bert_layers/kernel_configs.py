"""Block sizes of the Triton kernels: a table by family of GPU, kind of products and width of the head.

Chosen by what the compiler makes of them - no spilled registers, shared memory that fits, enough programs at a time on
a multiprocessor - and not yet by time: nothing has been measured on a GPU. docs/log.md lists what is checked.
"""

import functools
from typing import NamedTuple

import torch

# How blocks are multiplied: operands of 16 bits, float32 cut to tf32, or float32 without tensor cores (but on AMD).
HALF, TF32, FULL = "half", "tf32", "full"


class KernelConfig(NamedTuple):
    """Queries and keys in a block, warps of a program, stages of the pipeline that loads the loop's blocks."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# The longest sequence for which one program computes all gradients, and its rows; larger blocks spill.
ONE_BLOCK, SHORT = 128, 64

# wgmma, 227 KiB of shared memory.
HOPPER = {
    HALF: {  # kernel: heads of up to 64 dimensions, and of up to 128
        "forward": (KernelConfig(128, 64, 4, 3), KernelConfig(128, 64, 8, 3)),
        "query_gradient": (KernelConfig(64, 64, 4, 2), KernelConfig(128, 64, 8, 2)),
        "key_gradient": (KernelConfig(64, 64, 4, 2), KernelConfig(32, 128, 8, 2)),
        "block_gradient": (KernelConfig(128, 128, 8, 1), KernelConfig(128, 128, 8, 1)),
        "bound": (KernelConfig(64, 64, 4, 2), KernelConfig(64, 64, 4, 2)),
    },
    TF32: {
        "forward": (KernelConfig(128, 64, 8, 2), KernelConfig(128, 32, 8, 2)),
        "query_gradient": (KernelConfig(128, 64, 8, 2), KernelConfig(128, 32, 8, 2)),
        "key_gradient": (KernelConfig(64, 128, 8, 2), KernelConfig(32, 128, 8, 2)),
        "block_gradient": (KernelConfig(64, 64, 4, 1), KernelConfig(64, 64, 8, 1)),
        "bound": (KernelConfig(64, 32, 8, 2), KernelConfig(64, 32, 8, 2)),
    },
}
# tcgen05.
BLACKWELL = {
    HALF: HOPPER[HALF] | {"forward": (KernelConfig(128, 64, 8, 3), KernelConfig(128, 64, 8, 3))},
    TF32: HOPPER[TF32]
    | {
        "forward": (KernelConfig(128, 32, 8, 2), KernelConfig(128, 32, 8, 2)),
        "key_gradient": (KernelConfig(32, 128, 8, 2), KernelConfig(32, 64, 8, 1)),
    },
}
# mma.sync, in the 99 KiB that a program has on all but data-centre GPUs: registers run out before more would help.
AMPERE = {
    HALF: {
        "forward": (KernelConfig(128, 64, 8, 3), KernelConfig(128, 64, 8, 3)),
        "query_gradient": (KernelConfig(128, 32, 8, 2), KernelConfig(64, 64, 8, 2)),
        "key_gradient": (KernelConfig(32, 64, 4, 2), KernelConfig(64, 64, 8, 2)),
        "block_gradient": (KernelConfig(64, 64, 4, 1), KernelConfig(64, 64, 4, 1)),
        "bound": (KernelConfig(64, 64, 4, 2), KernelConfig(64, 64, 4, 2)),
    },
    TF32: {
        "forward": (KernelConfig(128, 64, 8, 2), KernelConfig(128, 32, 8, 2)),
        "query_gradient": (KernelConfig(128, 32, 8, 2), KernelConfig(64, 32, 8, 1)),
        "key_gradient": (KernelConfig(32, 32, 4, 2), KernelConfig(32, 32, 4, 1)),
        "block_gradient": (KernelConfig(32, 32, 4, 1), KernelConfig(32, 32, 4, 1)),
        "bound": (KernelConfig(64, 32, 8, 2), KernelConfig(64, 32, 8, 2)),
    },
}
# Without tensor cores, in the 64 KiB of a T4: float32 in full precision on every NVIDIA GPU, all types before sm_80,
# for which Triton has no tensor cores. (There float16 with heads of more than 64 dimensions spills all the same.)
PLAIN = {
    "forward": (KernelConfig(32, 32, 4, 1), KernelConfig(32, 32, 8, 1)),
    "query_gradient": (KernelConfig(32, 32, 8, 1), KernelConfig(16, 16, 8, 1)),
    "key_gradient": (KernelConfig(16, 32, 8, 1), KernelConfig(16, 32, 8, 1)),
    "block_gradient": (KernelConfig(32, 32, 8, 1), KernelConfig(16, 16, 8, 1)),
    "bound": (KernelConfig(64, 16, 8, 2), KernelConfig(64, 16, 8, 2)),
}
# Forward on NVIDIA where every sequence is short; of the other kernels, blocks are cut to SHORT.
SHORT_FORWARD = {HALF: KernelConfig(64, 64, 4, 3), TF32: KernelConfig(64, 32, 4, 2)}
# mfma, which takes float32 too; 64 KiB of shared memory, 512 registers.
CDNA_FLOAT32 = {
    "forward": (KernelConfig(128, 64, 8, 2), KernelConfig(64, 32, 4, 2)),
    "query_gradient": (KernelConfig(128, 32, 8, 2), KernelConfig(64, 32, 4, 1)),
    "key_gradient": (KernelConfig(32, 64, 4, 2), KernelConfig(16, 64, 4, 1)),
    "block_gradient": (KernelConfig(64, 64, 4, 1), KernelConfig(64, 64, 4, 1)),
    "bound": (KernelConfig(64, 64, 4, 2), KernelConfig(64, 64, 4, 2)),
}
CDNA = {
    HALF: {
        "forward": (KernelConfig(128, 64, 4, 3), KernelConfig(128, 64, 8, 2)),
        "query_gradient": (KernelConfig(64, 64, 4, 2), KernelConfig(64, 32, 4, 2)),
        "key_gradient": (KernelConfig(32, 64, 4, 2), KernelConfig(32, 64, 4, 1)),
        "block_gradient": (KernelConfig(64, 64, 4, 1), KernelConfig(64, 64, 4, 1)),
        "bound": (KernelConfig(64, 64, 4, 2), KernelConfig(64, 64, 4, 2)),
    },
    TF32: CDNA_FLOAT32,
    FULL: CDNA_FLOAT32,
}


@functools.cache
def gpu_architecture(device: torch.device) -> str:
    """ "sm_90", "gfx942" and the like; of a CPU, where the interpreter runs, that of a common GPU."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def has_tensor_cores(architecture: str) -> bool:
    """Whether Triton knows tensor cores there; it has none for NVIDIA GPUs before sm_80."""
    return not architecture.startswith("sm_") or int(architecture[3:]) >= 80


def allows_tf32() -> bool:
    """Whether the user lets PyTorch cut the operands of float32 products to tf32. By default it does not."""
    # Once this newer setting (PyTorch 2.9) is used, reading the older one raises.
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return torch.get_float32_matmul_precision() != "highest" if precision is None else precision == "tf32"


def products(architecture: str, dtype: torch.dtype) -> str:
    """HALF, TF32 or FULL: how blocks of a type are multiplied on a GPU."""
    if not has_tensor_cores(architecture):
        return FULL
    if dtype != torch.float32:
        return HALF
    has_tf32 = architecture.startswith("sm_") or architecture == "gfx942"
    return TF32 if has_tf32 and allows_tf32() else FULL


def kind_of(q: torch.Tensor) -> tuple[str, int, str]:
    """What the table is read by, for q (..., head_dim): architecture, head dimension as a power of two, products."""
    architecture = gpu_architecture(q.device)
    return architecture, max(16, 1 << (q.shape[-1] - 1).bit_length()), products(architecture, q.dtype)


def kernel_config(kernel: str, architecture: str, block_d: int, products: str, max_seqlen: int) -> KernelConfig:
    """
    The configuration of a kernel, by its name without "_kernel".

    Args:
        architecture: see `gpu_architecture`; an unknown one gets the smallest blocks of its maker's.
        block_d: head dimension, rounded up to a power of two.
        products: see the function of that name.
    """
    if architecture.startswith("gfx"):
        family = CDNA
    else:
        family = {"sm_90": HOPPER, "sm_100": BLACKWELL}.get(architecture, AMPERE)
    config = family.get(products, PLAIN)[kernel][int(block_d > 64)]
    if max_seqlen <= SHORT:
        if kernel == "forward" and family is not CDNA:
            config = SHORT_FORWARD.get(products, config)
        config = config._replace(block_m=min(config.block_m, SHORT), block_n=min(config.block_n, SHORT))
    return config


def one_block(architecture: str, block_d: int, products: str) -> int:
    """The longest sequence whose gradients one program computes."""
    return kernel_config("block_gradient", architecture, block_d, products, ONE_BLOCK).block_n
