"""The attention benchmark, mostly with a stand-in for the kernels that is fast and can be made wrong."""

import json
import math
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend

from dnabert2.benchmarks import attention_gate, attention_rounds, main, measure, options, problems, rivals
from dnabert2.benchmarks.norms import norms
from dnabert2.bert_layers.alibi import alibi_attention_reference
from dnabert2.bert_layers.skipping import key_spans

SMALL = ["--device", "cpu", "--lengths", "24", "--tokens", "48", "--heads", "2", "--head_dim", "16"]
SMALL += ["--repetitions", "3", "--warmup", "1"]
ON_A_CPU = ("triton", "triton_exact", "triton_fp32", "triton_no_bias", "sdpa_flash", "published")


def bench(*more):
    return main.main(["attention", *map(str, [*SMALL, *more])])


@pytest.fixture
def stand_in(monkeypatch):
    """
    Function that replaces the kernels by the reference, its slopes multiplied by `bend`, its output changed by
    `fault(output, q, skip)`.
    """

    def install(fault=lambda output, q, skip: output, bend=1.0):
        def planned_attention(q, k, v, slopes, plan, max_seqlen, skip=None):
            return fault(alibi_attention_reference(q, k, v, bend * slopes, plan, max_seqlen), q, skip)

        def tile_plan(starts, lengths, rows, slopes):
            return torch.cat([starts, starts[-1:] + lengths[-1:]])

        kernels = SimpleNamespace(planned_attention=planned_attention, tile_plan=tile_plan)
        monkeypatch.setitem(sys.modules, "dnabert2.bert_layers.flash_alibi", kernels)
        monkeypatch.setattr(rivals, "reason_without_triton", lambda device: None)

    return install


@pytest.mark.parametrize(
    ("direction", "expected"),
    # 4 products of 9 + 25 scores of 4 numbers in 2 heads; five products for two; both.
    [("forward", 4 * 34 * 4 * 2), ("backward", 10 * 34 * 4 * 2), ("both", 14 * 34 * 4 * 2)],
)
def test_flops_are_exact(direction, expected):
    assert problems.flops([3, 5], heads=2, head_dim=4, direction=direction) == expected
    assert problems.flops([32768] * 4, 12, 64, "forward") == 4 * 4 * 32768**2 * 64 * 12
    assert problems.tile_flops([1, 129], 2, 4, direction) == problems.flops([128, 256], 2, 4, direction)


