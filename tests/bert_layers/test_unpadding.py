"""Packing a batch and padding it again."""

import pytest
import torch

from dnabert2.bert_layers.unpadding import packed_layout, padded_layout


def bools(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


@pytest.mark.parametrize(
    ("mask", "indices", "cu_seqlens"),
    [
        (bools("xxx", "xxx"), None, [0, 3, 6]),
        (bools("xx.", "x.."), [0, 1, 3], [0, 2, 3]),
        (bools(".xx", "..x"), [1, 2, 5], [0, 2, 3]),
        (bools(".xx.", "xxx.", "...x"), [1, 2, 4, 5, 6, 11], [0, 2, 5, 6]),
        (bools("xx", "..", ".x"), [0, 1, 5], [0, 2, 2, 3]),
        (bools("..", ".."), [], [0, 0, 0]),
        (bools("x"), None, [0, 1]),
    ],
)
def test_packed_layout(mask, indices, cu_seqlens):
    layout = packed_layout(mask)
    assert layout.is_packed
    assert layout.cu_seqlens.dtype == torch.int32
    assert layout.cu_seqlens.tolist() == cu_seqlens
    assert layout.lengths == mask.sum(1).tolist()
    assert layout.max_seqlen == max(layout.lengths)
    assert (layout.indices if indices is None else layout.indices.tolist()) == indices
    assert (layout.mask is None) == bool(mask.all())


@pytest.mark.parametrize("mask", [bools("x.x"), bools("xxx", "x.x"), bools(".x.x."), bools("x..x", "....")])
def test_a_hole_in_one_sequence_leaves_the_batch_padded(mask):
    layout = packed_layout(mask)
    assert not layout.is_packed
    assert torch.equal(layout.mask, mask)
    assert layout.max_seqlen == mask.shape[1]


@pytest.mark.parametrize("make_layout", [packed_layout, lambda mask: padded_layout(mask, *mask.shape)])
def test_scatter_undoes_gather_and_zeroes_the_rest(make_layout, batch, padding):
    mask = batch(padding)["attention_mask"] != 0
    layout = make_layout(mask)
    padded = torch.randn(*mask.shape, 4, requires_grad=True)
    gathered = layout.gather(padded)
    assert gathered.shape[:-1] == ((int(mask.sum()),) if layout.is_packed else mask.shape)
    if layout.is_packed:
        assert torch.equal(gathered, padded[mask])
    restored = layout.scatter(gathered)
    assert torch.equal(restored, padded * mask[..., None])
    assert (restored[~mask] == 0).all()
    restored.sum().backward()
    assert torch.equal(padded.grad, mask[..., None].expand_as(padded).float())


def test_scatter_writes_zeros_where_pads_hold_nan():
    mask = bools("xx.", "x.x")
    hidden = torch.full((2, 3, 4), torch.nan).masked_fill(mask[..., None], 1.0)
    restored = padded_layout(mask, 2, 3).scatter(hidden)
    assert torch.equal(restored, mask[..., None].float().expand(2, 3, 4))


def test_without_a_mask_nothing_is_zeroed_or_moved():
    hidden = torch.randn(2, 3, 4)
    layout = padded_layout(None, 2, 3)
    assert layout.gather(hidden) is hidden
    assert layout.scatter(hidden) is hidden


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_empty_batches(shape):
    layout = packed_layout(torch.ones(shape, dtype=torch.bool))
    hidden = torch.randn(*shape, 5)
    assert layout.max_seqlen == 0 and layout.lengths == [0] * shape[0]
    assert layout.scatter(layout.gather(hidden)).shape == hidden.shape
