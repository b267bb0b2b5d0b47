"""Which blocks a GPU gets, and how it multiplies. That they compile is in test_ahead_of_time.py."""

import subprocess
import sys

import pytest
import torch

from dnabert2.bert_layers.kernel_configs import (
    AMPERE,
    FULL,
    HALF,
    PLAIN,
    TF32,
    allows_tf32,
    has_tensor_cores,
    kernel_config,
    one_block,
    products,
)


@pytest.fixture
def tf32():
    """Allows tf32 for the time of a test."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("architecture", ["sm_86", "sm_120", "sm_999"])
def test_unknown_gpus_get_blocks_that_fit_every_gpu(architecture):
    for kernel in PLAIN:
        assert kernel_config(kernel, architecture, 64, HALF, 1000) == AMPERE[HALF][kernel][0]
        assert kernel_config(kernel, architecture, 128, TF32, 1000) == AMPERE[TF32][kernel][1]
        assert kernel_config(kernel, architecture, 65, FULL, 1000) == PLAIN[kernel][1]


def test_without_tensor_cores_every_type_is_plain(tf32):
    assert not has_tensor_cores("sm_75") and has_tensor_cores("sm_120") and has_tensor_cores("gfx90a")
    assert {products("sm_75", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)} == {FULL}


def test_float32_is_cut_only_if_the_user_allows_it():
    assert not allows_tf32()
    assert products("sm_90", torch.float32) == products("gfx942", torch.float32) == FULL
    assert products("sm_90", torch.bfloat16) == products("gfx942", torch.float16) == HALF


def test_float32_where_tf32_is_allowed(tf32):
    assert allows_tf32()
    assert products("sm_90", torch.float32) == products("gfx942", torch.float32) == TF32
    assert products("gfx90a", torch.float32) == FULL  # it has no tf32
    assert products("sm_90", torch.bfloat16) == HALF


def test_either_of_pytorchs_settings_allows_tf32():
    """Once the newer is used, PyTorch raises when the older is asked; in a process of its own, since that stays."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this PyTorch has one setting")
    code = (
        "import torch; from dnabert2.bert_layers.kernel_configs import allows_tf32;"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'; assert allows_tf32();"
        "torch.backends.cuda.matmul.fp32_precision = 'ieee'; assert not allows_tf32();"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", [HALF, TF32, FULL])
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("block_d", [16, 128])
def test_short_sequences_get_short_blocks(architecture, block_d, kind):
    for kernel in PLAIN:
        config = kernel_config(kernel, architecture, block_d, kind, 40)
        assert max(config.block_m, config.block_n) <= 64


def test_sequences_for_one_program():
    assert one_block("sm_90", 64, HALF) == 128
    assert one_block("sm_80", 64, HALF) == 64
    assert one_block("sm_80", 128, FULL) == 16
