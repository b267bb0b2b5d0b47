"""The Triton kernels against a float64 reference: on a GPU if there is one, otherwise under Triton's interpreter.

Buffers that the kernels are to fill hold NaN at first, in every test.
"""

import importlib
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from dnabert2.bert_layers.alibi import alibi_attention_reference, alibi_slopes

pytest.importorskip("triton", reason="Triton is not installed")
flash_alibi = importlib.import_module("dnabert2.bert_layers.flash_alibi")
# numpy warns of the infinities and NaN that the interpreter computes with.
pytestmark = [
    pytest.mark.usefixtures("kernels", "poison"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
]

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = ("output", "dq", "dk", "dv")
TILE = 128


@pytest.fixture
def large_blocks(monkeypatch):
    """The interpreter's time is the number of programs and blocks; for tests that do not depend on it."""
    if not GPU:
        whole = flash_alibi.kernel_config("bound", "sm_80", 16, "half", 128)._replace(block_m=128, block_n=128)
        monkeypatch.setattr(flash_alibi, "kernel_config", lambda *args: whole)
        monkeypatch.setattr(flash_alibi, "one_block", lambda *args: 128)


def draw(lengths, heads, head_dim, dtype=torch.float32, seed=0):
    """qkv (tokens, 3, heads, head_dim), the gradient of the output, slopes and cu_seqlens."""
    generator = torch.Generator().manual_seed(seed)
    qkv, grad = (torch.randn((sum(lengths), n, heads, head_dim), generator=generator).to(dtype) for n in (3, 1))
    slopes = torch.tensor(alibi_slopes(heads))
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return [x.to(DEVICE) for x in (qkv, grad[:, 0], slopes, cu_seqlens)]


def attend(qkv, grad, slopes, cu_seqlens, attention=None, **options):
    """Output and the gradients of q, k and v, each (tokens, heads, head_dim)."""
    q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(1))
    longest = options.pop("max_seqlen", int(cu_seqlens.diff().max()))
    output = (attention or flash_alibi.alibi_attention)(q, k, v, slopes, cu_seqlens, longest, **options)
    return [output.detach(), *torch.autograd.grad(output, (q, k, v), grad)]


def assert_equal(actual, expected):
    for name, x, y in zip(NAMES, actual, expected, strict=True):
        assert torch.equal(x, y), name


def assert_near(actual, expected, tolerance=2e-6):
    """Within `tolerance` of the largest value among the tensors; dq and dk of few keys are small beside dv."""
    size = max(float(x.abs().max()) for x in expected)
    for name, x, y in zip(NAMES, actual, expected, strict=True):
        assert x.shape == y.shape and x.isfinite().all(), name
        assert float((x.double() - y.double()).abs().max()) <= tolerance * size, name


def assert_accurate(actual, same_precision, reference):
    """
    The error is at most twice that of the same maths done by PyTorch, over some draws of a problem.

    In the Frobenius norm, and the largest error, which scatters, in the mean over the draws. Half a unit in the last
    place of the largest value is allowed in any case: PyTorch may hit a value that its type can hold exactly, as the
    zero gradients of a sequence of one token.

    Args:
        actual, same_precision, reference: for each draw, what `attend` returns.
    """
    results = ([torch.stack(draws) for draws in zip(*x, strict=True)] for x in (actual, same_precision, reference))
    for name, x, same, exact in zip(NAMES, *results, strict=True):
        assert x.dtype == same.dtype and x.shape == exact.shape and x.isfinite().all(), name
        ulp = torch.finfo(x.dtype).eps * float(exact.abs().max())
        errors, allowed = ((y.double() - exact).flatten(1) for y in (x, same))
        for norm, least in ((torch.inf, ulp / 2), (2, ulp / 2 * exact[0].numel() ** 0.5 / 12**0.5)):
            error, bound = (float(torch.linalg.vector_norm(y, norm, 1).mean()) for y in (errors, allowed))
            assert error <= max(2 * bound, least), (name, norm, error, bound)


