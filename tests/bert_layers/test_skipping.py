"""Skipping is sound: what `key_spans` and the Triton kernels leave out, weighed in float64, and what that changes.

The kernels run on a GPU if there is one, otherwise under Triton's interpreter, on sequences short for skipping: steep
slopes give them something to skip.
"""

import importlib
import itertools
import math

import pytest
import torch

from dnabert2.bert_layers.alibi import alibi_slopes
from dnabert2.bert_layers.skipping import key_spans

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TILE, KEY_BLOCK, HEAD_DIM = 128, 64, 16
MODES = ("exact", "fp32")
# Of every steepness: a sum that is cut where the budget says comes close to it for some of them.
SLOPES = torch.cat([torch.zeros(1), torch.logspace(-2.2, 0.9, 23)])
NAMES = ("output", "dq", "dk", "dv")


def ordinary(q, k, slopes):
    pass


def huge_norms(q, k, slopes):
    q *= 30
    k *= 30


def first_key_dominates(q, k, slopes):
    """In every row, whatever the distance."""
    q[..., 0] = 3.0
    k[0, :, 0] = len(k) * slopes * 2 + 40


def last_key_dominates(q, k, slopes):
    q[..., 0] = 3.0
    k[-1, :, 0] = len(k) * slopes * 2 + 40


