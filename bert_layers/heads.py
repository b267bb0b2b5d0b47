"""What stands on the encoder: the pooler of the summary token, the mean of all tokens, and the masked-LM head."""

import torch
import torch.nn.functional as F
from torch import nn


class DNABert2Pooler(nn.Module):
    """tanh(dense([CLS])), where [CLS] is each sequence's first real token: with left padding not position 0."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(batch, length, hidden) and a bool mask (batch, length), None if all real -> (batch, hidden)."""
        if mask is None:
            first = hidden[:, 0]
        else:
            place = mask.int().argmax(dim=1)[:, None, None].expand(-1, 1, hidden.shape[-1])
            first = hidden.gather(1, place)[:, 0]
        return torch.tanh(self.dense(first))


def mean_of_tokens(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """
    The mean over real tokens, [CLS] and [SEP] among them, summed in float32.

    (batch, length, hidden), zero at pads, and a bool mask (batch, length), None if all are real -> (batch, hidden).
    """
    if mask is None:
        return hidden.mean(dim=1, dtype=torch.float32).to(hidden.dtype)
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (hidden.sum(dim=1, dtype=torch.float32) / count).to(hidden.dtype)


class DNABert2PredictionHeadTransform(nn.Module):
    """Dense, GELU, layer norm. The published head fixes epsilon at 1e-12 whatever the configuration says."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=1e-12)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(F.gelu(self.dense(hidden)))


class DNABert2LMPredictionHead(nn.Module):
    """Transform, then a decoder whose weight is the word embeddings' and whose bias is its own."""

    def __init__(self, config):
        super().__init__()
        self.transform = DNABert2PredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(hidden))


class DNABert2MLMHead(nn.Module):
    """Keeps the published name `cls.predictions`."""

    def __init__(self, config):
        super().__init__()
        self.predictions = DNABert2LMPredictionHead(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.predictions(hidden)