MIXED = (
    ([1], 2, 16),
    ([63], 1, 64),
    ([100], 2, 40),
    ([111], 3, 16),
    ([128], 1, 128),
    ([129], 1, 64),
    ([300], 1, 64),
    ([0, 100, 1, 0, 63, 0], 3, 24),
    ([5, 0, 3], 12, 16),
    ([0, 7, 257, 0, 128, 0], 1, 128),
    ([129, 1, 0, 190], 1, 40),
    ([40], 4, 16),
)
LARGE = (
    ([1024, 0, 1, 777, 129], 12, 64),
    ([4097], 3, 64),
    ([2048, 511], 2, 128),
    ([1, 100, 3000], 2, 40),
    ([64] * 70, 12, 16),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lengths", "heads", "head_dim"), MIXED + (LARGE if GPU else ()))
def test_error_is_at_most_twice_that_of_pytorch(lengths, heads, head_dim, dtype):
    found, same_precision, reference = [], [], []
    for seed in range(3 if sum(lengths) * head_dim > 10_000 else 8):
        qkv, grad, slopes, cu_seqlens = draw(lengths, heads, head_dim, dtype, seed)
        found.append(attend(qkv, grad, slopes, cu_seqlens, skip=None))
        same_precision.append(attend(qkv, grad, slopes, cu_seqlens, alibi_attention_reference))
        reference.append(attend(qkv.double(), grad.double(), slopes, cu_seqlens, alibi_attention_reference))
    assert_accurate(found, same_precision, reference)


@pytest.mark.parametrize("head_dim", [1, 7])
def test_narrow_heads(large_blocks, head_dim):
    """Below 16 dimensions PyTorch hardly rounds at all, and twice its error is no measure."""
    problem = draw([140, 9], 1, head_dim)
    assert_near(attend(*problem), attend(*problem, alibi_attention_reference))


def in_slabs(q, k, v, slopes, grad, slab):
    """The reference for one sequence of any length: what `attend` returns, a slab of queries at a time."""
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    place = torch.arange(len(q), device=q.device)
    results = [torch.zeros(x.shape, dtype=accurate, device=q.device) for x in (v, q, k, v)]
    for here in place.split(slab):
        inputs = [x.detach().requires_grad_() for x in (q[here], k, v)]
        scores = torch.einsum("ihd,jhd->hij", *inputs[:2]).to(accurate) * q.shape[2] ** -0.5
        distance = (here[:, None] - place).abs()
        weights = (scores - slopes[:, None, None].to(accurate) * distance).softmax(2).to(q.dtype)
        output = torch.einsum("hij,jhd->ihd", weights, inputs[2])
        gradients = torch.autograd.grad(output, inputs, grad[here])
        results[0][here], results[1][here] = output.detach().to(accurate), gradients[0].to(accurate)
        results[2] += gradients[1]
        results[3] += gradients[2]
    return [x.to(q.dtype) for x in results]


@pytest.mark.parametrize("length", [131072] if GPU else [260])
@pytest.mark.parametrize("skip", [None, "fp32"])
def test_the_longest_sequence(length, skip):
    qkv, grad, slopes, cu_seqlens = draw([length], 2, 64, torch.bfloat16)
    slab = max(100, 2**27 // length)
    same_precision, reference = (
        in_slabs(*x.unbind(1), slopes, y, slab) for x, y in ((qkv, grad), (qkv.double(), grad.double()))
    )
    assert_accurate([attend(qkv, grad, slopes, cu_seqlens, skip=skip)], [same_precision], [reference])


@pytest.mark.skipif(not GPU, reason="takes 5 GB on a GPU")
def test_addresses_beyond_32_bits():
    lengths = [500] * 2000
    qkv, grad, slopes, cu_seqlens = draw([500], 12, 64, torch.bfloat16)
    places = torch.arange(0, sum(lengths) + 1, 500, dtype=torch.int32, device=DEVICE)
    assert sum(lengths) * qkv[0].numel() > 2**31
    expected = attend(qkv, grad, slopes, cu_seqlens)
    found = attend(qkv.repeat(2000, 1, 1, 1), grad.repeat(2000, 1, 1), slopes, places)
    assert_equal([x[-500:] for x in found], expected)


def test_every_block_size_gives_the_same(monkeypatch):
    """What `kernel_configs.py` may choose for some GPU; the one-block backward pass has no choice."""
    problem = draw([170, 40], 1, 16)
    expected = attend(*problem)
    kernel_config = flash_alibi.kernel_config
    for block_m, block_n in ((128, 64), (64, 128), (64, 64), (32, 32), (128, 128)):
        sizes = {"block_m": block_m, "block_n": block_n}
        monkeypatch.setattr(
            flash_alibi, "kernel_config", lambda *args, sizes=sizes: kernel_config(*args)._replace(**sizes)
        )
        assert_near(attend(*problem), expected)


@pytest.mark.parametrize("lengths", [[128, 9, 100], [200]])
def test_views_of_a_packed_projection_are_read_in_place(large_blocks, lengths, monkeypatch):
    qkv, grad, slopes, cu_seqlens = draw(lengths, 2, 16)
    q, k, v = (x.contiguous() for x in qkv.unbind(1))
    expected = attend(torch.stack([q, k, v], 1), grad, slopes, cu_seqlens)
    seen, launch = [], flash_alibi._launch

    def spy(kernel, q, mask, plan, max_seqlen, arguments, **options):
        seen.append([x.data_ptr() for x in arguments[:3]])
        launch(kernel, q, mask, plan, max_seqlen, arguments, **options)

    monkeypatch.setattr(flash_alibi, "_launch", spy)
    packed = qkv.detach().requires_grad_()
    views = packed.unbind(1)
    output = flash_alibi.alibi_attention(*views, slopes, cu_seqlens, max(lengths))
    (dqkv,) = torch.autograd.grad(output, packed, grad)
    assert_equal([output, *dqkv.unbind(1)], expected)
    assert len(seen) == (2 if max(lengths) <= 128 else 3)  # forward and backward
    assert all(places == [x.data_ptr() for x in views] for places in seen)


def test_any_strides(large_blocks):
    """Heads first, dimensions not contiguous, a slice with gaps, a broadcast head: values count, not places."""
    (q, k, v), grad, slopes, cu_seqlens = draw([70, 61], 2, 16)[0].unbind(1), *draw([70, 61], 2, 16)[1:]
    k, v = k[:, :1].expand_as(k), v[:, :1].expand_as(v)
    packed = torch.stack([q, k, v], 1)
    expected = attend(packed, grad, slopes, cu_seqlens)
    gaps = torch.zeros((131, 2, 40), device=DEVICE)
    gaps[:, :, 5:21] = q
    for odd in (
        q.transpose(0, 1).contiguous().transpose(0, 1),
        q.transpose(1, 2).contiguous().transpose(1, 2),
        gaps[:, :, 5:21],
    ):
        inputs = [odd.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_()]
        assert inputs[1].stride(1) == 0
        output = flash_alibi.alibi_attention(*inputs, slopes, cu_seqlens, 70)
        strided = grad.transpose(1, 2).contiguous().transpose(1, 2)
        assert_equal([output, *torch.autograd.grad(output, inputs, strided)], expected)
    wide = torch.stack([slopes, -slopes], 1)[:, 0]
    places = torch.stack([cu_seqlens, -cu_seqlens], 1)[:, 0]
    assert_equal(attend(packed, grad, wide, places), expected)
    plan = flash_alibi.tile_plan(places[:-1], places.diff(), 131, wide)
    mask = torch.arange(131, device=DEVICE) % 2 == 0
    masks = (mask, torch.stack([mask, ~mask], 1)[:, 0])
    assert torch.equal(*(flash_alibi.planned_attention(q, k, v, wide, plan, 70, mask=x) for x in masks))


@pytest.mark.parametrize("length", [60, 150])
def test_expanded_gradient(large_blocks, length):
    """`sum().backward()` hands down one number with strides of zero."""
    qkv, grad, slopes, cu_seqlens = draw([length], 2, 16)
    packed = qkv.detach().requires_grad_()
    flash_alibi.alibi_attention(*packed.unbind(1), slopes, cu_seqlens, length).sum().backward()
    expected = attend(qkv, torch.ones_like(grad), slopes, cu_seqlens)
    assert_equal([expected[0], *packed.grad.unbind(1)], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_every_time(dtype):
    problem = draw([3000, 0, 33, 700] if GPU else [131, 0, 9], 1, 16, dtype)
    expected = attend(*problem)
    for _ in range(10 if GPU else 1):
        assert_equal(attend(*problem), expected)


@pytest.mark.parametrize("max_seqlen", [100, 140])
def test_sequences_know_nothing_of_each_other(large_blocks, max_seqlen):
    """Neither NaN in a neighbour, nor the neighbours' order, nor their absence changes a bit."""
    lengths = [60, max_seqlen, 1, 0, 33]
    qkv, grad, slopes, cu_seqlens = draw(lengths, 1, 16)
    expected = [x.split(lengths) for x in attend(qkv, grad, slopes, cu_seqlens)]
    for sick in (0, 1):
        spoiled = [x.clone() for x in (qkv, grad)]
        for x in spoiled:
            x.split(lengths)[sick].fill_(float("nan"))
        found = [x.split(lengths) for x in attend(*spoiled, slopes, cu_seqlens)]
        for i in {*range(len(lengths))} - {sick}:
            assert_equal([x[i] for x in found], [x[i] for x in expected])
    for order in ([4, 2, 1, 3, 0], [1]):
        places = torch.tensor([0, *itertools.accumulate(lengths[i] for i in order)], dtype=torch.int32, device=DEVICE)
        qkv_, grad_ = (torch.cat([x.split(lengths)[i] for i in order]) for x in (qkv, grad))
        found = attend(qkv_, grad_, slopes, places, max_seqlen=max_seqlen)
        assert_equal(found, [torch.cat([x[i] for i in order]) for x in expected])


def test_heads_know_nothing_of_each_other(large_blocks):
    qkv, grad, slopes, cu_seqlens = draw([140], 3, 16)
    expected = attend(qkv, grad, slopes, cu_seqlens)
    order = [2, 0, 1]
    assert_equal(attend(qkv[:, :, order], grad[:, order], slopes[order], cu_seqlens), [x[:, order] for x in expected])
    slopes = slopes[[1, 1, 1]]  # equal slopes have an order too
    one = attend(qkv[:, :, :1], grad[:, :1], slopes[:1], cu_seqlens)
    assert_equal([x[:, :1] for x in attend(qkv, grad, slopes, cu_seqlens)], one)


def test_reversal(large_blocks):
    """Symmetric ALiBi has no direction."""
    lengths = [203, 70]
    qkv, grad, slopes, cu_seqlens = draw(lengths, 1, 16)
    backwards = torch.cat([place.flip(0) for place in torch.arange(sum(lengths), device=DEVICE).split(lengths)])
    found = attend(qkv[backwards], grad[backwards], slopes, cu_seqlens)
    assert_near([x[backwards] for x in found], attend(qkv, grad, slopes, cu_seqlens))


def test_backward_in_one_block_agrees_with_the_split_one(large_blocks, monkeypatch):
    """The longest sequence decides which runs; `max_seqlen` may be more than its length."""
    problem = draw([128, 0, 1, 77], 2, 40)
    one_block = attend(*problem)
    with monkeypatch.context() as patch:
        patch.setattr(flash_alibi, "one_block", lambda *args: 127)
        split = attend(*problem)
    assert_near(split, one_block)
    assert not all(torch.equal(x, y) for x, y in zip(split, one_block, strict=True))
    assert_equal(attend(*problem, max_seqlen=129), split)


@pytest.mark.parametrize("scale", [0.05, 0.7, -0.3, 0.0])
def test_scale(large_blocks, scale):
    problem = draw([140], 1, 16)
    expected = attend(*problem, alibi_attention_reference, scale=scale)
    assert_near(attend(*problem, scale=scale), expected)


@pytest.mark.parametrize("skip", [None, "exact", "fp32"])
def test_slopes_of_zero_give_plain_softmax(large_blocks, skip, monkeypatch):
    monkeypatch.setattr(flash_alibi, "SKIP_ABOVE", 0)
    qkv, grad, slopes, cu_seqlens = draw([197], 2, 16)

    def plain(q, k, v, *_):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)

    found = attend(qkv, grad, torch.zeros_like(slopes), cu_seqlens, skip=skip)
    assert_near(found, attend(qkv, grad, slopes, cu_seqlens, plain))


def test_no_tokens():
    q = torch.zeros((0, 2, 16), device=DEVICE, requires_grad=True)
    for cu_seqlens in ([0], [0, 0, 0]):
        places = torch.tensor(cu_seqlens, dtype=torch.int32, device=DEVICE)
        output = flash_alibi.alibi_attention(q, q, q, torch.ones(2, device=DEVICE), places, 0)
        assert output.shape == q.shape
        output.sum().backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(5, 2)}, r"q, k and v must be \(total_tokens, heads, head_dim\) alike"),
        ({"k": torch.zeros(6, 2, 16)}, "have shapes"),
        ({"v": torch.zeros(5, 2, 8)}, "have shapes"),
        ({"q": torch.zeros(5, 2, 16).double()}, "must be float16, bfloat16 or float32 alike"),
        ({"v": torch.zeros(5, 2, 16).half()}, "but are torch.float32, torch.float32 and torch.float16"),
        (dict.fromkeys("qkv", torch.zeros(5, 2, 129)), "head_dim must be 1 to 128, but is 129"),
        (dict.fromkeys("qkv", torch.zeros(5, 2, 0)), "head_dim must be 1 to 128, but is 0"),
        ({"slopes": torch.ones(3)}, r"slopes must be \(2,\) float32"),
        ({"slopes": torch.ones(2).double()}, "torch.float64"),
        ({"cu_seqlens": torch.tensor([0, 5])}, r"cu_seqlens must be \(batch \+ 1,\) int32"),
        ({"cu_seqlens": torch.zeros((2, 2), dtype=torch.int32)}, r"but is \(2, 2\)"),
        ({"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, r"but is \(0,\)"),
        ({"slopes": torch.ones(2, device="meta")}, "must be on one device"),
        ({"skip": "fp16"}, 'skip=\'fp16\' is not a mode: choose None, "exact" or "fp32"'),
    ],
)
def test_errors(changes, message):
    arguments = {name: torch.zeros(5, 2, 16) for name in "qkv"}
    arguments |= {"slopes": torch.ones(2), "cu_seqlens": torch.tensor([0, 5], dtype=torch.int32), **changes}
    skip = arguments.pop("skip", "fp32")
    arguments = [x if x.device.type == "meta" else x.to(DEVICE) for x in arguments.values()]
    with pytest.raises(ValueError, match=message):
        flash_alibi.alibi_attention(*arguments, 5, skip=skip)


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


