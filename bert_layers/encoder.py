"""The encoder block: attention and gated MLP, each followed by a residual and a layer norm (post-LN, as in BERT)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .unpadding import SequenceLayout


class DNABert2SelfAttention(nn.Module):
    """One packed projection to queries, keys and values, then whatever backend is handed in."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, hidden: torch.Tensor, slopes: torch.Tensor, layout: SequenceLayout, attention: Callable):
        q, k, v = self.Wqkv(hidden).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        output, weights = attention(q, k, v, slopes, layout, dropout=self.dropout_prob if self.training else 0.0)
        return output.flatten(-2), weights


class DNABert2SelfOutput(nn.Module):
    """Projection, residual, layer norm."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class DNABert2Attention(nn.Module):
    """Self-attention and its output projection, under the published parameter names."""

    def __init__(self, config):
        super().__init__()
        self.self = DNABert2SelfAttention(config)
        self.output = DNABert2SelfOutput(config)

    def forward(self, hidden, slopes, layout, attention):
        output, weights = self.self(hidden, slopes, layout, attention)
        return self.output(output, hidden), weights


class DNABert2MLP(nn.Module):
    """Gated linear unit: GELU of the first half of one projection times the second half (Shazeer 2020)."""

    def __init__(self, config):
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, value = self.gated_layers(hidden).chunk(2, dim=-1)
        return self.layernorm(self.wo(self.dropout(F.gelu(gate) * value)) + hidden)


class DNABert2Layer(GradientCheckpointingLayer):
    """One block."""

    def __init__(self, config):
        super().__init__()
        self.attention = DNABert2Attention(config)
        self.mlp = DNABert2MLP(config)

    def forward(self, hidden, slopes, layout, attention):
        hidden, weights = self.attention(hidden, slopes, layout, attention)
        return self.mlp(hidden), weights


class DNABert2Encoder(nn.Module):
    """A stack of blocks."""

    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList([DNABert2Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden: torch.Tensor,
        slopes: torch.Tensor,
        layout: SequenceLayout,
        attention: Callable,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ):
        """
        Args:
            hidden: (tokens, hidden) packed, or (batch, length, hidden) padded.
            slopes: (heads,) float32.
            attention: a backend of `attention.py`.

        Returns:
            The last hidden state, (batch, length, hidden) and zero at pads; the hidden states of the embeddings and of
            every block likewise, or None; the attention weights of every block, or None.
        """
        states = () if output_hidden_states else None
        maps = () if output_attentions else None
        for layer in self.layer:
            if output_hidden_states:
                states += (layout.scatter(hidden),)
                hidden = layout.gather(states[-1])  # so that the returned state is a node of the graph, for gradients
            hidden, weights = layer(hidden, slopes, layout, attention)
            if output_attentions:
                maps += (weights,)
        hidden = layout.scatter(hidden)
        if output_hidden_states:
            states += (hidden,)
        return hidden, states, maps
