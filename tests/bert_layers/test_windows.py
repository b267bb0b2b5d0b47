"""Windows of keys on a CPU: `sdpa` gives with them what `eager` gives, in time and memory that grow linearly."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dnabert2 import DNABert2Model
from dnabert2.bert_layers import attention, windows
from dnabert2.bert_layers.alibi import alibi_slopes
from dnabert2.bert_layers.attention import eager_attention, sdpa_attention
from dnabert2.bert_layers.skipping import TILE, key_spans
from dnabert2.bert_layers.unpadding import packed_layout, padded_layout
from dnabert2.bert_layers.windows import takes_windows, windowed_attention

HEADS, HEAD_DIM = 3, 8
SLOPES = {
    "usual": torch.tensor(alibi_slopes(HEADS)),
    "steep": torch.tensor([4.0, 1.0, 0.25]),
    "flat": torch.tensor([1e-4, 2.0**-8, 0.0]),
}


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Windows at every length, however little they save, and no padding of short sequences instead."""
    monkeypatch.setattr(windows, "WINDOWS_FROM", dict.fromkeys(windows.WINDOWS_FROM, 1))
    monkeypatch.setattr(windows, "OVERHEAD", 0)
    monkeypatch.setattr(attention, "SHORT_BUDGET", 0)


@pytest.fixture
def pairs(monkeypatch):
    """A list that gets, for every sequence attended in windows, the share of all pairs that is computed."""
    shares, group = [], windows._group

    def counting(chosen):
        calls = group(chosen)
        length = max(window.first + window.queries for window in chosen)
        heads = 1 + max(window.head for window in chosen)
        shares.append(sum(x.queries * x.keys for call in calls for x in call) / (heads * length**2))
        return calls

    monkeypatch.setattr(windows, "_group", counting)
    return shares


def random_qkv(*shape, dtype=torch.float32, seed=0):
    values = torch.randn((3, *shape, HEADS, HEAD_DIM), generator=torch.Generator().manual_seed(seed))
    return [x.to(dtype) for x in values]


def attend(q, k, v, slopes):
    """One sequence through `sdpa`."""
    return sdpa_attention(q, k, v, slopes, packed_layout(torch.ones((1, len(q)), dtype=torch.bool)))[0]


def attend_eagerly(q, k, v, slopes):
    return eager_attention(*(x[None] for x in (q, k, v)), slopes, padded_layout(None, 1, len(q)))[0][0]


