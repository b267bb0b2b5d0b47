"""Attention backends, called directly, against a float64 reference written from the definition."""

import itertools
import sys
import types

import pytest
import torch

from dnabert2.bert_layers import attention as attention_module
from dnabert2.bert_layers.alibi import alibi_slopes
from dnabert2.bert_layers.attention import (
    ATTENTION_FUNCTIONS,
    PADDED_BACKENDS,
    attention_function,
    eager_attention,
    flash_attention_2,
    sdpa_attention,
)
from dnabert2.bert_layers.unpadding import packed_layout, padded_layout

HEADS, HEAD_DIM = 3, 8
SLOPES = torch.tensor(alibi_slopes(HEADS))
HALVES = (torch.bfloat16, torch.float16)


def reference(q, k, v, mask):
    """(batch, length, heads, head_dim) -> the same, one query at a time, in float64; zeros where there is no token."""
    q, k, v, slopes = (x.double() for x in (q, k, v, SLOPES))
    output = torch.zeros_like(q)
    for row in range(q.shape[0]):
        keys = mask[row].nonzero().flatten()
        for i in keys.tolist():
            scores = (k[row, keys] * q[row, i]).sum(-1) * HEAD_DIM**-0.5  # (keys, heads)
            scores = scores - slopes * (keys[:, None] - i).abs()
            weights = scores.exp() / scores.exp().sum(0)
            output[row, i] = (weights[..., None] * v[row, keys]).sum(0)
    return output


def random_qkv(mask, dtype=torch.float32, requires_grad=False):
    generator = torch.Generator().manual_seed(mask.shape[1])
    shape = (3, *mask.shape, HEADS, HEAD_DIM)
    values = torch.randn(shape, generator=generator).to(dtype)
    return [x.detach().clone().requires_grad_(requires_grad) for x in values]


def attend(function, q, k, v, layout):
    """Through a layout and back: (batch, length, heads, head_dim), zeros where there is no token."""
    output, _ = function(*(layout.gather(x) for x in (q, k, v)), SLOPES, layout)
    return layout.scatter(output.flatten(-2)).unflatten(-1, (HEADS, HEAD_DIM))


def layouts(mask):
    """What a backend may be handed for a mask: the packed layout if there is one, and the padded one."""
    packed, padded = packed_layout(mask), padded_layout(None if mask.all() else mask, *mask.shape)
    return [packed, padded] if packed.is_packed else [padded]


@pytest.mark.parametrize("length", [1, 5, 33, 130])
def test_values_and_gradients(length, padding, batch, relative_error, monkeypatch):
    """Every backend in every way it computes; FlexAttention has no backward on a CPU."""
    mask = batch(padding, length)["attention_mask"] != 0
    q, k, v = random_qkv(mask, requires_grad=True)
    direction = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    # One row at a time is slow in Python: a longer batch is held against eager, which 33 and below show to be right.
    expected = reference(q, k, v, mask) if length < 100 else attend(eager_attention, q, k, v, layouts(mask)[-1])
    gradients = torch.autograd.grad((expected * direction).sum(), (q, k, v))
    short = attention_module.SHORT_BUDGET
    for name, short_budget in (("eager", 0), ("sdpa", 0), ("sdpa", short), ("flex_attention", 0)):
        # Packed sequences are attended by sdpa length by length, or padded for one call if they are short.
        monkeypatch.setattr(attention_module, "SHORT_BUDGET", short_budget)
        for layout in layouts(mask):
            if name == "eager" and layout.is_packed:
                continue
            inputs = [x.detach() for x in (q, k, v)] if name == "flex_attention" else (q, k, v)
            actual = attend(ATTENTION_FUNCTIONS[name], *inputs, layout)
            assert relative_error(actual, expected) < 1e-6, name
            assert (actual[~mask] == 0).all()
            if name == "flex_attention":
                continue
            for got, wanted in zip(torch.autograd.grad((actual * direction).sum(), (q, k, v)), gradients, strict=True):
                # With a single key the softmax is constant and q and k have gradients of rounding errors alone.
                assert (got - wanted).abs().max() < 2e-6 * gradients[2].abs().max(), name


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("length", [5, 65])
def test_half_precision_is_as_good_as_eager(dtype, length, padding, batch):
    """Error at most twice that of the readable backend in the same precision, both against float32."""
    mask = batch(padding, length)["attention_mask"] != 0
    q, k, v = random_qkv(mask, dtype)
    padded = padded_layout(mask, *mask.shape)
    exact = attend(eager_attention, q.float(), k.float(), v.float(), padded)
    eager_error = (attend(eager_attention, q, k, v, padded) - exact).abs().max()
    for name in ("sdpa", "flex_attention"):
        for layout in layouts(mask):
            actual = attend(ATTENTION_FUNCTIONS[name], q, k, v, layout)
            assert actual.dtype == dtype
            assert (actual - exact).abs().max() <= 2 * eager_error, name


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_in_half_precision(dtype, fused, padding, batch, monkeypatch):
    """By products or by the fused kernel: errors at most twice those of the readable backend, against float32."""
    mask = batch(padding, 33)["attention_mask"] != 0
    q, k, v = random_qkv(mask, dtype, requires_grad=True)
    direction = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)) * mask[..., None, None]

    def gradients(function, layout, accurate=False):
        inputs = [x.float() for x in (q, k, v)] if accurate else (q, k, v)
        return torch.autograd.grad((attend(function, *inputs, layout) * direction).sum(), inputs)

    padded = padded_layout(mask, *mask.shape)
    exact = gradients(eager_attention, padded, accurate=True)
    errors = [(x - y).abs().max() for x, y in zip(gradients(eager_attention, padded), exact, strict=True)]
    calls, function = [], attention_module._fused_attention
    monkeypatch.setattr(attention_module, "_fused_attention", lambda *a: calls.append(1) or function(*a))
    if fused:
        monkeypatch.setattr(attention_module, "_has_slow_backward", lambda q: False)
    for layout in layouts(mask):
        for actual, expected, error in zip(gradients(sdpa_attention, layout), exact, errors, strict=True):
            assert actual.dtype == dtype
            assert (actual - expected).abs().max() <= 2 * error
    assert bool(calls) == fused


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", sorted(PADDED_BACKENDS))
def test_the_bias_stays_float32(name, dtype, request):
    """
    Two keys, 1000 and 1001 places away, tell the precision of the bias: in bfloat16 both distances are 1000, and the
    two would weigh the same. All other keys are out of reach.
    """
    if name == "triton":
        request.getfixturevalue("kernels")
        if dtype == torch.bfloat16:
            pytest.skip("Triton's interpreter has no bfloat16 products")
    length, slopes = 1002, torch.tensor([2**-0.5])
    mask = torch.zeros((1, length), dtype=torch.bool)
    mask[0, :2] = True
    mask[0, -1] = True
    q = torch.zeros((1, length, 1, HEAD_DIM), dtype=dtype)
    k, v = q.clone(), q.clone()
    q[0, -1], k[0, -1] = -100, 100  # the query does not see itself
    v[0, 0], v[0, 1] = 1, 0
    output, _ = ATTENTION_FUNCTIONS[name](q, k, v, slopes, padded_layout(mask, 1, length))
    farther = 1 / (1 + torch.e**slopes)
    assert output[0, -1, 0, 0].item() == pytest.approx(farther.item(), rel=0.01)


