"""The encoder benchmark on a tiny network. Its memory probes are answered here; one test starts a real one."""

import json
import statistics
import time

import pytest
import torch

from dnabert2.benchmarks import encoder_rounds, main, measure, memory, steps, variants
from dnabert2.benchmarks.variants import Shape, Variant, batch_of, draw_lengths, load_config
from dnabert2.bert_layers import attention

CONFIG = {
    "model_type": "dnabert2",
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
OPTIONS = ["--shapes", "2x24", "1x16", "--memory_shapes", "1x40", "--repetitions", "3", "--threads", "1"]


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(autouse=True)
def as_found(monkeypatch):
    """No half-precision instructions, and torch's threads as they were."""
    threads = torch.get_num_threads()
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def probes(monkeypatch):
    """Probes that answer at once, as `shape variant` strings in the order they were asked."""
    asked = []

    def answer(variant, shape, **settings):
        asked.append(f"{shape} {variant}")
        if "published" in str(variant) and shape.batch_size == 1:
            return {"error": "out of memory"}
        tokens = sum(draw_lengths(shape, settings["padding"], torch.Generator().manual_seed(settings["seed"])))
        return {"peak_memory_bytes_above_weights": 2**20, "method": "none", "seconds": 0.5, "tokens": tokens}

    monkeypatch.setattr(encoder_rounds, "probe_in_subprocess", answer)
    return asked


def bench(*options):
    return main.main(["encoder", *map(str, options)])


def test_the_result_file(config_file, probes, tmp_path, capsys):
    output = tmp_path / "new" / "result.json"
    assert bench(*OPTIONS, "--config", config_file, "--padding", 0.25, "--output", output) == 0
    result = json.loads(output.read_text())
    assert {key: result["config"][key] for key in CONFIG} == CONFIG
    assert result["shapes"] == ["2x24", "1x16"] and result["memory_shapes"] == ["1x40"]
    assert (result["repetitions"], result["warmup"], result["seed"], result["padding"]) == (3, 1, 0, 0.25)
    assert result["parameters"] > 32 * 16
    assert {(x["variant"], x["batch"]) for x in result["gate"]} == {
        (f"{backend}:float32", batch) for backend in ("published", "eager", "sdpa") for batch in ("padded", "full")
    }
    assert all(x["relative_error"] <= x["bound"] == 1e-5 for x in result["gate"])
    assert result["provenance"]["threads"] == 1
    assert set(result["provenance"]["versions"]) == {"python", "torch", "transformers", "dnabert2"}
    assert set(result["provenance"]["git"]) == {"commit", "dirty"}
    assert result["provenance"]["device"]["name"]

    rows = {(x["shape"], x["variant"]): x for x in result["results"]}
    assert len(rows) == len(result["results"]) == 2 * 4 + 2
    published, sdpa = rows["2x24", "published:float32"], rows["2x24", "sdpa:float32"]
    for row in (published, sdpa):
        assert row["status"] == "measured" and row["tokens"] == 36
        assert len(row["rounds_milliseconds"]) == 3
        assert row["tokens_per_second"]["p20"] <= row["tokens_per_second"]["p50"] <= row["tokens_per_second"]["p80"]
        assert row["milliseconds"]["p50"] == statistics.median(row["rounds_milliseconds"])
        assert row["tokens_per_second"]["p50"] == pytest.approx(36_000 / row["milliseconds"]["p50"])
        assert row["peak_memory_bytes_above_weights"] == 2**20
    within_rounds = [p / s for p, s in zip(published["rounds_milliseconds"], sdpa["rounds_milliseconds"], strict=True)]
    assert sdpa["ratio_to_published"] == pytest.approx(statistics.median(within_rounds))
    assert published["ratio_to_published"] == 1

    failed = rows["1x16", "published:float32"]
    assert (failed["status"], failed["reason"], failed["tokens_per_second"]) == ("failed", "out of memory", None)
    assert rows["1x16", "sdpa:float32"]["ratio_to_published"] is None  # there is nothing to compare it with
    long = rows["1x40", "sdpa:float32"]
    assert long["milliseconds"] == {"p20": 500, "p50": 500, "p80": 500} and long["ratio_to_published"] is None
    for shape in ("2x24", "1x16", "1x40"):
        skipped = rows[shape, "sdpa:bfloat16"]
        assert skipped["status"] == "skipped" and "no bfloat16 instructions" in skipped["reason"]
        assert skipped["tokens_per_second"] is None and skipped["peak_memory_bytes_above_weights"] is None
    assert not any("bfloat16" in asked for asked in probes)
    printed = capsys.readouterr()
    assert "sdpa:float32" in printed.out and "no bfloat16 instructions" in printed.out.replace("\n", " ")
    assert printed.err == ""  # no progress bar where there is no terminal
    assert [path.name for path in output.parent.iterdir()] == ["result.json"]


def test_slow_precisions_are_measured_on_request(config_file, probes, tmp_path):
    output = tmp_path / "result.json"
    variants = ["--variants", "sdpa:bfloat16", "eager:float16", "flex_attention:float32"]
    one = ["--shapes", "2x24", "--memory_shapes", "--repetitions", "1"]
    assert bench(*one, "--include_slow", *variants, "--config", config_file, "--output", output) == 0
    result = json.loads(output.read_text())
    assert [x["status"] for x in result["results"]] == ["measured"] * 3
    for x in result["gate"]:
        assert 0 <= x["relative_error"] <= x["bound"]
        assert (x["bound"] > 1e-5) == (x["relative_error"] > 1e-5) == ("float32" not in x["variant"])


@pytest.mark.parametrize("fault", [lambda x: x * 1.001, lambda x: x * float("nan")])
def test_nothing_is_timed_when_a_variant_disagrees(monkeypatch, config_file, probes, tmp_path, capsys, fault):
    right = attention.ATTENTION_FUNCTIONS["sdpa"]

    def wrong(*inputs, **more):
        output, weights = right(*inputs, **more)
        return fault(output), weights

    monkeypatch.setitem(attention.ATTENTION_FUNCTIONS, "sdpa", wrong)
    monkeypatch.setattr(encoder_rounds, "time_rounds", lambda *_: pytest.fail("timed"))
    assert bench(*OPTIONS, "--config", config_file, "--output", tmp_path / "result.json") == 1
    error = capsys.readouterr().err
    assert "nothing was timed" in error and "sdpa:float32 on the padded batch" in error
    assert "published" not in error
    assert probes == [] and not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shapes", "512"], "'512' is not a shape"),
        (["--shapes", "0x512"], "'0x512' is not a shape"),
        (["--memory_shapes", "1x2x3"], "'1x2x3' is not a shape"),
        (["--variants", "sdpa"], "'sdpa' is not a variant"),
        (["--variants", "sdp:float32"], "eager, sdpa"),
        (["--variants", "sdpa:float64"], "float32, bfloat16, float16 or auto"),
        (["--variants", "sdpa:float32:"], "'sdpa:float32:' is not a variant"),
        (["--variants", "sdpa:float32:fast"], "perhaps :compiled"),
        (["--directions", "backward"], "--directions takes forward, training"),
        (["--variants", "flex_attention:float32", "--directions", "training", "--memory_shapes"], "no backward"),
        (["--variants", "sdpa:bfloat16", "--memory_shapes"], "nothing to measure"),
        (["--variants", "flash_attention_2:float16", "--memory_shapes"], "flash-attn package"),
        (["--repetitions", "0"], "--repetitions"),
        (["--warmup", "-1"], "--warmup"),
        (["--padding", "1"], "--padding"),
        (["--threads", "0"], "--threads"),
        (["--device", "quantum"], "'quantum' is not a device"),
        (["--device", "meta"], "'meta' cannot be measured"),
        (["--device", "cuda:99"], "'cuda:99' is not there"),
        (["--config", "missing.json"], "missing.json cannot be read"),
        (["--output", "."], "is a folder"),
    ],
)
def test_unusable_options_end_in_one_sentence(probes, capsys, options, message):
    assert bench(*options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"hidden_size": 10, "num_attention_heads": 3}'])
