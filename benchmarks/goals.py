"""What is to be reached on an H200, and whether a result reaches it. A goal is a row of data; judging it is one rule.

A goal looks for its measurements in a result file and is judged by the worst of them. Without any it is "not
measured": a benchmark run on a CPU, or with fewer variants, has unmeasured goals and no failed ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .measure import median_ratio
from .problems import tile_flops

SKIP_GOALS = {
    "fp32": {4096: 1.8, 8192: 2.5, 16384: 4.0, 32768: 6.0},
    "exact": {4096: 1.4, 8192: 1.8, 16384: 2.4, 32768: 3.3},
}
DENSE, NO_BIAS = "triton", "triton_no_bias"
ALIBI_RIVALS = ("sdpa_bias_efficient", "sdpa_bias_cudnn", "flex_alibi", "flash_attn_alibi", "published")
LONG_FROM = 2048
# The long sequences whose memory is compared, and how far from proportional still counts as linear.
MEMORY_LENGTHS = (65536, 131072)
LINEAR = 1.05
OURS = "triton:bfloat16"

Found = list[tuple[float, str]]  # a measurement and where it was made


@dataclass(frozen=True)
class Goal:
    """`measure` finds the measurements of a result; each is to be `sense` ("at least" or "at most") `target`."""

    text: str
    sense: str
    target: float
    unit: str
    measure: Callable[[dict], Found]

    def judge(self, result: dict) -> dict:
        """JSON-ready: the goal, `measured` (the worst), `where`, and `status`: met, not met or not measured."""
        found = self.measure(result)
        worst = (min if self.sense == "at least" else max)(found, default=None)
        status = "not measured"
        if worst is not None:
            is_met = worst[0] >= self.target if self.sense == "at least" else worst[0] <= self.target
            status = "met" if is_met else "not met"
        return {
            "goal": self.text,
            "sense": self.sense,
            "target": self.target,
            "unit": self.unit,
            "measured": None if worst is None else worst[0],
            "where": None if worst is None else worst[1],
            "status": status,
        }


def judge(result: dict) -> list[dict]:
    """Every goal of a result of `bench attention` or `bench encoder`; on a CPU none of them is measured."""
    if result["provenance"]["device"]["type"] != "cuda":
        result = result | {"results": []}
    return [goal.judge(result) for goal in GOALS[result["benchmark"]]]


def number(value: float) -> str:
    """Three digits, or all of the integer part."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _measured(result: dict, **wanted) -> list[dict]:
    rows = [x for x in result["results"] if x["status"] == "measured"]
    return [x for x in rows if all(x[key] == value for key, value in wanted.items())]


def _pairs(result: dict, first: str, second: str, **wanted) -> list[tuple[dict, dict]]:
    """Rows of two variants that were timed in the same rounds."""
    keys = ("source", "layout", "length", "direction")
    others = {tuple(x[key] for key in keys): x for x in _measured(result, variant=second, **wanted)}
    rows = _measured(result, variant=first, **wanted)
    return [(x, others[place]) for x in rows if (place := tuple(x[key] for key in keys)) in others]


def _place(row: dict) -> str:
    return f"{row['length']:,} tokens, {row['layout']}"


def _tflops(direction: str) -> Callable[[dict], Found]:
    def measure(result):
        rows = _measured(result, variant=DENSE, direction=direction, layout="equal", source="random")
        return [(x["tflops"]["p50"], _place(x)) for x in rows if x["length"] >= LONG_FROM]

    return measure


def _against_rivals(result: dict) -> Found:
    return [
        (median_ratio(theirs["rounds_milliseconds"], ours["rounds_milliseconds"]), f"{rival}, {_place(ours)}")
        for rival in ALIBI_RIVALS
        for theirs, ours in _pairs(result, rival, DENSE, direction="forward", source="random")
    ]


def _bias_cost(result: dict) -> Found:
    pairs = _pairs(result, DENSE, NO_BIAS, direction="forward", source="random")
    return [(_percent(with_bias, without), _place(with_bias)) for with_bias, without in pairs]


def _percent(slow: dict, fast: dict, fair: float = 1.0) -> float:
    return 100 * (median_ratio(slow["rounds_milliseconds"], fast["rounds_milliseconds"]) * fair - 1)


