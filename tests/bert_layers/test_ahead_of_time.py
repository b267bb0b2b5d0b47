"""The kernels compile for GPUs that are not at hand: no spilled registers, tensor cores, shared memory that fits.

By default a part of the variants of every kernel on every GPU, minutes; DNABERT2_ALL_KERNELS=1 takes all of them.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from dnabert2.bert_layers.kernel_configs import FULL, HALF, TF32, has_tensor_cores, kernel_config, one_block

HERE = Path(__file__).parent
# Shared memory that a program may take; sm_75 is a T4.
LIMITS = {
    "sm_75": 64 * 1024,
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}
TENSOR_CORES = {"sm_90": {"wgmma"}, "sm_100": {"tcgen05"}, "gfx942": {"mfma"}}
KERNELS = ("forward", "query_gradient", "key_gradient", "block_gradient", "bound")
LONG, SHORT = 1000, 40


class Case(NamedTuple):
    """One combination of what a launch compiles for; see `kernel_configs.py` for `kind`."""

    dtype: str = "bf16"
    kind: str = HALF
    dim: int = 64
    masked: bool = False
    spans: bool = True
    longest: int = LONG


SOME = [
    Case(),
    Case("fp16", masked=True),
    Case(spans=False),
    Case(longest=SHORT),
    Case(dim=128),
    Case(dim=16),
    Case("fp32", FULL),
    Case("fp32", TF32, masked=True),
]
SOME_PLAIN = [Case("fp16", FULL, masked=True), Case("fp32", FULL), Case("fp32", FULL, dim=128)]


def cases(target):
    if os.environ.get("DNABERT2_ALL_KERNELS") != "1":
        return SOME if has_tensor_cores(target) else SOME_PLAIN
    types = [("bf16", HALF), ("fp16", HALF), ("fp32", FULL), ("fp32", TF32)]
    if not has_tensor_cores(target):  # nor bfloat16
        types = [("fp16", FULL), ("fp32", FULL)]
    flags = (False, True)
    every = itertools.product(types, (16, 32, 64, 80, 128), flags, flags, (LONG, SHORT))
    # float16 without tensor cores spills in wide heads (kernel_configs.py)
    return [Case(*x, dim, *rest) for x, dim, *rest in every if dim <= 64 or x != ("fp16", FULL)]


def variants(target):
    """(kernel, dtype, constants, warps, stages) of what is to be compiled for a GPU, and the kind of its products."""
    for kernel, case in itertools.product(KERNELS, cases(target)):
        block_d = 1 << (case.dim - 1).bit_length()
        limit, longest = one_block(target, block_d, case.kind), case.longest
        if kernel == "block_gradient":
            longest = min(longest, limit)
        elif kernel in ("query_gradient", "key_gradient") and longest <= limit:
            continue  # the one block takes sequences as short as that
        config = kernel_config(kernel, target, block_d, case.kind, longest)
        constants = {"DIM": case.dim, "BLOCK_D": block_d, "BLOCK_N": config.block_n, "HAS_MASK": case.masked}
        constants["PRECISION"] = "tf32" if case.kind == TF32 else "ieee"
        if kernel == "bound":
            constants["EXACT"] = case.spans
        else:
            constants["BLOCK_M"] = config.block_m
        if kernel in ("forward", "query_gradient", "key_gradient"):
            constants["HAS_SPANS"] = case.spans
        yield (kernel, case.dtype, constants, config.num_warps, config.num_stages), case.kind
    # Without products; launched as Triton sees fit.
    for exact in (False, True):
        yield ("span", "fp32", {"EXACT": exact}), None
    yield ("transpose", "fp32", {}), None
    for heads in (1, 16):
        yield ("plan", "fp32", {"BLOCK": 64, "HEADS": heads}), None


@pytest.fixture(scope="module")
def ahead_of_time():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    spec = importlib.util.spec_from_file_location("ahead_of_time", HERE / "ahead_of_time.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", LIMITS)
def test_compiles(target, ahead_of_time, tmp_path):
    # The same code may be asked for twice: blocks of bound do not depend on the length, say.
    wanted = {json.dumps(fields): kind for fields, kind in variants(target)}
    found = [ahead_of_time.Variant(kernel, target, *rest) for kernel, *rest in map(json.loads, wanted)]
    environment = dict(os.environ) | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(HERE / "ahead_of_time.py")],
        input=json.dumps([variant._asdict() for variant in found]),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(found) > 0
    if all("ROCm linker" in result.get("error", "") for result in results):
        pytest.skip("this Triton brings no linker for AMD's GPUs")
    faults = []
    for variant, kind, result in zip(found, wanted.values(), results, strict=True):
        what = f"{variant.kernel} {variant.dtype} {variant.constants} {variant.num_warps} warps"
        if "error" in result:
            faults.append(f"{what}: {result['error']}")
            continue
        if result["spilled"]:
            faults.append(f"{what}: {result['spilled']} spilled, {result['registers']} registers")
        if result["shared"] > LIMITS[target]:
            faults.append(f"{what}: {result['shared']} bytes of shared memory")
        has_products = kind in (HALF, TF32) or (kind == FULL and target.startswith("gfx"))
        if has_products and not TENSOR_CORES.get(target, {"mma"}) & set(result["tensor_cores"]):
            faults.append(f"{what}: no tensor core in {result['tensor_cores']}")
    assert not faults, "\n".join(faults)
