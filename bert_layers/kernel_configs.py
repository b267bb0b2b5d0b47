"""Block sizes of the Triton kernels, by GPU, head dimension and precision."""

import functools
from typing import NamedTuple

import torch

# Up to this length one program computes all gradients of a sequence and head.
ONE_BLOCK = 128


class KernelConfig(NamedTuple):
    """Queries and keys in a block, warps of a program, stages of the pipeline that loads the loop's blocks."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@functools.cache
def gpu_architecture(device: torch.device) -> str:
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def kernel_config(kernel: str, architecture: str, block_d: int, itemsize: int, max_seqlen: int) -> KernelConfig:
    """placeholder"""
    if kernel == "forward":
        return KernelConfig(128, 64, 4, 3) if itemsize == 2 else KernelConfig(64, 32, 4, 2)
    if kernel == "query_gradient":
        return KernelConfig(128, 64, 8, 2) if itemsize == 2 else KernelConfig(64, 32, 4, 2)
    if kernel == "key_gradient":
        return KernelConfig(64, 128, 8, 2) if itemsize == 2 else KernelConfig(32, 64, 4, 2)
    return KernelConfig(128, 128, 8, 1)