def a_key_dominates_nearby(q, k, slopes):
    """A tile and a half away it does, and farther away not."""
    q[..., 0] = 3.0
    k[len(k) // 2, :, 0] = 1.5 * TILE * slopes * 4 / 3


def common_offset(q, k, slopes):
    """Of either sign seen from a query; in float32 it costs four digits of a score."""
    k += 300.0


def equal_keys(q, k, slopes):
    """With one vector taken off every key nothing is left of them: the bound is as good as it gets."""
    k[:] = 4.0 * k[:1]


def equal_keys_but_noise(q, k, slopes):
    k[:] = 4.0 * k[:1] + 0.01 * k


def no_queries(q, k, slopes):
    q[:] = 0.0


def no_keys(q, k, slopes):
    k[:] = 0.0


def own_key_dominates(q, k, slopes):
    q[:] = 5.0 * k


def own_key_is_the_least(q, k, slopes):
    q[:] = -5.0 * k


def norms_grow(q, k, slopes):
    k *= torch.linspace(0, 6, len(k))[:, None, None]


def norms_fall(q, k, slopes):
    k *= torch.linspace(6, 0, len(k))[:, None, None]


INPUTS = (
    *(ordinary, huge_norms, first_key_dominates, last_key_dominates, a_key_dominates_nearby, common_offset),
    *(equal_keys, equal_keys_but_noise, no_queries, no_keys, own_key_dominates, own_key_is_the_least),
    *(norms_grow, norms_fall),
)


def draw(change, length, slopes, parts=2, seed=0):
    """`parts` tensors of (length, heads, HEAD_DIM), of which the first two are queries and keys."""
    generator = torch.Generator().manual_seed(seed)
    tensors = torch.randn((parts, length, len(slopes), HEAD_DIM), generator=generator)
    change(*tensors[:2], slopes)
    return tensors


def assert_sound(q, k, slopes, spans, skip, scale=HEAD_DIM**-0.5, real=None):
    """
    Weighs what is left out: in float64, at most 2^-24 of a row, or what is zero in float32 beside a row's largest.

    Zero means below 2^-150, half of the smallest number there is. `real` (length,) is False for keys that are pads.
    """
    length = len(q)
    first = torch.arange(0, length, TILE)
    last = (first + TILE).clamp(max=length)
    assert spans.shape == (len(slopes), len(first), 2)
    low, high = spans.unbind(2)
    assert (low >= 0).all() and (low <= first).all() and (high >= last).all() and (high <= length).all()
    assert (low % KEY_BLOCK == 0).all() and ((high % KEY_BLOCK == 0) | (high == length)).all()
    q, k, slopes = (x.double() for x in (q, k, slopes))
    place = torch.arange(length)
    for tile in range(len(first)):
        left_out = (place < low[:, tile, None]) | (place >= high[:, tile, None])  # (heads, length)
        scores = torch.einsum("ihd,jhd->hij", q[first[tile] : last[tile]], k) * scale
        scores -= slopes[:, None, None] * (place[first[tile] : last[tile], None] - place).abs()
        if real is not None:
            scores = scores.masked_fill(~real, -math.inf)
        if skip == "fp32":
            weights = scores.softmax(2).masked_fill(~left_out[:, None], 0.0).sum(2)
            assert float(weights.max()) <= 2.0**-24
        else:
            exponents = (scores - scores.amax(2, keepdim=True)) / math.log(2)
            assert float(exponents.masked_fill(~left_out[:, None], -math.inf).max()) < -150


def share_visited(spans, length):
    """Of all pairs of a query and a key."""
    rows = torch.tensor([min(TILE, length - first) for first in range(0, length, TILE)])
    return float(((spans[..., 1] - spans[..., 0]) * rows).sum() / (len(spans) * length**2))


@pytest.fixture
def flash(kernels, poison, monkeypatch):
    """The module of the kernels, which skip at any length here, in blocks that suit the interpreter."""
    module = importlib.import_module("dnabert2.bert_layers.flash_alibi")
    monkeypatch.setattr(module, "SKIP_ABOVE", 0)
    if module.IS_INTERPRETED:
        kernel_config = module.kernel_config

        def config(name, *_):  # `bound` takes half a key block at a time
            return kernel_config(name, "sm_90", 64, "tf32" if name == "bound" else "half", 0)

        assert config("bound").block_n == KEY_BLOCK // 2
        monkeypatch.setattr(module, "kernel_config", config)
    return module


def spans_of_sequences(spans, plan, lengths):
    """(heads, slots, 2) as the kernels hold them -> (heads, tiles, 2) of each sequence that is not empty."""
    starts = [0, *itertools.accumulate(lengths)]
    slots = [start // TILE + i for i, start in enumerate(starts)]
    tiles = [-(-length // TILE) for length in lengths]
    return [spans[:, slot : slot + count].cpu().long() for slot, count in zip(slots, tiles, strict=False) if count]


def kernel_spans(flash, q, k, slopes, skip, lengths=None, mask=None, scale=HEAD_DIM**-0.5):
    """Of each sequence, or of the only one."""
    q, k, slopes, mask = (x if x is None else x.to(DEVICE) for x in (q, k, slopes, mask))
    counts = torch.tensor(lengths or [len(q)], device=DEVICE)
    plan = flash.tile_plan(counts.cumsum(0) - counts, counts, len(q), slopes)
    spans = torch.empty((len(slopes), len(plan.tiles), 2), dtype=torch.int32, device=DEVICE)
    flash._find_spans(q, k, slopes, plan, mask, scale, skip, spans)
    found = spans_of_sequences(spans, plan, lengths or [len(q)])
    return found if lengths else found[0]


@pytest.mark.parametrize("change", INPUTS)
@pytest.mark.parametrize("length", [1, 128, 129, 200, 600])
def test_what_is_left_out_weighs_nothing(change, length):
    q, k = draw(change, length, SLOPES)
    for skip in MODES:
        assert_sound(q, k, SLOPES, key_spans(q, k, SLOPES, skip=skip), skip)
    assert (key_spans(q, k, SLOPES, skip=None) == torch.tensor([0, length])).all()


def test_ordinary_inputs_have_much_to_skip():
    """Heads of slopes 1/2 to 1/256, scores of standard deviation 1."""
    slopes = torch.tensor(alibi_slopes(8))
    q, k = draw(ordinary, 2048, slopes)
    assert share_visited(key_spans(q, k, slopes, skip="fp32"), 2048) < 0.58
    assert share_visited(key_spans(q, k, slopes, skip="exact"), 2048) < 0.82


@pytest.mark.parametrize(("change", "fp32", "exact"), [(equal_keys, 0.63, 0.78), (common_offset, 0.66, 0.8)])
def test_what_all_keys_share_costs_nothing(change, fp32, exact):
    """Without the centre, long keys would leave nothing to skip."""
    q, k = draw(change, 640, SLOPES[1:])
    assert share_visited(key_spans(q, k, SLOPES[1:], skip="fp32"), 640) < fp32
    assert share_visited(key_spans(q, k, SLOPES[1:], skip="exact"), 640) < exact


@pytest.mark.parametrize("slope", [0.0, 5e-8, 1e-7, 1e-6])
def test_a_slope_that_hardly_tilts(slope):
    """
    Only the keys' own scores rule them out; the weights of a block then add up to 64 times the largest.

    One key in the first tile outweighs the rest more and more, until the second tile's keys are left out.
    """
    slopes = torch.full((200,), slope)
    q, k = torch.zeros((2, 256, 200, HEAD_DIM))
    q[:, :, 0], k[1, :, 0] = 4.0, torch.linspace(20, 24, 200)  # a key that is not among those whose mean is the centre
    spans = key_spans(q, k, slopes)
    assert spans[0, 0, 1] == 256 and spans[-1, 0, 1] == 128
    assert_sound(q, k, slopes, spans, "fp32")


@pytest.mark.parametrize("scale", [1.0, 0.01, -0.25, 0.0])
def test_scale(scale):
    q, k = draw(ordinary, 400, SLOPES)
    for skip in MODES:
        assert_sound(q, k, SLOPES, key_spans(q, k, SLOPES, skip=skip, scale=scale), skip, scale)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("place", [7, 300, 639])
def test_a_key_that_is_not_a_number_is_visited(value, place, request):
    """By every query that has one, and with it all that lies between."""
    slopes = torch.tensor([1.0, 3.0])
    q, k = draw(ordinary, 640, slopes)
    k[place, 0, 3] = value
    for skip in MODES:
        low, high = key_spans(q, k, slopes, skip=skip)[0].unbind(1)
        assert (low <= place).all() and (high > place).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_query_that_is_not_a_number_visits_all(value):
    slopes = torch.tensor([1.0, 3.0])
    q, k = draw(ordinary, 640, slopes)
    q[300, 0, 3] = value
    for skip in MODES:
        spans = key_spans(q, k, slopes, skip=skip)
        assert spans[0, 300 // TILE].tolist() == [0, 640]
        assert share_visited(spans[1:], 640) < 0.6


def test_modes():
    q, k = torch.zeros((2, 300, 2, HEAD_DIM))
    for skip in ("none", "bf16", 0, True):
        with pytest.raises(ValueError, match="is not a mode"):
            key_spans(q, k, torch.ones(2), skip=skip)


@pytest.mark.parametrize("change", INPUTS)
def test_kernels_leave_out_the_same(change, flash):
    """Give or take one block for rounding and for what `key_spans` does not know."""
    slopes = torch.tensor([0.15, 2.0])
    q, k = draw(change, 390, slopes)
    for skip in MODES:
        spans = kernel_spans(flash, q, k, slopes, skip)
        assert_sound(q, k, slopes, spans, skip)
        assert (spans - key_spans(q, k, slopes, skip=skip)).abs().max() <= KEY_BLOCK


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float16, 0.4), (torch.bfloat16, 0.4), (torch.float32, -0.3)], ids=str
)
def test_kernels_at_other_types_and_scales(dtype, scale, flash):
    slopes = torch.tensor([0.2, 2.0])
    q, k = draw(norms_grow, 390, slopes).to(dtype)
    for skip in MODES:
        spans = kernel_spans(flash, q, k, slopes, skip, scale=scale)
        assert_sound(q, k, slopes, spans, skip, scale)
        assert (spans - key_spans(q, k, slopes, skip=skip, scale=scale)).abs().max() <= KEY_BLOCK


def test_kernels_over_a_batch_with_pads(flash):
    """Each sequence is judged by itself, and a pad has no say in it however long."""
    slopes, lengths = torch.tensor([3.0]), [200, 0, 300, 70]
    q, k = draw(ordinary, sum(lengths), slopes)
    real = torch.ones(len(q), dtype=torch.bool)
    real[[150, 210, 480]] = False
    k[~real] = 1e4
    sequences = [[part for part in x.split(lengths) if len(part)] for x in (q, k, real)]
    for skip in MODES:
        found = kernel_spans(flash, q, k, slopes, skip, lengths, real)
        for query, key, mask, spans in zip(*sequences, found, strict=True):
            assert_sound(query, key, slopes, spans, skip, real=mask)
            assert share_visited(spans, len(query)) < (0.9 if len(query) == 300 else 1.1)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["query", "key"])
def test_kernels_visit_what_is_not_a_number(where, number, flash):
    slopes = torch.tensor([3.0])
    q, k = draw(ordinary, 640, slopes)
    (k if where == "key" else q)[301, 0, 3] = number  # none of the keys that make the centre
    for skip in MODES:
        low, high = kernel_spans(flash, q, k, slopes, skip)[0].unbind(1)
        if where == "key":
            assert (low <= 301).all() and (high > 301).all()
        else:
            assert (low[2], high[2]) == (0, 640) and high[0] < 640


@pytest.mark.parametrize("slope", [0.0, 1e-7])
def test_kernels_at_a_slope_that_hardly_tilts(slope, flash):
    slopes = torch.full((4,), slope)
    q, k = torch.zeros((2, 256, 4, HEAD_DIM))
    q[:, :, 0], k[1, :, 0] = 4.0, torch.tensor([21.0, 22.05, 22.12, 22.25])
    spans = kernel_spans(flash, q, k, slopes, "fp32")
    assert spans[0, 0, 1] == 256 and spans[-1, 0, 1] == 128
    assert_sound(q, k, slopes, spans, "fp32")


def test_kernels_on_a_long_sequence(flash):
    """More key blocks than are judged at a time; with a key near each end that outweighs all, none is left out."""
    slopes = torch.tensor([0.1])
    length = 64 * 68 + 13
    q, k = draw(equal_keys_but_noise, length, slopes)
    assert share_visited(key_spans(q, k, slopes), length) < 0.2
    q[..., 0] = 3.0
    k[[300, -300], :, 0] = 800.0
    spans = kernel_spans(flash, q, k, slopes, "fp32")
    assert (spans[..., 0] <= 300).all() and (spans[..., 1] > length - 300).all()
    assert_sound(q, k, slopes, spans, "fp32")


@pytest.mark.parametrize("lengths", [[100, 300, 0, 640], [128 * 70 + 5]])
def test_transposed_spans_are_the_hull(lengths, flash):
    """A tile of keys is visited by the queries from the first tile that visits it to the last, and by no others."""
    generator = torch.Generator().manual_seed(0)
    heads = 2 if len(lengths) > 1 else 1
    counts = torch.tensor(lengths, device=DEVICE)
    plan = flash.tile_plan(counts.cumsum(0) - counts, counts, sum(lengths), torch.ones(heads, device=DEVICE))
    spans = torch.empty((heads, len(plan.tiles), 2), dtype=torch.int32)
    for slot, _, length, first in plan.tiles.tolist():
        if length:
            reach = torch.randint(0, 9, (heads, 2), generator=generator) * KEY_BLOCK
            spans[:, slot, 0] = (first - reach[:, 0]).clamp(min=0)
            spans[:, slot, 1] = (first + TILE + reach[:, 1]).clamp(max=length)
    transposed = torch.empty_like(spans, device=DEVICE)
    flash.transpose_kernel[len(plan.tiles), heads](spans.to(DEVICE), transposed, plan.tiles, len(plan.tiles))
    both = (spans_of_sequences(x, plan, lengths) for x in (spans, transposed))
    for length, ours, theirs in zip((x for x in lengths if x), *both, strict=True):
        for head, tile in itertools.product(range(heads), range(-(-length // TILE))):
            first = tile * TILE
            visitors = [i for i, (low, high) in enumerate(ours[head].tolist()) if low < first + TILE and high > first]
            hull = [min(visitors) * TILE, min((max(visitors) + 1) * TILE, length)]
            assert theirs[head, tile].tolist() == hull


def attend(flash, tensors, slopes, lengths, **options):
    """Output, dq, dk and dv of q, k, v and grad."""
    *inputs, grad = (x.to(DEVICE) for x in tensors)
    inputs = [x.detach().requires_grad_() for x in inputs]
    slopes = slopes.to(DEVICE)
    counts = torch.tensor(lengths, device=DEVICE)
    plan = flash.tile_plan(counts.cumsum(0) - counts, counts, sum(lengths), slopes)
    output = flash.planned_attention(*inputs, slopes, plan, max(lengths), **options)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad)]


@pytest.fixture
def shares(flash, monkeypatch):
    """What share of the keys the tiles of each call visit."""
    seen, find = [], flash._find_spans

    def spy(q, k, slopes, plan, mask, scale, skip, spans):
        find(q, k, slopes, plan, mask, scale, skip, spans)
        tiles = plan.tiles[plan.tiles[:, 2] > 0].long()
        visits = spans[:, tiles[:, 0]].diff(dim=2)
        seen.append(float(visits.sum() / (tiles[:, 2].sum() * len(slopes))))

    monkeypatch.setattr(flash, "_find_spans", spy)
    return seen


STEEP = torch.tensor([4.0])
# What "exact" leaves out at least, of all keys.
SAVED = {
    ordinary: 0.3,
    huge_norms: 0.0,
    first_key_dominates: 0.1,
    last_key_dominates: 0.1,
    a_key_dominates_nearby: 0.2,
    common_offset: 0.3,
    equal_keys: 0.3,
}


@pytest.mark.parametrize(
    ("change", "precision"), [*((change, "highest") for change in SAVED), (common_offset, "high")]
)
def test_exact_gives_the_same_bits_forward_and_backward(change, precision, flash, shares):
    """Under "high" products on a GPU are tf32's, with the wider margin that those need."""
    lengths = [7, 330 if DEVICE.type == "cpu" else 2500]
    tensors = torch.cat([draw(*x, STEEP, parts=4) for x in zip((ordinary, change), lengths, strict=True)], 1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        whole = attend(flash, tensors, STEEP, lengths, skip=None)
        assert not shares
        exact = attend(flash, tensors, STEEP, lengths, skip="exact")
    finally:
        torch.set_float32_matmul_precision(before)
    for name, x, y in zip(NAMES, exact, whole, strict=True):
        assert x.isfinite().all() and torch.equal(x, y), name
    assert shares[0] <= 1 - SAVED[change]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_exact_in_half_precision_with_pads(dtype, flash, shares):
    lengths = [330, 70]
    tensors = draw(ordinary, sum(lengths), STEEP, parts=4).to(dtype)
    mask = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(0)) > 0.1
    mask[140:210] = False
    tensors[1:3, ~mask] = 100.0
    whole, exact = (
        attend(flash, tensors, STEEP, lengths, mask=mask.to(DEVICE), skip=skip) for skip in (None, "exact")
    )
    for name, x, y in zip(NAMES, exact, whole, strict=True):
        assert x.isfinite().all() and torch.equal(x, y), name
    assert shares[0] < 0.9


@pytest.mark.parametrize(("change", "slope"), [(ordinary, 0.15), (a_key_dominates_nearby, 0.2), (equal_keys, 0.07)])
def test_fp32_changes_no_more_than_float32_rounds(change, slope, flash, shares):
    """
    Weights of at most d = 2^-24 in all are left out of a row and the others grow by d: the output changes by at most
    2 d max |v|. Each of the blocks left out would also have rounded the running sums once, by d / 2 of them at most.

    Going backward a weight changes by at most 2 d of itself if it stays, and those that go add up to d; a gradient
    is a sum of products of such with the other tensors.
    """
    slopes, lengths = torch.tensor([slope]), [420]
    tensors = draw(change, sum(lengths), slopes, parts=4)
    whole, found = (attend(flash, tensors, slopes, lengths, skip=skip) for skip in (None, "fp32"))
    assert shares[0] < 0.99
    blocks = 7
    unit = 2.0**-24
    assert float((found[0] - whole[0]).abs().max()) <= (2 + blocks / 2 + 1) * unit * float(tensors[2].abs().max())
    size = max(float(x.abs().max()) for x in whole)
    for name, x, y in zip(NAMES, found, whole, strict=True):
        assert float((x - y).abs().max()) <= 16 * unit * size, name