def gradients_of(function, inputs, *arguments):
    """Output and gradients of the inputs, in a random direction."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*inputs, *arguments)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype))
    return [output.detach(), *(x.grad for x in inputs)]


def assert_as_eager(inputs, slopes):
    """Output and gradients, up to the rounding of float32."""
    found, expected = (gradients_of(f, inputs, slopes) for f in (attend, attend_eagerly))
    for actual, exact in zip(found, expected, strict=True):
        # Few keys: the softmax is almost constant, and q and k have gradients of rounding errors alone.
        scale = max(float(x.abs().max()) for x in (exact, expected[3]))
        torch.testing.assert_close(actual, exact, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("steepness", SLOPES)
@pytest.mark.parametrize("length", [1, 100, 128, 129, 192, 257, 600, 1025])
def test_values_and_gradients(length, steepness, pairs):
    assert_as_eager(random_qkv(length), SLOPES[steepness])
    assert len(pairs) == 1
    assert steepness == "flat" or length < 600 or pairs[0] < 0.9


@pytest.mark.parametrize("queries", [(TILE,), (4 * TILE,)])
@pytest.mark.parametrize("keys", [1, 2000])
def test_sizes_of_windows_and_calls(queries, keys, pairs, monkeypatch):
    """However many queries share a window and windows a call, the result is the same."""
    monkeypatch.setattr(windows, "QUERIES", queries)
    monkeypatch.setattr(windows, "CALL_KEYS", keys)
    assert_as_eager(random_qkv(700), SLOPES["usual"])
    assert len(pairs) == 1


@pytest.mark.parametrize("length", [100, 700, 1100])
def test_every_query_is_in_one_window_and_calls_are_small(length, monkeypatch):
    monkeypatch.setattr(windows, "CALL_KEYS", 1000)
    q, k, _ = random_qkv(length)
    spans = key_spans(q, k, SLOPES["usual"])
    seen = torch.zeros(HEADS, length, dtype=torch.int64)
    for call in windows._group(windows._choose_windows(spans, length)):
        assert len({(window.queries, window.keys) for window in call}) == 1
        assert len(call) == 1 or len(call) * call[0].keys <= 1000
        for window in call:
            seen[window.head, window.rows] += 1
            tiles = spans[window.head, window.first // TILE : -(-window.rows.stop // TILE)]
            assert 0 <= window.low <= tiles[:, 0].min()
            assert tiles[:, 1].max() <= window.columns.stop <= length
    assert (seen == 1).all()


@pytest.mark.parametrize("kind", ["none", "right", "left", "mixed", "all_pad_row"])
def test_batches(kind, batch, build, relative_error, pairs):
    """Through the whole network: sequences of equal and of unequal length, one of them hardly longer than nothing."""
    inputs = batch(kind, 300)
    eager, windowed = (build(DNABert2Model, backend) for backend in ("eager", "sdpa"))
    outputs = [model(**inputs).last_hidden_state for model in (eager, windowed)]
    assert len(pairs) == 2 * sum(count > 0 for count in inputs["attention_mask"].sum(1).tolist())
    assert relative_error(outputs[1], outputs[0]) < 2e-6
    for output in outputs:
        output.pow(2).mean().backward()
    for (name, exact), actual in zip(eager.named_parameters(), windowed.parameters(), strict=True):
        if exact.grad is not None and not name.startswith("pooler"):
            assert relative_error(actual.grad, exact.grad) < 1e-4, name


def test_a_far_key_that_dominates_is_attended(pairs):
    """One key at the far end outweighs its distance of a thousand for one query, and for that query alone."""
    q, k, v = (0.1 * x for x in random_qkv(1100))
    q[1000, 0] = k[3, 0] = 0
    q[1000, 0, 0], k[3, 0, 0] = 60, 80
    slopes = torch.tensor([1.0, 1.0, 0.0625])
    weights = eager_attention(*(x[None] for x in (q, k, v)), slopes, padded_layout(None, 1, 1100))[1][0]
    assert weights[0, 1000, 3] > 0.99
    assert_as_eager((q, k, v), slopes)
    assert pairs[0] < 0.5


def test_huge_norms_leave_nothing_out(monkeypatch, pairs):
    """Then it is one call over all keys again."""
    monkeypatch.setattr(windows, "OVERHEAD", 1)
    q, k, v = random_qkv(600)
    assert windowed_attention(q, k, v, SLOPES["usual"]) is not None
    inputs = (50 * q, 50 * k, v)
    assert windowed_attention(*inputs, SLOPES["usual"]) is None
    assert len(pairs) == 1
    torch.testing.assert_close(
        attend(*inputs, SLOPES["usual"]), attend_eagerly(*inputs, SLOPES["usual"]), rtol=0, atol=1e-3
    )


def test_what_all_keys_have_in_common_does_not_widen_windows(pairs):
    q, k, v = random_qkv(900)
    for offset in (0.0, 30.0):
        attend(q, k + offset, v, SLOPES["usual"])
    assert pairs[1] < 1.02 * pairs[0] < 0.8
    assert_as_eager((q, k + 3.0, v), SLOPES["usual"])


def test_not_a_number_is_left_in():
    """A key that is not a number spoils every row, as without windows."""
    q, k, v = random_qkv(700)
    k[5] = torch.nan
    assert attend(q, k, v, SLOPES["steep"]).isnan().all()


class Weighing(TorchDispatchMode):
    """Notes the largest storage that an operation returns."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for x in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return output


def test_time_and_memory_grow_linearly(pairs):
    """At lengths beyond the windows, and with the backward pass: the bias, whole, would be 50 MB and then 201 MB."""
    largest = []
    for length in (2048, 4096):
        inputs = random_qkv(length)
        with Weighing() as weighing:
            gradients_of(attend, inputs, SLOPES["steep"])
        largest.append(weighing.largest)
    assert max(largest) <= 2**21
    assert largest[1] <= 2 * largest[0]
    assert pairs[1] < 0.55 * pairs[0] < 0.15


