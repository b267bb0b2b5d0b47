"""The Triton kernels over batches of every layout: pads among a sequence's rows, rows of none, and the plan.

Buffers that the kernels are to fill hold NaN at first, in every test.
"""

import importlib
import itertools

import pytest
import torch
from attention_problems import DEVICE, NAMES, assert_near, attend, draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")
flash_alibi = importlib.import_module("dnabert2.bert_layers.flash_alibi")
pytestmark = pytest.mark.usefixtures("kernels", "poison")

TILE = 128


def padded_reference(q, k, v, slopes, mask, starts, lengths):
    """Everything from a sequence's first token to its last attends the tokens there; float64, the bias held whole."""
    output = torch.zeros_like(v)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        here = torch.arange(start, start + length, device=q.device)
        keys = here[mask[here]]
        if len(keys):
            scores = torch.einsum("ihd,jhd->hij", q[here], k[keys]) * q.shape[2] ** -0.5
            scores = scores - slopes.double()[:, None, None] * (here[:, None] - keys).abs()
            output = output.index_put((here,), torch.einsum("hij,jhd->ihd", scores.softmax(2), v[keys]))
    return output


# Pads on the left, on the right, in holes; a hole wider than a tile; none but pads; no pads.
SHORT_PADS = (100, [[(0, 13)], [(71, 100)], [(0, 1), (20, 50), (98, 100)], [(0, 100)], []])
LONG_PADS = (330, [[(0, 40), (60, 301)], [(1, 329)], [(0, 330)], [(140, 145), (250, 330)]])


@pytest.mark.parametrize("skip", [None, "exact", "fp32"])
@pytest.mark.parametrize(("length", "pads"), [SHORT_PADS, LONG_PADS], ids=["short", "long"])
def test_padded_batch(large_blocks, length, pads, skip, monkeypatch):
    """Pads keep their places, so that distances are true; what is in no sequence is neither read nor left unset."""
    if skip is not None:
        monkeypatch.setattr(flash_alibi, "SKIP_ABOVE", 0)
    rows, heads, head_dim = len(pads) * length, 1, 16
    mask = torch.ones((len(pads), length), dtype=torch.bool, device=DEVICE)
    for row, stretches in enumerate(pads):
        for low, high in stretches:
            mask[row, low:high] = False
    place = torch.arange(length, device=DEVICE)
    first = torch.where(mask, place, length).amin(1).clamp(max=length - 1)
    lengths = (torch.where(mask, place + 1, 0).amax(1) - first).clamp(min=0)
    starts = torch.arange(len(pads), device=DEVICE) * length + first
    inside = torch.zeros(rows, dtype=torch.bool, device=DEVICE)
    for start, count in zip(starts.tolist(), lengths.tolist(), strict=True):
        inside[start : start + count] = True
    mask = mask.flatten()

    qkv, grad, slopes, _ = draw([rows], heads, head_dim)
    slopes = slopes * 200  # steep enough that there is something to skip
    qkv[inside & ~mask, 1:] *= 50
    grad[~mask] = 0.0  # nobody looks at a pad's output
    qkv[~inside], grad[~inside] = float("nan"), float("nan")
    inputs = [x.detach().requires_grad_() for x in qkv.unbind(1)]
    plan = flash_alibi.tile_plan(starts, lengths, rows, slopes)
    output = flash_alibi.planned_attention(*inputs, slopes, plan, length, mask=mask, covers=False, skip=skip)
    found = [output.detach(), *torch.autograd.grad(output, inputs, grad)]
    for name, x in zip(NAMES, found, strict=True):
        assert (x[~inside] == 0).all(), name
    for name, x in zip(NAMES[1:], found[1:], strict=True):
        assert (x[~mask] == 0).all(), name
    assert found[0].isfinite().all()

    exact = [x.detach().double().nan_to_num(0.0).requires_grad_() for x in inputs]
    expected = padded_reference(*exact, slopes, mask, starts, lengths)
    gradients = torch.autograd.grad(expected, exact, grad.double().nan_to_num(0.0))
    assert_near([x[mask] for x in found], [x.detach()[mask] for x in (expected, *gradients)])


@pytest.mark.parametrize("length", [50, 200])
def test_a_sequence_of_nothing_but_pads(large_blocks, length):
    """Its rows may also be in the plan: zeros, no NaN, no gradient."""
    qkv, grad, slopes, cu_seqlens = draw([length, length], 2, 16)
    mask = torch.arange(2 * length, device=DEVICE) >= length
    inputs = [x.detach().requires_grad_() for x in qkv.unbind(1)]
    plan = flash_alibi.tile_plan(cu_seqlens[:-1], cu_seqlens.diff(), 2 * length, slopes)
    output = flash_alibi.planned_attention(*inputs, slopes, plan, length, mask=mask)
    found = [output.detach(), *torch.autograd.grad(output, inputs, grad)]
    alone = attend(qkv[length:], grad[length:], slopes, cu_seqlens[:2])
    for name, x in zip(NAMES, found, strict=True):
        assert (x[:length] == 0).all(), name
    assert_near([x[length:] for x in found], alone)


def plan_by_enumeration(starts, lengths):
    """(slot, first row, length, first position) of every tile, longer sequences first."""
    tiles = []
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        tiles += [[start // TILE + i + first // TILE, start, length, first] for first in range(0, length, TILE)]
    return sorted(tiles, key=lambda tile: -tile[2])


LENGTHS = st.one_of(st.integers(0, 3), st.integers(0, 600), st.sampled_from([127, 128, 129, 256, 4097]))


@given(
    lengths=st.one_of(st.lists(LENGTHS, max_size=9), st.lists(st.integers(0, 300), min_size=60, max_size=140)),
    gaps=st.lists(st.sampled_from([0, 0, 1, 127, 128, 300]), max_size=9),
    slopes=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0**-8]), min_size=1, max_size=13),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plan_has_every_tile_once(lengths, gaps, slopes):
    """With rows between the sequences that are in none, as in a padded batch."""
    starts, rows = [], 0
    for length, gap in itertools.zip_longest(lengths, gaps[: len(lengths)], fillvalue=0):
        starts.append(rows + gap)
        rows += gap + length
    found = flash_alibi.tile_plan(
        *(torch.tensor(x, dtype=torch.int64, device=DEVICE) for x in (starts, lengths)),
        rows,
        torch.tensor(slopes, device=DEVICE),
    )
    tiles = found.tiles.tolist()
    expected = plan_by_enumeration(starts, lengths)
    assert len(tiles) == rows // TILE + len(lengths) >= len(expected)
    assert tiles[: len(expected)] == expected
    assert all(tile[2] == 0 for tile in tiles[len(expected) :])
    slots = [tile[0] for tile in expected]
    assert len(set(slots)) == len(slots) and max(slots, default=-1) < len(tiles)
    assert found.order.tolist() == sorted(range(len(slopes)), key=lambda head: slopes[head])