@pytest.mark.parametrize(("one_block", "masked", "skip"), [(128, False, "none"), (8, True, "fp32")])
def test_opcheck(large_blocks, one_block, masked, skip, monkeypatch):
    """Schema, fake tensors, autograd and tracing; short sequences in the form that longer ones take, too."""
    monkeypatch.setattr(flash_alibi, "one_block", lambda *args: one_block)
    monkeypatch.setattr(flash_alibi, "SKIP_ABOVE", one_block)
    lengths = [9, 0, 5]
    qkv, grad, slopes, cu_seqlens = draw(lengths, 1, 16)
    plan_arguments = (cu_seqlens[:-1], cu_seqlens.diff(), sum(lengths), slopes)
    plan = flash_alibi.tile_plan(*plan_arguments)
    mask = torch.arange(sum(lengths), device=DEVICE) != 5 if masked else None
    arguments = (*qkv.unbind(1), slopes, *plan, mask, max(lengths), 0.25, skip, True)
    saved = (grad, *qkv.unbind(1), *flash_alibi._forward_op(*arguments), *arguments[3:])
    torch.library.opcheck(flash_alibi._plan_op, plan_arguments)
    torch.library.opcheck(flash_alibi._backward_op, saved)
    inputs = [x.detach().requires_grad_() for x in arguments[:3]]
    torch.library.opcheck(flash_alibi._forward_op, (*inputs, *arguments[3:]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(large_blocks, dynamic):
    def function(qkv, slopes, cu_seqlens, longest):
        return flash_alibi.alibi_attention(*(2 * qkv).unbind(1), slopes, cu_seqlens, longest) + 1

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for lengths in ([30, 9], [131, 0, 11], [140, 0, 12]):
        qkv, grad, slopes, cu_seqlens = draw(lengths, 1, 16)
        results = []
        for run in (function, compiled):
            leaf = qkv.detach().requires_grad_()
            output = run(leaf, slopes, cu_seqlens, max(lengths))
            results.append([output.detach(), *torch.autograd.grad(output, leaf, grad)[0].unbind(1)])
        assert_equal(*results)


def test_checkpoint(large_blocks):
    qkv, grad, slopes, cu_seqlens = draw([140, 9], 1, 16)

    def attention(*arguments):
        return checkpoint(flash_alibi.alibi_attention, *arguments, use_reentrant=False)

    assert_equal(attend(qkv, grad, slopes, cu_seqlens, attention), attend(qkv, grad, slopes, cu_seqlens))


def test_export(large_blocks):
    class Attention(torch.nn.Module):
        def forward(self, qkv, slopes, starts, lengths, mask):
            plan = flash_alibi.tile_plan(starts, lengths, qkv.shape[0], slopes)
            return flash_alibi.planned_attention(*qkv.unbind(1), slopes, plan, qkv.shape[0], mask=mask, covers=False)

    def inputs(rows):
        qkv, _, slopes, _ = draw([rows], 2, 16)
        places = (torch.tensor(x, device=DEVICE) for x in ([2, rows // 2], [rows // 2 - 2, rows // 3]))
        return qkv, slopes, *places, torch.arange(rows, device=DEVICE) % 7 != 3

    rows = torch.export.Dim("rows", min=4, max=2**17)
    shapes = ({0: rows}, None, None, None, {0: rows})
    program = torch.export.export(Attention(), inputs(50), dynamic_shapes=shapes)
    for count in (50, 300):
        with torch.no_grad():
            assert torch.equal(program.module()(*inputs(count)), Attention()(*inputs(count)))
