"""The published DNABERT-2 code's algorithm, as a yardstick: what users run where its Triton kernel does not load.

For each batch it builds a bias of (batch, heads, length, length), the mask included, and in every layer pads the
packed q, k and v, holds the whole score matrix, adds the bias, and takes the pads out again. Everything is in the
model's precision, the bias too (a model loaded in half precision has its ALiBi in half precision).
"""

import torch
from torch import nn

from ..bert_layers.alibi import alibi_bias
from ..bert_layers.unpadding import SequenceLayout, packed_layout
from ..modeling_dnabert2 import DNABert2Model


def published_attention(q, k, v, slopes, layout: SequenceLayout, dropout: float = 0.0):
    """A backend of the signature in `bert_layers/attention.py`, for packed layouts."""
    if "bias" not in layout.cache:
        layout.cache["bias"] = published_bias(slopes, layout, q.dtype)
    q, k, v = (layout.scatter(x.flatten(1)).unflatten(-1, x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    weights = nn.functional.dropout((scores + layout.cache["bias"]).softmax(dim=-1), dropout)
    return layout.gather((weights @ v).transpose(1, 2)), weights


def published_bias(slopes: torch.Tensor, layout: SequenceLayout, dtype: torch.dtype) -> torch.Tensor:
    """The bias and mask of a batch, (batch, heads, length, length), in the model's precision."""
    mask = torch.ones((layout.batch_size, layout.length), device=slopes.device) if layout.mask is None else layout.mask
    bias = alibi_bias(slopes, layout.length).to(dtype)
    return bias + ((1.0 - mask.float()) * -10000.0)[:, None, None, :].to(dtype)


class PublishedEncoder(nn.Module):
    """Runs the layers of a `DNABert2Model` with `published_attention`."""

    def __init__(self, model: DNABert2Model):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, length) ids and mask -> (batch, length, hidden), zero at pads."""
        layout = packed_layout(attention_mask != 0)
        hidden = self.model.embeddings(layout.gather(input_ids))
        return self.model.encoder(hidden, self.model.alibi(), layout, published_attention)[0]
