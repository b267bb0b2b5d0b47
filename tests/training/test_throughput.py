"""Counting operations: against the figures of the full size, and against PyTorch's own count."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
from dnabert2.training.throughput import Meter, flops_per_token, peak_flops


def test_operations_of_the_full_size():
    """226.49 MFLOP a token forward in linear layers, 36,864 a token of length in attention, 7.47 MFLOP in the head."""
    config = DNABert2Config()
    assert flops_per_token(config, 0, 0.0) / 3 == pytest.approx(226.49e6, rel=1e-4)
    assert (flops_per_token(config, 128, 0.0) - flops_per_token(config, 0, 0.0)) / 3 == 128 * 36_864
    assert (flops_per_token(config, 0, 1.0) - flops_per_token(config, 0, 0.0)) / 3 == pytest.approx(7.47e6, rel=1e-3)


def test_operations_are_what_pytorch_counts():
    config = DNABert2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)
    model = DNABert2ForMaskedLM._from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(5, 4096, (4, 32))
    labels = ids.clone()
    labels[:, 8:] = -100
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, labels=labels, labelled_only=True)
    assert counter.get_total_flops() == pytest.approx(flops_per_token(config, 32, 0.25) / 3 * ids.numel(), rel=1e-6)


def test_the_meter_leaves_pauses_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = Meter(flops_per_token=1e6, peak=1e9, world_size=2)
    meter.start()
    meter.tokens += 500
    now[0] += 4
    meter.pause()
    now[0] += 60  # an evaluation
    meter.start()
    now[0] += 1
    # 500 tokens a process in 5 s: 200 tokens/s of both, 0.2 GFLOP/s of 2.
    assert meter.read() == {"tokens_per_second": 200.0, "mfu": 0.1}
    now[0] += 1
    assert meter.read()["tokens_per_second"] == 0


def test_an_unknown_device_is_measured():
    peak, source = peak_flops(torch.device("cpu"), torch.float32)
    assert 1e9 < peak < 1e15 and "measured" in source
