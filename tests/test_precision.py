"""Which precision is taken where: what torch says of the hardware is put in its mouth here."""

import pytest
import torch

from dnabert2.errors import UserError
from dnabert2.precision import has_fast_bfloat16, has_fast_float16, resolve_dtype


def cpu_with(monkeypatch, **answers):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_amx_fp16_supported"):
        answer = answers.get(name, False)
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)


@pytest.mark.parametrize("name", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_either_instruction_set_makes_bfloat16_fast(monkeypatch, name):
    cpu_with(monkeypatch, **{name: True})
    assert has_fast_bfloat16("cpu") is True
    assert has_fast_bfloat16(torch.device("cpu")) is True
    assert has_fast_float16("cpu") is False
    assert resolve_dtype("auto", "cpu") == torch.bfloat16


def test_a_cpu_without_them_computes_in_float32(monkeypatch):
    cpu_with(monkeypatch)
    assert has_fast_bfloat16("cpu") is False
    assert resolve_dtype("auto", "cpu") == torch.float32


def test_float16_has_instructions_of_its_own(monkeypatch):
    cpu_with(monkeypatch, _is_amx_fp16_supported=True)
    assert has_fast_float16("cpu") is True
    assert has_fast_bfloat16("cpu") is False


def test_a_torch_without_these_private_functions_means_not_fast(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_amx_fp16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert has_fast_bfloat16("cpu") is False
    assert has_fast_float16("cpu") is False


@pytest.mark.parametrize(
    ("capability", "bfloat16", "float16"), [((6, 1), False, False), ((7, 5), False, True), ((8, 0), True, True)]
)
def test_cuda_goes_by_compute_capability(monkeypatch, capability, bfloat16, float16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fast_bfloat16("cuda") is bfloat16
    assert has_fast_float16("cuda:1") is float16


def test_absent_cuda_and_unknown_devices_are_not_fast(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert has_fast_bfloat16("cuda") is False
    assert has_fast_bfloat16("mps") is False


def test_names_are_taken_at_their_word(monkeypatch):
    cpu_with(monkeypatch)
    assert resolve_dtype("float32", "cpu") == torch.float32
    assert resolve_dtype("bfloat16", "cpu") == torch.bfloat16
    assert resolve_dtype("float16", "cpu") == torch.float16


@pytest.mark.parametrize("name", ["bf16", "float64", ""])
def test_other_names_are_an_error_that_lists_the_names(name):
    with pytest.raises(UserError, match=r"float32, bfloat16, float16 or auto"):
        resolve_dtype(name, "cpu")
