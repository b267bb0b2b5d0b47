"""Layer norms that read and write half precision under autocast, as MosaicBERT and so DNABERT-2 were trained with.

Autocast otherwise runs layer norms in float32, which doubles what they move through memory and puts a conversion
before and after each. Mean and variance are summed in float32 either way: PyTorch's kernels do so for inputs in half
precision, which `tests/training/test_low_precision.py` holds them to.
"""

import torch
import torch.nn.functional as F
from torch import nn


class LowPrecisionLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that computes in autocast's type where autocast is on."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled(hidden.device.type):
            return super().forward(hidden)
        dtype = torch.get_autocast_dtype(hidden.device.type)
        weight, bias = (None if x is None else x.to(dtype) for x in (self.weight, self.bias))
        with torch.autocast(hidden.device.type, enabled=False):
            return F.layer_norm(hidden.to(dtype), self.normalized_shape, weight, bias, self.eps)


def use_low_precision_layer_norms(model: nn.Module) -> int:
    """Make every layer norm of `model` a `LowPrecisionLayerNorm`, in place, and return how many there are."""
    norms = [module for module in model.modules() if type(module) is nn.LayerNorm]
    for norm in norms:
        norm.__class__ = LowPrecisionLayerNorm
    return len(norms)