@pytest.mark.parametrize(("length", "tokens"), [(1, 5), (7, 40), (512, 4096), (4096, 4096), (100, 30)])
def test_both_layouts_hold_as_many_tokens(length, tokens):
    count = max(1, tokens // length)
    drawn = {x: problems.lengths_of(x, length, tokens, torch.Generator().manual_seed(0)) for x in problems.LAYOUTS}
    assert drawn["equal"] == [length] * count
    assert sum(drawn["mixed"]) == count * length and min(drawn["mixed"]) >= 1 and max(drawn["mixed"]) <= length
    assert all(n >= length // 2 for n in drawn["mixed"][:-1])


def small_problem(**more):
    setting = {"heads": 3, "head_dim": 16, "dtype": torch.float32, "device": torch.device("cpu")}
    return problems.random_problem("mixed", 300, [300, 41], **(setting | more))


def test_scores_have_the_standard_deviation_asked_for():
    q, k, _ = small_problem(score_std=2.5).qkv.unbind(1)
    scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(16)
    assert float(scores.std()) == pytest.approx(2.5, rel=0.05)


def test_norms_are_those_of_the_worst_sequence():
    problem = small_problem()
    problem.qkv[:, 1] += 5.0  # softmax does not see it, and the keys' mean takes it out again
    found = norms(problem.qkv, problem.lengths, problem.slopes)
    for head in range(3):
        excess, q_max, key_max = [], [], []
        for part in problem.qkv.split(problem.lengths):
            q, k = part[:, 0, head], part[:, 1, head] - part[:, 1, head].mean(0)
            key_max.append(k.norm(dim=1).max())
            q_max.append(q.norm(dim=1).max())
            excess.append(((q.norm(dim=1) * key_max[-1] - (q * k).sum(1)) / 4).max())
        for key, values in (("u_max", excess), ("q_max", q_max), ("key_max", key_max)):
            assert found[key][head] == pytest.approx(float(max(values)), rel=1e-4)
    for mode in ("exact", "fp32"):
        pairs = torch.zeros(3)
        for part in problem.qkv.split(problem.lengths):
            spans = key_spans(part[:, 0], part[:, 1], problem.slopes, skip=mode)
            for tile in range(spans.shape[1]):
                pairs += (spans[:, tile, 1] - spans[:, tile, 0]) * min(128, len(part) - 128 * tile)
        share = pairs / (300**2 + 41**2)
        assert found["computed_share"][mode] == pytest.approx(share.tolist())
    assert 0 < min(found["computed_share"]["fp32"]) < 1


def test_the_result_file(stand_in, tmp_path, capsys):
    stand_in()
    output = tmp_path / "new" / "attention.json"
    assert bench("--output", output, "--score_std", 2) == 0
    result = json.loads(output.read_text())
    assert result["benchmark"] == "attention" and result["complete"] and result["input"] == {"score_std": 2.0}
    assert (result["heads"], result["head_dim"], result["dtype"], result["tokens"]) == (2, 16, "float32", 48)
    assert set(result["variants"]) == set(rivals.RIVALS) == set(options.ATTENTION_VARIANTS)
    assert {x["status"] for x in result["gate"]} == {"passed"}
    gated = {(x["variant"], x["batch"]) for x in result["gate"]}
    assert gated == {(x, y) for x in (*ON_A_CPU[:3], "published") for y in problems.LAYOUTS}
    for x in result["gate"]:
        assert set(x["relative_error"]) == set(x["bound"]) == {"output", "dq", "dk", "dv"}
        assert all(x["relative_error"][name] <= x["bound"][name] < 1e-5 for name in x["bound"])
    assert [(x["layout"], sum(x["lengths"])) for x in result["problems"]] == [("equal", 48), ("mixed", 48)]
    assert all(len(x["norms"]["u_max"]) == 2 for x in result["problems"])

    rows = {(x["layout"], x["direction"], x["variant"]): x for x in result["results"]}
    assert len(rows) == len(result["results"]) == 2 * 3 * len(rivals.RIVALS)  # nothing is left out
    for row in result["results"]:
        is_able = row["variant"] in ON_A_CPU and (row["layout"], row["variant"]) != ("mixed", "sdpa_flash")
        assert row["status"] == ("measured" if is_able else "skipped")
        assert (row["reason"] is None) == is_able and (row["tflops"] is not None) == is_able
        assert row["tflops_are_effective"] == (row["variant"] in ("triton_exact", "triton_fp32"))
    assert "CUDA" in rows["equal", "forward", "sdpa_cudnn"]["reason"]
    assert "flash-attn package" in rows["equal", "forward", "flash_attn_alibi"]["reason"]
    assert "equal length" in rows["mixed", "forward", "sdpa_flash"]["reason"]

    ours, published = rows["equal", "backward", "triton"], rows["equal", "backward", "published"]
    work = problems.flops([24, 24], 2, 16, "backward")
    assert result["problems"][0]["flops"]["backward"] == work
    assert len(ours["rounds_milliseconds"]) == 3
    milliseconds = sorted(ours["rounds_milliseconds"])[1]
    assert ours["milliseconds"]["p50"] == milliseconds
    assert ours["tflops"]["p50"] == pytest.approx(work / milliseconds / 1e9)
    pairs = zip(ours["rounds_milliseconds"], published["rounds_milliseconds"], strict=True)
    assert published["speed_over_triton"] == pytest.approx(sorted(x / y for x, y in pairs)[1])
    assert ours["speed_over_triton"] == 1 and ours["peak_memory_bytes_above_inputs"] is None
    assert {x["status"] for x in result["goals"]} == {"not measured"}  # a CPU reaches none of them, and misses none
    printed = capsys.readouterr().out
    assert "| forward, mixed: TFLOP/s | 24 |" in printed and "sdpa_cudnn: needs a CUDA device." in printed


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda output, q, skip: output * 1.001, "triton on the mixed batch (output"),
        (lambda output, q, skip: output * float("nan"), "output has a relative error of nan"),
        (lambda output, q, skip: output + 1e-3 * (q - q.detach()), "dq has a relative error"),
        (
            lambda output, q, skip: output * (1 + 2e-7 * (skip == "exact")),
            "triton_exact on the mixed batch (the output has other bits",
        ),
    ],
)
def test_a_wrong_kernel_is_not_timed(stand_in, monkeypatch, tmp_path, capsys, fault, message):
    stand_in(fault)
    monkeypatch.setattr(attention_rounds, "time_rounds", lambda *_: pytest.fail("timed"))
    assert bench("--output", tmp_path / "result.json") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: nothing was timed") and message in error and "published" not in error
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_bias_is_caught(stand_in, monkeypatch, capsys, dtype):
    """Slopes off by an eighth, which still looks like ALiBi: beyond rounding in every precision."""
    right = rivals.RIVALS["triton"]
    monkeypatch.setitem(rivals.RIVALS, "triton", replace(right, needs=lambda *_: None))
    stand_in()
    more = ["--directions", "forward", "--dtype", dtype, "--variants", "triton"]
    assert bench(*more) == 0
    stand_in(bend=1.125)
    capsys.readouterr()
    assert bench(*more) == 1
    assert "do not agree with the reference: triton on the mixed batch" in capsys.readouterr().err