def test_an_unusable_configuration_is_named(probes, capsys, config_file, text):
    config_file.write_text(text)
    assert bench("--config", config_file) == 2
    assert f"{config_file} is not the configuration" in capsys.readouterr().err


def test_the_ratio_is_taken_within_rounds():
    # The machine slows down tenfold after the first round: medians of each side would say 2 / 2 = 1.
    assert measure.median_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 2.0]) == 2.0


def test_rounds_alternate_their_order():
    order, passes = [], []
    names = ["a", "b", "c"]
    encoders = {name: lambda *_, name=name: order.append(name) for name in names}
    batch = (torch.zeros(1),)
    seconds = measure.time_rounds(encoders, batch, repetitions=2, warmup=1, advance=lambda: passes.append(1))
    assert order[3:] == ["a", "b", "c", "c", "b", "a"] and sorted(order[:3]) == names
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(names, 2)
    assert len(passes) == 9


@pytest.mark.parametrize("shape", ["1x1", "1x100", "2x5", "8x64", "64x3"])
@pytest.mark.parametrize("padding", [0.0, 0.1, 0.5, 0.97])
def test_lengths_hold_the_share_of_pads_asked_for(shape, padding):
    shape = Shape.parse(shape)
    lengths = draw_lengths(shape, padding, torch.Generator().manual_seed(1))
    cells, rows = shape.batch_size * shape.length, shape.batch_size
    assert len(lengths) == rows and min(lengths) >= 1 and max(lengths) <= shape.length
    assert sum(lengths) == max(rows, cells - round(padding * cells))
    if padding == 0.5 and rows > 2:
        assert max(lengths) == shape.length
    assert lengths == draw_lengths(shape, padding, torch.Generator().manual_seed(1))