def _layout_cost(result: dict) -> Found:
    """Mixed against equal lengths in the same rounds, per tile that has to be computed."""
    forward = {"direction": "forward", "variant": DENSE, "source": "random"}
    equal = {x["length"]: x for x in _measured(result, layout="equal", **forward)}
    work = {
        (x["layout"], x["length"]): tile_flops(x["lengths"], result["heads"], result["head_dim"], "forward")
        for x in result["problems"]
    }
    found = []
    for mixed in _measured(result, layout="mixed", **forward):
        length = mixed["length"]
        if length >= LONG_FROM and length in equal:
            fair = work["equal", length] / work["mixed", length]
            found.append((_percent(mixed, equal[length], fair), f"{length:,} tokens"))
    return found


def _skipping(mode: str, length: int) -> Callable[[dict], Found]:
    """Over random q and k, or over all layers of a checkpoint together."""

    def measure(result):
        wanted = {"direction": "forward", "layout": "equal", "length": length}
        pairs = _pairs(result, DENSE, f"triton_{mode}", **wanted)
        if not pairs:
            return []
        dense, skipping = (sum(pair[side]["milliseconds"]["p50"] for pair in pairs) for side in (0, 1))
        sources = "random" if len(pairs) == 1 else f"{len(pairs)} layers"
        return [(dense / skipping, f"{length:,} tokens, {sources}")]

    return measure


def _encoder_rows(result: dict, direction: str, length: int | None = None) -> list[dict]:
    """Rows of ours in bfloat16, compiled or not; the fastest of a shape."""
    rows = [x for x in _measured(result, direction=direction) if x["variant"].startswith(OURS)]
    return [x for x in rows if length is None or _length(x) == length]


def _length(row: dict) -> int:
    return int(row["shape"].split("x")[1])


def _best(rows: list[dict], value: Callable[[dict], float | None]) -> Found:
    found = [(value(x), f"{x['variant']}, {x['shape']}") for x in rows if value(x) is not None]
    return [max(found)] if found else []


def _tokens_per_second(direction: str) -> Callable[[dict], Found]:
    return lambda result: _best(_encoder_rows(result, direction, 512), lambda x: x["tokens_per_second"]["p50"])


def _against_published(result: dict) -> Found:
    return _best(_encoder_rows(result, "forward", 512), lambda x: x["ratio_to_published"])


def _memory_growth(result: dict) -> Found:
    """Peak memory of the longer sequence over that of the shorter, as a share of the ratio of their lengths."""
    rows = {x["shape"]: x for x in _encoder_rows(result, "training") if x["variant"] == OURS}
    short, long = (rows.get(f"1x{length}") for length in MEMORY_LENGTHS)
    if short is None or long is None:
        return []
    key = "peak_memory_bytes_above_weights"
    growth = long[key] / short[key] / (MEMORY_LENGTHS[1] / MEMORY_LENGTHS[0])
    return [(growth, f"{long[key] / 2**30:.1f} GiB at {MEMORY_LENGTHS[1]:,} tokens")]


GOALS = {
    "attention": [
        Goal("forward, every block, from 2,048 tokens", "at least", 380, "TFLOP/s", _tflops("forward")),
        Goal("backward, every block, from 2,048 tokens", "at least", 300, "TFLOP/s", _tflops("backward")),
        Goal("forward against every other way to ALiBi", "at least", 1.0, "x", _against_rivals),
        Goal("the same, hoped for", "at least", 1.25, "x", _against_rivals),
        Goal("cost of the bias, against slopes of zero", "at most", 5, "%", _bias_cost),
        Goal(
            "cost of mixed lengths per tile computed, against equal ones, from 2,048 tokens",
            "at most",
            3,
            "%",
            _layout_cost,
        ),
        *(
            Goal(f"skip={mode} over every block, {length:,} tokens", "at least", target, "x", _skipping(mode, length))
            for mode, targets in SKIP_GOALS.items()
            for length, target in targets.items()
        ),
    ],
    "encoder": [
        Goal("encoder forward at 512 tokens", "at least", 1.9e6, "tokens/s", _tokens_per_second("forward")),
        Goal("encoder forward at 512 tokens, over the published", "at least", 3, "x", _against_published),
        Goal("training at 512 tokens", "at least", 600e3, "tokens/s", _tokens_per_second("training")),
        Goal(
            "memory of a training step at 131,072 tokens, over twice that at 65,536",
            "at most",
            LINEAR,
            "x",
            _memory_growth,
        ),
    ],
}
