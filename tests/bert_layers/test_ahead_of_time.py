"""The kernels compile for GPUs that are not at hand: no spilled registers, tensor cores, shared memory that fits.

By default half precision at 64 dimensions, which DNABERT-2 is; DNABERT2_ALL_KERNELS=1 takes every variant, for hours.
"""

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging import version

from dnabert2.bert_layers.kernel_configs import kernel_config, one_block

HERE = Path(__file__).parent
# Shared memory that a program may take.
LIMITS = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}
TENSOR_CORES = {"sm_90": {"wgmma"}, "sm_100": {"tcgen05", "mma"}, "gfx942": {"mfma"}}
KERNELS = ("forward", "query_gradient", "key_gradient", "block_gradient")
T4 = 64 * 1024


@pytest.fixture(scope="module")
def ahead_of_time():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if version.parse(metadata.version("triton")) < version.parse("3.9"):
        pytest.skip("the table's block sizes are chosen with Triton 3.9; 3.4 spills registers in some (docs/log.md)")
    spec = importlib.util.spec_from_file_location("ahead_of_time", HERE / "ahead_of_time.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(target):
    """(name, dtype, constants, warps, stages) of what is to be compiled for a GPU."""
    cases = [("bf16", "tf32", 64, False), ("fp16", "tf32", 64, True)]
    if os.environ.get("DNABERT2_ALL_KERNELS") == "1":
        cases = [
            (dtype, precision, dim, masked)
            for dtype, precision in (("bf16", "tf32"), ("fp16", "tf32"), ("fp32", "ieee"), ("fp32", "tf32"))
            for dim in (16, 32, 64, 80, 128)
            for masked in (False, True)
        ]
    for kernel in KERNELS:
        for dtype, precision, dim, masked in cases:
            block_d, itemsize = 1 << (dim - 1).bit_length(), 4 if dtype == "fp32" else 2
            longest = one_block(target, block_d, itemsize) if kernel == "block_gradient" else 1000
            config = kernel_config(kernel, target, block_d, itemsize, longest)
            constants = {"DIM": dim, "BLOCK_D": block_d, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
            constants |= {"HAS_MASK": masked, "PRECISION": precision}
            if kernel != "block_gradient":
                constants["HAS_SPANS"] = True
            yield kernel, dtype, constants, config.num_warps, config.num_stages


@pytest.mark.parametrize("target", LIMITS)
def test_compiles(target, ahead_of_time, tmp_path):
    cases = [ahead_of_time.Variant(kernel, target, *rest) for kernel, *rest in variants(target)]
    environment = dict(os.environ) | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(HERE / "ahead_of_time.py")],
        input=json.dumps([case._asdict() for case in cases]),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(cases) > 0
    faults = []
    for case, result in zip(cases, results, strict=True):
        what = f"{case.kernel} {case.dtype} {case.constants}"
        if "error" in result:
            faults.append(f"{what}: {result['error']}")
            continue
        if result["spilled"]:
            faults.append(f"{what}: {result['spilled']} spilled")
        if result["shared"] > LIMITS[target]:
            faults.append(f"{what}: {result['shared']} bytes of shared memory")
        # float32 products in full precision have no tensor core
        if case.constants["PRECISION"] != "ieee" and not TENSOR_CORES.get(target, {"mma"}) & set(
            result["tensor_cores"]
        ):
            faults.append(f"{what}: no tensor core in {result['tensor_cores']}")
        # What a GPU of the smallest memory gets is what sm_86 gets.
        if target == "sm_86" and result["shared"] > T4:
            faults.append(f"{what}: {result['shared']} bytes of shared memory, more than a T4 has")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("kernel", KERNELS)
def test_unknown_gpus_get_the_smallest_blocks(kernel):
    assert kernel_config(kernel, "sm_75", 64, 2, 1000) == kernel_config(kernel, "sm_86", 64, 2, 1000)
    assert kernel_config(kernel, "sm_999", 64, 2, 1000) == kernel_config(kernel, "sm_86", 64, 2, 1000)


def test_short_sequences_get_short_blocks():
    for kernel in KERNELS:
        config = kernel_config(kernel, "sm_90", 64, 2, 40)
        assert max(config.block_m, config.block_n) <= 64
