"""One vector of the states of tokens: of padded batches, and of sequences that come in windows."""

import numpy as np
import pytest
import torch

from dnabert2.inference.defaults import POOLINGS
from dnabert2.inference.pooling import Pool, pool


def test_pooling_leaves_pads_out_on_either_side():
    hidden = torch.tensor([[[9.0], [1.0], [3.0]], [[-5.0], [-1.0], [9.0]]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    assert {name: pool(hidden, mask, name)[:, 0].tolist() for name in POOLINGS} == {
        "mean": [2.0, -3.0],
        "cls": [1.0, -5.0],
        "max": [3.0, -1.0],
    }


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_windows_in_any_order_pool_as_the_whole_row(pooling):
    """Rows of 37 and 5 states in windows of 8, of which the middle 4 count, and what lies at the ends."""
    generator, size = torch.Generator().manual_seed(0), 6
    rows = [torch.randn((length, size), generator=generator) for length in (37, 5)]
    windows = []  # of which row, states, which of them count
    for number, row in enumerate(rows):
        for start in range(0, max(len(row) - 4, 1), 4):
            states, last = row[start : start + 8], start + 8 >= len(row)
            counts = torch.zeros(len(states), dtype=torch.bool)
            counts[2 if start else 0 : len(states) if last else 6] = True
            windows.append((number, states, counts))
    for order in (range(len(windows)), reversed(range(len(windows)))):
        pooled = Pool(2, pooling)
        for i in order:
            number, states, counts = windows[i]
            padded, real = torch.full((1, 8, size), 99.0), torch.zeros((1, 8), dtype=torch.bool)
            padded[0, : len(states)], real[0, : len(states)] = states, counts
            pooled.add(padded, real, np.array([number]))
        expected = [{"mean": row.mean(0), "max": row.amax(0)}[pooling].numpy() for row in rows]
        assert pooled.result() == pytest.approx(np.stack(expected), rel=1e-6, abs=1e-6)


def test_summary_tokens_of_windows_are_averaged():
    pooled = Pool(2, "cls")
    hidden = torch.tensor([[[1.0], [9.0]], [[3.0], [9.0]], [[7.0], [9.0]]])
    pooled.add(hidden, torch.ones((3, 2), dtype=torch.bool), np.array([0, 0, 1]))
    assert pooled.result().tolist() == [[2.0], [7.0]]


def test_the_mean_of_very_many_windows_is_exact():
    """A chromosome has 100,000; in float32, a running sum of so many would be off in the fourth digit."""
    pooled = Pool(1, "mean")
    hidden = torch.full((100, 1, 1), 0.1)
    counts = torch.ones((100, 1), dtype=torch.bool)
    for _ in range(1_000):
        pooled.add(hidden, counts, np.zeros(100, dtype=int))
    assert pooled.result()[0, 0] == pytest.approx(0.1, rel=1e-7)
