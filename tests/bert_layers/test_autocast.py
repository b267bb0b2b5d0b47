"""Autocast: half-precision queries, but never a half-precision bias."""

import pytest
import torch

from dnabert2 import DNABert2Model
from dnabert2.bert_layers import attention


@pytest.mark.parametrize("kind", ["none", "right", "holes"])
def test_autocast_does_not_reach_the_bias(build, batch, kind, monkeypatch):
    """Autocast casts every argument of fused attention: inside it the bias would be bfloat16."""
    model, seen = build(DNABert2Model, "sdpa"), []
    fused = attention.F.scaled_dot_product_attention

    def watch(q, k, v, attn_mask=None, **options):
        seen.append((q.dtype, attn_mask.dtype, torch.is_autocast_enabled("cpu")))
        return fused(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", watch)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(**batch(kind, 40))
    assert seen and set(seen) == {(torch.bfloat16, torch.float32, False)}


def test_autocast_is_as_exact_as_eager(build, batch, relative_error):
    """Against float32: outputs and gradients of `sdpa` err at most twice as much as those of `eager`."""
    inputs = batch("right", 300)  # far enough apart for a rounded bias to show

    def run(backend, autocast):
        model = build(DNABert2Model, backend)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(**inputs).last_hidden_state
        output.float().pow(2).mean().backward()
        return output, model.encoder.layer[0].attention.self.Wqkv.weight.grad

    reference, eager, sdpa = run("eager", False), run("eager", True), run("sdpa", True)
    for exact, slow, fast in zip(reference, eager, sdpa, strict=True):
        assert fast.dtype == torch.float32
        assert 0 < relative_error(fast, exact) <= 2 * relative_error(slow, exact)
