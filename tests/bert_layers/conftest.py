"""Fixtures of the tests of the Triton kernels."""

import importlib

import pytest
import torch


@pytest.fixture
def large_blocks(monkeypatch):
    """The interpreter's time is the number of programs and blocks; for tests that do not depend on it."""
    if not torch.cuda.is_available():
        flash_alibi = importlib.import_module("dnabert2.bert_layers.flash_alibi")
        whole = flash_alibi.kernel_config("bound", "sm_80", 16, "half", 128)._replace(block_m=128, block_n=128)
        monkeypatch.setattr(flash_alibi, "kernel_config", lambda *args: whole)
        monkeypatch.setattr(flash_alibi, "one_block", lambda *args: 128)