def test_a_rival_that_fails_is_recorded_and_not_timed(stand_in, monkeypatch, tmp_path):
    stand_in()

    def wrong(problem):
        return lambda q, k, v: v

    def broken(problem):
        raise ValueError("no kernel image\nis available")

    calls = []

    def exhausting(problem):
        if problem.length == 24:  # not in the gate
            calls.append(problem)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return lambda q, k, v: q

    faults = {"published": wrong, "flex_alibi": broken, "sdpa_flash": exhausting}
    for name, bind in faults.items():
        rival = replace(rivals.RIVALS[name], bind=bind, needs=lambda device, dtype: None)
        monkeypatch.setitem(rivals.RIVALS, name, rival)
    output = tmp_path / "result.json"
    more = ["--variants", *faults, "triton", "--directions", "forward", "--layouts", "equal", "--output", output]
    assert bench(*more) == 0
    rows = {x["variant"]: x for x in json.loads(output.read_text())["results"]}
    assert {name: rows[name]["status"] for name in faults} == dict.fromkeys(faults, "failed")
    assert "failed the correctness gate: output has a relative error" in rows["published"]["reason"]
    assert rows["flex_alibi"]["reason"] == "failed the correctness gate: ValueError: no kernel image"
    assert rows["sdpa_flash"]["reason"] == "out of memory" and len(calls) == 1
    assert rows["triton"]["status"] == "measured"


def test_a_call_that_fails_in_its_rounds_costs_no_other_measurement():
    def failing():
        raise RuntimeError("launch failed")

    seconds, broken = measure.guarded(lambda case, batch: case(), torch.device("cpu"))
    found = measure.time_rounds({"good": lambda: 1.0, "bad": failing}, (), 2, 1, lambda: None, seconds)
    assert found["good"] == [1.0, 1.0] and broken == {failing: "in its timed rounds: RuntimeError: launch failed"}


def test_a_bias_larger_than_the_device_is_not_tried():
    problem, published = small_problem(), rivals.RIVALS["published"]
    needed = published.bias_bytes(problem)
    assert needed >= 2 * 3 * 300**2 * 4
    assert attention_rounds._refusal(problem, published, {}, memory=needed) is None
    status, reason = attention_rounds._refusal(problem, published, {}, memory=needed - 1)
    assert status == "skipped" and "holds at least" in reason


def test_every_rival_takes_views_of_one_projection():
    """In the shape it wants, and back; what is timed must not be a copy."""
    setting = {"heads": 2, "head_dim": 8, "dtype": torch.float32, "device": torch.device("cpu")}
    problem = problems.random_problem("equal", 6, [6, 6], **setting)
    for rival in rivals.RIVALS.values():
        inputs = rival.inputs(problem, with_gradients=True)
        assert {x.untyped_storage().data_ptr() for x in inputs} == {problem.qkv.untyped_storage().data_ptr()}
        assert all(x.is_leaf and x.requires_grad for x in inputs)
        assert torch.equal(rival.packed(inputs[1]), problem.qkv[:, 1])
        assert inputs[0].shape == ((2, 2, 6, 8) if rival.batched else (12, 2, 8))