def test_when_windows_are_taken(monkeypatch):
    lengths = {torch.float32: 1000, torch.float16: 1001, torch.bfloat16: 1002}
    assert windows.WINDOWS_FROM.keys() == lengths.keys()
    monkeypatch.setattr(windows, "WINDOWS_FROM", lengths)
    q = torch.zeros(1, HEADS, HEAD_DIM)
    for dtype, length in lengths.items():
        assert takes_windows(q.to(dtype), length, 0.0)
        assert not takes_windows(q.to(dtype), length - 1, 0.0)
    assert not takes_windows(q, 1000, 0.1)
    assert not takes_windows(q.double(), 1000, 0.0)
    assert not takes_windows(q.to("meta"), 1000, 0.0)
    with sdpa_kernel(SDPBackend.MATH):  # somebody asks for another kernel
        assert not takes_windows(q, 1000, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not takes_windows(q, 1000, 0.0)
    assert takes_windows(q, 1000, 0.0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.*is deprecated:DeprecationWarning")
def test_masks_dropout_and_tracing_do_without(pairs, build, batch):
    model, inputs = build(DNABert2Model, "sdpa").requires_grad_(False), batch("none", 200)
    holes = batch("holes", 200)
    exact = build(DNABert2Model, "eager")(**holes).last_hidden_state
    torch.testing.assert_close(model(**holes).last_hidden_state, exact, atol=1e-4, rtol=1e-4)
    traced = torch.jit.trace(lambda ids: model(ids).last_hidden_state, (inputs["input_ids"],), check_trace=False)
    q, k, v = random_qkv(200)
    layout = packed_layout(torch.ones((1, 200), dtype=torch.bool))
    dropped = sdpa_attention(q, k, torch.ones_like(v), SLOPES["usual"], layout, dropout=0.5)[0]
    assert dropped.std() > 0.1
    assert not pairs
    whole = model(inputs["input_ids"]).last_hidden_state
    assert len(pairs) == 2 * 3
    torch.testing.assert_close(traced(inputs["input_ids"]), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_better_than_eager(dtype, pairs, monkeypatch):
    """Against float32, output and gradients; a key's gradient is a sum over windows, here over up to 12 of them."""
    monkeypatch.setattr(windows, "QUERIES", (TILE,))
    inputs, slopes = random_qkv(1500, dtype=dtype), torch.tensor([0.02, 0.015, 0.01])
    exact = gradients_of(attend_eagerly, [x.float() for x in inputs], slopes)
    found, eager = (gradients_of(f, inputs, slopes) for f in (attend, attend_eagerly))
    assert pairs[0] < 1
    for actual, rough, reference in zip(found, eager, exact, strict=True):
        assert actual.dtype == dtype
        assert (actual - reference).norm() < 0.9 * (rough - reference).norm()


def test_autocast_changes_no_window(pairs):
    q, k, v = random_qkv(700)
    with torch.autocast("cpu", torch.bfloat16):
        spans = key_spans(q, k, SLOPES["usual"])
        output = attend(q, k, v, SLOPES["usual"])
    assert torch.equal(spans, key_spans(q, k, SLOPES["usual"]))
    assert torch.equal(output, attend(q, k, v, SLOPES["usual"]))
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, pairs):
    inputs = random_qkv(500)

    def checkpointed(*arguments):
        return checkpoint(attend, *arguments, use_reentrant=reentrant)

    found, expected = (gradients_of(f, inputs, SLOPES["usual"]) for f in (checkpointed, attend))
    assert len(pairs) == 3  # forward, again in the backward pass, and without checkpointing
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_the_same_bits_every_time():
    inputs = random_qkv(500)
    first, second = (gradients_of(attend, inputs, SLOPES["usual"]) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    with torch.inference_mode():
        assert torch.equal(attend(*inputs, SLOPES["usual"]), first[0])


def test_a_second_derivative_is_refused():
    """By autograd itself, whatever the first one was summed up to: it must not be left out in silence."""
    q, k, v = (x.requires_grad_() for x in random_qkv(300))
    (gradient,) = torch.autograd.grad(attend(q, k, v, SLOPES["usual"]).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
        gradient.sum().backward()


def test_functional_gradients():
    q, k, v = random_qkv(300)

    def loss(function):
        return lambda q: function(q, k, v, SLOPES["usual"]).square().sum()

    found, expected = (torch.func.grad(loss(function))(q) for function in (attend, attend_eagerly))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