def test_eager_weights(batch, padding):
    mask = batch(padding, 9)["attention_mask"] != 0
    q, k, v = random_qkv(mask)
    output, weights = eager_attention(q, k, v, SLOPES, padded_layout(mask, *mask.shape))
    assert weights.shape == (3, HEADS, 9, 9)
    has_token = mask.any(1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, HEADS, 9))
    pads = (~mask & has_token[:, None])[:, None, None].expand_as(weights)
    assert (weights[pads] == 0).all()
    assert not weights.isnan().any()
    torch.testing.assert_close(output, torch.einsum("bhij,bjhd->bihd", weights, v))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("budget", [1, 200, 500])
def test_slabs_give_what_one_call_gives(monkeypatch, masked, budget, batch):
    """The bias of a padded call is built for as many query rows as its budget allows."""
    mask = batch("holes" if masked else "none", 21)["attention_mask"] != 0
    q, k, v = random_qkv(mask)
    flipped = attention_module.flipped_alibi_bias(SLOPES, 21)
    rows = []
    attend_slab = torch.nn.functional.scaled_dot_product_attention

    def counting(query, *args, **kwargs):
        rows.append(query.shape[2])
        return attend_slab(query, *args, **kwargs)

    arguments = [x.transpose(1, 2) for x in (q, k, v)]
    arguments += [flipped, mask if masked else None, 0.0]
    whole = attention_module._sdpa_in_slabs(*arguments)
    monkeypatch.setattr(attention_module, "BIAS_BUDGET", budget)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    torch.testing.assert_close(attention_module._sdpa_in_slabs(*arguments), whole, rtol=1e-5, atol=1e-6)
    assert sum(rows) == 21
    assert max(rows) == max(1, budget // (3 * HEADS * 21))


@pytest.mark.parametrize("padding_kind", ["none", "right"])
def test_sdpa_never_holds_a_whole_bias(padding_kind, batch, monkeypatch):
    """On a CPU, without holes and beyond the shortest, it is a view: its storage grows with the length alone."""
    length, held = 65, []
    mask = batch(padding_kind, length)["attention_mask"] != 0
    q, k, v = random_qkv(mask)
    monkeypatch.setattr(attention_module, "SHORT_BUDGET", 0)
    attend_whole = torch.nn.functional.scaled_dot_product_attention

    def weighing(*args, attn_mask, **kwargs):
        held.append(attn_mask.untyped_storage().nbytes())
        return attend_whole(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", weighing)
    attend(sdpa_attention, q, k, v, packed_layout(mask))
    assert max(held) == HEADS * (2 * length - 1) * 4
    assert len(held) == (1 if padding_kind == "none" else 3)


def test_dropout_reaches_eager_and_sdpa_and_flex_refuses_it(batch):
    mask = batch("right", 33)["attention_mask"] != 0
    q, k, v = random_qkv(mask)
    v = torch.ones_like(v)  # weights sum to 1, and so do outputs, unless some are dropped
    for name, layout in (("eager", padded_layout(mask, *mask.shape)), ("sdpa", packed_layout(mask))):
        inputs = [layout.gather(x) for x in (q, k, v)]
        whole, _ = ATTENTION_FUNCTIONS[name](*inputs, SLOPES, layout)
        torch.testing.assert_close(whole, torch.ones_like(whole))
        dropped, _ = ATTENTION_FUNCTIONS[name](*inputs, SLOPES, layout, dropout=0.5)
        assert dropped.std() > 0.1, name
        assert dropped.mean() == pytest.approx(1, abs=0.2), name
    with pytest.raises(ValueError, match="flex_attention has no attention dropout"):
        ATTENTION_FUNCTIONS["flex_attention"](q, k, v, SLOPES, padded_layout(mask, *mask.shape), dropout=0.5)


def test_unknown_backends_are_named():
    with pytest.raises(ValueError, match="'paged' is not a backend of DNABERT-2: choose one of eager, sdpa"):
        attention_function("paged")
    assert attention_function("sdpa") is sdpa_attention


def varlen_attention(
    q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, alibi_slopes, softmax_scale=None,
    causal=False,
):  # fmt: skip
    """What flash-attn documents for `flash_attn_varlen_func`: its demands on arguments, and its result, in float32."""
    assert q.dtype == k.dtype == v.dtype and q.dtype in HALVES
    assert q.dim() == 3 and q.shape == k.shape == v.shape
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q.tolist() == cu_seqlens_k.tolist()
    assert alibi_slopes.dtype == torch.float32 and alibi_slopes.shape == q.shape[1:2]
    assert type(max_seqlen_q) is type(max_seqlen_k) is int
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
    assert dropout_p == 0.25 and softmax_scale is None and causal is False
    bounds = cu_seqlens_q.tolist()
    pieces = []
    for start, end in itertools.pairwise(bounds):
        queries, keys, values = (x[start:end].float().transpose(0, 1) for x in (q, k, v))
        place = torch.arange(end - start)
        scores = queries @ keys.mT / q.shape[-1] ** 0.5
        scores = scores - alibi_slopes[:, None, None] * (place[:, None] - place).abs()
        pieces.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(pieces).to(q.dtype)


@pytest.fixture
def flash_attn(monkeypatch):
    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = varlen_attention
    monkeypatch.setitem(sys.modules, "flash_attn", module)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["none", "right", "left", "both", "mixed"])
def test_flash_attention_2(flash_attn, dtype, kind, batch):
    mask = batch(kind, 33)["attention_mask"] != 0
    layout = packed_layout(mask)
    q, k, v = random_qkv(mask, dtype)
    output, weights = flash_attention_2(*(layout.gather(x) for x in (q, k, v)), SLOPES, layout, dropout=0.25)
    assert weights is None and output.dtype == dtype
    exact = reference(q, k, v, mask)[mask]
    eager = attend(eager_attention, q, k, v, padded_layout(mask, *mask.shape))[mask]
    assert (output - exact).abs().max() <= 2 * (eager - exact).abs().max()


def test_flash_attention_2_says_what_it_cannot_do(batch):
    """Before flash-attn itself is looked for."""
    mask = batch("right", 5)["attention_mask"] != 0
    layout = packed_layout(mask)
    q, k, v = (layout.gather(x) for x in random_qkv(mask))
    with pytest.raises(ValueError, match=r"the model is in float32: load it with dtype=torch\.bfloat16"):
        flash_attention_2(q, k, v, SLOPES, layout)
    q, k, v = random_qkv(mask, torch.bfloat16)
    with pytest.raises(ValueError, match=r'without holes in their attention mask.*choose attn_implementation="sdpa"'):
        flash_attention_2(q, k, v, SLOPES, padded_layout(mask, *mask.shape))


def test_equally_long_sequences_share_a_call(relative_error, monkeypatch):
    """Lengths that come back in any order, none among them, cost one call each, and give what eager gives."""
    lengths = torch.tensor([5, 9, 5, 0, 12, 9, 5, 0, 1])
    mask = torch.arange(12) < lengths[:, None]
    q, k, v = random_qkv(mask, requires_grad=True)
    packed, padded = layouts(mask)
    monkeypatch.setattr(attention_module, "SHORT_BUDGET", 0)
    calls, fused = [], attention_module._fused_attention

    def counting(q, *rest):
        calls.append(tuple(q.shape[::2]))
        return fused(q, *rest)

    monkeypatch.setattr(attention_module, "_fused_attention", counting)
    expected, actual = attend(eager_attention, q, k, v, padded), attend(sdpa_attention, q, k, v, packed)
    assert calls == [(1, 1), (3, 5), (2, 9), (1, 12)]  # sequences, tokens
    assert relative_error(actual[mask], expected[mask]) < 1e-6
    direction = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)) * mask[..., None, None]
    gradients = [torch.autograd.grad((x * direction).sum(), (q, k, v)) for x in (actual, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert relative_error(ours, theirs) < 1e-6
