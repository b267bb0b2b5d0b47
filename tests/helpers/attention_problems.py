"""Problems of attention with ALiBi, and how answers to them compare; for the tests of the Triton kernels."""

import itertools

import torch

from dnabert2.bert_layers.alibi import alibi_slopes

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
NAMES = ("output", "dq", "dk", "dv")


def draw(lengths, heads, head_dim, dtype=torch.float32, seed=0):
    """qkv (tokens, 3, heads, head_dim), the gradient of the output, slopes and cu_seqlens."""
    generator = torch.Generator().manual_seed(seed)
    qkv, grad = (torch.randn((sum(lengths), n, heads, head_dim), generator=generator).to(dtype) for n in (3, 1))
    slopes = torch.tensor(alibi_slopes(heads))
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return [x.to(DEVICE) for x in (qkv, grad[:, 0], slopes, cu_seqlens)]


def attend(qkv, grad, slopes, cu_seqlens, attention=None, **options):
    """Output and the gradients of q, k and v, each (tokens, heads, head_dim); of the Triton kernels by default."""
    if attention is None:
        from dnabert2.bert_layers.flash_alibi import alibi_attention as attention
    q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(1))
    longest = options.pop("max_seqlen", int(cu_seqlens.diff().max()))
    output = attention(q, k, v, slopes, cu_seqlens, longest, **options)
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
