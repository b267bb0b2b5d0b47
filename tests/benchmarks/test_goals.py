"""Goals are judged by the worst measurement there is, and are unmeasured without one."""

import pytest

from dnabert2.benchmarks import goals
from dnabert2.benchmarks.problems import tile_flops

CUDA = {"device": {"type": "cuda"}}
HEADS, DIM = 12, 64


def row(variant, length, milliseconds, direction="forward", layout="equal", source="random", **more):
    """A row of `bench attention` whose TFLOP/s are 1000 over its milliseconds."""
    return {
        "variant": variant,
        "length": length,
        "direction": direction,
        "layout": layout,
        "source": source,
        "status": "measured",
        "rounds_milliseconds": milliseconds,
        "milliseconds": {"p50": sorted(milliseconds)[len(milliseconds) // 2]},
        "tflops": {"p50": 1000 / sorted(milliseconds)[len(milliseconds) // 2]},
    } | more


def judged(rows, problems=(), benchmark="attention", **more):
    result = {"benchmark": benchmark, "results": rows, "problems": list(problems), "heads": HEADS, "head_dim": DIM}
    return {x["goal"]: x for x in goals.judge(result | {"provenance": CUDA} | more)}


def test_nothing_measured_is_no_failure():
    for benchmark in goals.GOALS:
        found = judged([], benchmark=benchmark)
        assert len(found) == len(goals.GOALS[benchmark])
        assert {(x["measured"], x["where"], x["status"]) for x in found.values()} == {(None, None, "not measured")}
    skipped = row("triton", 2048, [1.0], status="skipped")
    assert {x["status"] for x in judged([skipped]).values()} == {"not measured"}
    cpu = {"device": {"type": "cpu"}}
    assert {x["status"] for x in judged([row("triton", 2048, [1.0])], provenance=cpu).values()} == {"not measured"}


def test_speed_is_judged_by_the_slowest_long_length():
    rows = [row("triton", 512, [99.0]), row("triton", 2048, [2.5]), row("triton", 4096, [2.0])]
    found = judged(rows)["forward, every block, from 2,048 tokens"]
    assert (found["measured"], found["where"], found["status"]) == (400, "2,048 tokens, equal", "met")
    found = judged([*rows, row("triton", 8192, [2.7])])["forward, every block, from 2,048 tokens"]
    assert found["measured"] == pytest.approx(1000 / 2.7) and found["status"] == "not met"
    backward = judged([row("triton", 2048, [1000 / 300], direction="backward")])
    assert backward["backward, every block, from 2,048 tokens"]["status"] == "met"  # at the target is met


def test_rivals_are_compared_within_rounds_and_by_layout():
    rows = [
        row("triton", 512, [1.0, 10.0, 1.0]),
        row("flex_alibi", 512, [1.3, 13.0, 0.1]),  # 1.3 times ours in the median round
        row("triton", 512, [1.0], layout="mixed"),
        row("published", 512, [9.0], layout="mixed"),
        row("sdpa_cudnn", 512, [0.1]),  # computes no ALiBi
        row("flex_alibi", 1024, [0.1]),  # ours was not timed there
        row("flex_alibi", 512, [0.1], direction="backward"),
    ]
    found = judged(rows)["forward against every other way to ALiBi"]
    assert found["measured"] == pytest.approx(1.3) and found["where"] == "flex_alibi, 512 tokens, equal"
    assert found["status"] == judged(rows)["the same, hoped for"]["status"] == "met"
    rows[1]["rounds_milliseconds"] = [1.1, 11.0, 1.1]
    found = judged(rows)
    assert found["forward against every other way to ALiBi"]["status"] == "met"
    assert found["the same, hoped for"]["status"] == "not met"


def test_the_cost_of_the_bias_is_a_percentage():
    rows = [row("triton", 512, [1.04]), row("triton_no_bias", 512, [1.0])]
    found = judged(rows)["cost of the bias, against slopes of zero"]
    assert found["measured"] == pytest.approx(4) and found["status"] == "met"
    rows[0]["rounds_milliseconds"] = [1.06]
    assert judged(rows)["cost of the bias, against slopes of zero"]["status"] == "not met"


def test_the_cost_of_mixed_lengths_is_per_tile():
    lengths = {"equal": [4096] * 2, "mixed": [4000, 3000, 1192]}
    problems = [{"layout": layout, "length": 4096, "lengths": drawn} for layout, drawn in lengths.items()]
    work = {layout: tile_flops(drawn, HEADS, DIM, "forward") for layout, drawn in lengths.items()}
    rows = [
        row("triton", 4096, [2.0]),
        row("triton", 4096, [2.0 * 1.02 * work["mixed"] / work["equal"]], layout="mixed"),
    ]
    found = judged(rows, problems)["cost of mixed lengths per tile computed, against equal ones, from 2,048 tokens"]
    assert found["measured"] == pytest.approx(2) and found["status"] == "met"


def test_skipping_has_a_goal_a_length_and_counts_layers_together():
    rows = [row("triton", 4096, [3.0]), row("triton_fp32", 4096, [1.5]), row("triton_exact", 4096, [2.5])]
    found = judged(rows)
    fp32, exact = (found[f"skip={mode} over every block, 4,096 tokens"] for mode in ("fp32", "exact"))
    assert (fp32["measured"], fp32["target"], fp32["status"]) == (2.0, 1.8, "met")
    assert (exact["measured"], exact["target"], exact["status"]) == (1.2, 1.4, "not met")
    assert found["skip=fp32 over every block, 8,192 tokens"]["status"] == "not measured"
    layers = [row("triton", 4096, [3.0], source=f"layer {i}") for i in range(2)]
    layers += [row("triton_fp32", 4096, [x], source=f"layer {i}") for i, x in enumerate((1.0, 2.0))]
    found = judged(layers)["skip=fp32 over every block, 4,096 tokens"]
    assert found["measured"] == 2 and found["where"] == "4,096 tokens, 2 layers"


def encoder_row(shape, direction="forward", variant="triton:bfloat16", speed=2e6, ratio=3.5, memory=2**30):
    return {
        "direction": direction,
        "shape": shape,
        "variant": variant,
        "status": "measured",
        "tokens_per_second": {"p50": speed},
        "ratio_to_published": ratio,
        "peak_memory_bytes_above_weights": memory,
    }


def test_the_encoder_is_judged_by_its_fastest_form():
    rows = [
        encoder_row("128x512", speed=1.5e6, ratio=2.5),
        encoder_row("128x512", variant="triton:bfloat16:compiled"),
        encoder_row("32x2048", speed=9e6, ratio=9.0),
        encoder_row("128x512", variant="sdpa:bfloat16", speed=9e6, ratio=9.0),
        encoder_row("128x512", direction="training", speed=5e5, ratio=None),
    ]
    found = judged(rows, benchmark="encoder")
    speed, ratio = (found[f"encoder forward at 512 tokens{x}"] for x in ("", ", over the published"))
    assert (speed["measured"], speed["where"], speed["status"]) == (2e6, "triton:bfloat16:compiled, 128x512", "met")
    assert (ratio["measured"], ratio["status"]) == (3.5, "met")
    assert found["training at 512 tokens"]["status"] == "not met"


@pytest.mark.parametrize(("long", "status"), [(80, "met"), (83, "met"), (90, "not met"), (160, "not met")])
def test_memory_is_linear_or_not(long, status):
    rows = [
        encoder_row("1x65536", "training", memory=40 * 2**30),
        encoder_row("1x131072", "training", memory=long * 2**30),
    ]
    name = "memory of a training step at 131,072 tokens, over twice that at 65,536"
    found = judged(rows, benchmark="encoder")[name]
    assert found["measured"] == pytest.approx(long / 80) and found["status"] == status
    assert found["where"] == f"{long}.0 GiB at 131,072 tokens"
    assert judged(rows[:1], benchmark="encoder")[name]["status"] == "not measured"