def test_a_batch_has_pads_where_its_mask_says(config_file):
    config = load_config(config_file)
    (input_ids, mask), tokens = batch_of(config, Shape(4, 32), 0.4, torch.device("cpu"), seed=3)
    assert input_ids.shape == mask.shape == (4, 32)
    assert mask.sum() == tokens == 128 - 51
    assert ((input_ids == config.pad_token_id) == (mask == 0)).all()
    assert input_ids.max() < config.vocab_size


def test_a_probe_in_a_process_of_its_own(config_file):
    found = memory.probe_in_subprocess(
        Variant("eager", "float32"),
        Shape(1, 1024),
        direction="forward",
        config=config_file,
        device="cpu",
        padding=0.5,
        seed=0,
        threads=1,
    )
    # Two heads of float32 scores and their softmax are held at once; the weights are nothing beside them.
    scores = 2 * 1024 * 1024 * 4
    assert 2 * scores <= found["peak_memory_bytes_above_weights"] < 20 * scores
    assert found["tokens"] == 512 and found["seconds"] > 0


def test_a_probe_that_is_killed_is_recorded(monkeypatch, config_file):
    class Done:
        returncode, stdout, stderr = -9, "", ""

    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: Done)
    settings = {
        "direction": "forward",
        "config": config_file,
        "device": "cpu",
        "padding": 0.0,
        "seed": 0,
        "threads": None,
    }
    assert "signal 9" in memory.probe_in_subprocess(Variant("sdpa", "float32"), Shape(1, 8), **settings)["error"]
    Done.returncode, Done.stderr = 1, "Traceback: defect"
    with pytest.raises(RuntimeError, match="defect"):
        memory.probe_in_subprocess(Variant("sdpa", "float32"), Shape(1, 8), **settings)


@pytest.mark.parametrize("peak", [memory._kernel_peak, memory._sampled_peak])
def test_both_ways_to_find_a_peak_see_a_freed_tensor(peak):
    if peak is memory._kernel_peak and not memory._can_reset_kernel_peak():
        pytest.skip("this system does not let a process reset its peak")
    with peak(torch.device("cpu")) as measured:
        held = [torch.ones(2**21) for _ in range(8)]
        time.sleep(0.1)  # so that even a sampling thread on a busy machine sees it
        del held
    # 64 MiB, some of it perhaps in free pages that malloc still held.
    assert 40 * 2**20 <= measured["bytes"] < 128 * 2**20


def test_auto_is_what_the_device_is_fast_in(monkeypatch, config_file, probes, tmp_path):
    """Without bfloat16 instructions `sdpa:auto` and `sdpa:float32` are one variant, measured once."""
    variant, device = Variant.parse("sdpa:auto"), torch.device("cpu")
    output = tmp_path / "result.json"
    options = ["--shapes", "1x8", "--memory_shapes", "--repetitions", 1, "--config", config_file, "--output", output]
    assert bench(*options, "--variants", "sdpa:auto", "sdpa:float32") == 0
    assert [row["variant"] for row in json.loads(output.read_text())["results"]] == ["sdpa:float32"]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert variant.resolved(device) == Variant("sdpa", "bfloat16")


def test_training_steps_are_gated_and_timed(config_file, probes, tmp_path):
    output = tmp_path / "result.json"
    names = ["--variants", "published:float32", "published:bfloat16", "sdpa:float32", "flex_attention:float32"]
    more = ["--shapes", "2x24", "--memory_shapes", "1x16", "--memory_variants", "sdpa:float32", "--repetitions", "2"]
    directions = ["--directions", "training", "forward", "--include_slow"]
    assert bench(*names, *more, *directions, "--config", config_file, "--output", output) == 0
    result = json.loads(output.read_text())
    assert result["directions"] == ["training", "forward"] and result["complete"]
    rows = {(x["direction"], x["shape"], x["variant"]): x for x in result["results"]}
    assert len(rows) == len(result["results"]) == 2 * (4 + 1)
    flex = rows["training", "2x24", "flex_attention:float32"]
    assert (flex["status"], flex["reason"]) == ("skipped", "flex_attention has no backward on a CPU")
    del rows["training", "2x24", "flex_attention:float32"]
    assert all(x["status"] == "measured" and x["tokens"] for x in rows.values())
    # A ratio is to the published algorithm in the same precision.
    assert rows["training", "2x24", "published:bfloat16"]["published"] == "published:bfloat16"
    assert rows["training", "2x24", "published:bfloat16"]["ratio_to_published"] == 1
    assert rows["forward", "2x24", "sdpa:float32"]["published"] == "published:float32"
    gradients = [x for x in result["gate"] if x["direction"] == "training"]
    assert {x["variant"] for x in gradients} == {"published:float32", "published:bfloat16", "sdpa:float32"}
    for x in gradients:
        assert x["relative_error"] <= x["bound"] and (x["bound"] == 1e-4) == ("float32" in x["variant"])


