"""The Triton kernels as `torch.library` ops: schema, compilation, checkpointing, export, and what is refused.

Buffers that the kernels are to fill hold NaN at first, in every test.
"""

import importlib

import pytest
import torch
from attention_problems import DEVICE, assert_equal, attend, draw
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton", reason="Triton is not installed")
flash_alibi = importlib.import_module("dnabert2.bert_layers.flash_alibi")
pytestmark = pytest.mark.usefixtures("kernels", "poison")


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
