"""What `bench encoder` times, by direction: a forward pass or a training step, and the batch it takes."""

from collections.abc import Callable

import torch

from ..configuration_dnabert2 import DNABert2Config
from .training import build_training_steps, draw_labels
from .variants import Shape, Variant, batch_of, build_encoders

DIRECTIONS = ("forward", "training")


def build_steps(
    direction: str, config: DNABert2Config, variants: list[Variant], device: torch.device, seed: int
) -> dict[Variant, Callable]:
    """One callable a variant, all with the same weights, that takes a batch of `batch_for`."""
    build = {"forward": build_encoders, "training": build_training_steps}[direction]
    return build(config, variants, device, seed)


def batch_for(
    direction: str, config: DNABert2Config, shape: Shape, padding: float, device: torch.device, seed: int
) -> tuple[tuple[torch.Tensor, ...], int]:
    """The batch of a shape, (ids, mask) or (ids, mask, labels), and its number of real tokens."""
    (input_ids, mask), tokens = batch_of(config, shape, padding, device, seed)
    if direction == "forward":
        return (input_ids, mask), tokens
    return (input_ids, mask, draw_labels(input_ids, mask, seed)), tokens