def test_wrong_gradients_are_not_timed(monkeypatch, config_file, probes, capsys):
    right = attention.ATTENTION_FUNCTIONS["sdpa"]

    def wrong(q, *more, **options):
        output, weights = right(q, *more, **options)
        return output + 1e-2 * (q - q.detach()), weights

    monkeypatch.setitem(attention.ATTENTION_FUNCTIONS, "sdpa", wrong)
    more = ["--shapes", "1x16", "--memory_shapes", "--repetitions", "1", "--config", config_file]
    names = ["published:float32", "sdpa:float32"]
    assert bench(*more, "--variants", *names) == 0  # the forward pass is right
    capsys.readouterr()
    assert bench(*more, "--variants", *names, "--directions", "forward", "training") == 1
    error = capsys.readouterr().err
    assert "the gradients of eager:float32: sdpa:float32 on the padded batch" in error
    assert probes == [f"1x16 {name}" for name in names]  # of the first run


def test_a_step_trains_and_leaves_no_gradients(config_file):
    config, device = load_config(config_file), torch.device("cpu")
    variant = Variant("sdpa", "float32")
    step = steps.build_steps("training", config, [variant], device, seed=0)[variant]
    batch, tokens = steps.batch_for("training", config, Shape(4, 32), 0.25, device, seed=0)
    ids, mask, labels = batch
    assert tokens == mask.sum() and ((labels == ids) | (labels == -100)).all()
    assert (mask[labels != -100] == 1).all() and 1 <= (labels != -100).sum() <= 0.4 * tokens
    before = [x.detach().clone() for x in step.model.parameters()]
    with torch.inference_mode():  # as it is timed
        step(*batch)
    assert any(not torch.equal(x, y) for x, y in zip(before, step.model.parameters(), strict=True))
    assert all(x.grad is None for x in step.model.parameters())
    assert step.gradient(batch).shape == (sum(x.numel() for x in before),)


def test_a_backend_that_does_not_run_here_is_recorded(monkeypatch, config_file, probes, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setitem(attention.ATTENTION_FUNCTIONS, "sdpa", broken)
    output = tmp_path / "result.json"
    more = ["--shapes", "2x16", "--memory_shapes", "--repetitions", "1", "--config", config_file, "--output", output]
    assert bench(*more, "--variants", "published:float32", "sdpa:float32") == 0
    rows = {x["variant"]: x for x in json.loads(output.read_text())["results"]}
    assert rows["published:float32"]["status"] == "measured" and rows["sdpa:float32"]["status"] == "failed"
    assert "failed in the correctness gate: RuntimeError: no kernel image" in rows["sdpa:float32"]["reason"]


def test_triton_is_never_another_backend_in_disguise(monkeypatch):
    variant, cpu = Variant("triton", "float32"), torch.device("cpu")
    monkeypatch.setattr(variants, "reason_without_triton", lambda device: "no GPU")
    assert variant.reason_to_skip(cpu, True) == "no GPU"
    monkeypatch.setattr(variants, "reason_without_triton", lambda device: None)
    asked = []

    def falls_back(*question):
        asked.append(question)
        return "sdpa"

    monkeypatch.setattr(variants, "triton_or_fallback", falls_back)
    assert "falls back to sdpa" in variant.reason_to_skip(cpu, True, "training", 32)
    assert asked == [(cpu, torch.float32, 32, 0.0, True)]
    monkeypatch.setattr(variants, "triton_or_fallback", lambda *_: "triton")
    assert variant.reason_to_skip(cpu, True) is None


def test_compiled_variants_compile_what_is_around_attention(monkeypatch, config_file):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append((type(self).__name__, how)))
    variant = Variant.parse("sdpa:float32:compiled")
    assert str(variant) == "sdpa:float32:compiled" and variant.is_compiled
    variants.build_encoders(load_config(config_file), [variant], torch.device("cpu"), seed=0)
    assert compiled == [("DNABert2MLP", {"dynamic": True}), ("DNABert2SelfOutput", {"dynamic": True})] * 2
