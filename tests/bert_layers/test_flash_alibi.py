"""The Triton kernels against a float64 reference: on a GPU if there is one, otherwise under Triton's interpreter.

Buffers that the kernels are to fill hold NaN at first, in every test.
"""

import importlib
import itertools

import pytest
import torch
from attention_problems import DEVICE, GPU, assert_accurate, assert_equal, assert_near, attend, draw

from dnabert2.bert_layers.alibi import alibi_attention_reference

pytest.importorskip("triton", reason="Triton is not installed")
flash_alibi = importlib.import_module("dnabert2.bert_layers.flash_alibi")
pytestmark = pytest.mark.usefixtures("kernels", "poison")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]

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
