"""Layer norms in half precision: what they give, with statistics in float32, and their gradients."""

import pytest
import torch
from torch import nn

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
from dnabert2.training.low_precision import LowPrecisionLayerNorm, use_low_precision_layer_norms


@pytest.fixture
def norm():
    torch.manual_seed(0)
    norm = LowPrecisionLayerNorm(512, eps=1e-12)
    nn.init.normal_(norm.weight, 1, 0.1)
    nn.init.normal_(norm.bias, 0, 0.1)
    return norm


def test_without_autocast_it_is_layer_norm(norm):
    x = torch.randn(4, 512)
    assert torch.equal(norm(x), nn.functional.layer_norm(x, (512,), norm.weight, norm.bias, 1e-12))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_float32(norm, dtype):
    """With an offset of 30 spreads, sums of squares in 8 or 11 bits would leave nothing of the variance."""
    x = (torch.randn(16, 512) + 30).to(dtype)
    with torch.autocast("cpu", dtype):
        output = norm(x.float())
    assert output.dtype == dtype
    exact = nn.functional.layer_norm(
        x.double(), (512,), norm.weight.to(dtype).double(), norm.bias.to(dtype).double(), 1e-12
    )
    # Off by the rounding of the output, and hardly more.
    rounding = torch.finfo(dtype).eps / 2
    assert ((output.double() - exact).abs() <= 1.5 * rounding * exact.abs().clamp(min=1)).all()


def test_gradients_are_those_of_float32_within_rounding(norm):
    x = torch.randn(16, 512).bfloat16().float()
    grads = []
    for is_low in (True, False):
        norm.zero_grad()
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
            output = norm(inputs)
        (output.float() * torch.linspace(-1, 1, 512)).sum().backward()
        grads.append([inputs.grad, norm.weight.grad.clone(), norm.bias.grad.clone()])
    for low, full in zip(*grads, strict=True):
        assert low.dtype == torch.float32
        assert (low - full).norm() <= 0.01 * full.norm()


def test_a_model_keeps_its_names_and_weights():
    model = DNABert2ForMaskedLM(DNABert2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2))
    before = dict(model.state_dict())
    assert use_low_precision_layer_norms(model) == 6  # embeddings, two a block, the head
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
    assert type(model.cls.predictions.transform.LayerNorm) is LowPrecisionLayerNorm
