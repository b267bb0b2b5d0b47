"""Block sizes of the Triton kernels: a table by family of GPU, width of the head and precision.

Chosen by what the compiler makes of them - no spilled registers, shared memory that fits, enough programs at a time on
a multiprocessor - and not yet by time: nothing has been measured on a GPU. docs/log.md lists what is checked.
"""

import functools
from typing import NamedTuple

import torch


class KernelConfig(NamedTuple):
    """Queries and keys in a block, warps of a program, stages of the pipeline that loads the loop's blocks."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# The longest sequence for which one program computes all gradients, and its rows; larger blocks spill.
ONE_BLOCK, SHORT = 128, 64

# Products of half precision by wgmma (sm_90) or tcgen05 (sm_100), 227 KiB of shared memory.
HOPPER = {
    # kernel: heads of up to 64 dimensions, and of up to 128
    "forward": (KernelConfig(128, 64, 8, 3), KernelConfig(128, 64, 8, 2)),
    "query_gradient": (KernelConfig(64, 64, 4, 2), KernelConfig(128, 64, 8, 2)),
    "key_gradient": (KernelConfig(64, 64, 4, 2), KernelConfig(32, 32, 4, 2)),
    "block_gradient": (KernelConfig(128, 128, 8, 1), KernelConfig(64, 64, 4, 1)),
}
# mma.sync. Small enough for the 64 KiB of a T4 too: families of more shared memory gain no larger blocks, since
# registers are what runs out.
AMPERE = {
    "forward": (KernelConfig(128, 64, 8, 3), KernelConfig(64, 64, 4, 2)),
    "query_gradient": (KernelConfig(128, 32, 8, 2), KernelConfig(64, 32, 4, 1)),
    "key_gradient": (KernelConfig(32, 64, 4, 2), KernelConfig(32, 32, 4, 1)),
    "block_gradient": (KernelConfig(64, 64, 4, 1), KernelConfig(64, 64, 4, 1)),
}
# mfma, 64 KiB of shared memory, 512 registers.
CDNA = {
    "forward": (KernelConfig(128, 64, 8, 3), KernelConfig(128, 64, 8, 2)),
    "query_gradient": (KernelConfig(64, 64, 4, 2), KernelConfig(64, 32, 4, 2)),
    "key_gradient": (KernelConfig(32, 64, 4, 2), KernelConfig(32, 64, 4, 2)),
    "block_gradient": (KernelConfig(64, 64, 4, 1), KernelConfig(64, 64, 4, 1)),
}
FAMILIES = {"sm_90": HOPPER, "sm_100": HOPPER, "gfx90a": CDNA, "gfx942": CDNA}
# float32 takes twice the room, and without tf32 no tensor core: small blocks everywhere.
FLOAT32 = {
    "forward": (KernelConfig(64, 32, 8, 1), KernelConfig(16, 16, 4, 1)),
    "query_gradient": (KernelConfig(64, 32, 8, 1), KernelConfig(16, 16, 4, 1)),
    "key_gradient": (KernelConfig(32, 64, 8, 1), KernelConfig(16, 16, 4, 1)),
    "block_gradient": (KernelConfig(64, 64, 8, 1), KernelConfig(32, 32, 8, 1)),
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


def kernel_config(kernel: str, architecture: str, block_d: int, itemsize: int, max_seqlen: int) -> KernelConfig:
    """
    The configuration of a kernel, by its name without "_kernel".

    Args:
        architecture: see `gpu_architecture`; an unknown one gets the smallest blocks of half precision.
        block_d: head dimension, rounded up to a power of two.
        itemsize: bytes of a number in q, k and v.
    """
    family = FLOAT32 if itemsize == 4 else FAMILIES.get(architecture, AMPERE)
    config = family[kernel][int(block_d > 64)]
    if max_seqlen <= SHORT:
        config = config._replace(block_m=min(config.block_m, SHORT), block_n=min(config.block_n, SHORT))
    return config


def one_block(architecture: str, block_d: int, itemsize: int) -> int:
    """The longest sequence whose gradients one program computes."""
    return kernel_config("block_gradient", architecture, block_d, itemsize, ONE_BLOCK).block_n
