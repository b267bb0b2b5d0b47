"""Before the encoder is timed: every variant computes what `eager` in float32 does; its gradients too, in training."""

from collections.abc import Callable

import torch

from ..configuration_dnabert2 import DNABert2Config
from ..precision import DTYPES
from .measure import describe, error_bound, refuse_disagreement, relative_error
from .training import draw_labels
from .variants import Variant, draw_batch

REFERENCE = Variant("eager", "float32")
# With pads and without, since backends take different paths; on a GPU also long enough for every kernel.
GATE_LENGTHS = {"padded": [96, 61, 7], "full": [96, 96]}
LONG_GATE_LENGTHS = {"long": [1200, 333]}
# A gradient's relative error is to be at most this in float32, and in half precision that many times eager's own.
FLOAT32_GRADIENT_BOUND, TIMES = 1e-4, 2


def variants_to_build(direction: str, variants: list[Variant]) -> list[Variant]:
    """`variants` and what the gate compares them with."""
    yardsticks = [Variant("eager", x.dtype) for x in variants] if direction == "training" else []
    return list(dict.fromkeys([REFERENCE, *yardsticks, *variants]))


def check_agreement(
    direction: str,
    config: DNABert2Config,
    steps: dict[Variant, Callable],
    variants: list[Variant],
    device: torch.device,
    seed: int,
) -> tuple[list[dict], dict[Variant, str]]:
    """
    Compare `variants` with `REFERENCE`: last hidden states ("forward"), or gradients of the loss ("training").

    Args:
        steps: of `build_steps`, for everything in `variants_to_build`.

    Returns:
        One record a batch and variant (`direction`, `variant`, `batch`, `relative_error`, `bound`); and the variants
        that cannot run at all, with the reason.

    Raises:
        GateError: if an error is above its bound, or not a number.
    """
    generator = torch.Generator().manual_seed(seed)
    records, broken = [], {}
    for name, lengths in (GATE_LENGTHS | (LONG_GATE_LENGTHS if device.type == "cuda" else {})).items():
        input_ids, mask = draw_batch(config, lengths, max(lengths), device, generator)
        batch = (input_ids, mask) if direction == "forward" else (input_ids, mask, draw_labels(input_ids, mask, seed))
        expected = _outcome(direction, steps[REFERENCE], batch)
        bounds = {}
        for variant in variants:
            if variant in broken:
                continue
            if variant.dtype not in bounds:
                bounds[variant.dtype] = _bound(direction, config, steps, variant.dtype, batch, expected)
            try:
                error = relative_error(_outcome(direction, steps[variant], batch), expected)
            except Exception as failure:  # a kernel or compiler that does not work here is no disagreement
                broken[variant] = f"failed in the correctness gate: {describe(failure)}"
                continue
            found = {"relative_error": error, "bound": bounds[variant.dtype]}
            records.append({"direction": direction, "variant": str(variant), "batch": name} | found)
    refuse_disagreement(records, f"{'the gradients of ' * (direction == 'training')}{REFERENCE}")
    return records, broken


def _outcome(direction: str, step: Callable, batch: tuple) -> torch.Tensor:
    if direction == "training":
        return step.gradient(batch)
    with torch.inference_mode():
        return step(*batch)


def _bound(direction, config, steps, dtype, batch, expected) -> float:
    if direction == "forward":
        return error_bound(DTYPES[dtype], config.num_hidden_layers)
    if dtype == "float32":
        return FLOAT32_GRADIENT_BOUND
    return TIMES * relative_error(_outcome(direction, steps[Variant("eager", dtype)], batch), expected)