def test_rivals_without_a_gpu_to_run_on_compute_alibi_too(monkeypatch):
    """The materialised bias under a backend that a CPU has, and what flash-attn is called with."""
    setting = {"heads": 3, "head_dim": 8, "dtype": torch.float32, "device": torch.device("cpu")}

    def flash_attn_varlen_func(q, k, v, starts, key_starts, longest, longest_key, alibi_slopes):
        assert torch.equal(starts, key_starts) and longest == longest_key
        return alibi_attention_reference(q, k, v, alibi_slopes, starts, longest)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func))
    with_bias = partial(rivals._sdpa, backend=SDPBackend.MATH, with_bias=True)
    for name, bind, lengths in [
        ("sdpa_bias_efficient", with_bias, [20, 20]),
        ("flash_attn_alibi", rivals._flash_attn, [7, 20]),
        ("published", rivals._published, [20, 7]),
    ]:
        problem = problems.random_problem("equal", 20, lengths, **setting)
        starts = problem.new_layout().cu_seqlens
        expected = alibi_attention_reference(*problem.qkv.unbind(1), problem.slopes, starts, 20)
        rival = replace(rivals.RIVALS[name], bind=bind)
        output = rival.packed(rival.bind(problem)(*rival.inputs(problem, with_gradients=False)))
        torch.testing.assert_close(output, expected)


def test_preparing_is_not_timed_on_a_gpu(monkeypatch):
    """CUDA events stand around the call alone, after the cache was flushed."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            return 250.0

    def case():
        log.append("prepare")
        return lambda: log.append("call")

    flush = SimpleNamespace(zero_=lambda: log.append("flush"), device=None)
    monkeypatch.setattr(measure.torch.cuda, "Event", Event)
    monkeypatch.setattr(measure.torch.cuda, "synchronize", lambda device: log.append("drain"))
    assert measure._device_seconds_of_prepared(flush, case, ()) == 0.25
    assert log == ["prepare", "drain", *["flush"] * measure.FLUSHES, "record", "call", "record", "wait"]


@pytest.mark.parametrize(
    ("budget", "seconds", "expected"),
    [(None, 100.0, (15, 3)), (10.0, 0.5, (15, 3)), (10.0, 1.0, (9, 1)), (10.0, 60.0, (3, 1))],
)
def test_rounds_that_fit(budget, seconds, expected):
    assert measure.rounds_within(budget, seconds, 15, 3) == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--variants", "triton", "tritton"], "'tritton' is not a variant of attention: choose among triton,"),
        (["--lengths", "0"], "at least 1"),
        (["--tokens", "-5"], "at least 1"),
        (["--heads", "0"], "at least 1"),
        (["--layouts", "equal", "odd"], "--layouts takes equal, mixed, not 'odd'"),
        (["--directions", "training"], "--directions takes forward, backward, both"),
        (["--dtype", "float64"], "--dtype takes float32, bfloat16, float16"),
        (["--score_std", "0"], "--score_std must be a positive number"),
        (["--score_std", "nan"], "--score_std must be a positive number"),
        (["--repetitions", "0"], "--repetitions"),
        (["--seconds", "0"], "--seconds"),
        (["--device", "cuda:99"], "'cuda:99' is not there"),
        (["--device", "tpu"], "'tpu' is not a device"),
        (["--model", "somewhere"], "--model and --input go together"),
        (["--input", "x.fa"], "--model and --input go together"),
        (["--output", "."], "is a folder"),
    ],
)
def test_unusable_options_end_in_one_sentence(capsys, more, message):
    assert bench(*more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_help_shows_the_defaults_of_both_kinds_of_device(capsys):
    for name in ("attention", "encoder"):
        with pytest.raises(SystemExit) as exit_code:
            main.main([name, "--help"])
        assert exit_code.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "on CUDA" in shown and "None" not in shown


def test_the_real_kernels(kernels, monkeypatch, tmp_path):
    """From the gate to the file; under the interpreter, which is slow, where there is no GPU."""
    from dnabert2.bert_layers import flash_alibi

    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(flash_alibi, "SKIP_ABOVE", 64)
    monkeypatch.setitem(attention_gate.GATE_LENGTHS, device, {"mixed": [1, 140]})
    output = tmp_path / "result.json"
    more = ["--variants", "triton", "triton_exact", "--lengths", "16", "--tokens", "32", "--layouts", "mixed"]
    more += ["--directions", "backward", "--repetitions", "1", "--warmup", "0"]
    assert bench(*more, "--device", device, "--dtype", "float32", "--output", output) == 0
    result = json.loads(output.read_text())
    equal = [x["equal_to_dense"] for x in result["gate"] if "equal_to_dense" in x]
    assert equal == [dict.fromkeys(("output", "dq", "dk", "dv"), True)]
    assert [(x["variant"], x["status"]) for x in result["results"]] == [
        ("triton", "measured"),
        ("triton_exact", "measured"),
    ]
