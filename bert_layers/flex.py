"""FlexAttention backend: the bias is a function of two indices, evaluated in float32 inside the kernel.

On a GPU the kernel is compiled at first use. On a CPU PyTorch runs it unfused, as a reference, and has no backward for
it.
"""

import functools

import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

from .unpadding import SequenceLayout

BLOCK = 128


def flex_attention(q, k, v, slopes, layout: SequenceLayout, dropout: float = 0.0):
    """See `attention.py` for the signature. Raises ValueError for dropout, which FlexAttention does not have."""
    if dropout:
        raise ValueError(
            "flex_attention has no attention dropout: set attention_probs_dropout_prob=0 or choose "
            'attn_implementation="sdpa".'
        )
    if "block_mask" not in layout.cache:
        layout.cache["block_mask"] = _packed_mask(layout, q) if layout.is_packed else _padded_mask(layout, q)

    def score_mod(score, batch, head, i, j):
        return score - slopes[head] * (i - j).abs()

    if layout.is_packed:
        q, k, v = (x[None] for x in (q, k, v))
    kernel = torch_flex_attention
    if q.device.type == "cuda" and not torch.compiler.is_compiling():
        kernel = _compiled_flex_attention()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    output = kernel(q, k, v, score_mod=score_mod, block_mask=layout.cache["block_mask"]).transpose(1, 2)
    return (output[0] if layout.is_packed else output), None


@functools.cache
def _compiled_flex_attention():
    return torch.compile(torch_flex_attention, dynamic=True)


def _packed_mask(layout: SequenceLayout, q: torch.Tensor) -> BlockMask:
    """Tokens see their own sequence. Built block by block: a mask of tokens x tokens would be the larger one."""
    tokens = q.shape[0]
    sequence = torch.repeat_interleave(
        torch.arange(layout.batch_size, device=q.device), layout.cu_seqlens.diff(), output_size=tokens
    )
    first = sequence[::BLOCK]
    last = sequence[torch.arange(first.numel(), device=q.device).mul(BLOCK).add(BLOCK - 1).clamp(max=tokens - 1)]
    # Two blocks meet if the ranges of sequences they hold overlap.
    meets = (first[:, None] <= last[None, :]) & (first[None, :] <= last[:, None])

    def same_sequence(batch, head, i, j):
        return sequence[i] == sequence[j]

    return _block_mask(meets[None, None], same_sequence, tokens)


def _padded_mask(layout: SequenceLayout, q: torch.Tensor) -> BlockMask | None:
    if layout.mask is None:
        return None
    mask, length = layout.mask, layout.length
    blocks = -(-length // BLOCK)
    meets = torch.ones((layout.batch_size, 1, blocks, blocks), dtype=torch.bool, device=q.device)

    def real_key(batch, head, i, j):
        return mask[batch, j]

    return _block_mask(meets, real_key, length)


def _block_mask(meets: torch.Tensor, mask_mod, length: int) -> BlockMask:
    """A BlockMask of the pairs in `meets` (batch or 1, 1, query blocks, key blocks), each applying `mask_mod`."""
    kv_num_blocks = meets.sum(dim=-1, dtype=torch.int32)
    kv_indices = meets.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return BlockMask.from_kv_blocks(
        kv_num_blocks, kv_indices, BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(length, length)
    )
