"""The timing of `bench encoder`: peak memory of each variant by itself, then time, in rounds shared by all."""

import argparse
from collections.abc import Callable

import torch

from ..configuration_dnabert2 import DNABert2Config
from .measure import guarded, median_ratio, quantiles, rounds_within, seconds_of, time_rounds
from .memory import probe_here, probe_in_subprocess
from .steps import batch_for
from .variants import PUBLISHED, Shape, Variant


class EncoderRounds:
    """
    Measures one direction.

    Args:
        options: of `bench encoder`.
        steps: of `build_steps`, for every variant that can run.
        refused: the status ("skipped" or "failed") and the reason of those that cannot.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        config: DNABert2Config,
        device: torch.device,
        direction: str,
        steps: dict[Variant, Callable],
        refused: dict[Variant, tuple[str, str]],
    ):
        self.options, self.config, self.device = options, config, device
        self.direction, self.steps, self.refused = direction, steps, refused

    def time(self, shape: Shape, variants: list[Variant], advance: Callable[[], None]) -> list[dict]:
        """JSON-ready rows of `variants` on a shape: memory by itself, then time in shared rounds."""
        batch, tokens = self._batch(shape)
        found = {}
        for variant in variants:
            if variant not in self.refused:
                found[variant] = self._probe(variant, shape, batch, tokens)
                advance()
        fitting = {variant: self.steps[variant] for variant in found if "error" not in found[variant]}
        timer, broken = guarded(seconds_of, self.device)
        rounds = rounds_within(
            self.options.seconds,
            sum(found[variant]["seconds"] for variant in fitting),
            self.options.repetitions,
            self.options.warmup,
        )
        seconds = time_rounds(fitting, batch, *rounds, advance, timer)
        for variant, step in fitting.items():
            if step in broken:
                found[variant] = {"error": broken[step]}
                del seconds[variant]
        return [self._row(shape, x, found.get(x), seconds.get(x), seconds) for x in variants]

    def run_once(self, shape: Shape, variants: list[Variant], advance: Callable[[], None]) -> list[dict]:
        """The same for a shape of which one pass is enough."""
        batch, tokens = self._batch(shape)
        rows = []
        for variant in variants:
            found = None if variant in self.refused else self._probe(variant, shape, batch, tokens)
            seconds = [found["seconds"]] if found and "seconds" in found else None
            rows.append(self._row(shape, variant, found, seconds, {}))
            advance()
        return rows

    def _batch(self, shape: Shape):
        return batch_for(self.direction, self.config, shape, self.options.padding, self.device, self.options.seed)

    def _probe(self, variant: Variant, shape: Shape, batch: tuple, tokens: int) -> dict:
        if self.device.type == "cuda":  # whose allocator counts exactly, whatever ran before
            return probe_here(self.steps[variant], batch, tokens)
        names = ("config", "device", "padding", "seed", "threads")
        settings = {name: getattr(self.options, name) for name in names}
        return probe_in_subprocess(variant, shape, direction=self.direction, **settings)

    def _row(self, shape, variant, found: dict | None, seconds: list[float] | None, rounds: dict) -> dict:
        """`found` by the probe, None if refused; `rounds` holds the seconds of all variants in the same rounds."""
        row = {
            "direction": self.direction,
            "shape": str(shape),
            "variant": str(variant),
            "status": "measured",
            "reason": None,
            "tokens": None,
            "tokens_per_second": None,
            "milliseconds": None,
            "rounds_milliseconds": [],
            "published": None,
            "ratio_to_published": None,
            "peak_memory_bytes_above_weights": None,
            "memory_method": None,
        }
        if found is None:
            return row | dict(zip(("status", "reason"), self.refused[variant], strict=True))
        if "error" in found:
            return row | {"status": "failed", "reason": found["error"]}
        published = _published(variant, rounds)
        return row | {
            "tokens": found["tokens"],
            "tokens_per_second": quantiles([found["tokens"] / x for x in seconds]),
            "milliseconds": quantiles([1000 * x for x in seconds]),
            "rounds_milliseconds": [1000 * x for x in seconds],
            "published": None if published is None else str(published),
            "ratio_to_published": None if published is None else median_ratio(rounds[published], seconds),
            "peak_memory_bytes_above_weights": found["peak_memory_bytes_above_weights"],
            "memory_method": found["method"],
        }


def _published(variant: Variant, rounds: dict[Variant, list[float]]) -> Variant | None:
    """What a variant is compared with: the published algorithm, in the same precision if that was timed."""
    published = [x for x in rounds if x.backend == PUBLISHED]
    return min(published, key=lambda x: x.dtype != variant.dtype, default=None)
