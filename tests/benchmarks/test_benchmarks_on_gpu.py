"""Both benchmarks from end to end where there is a GPU: events, the allocator's count, every rival that is there."""

import json

import pytest
import torch

from dnabert2.benchmarks import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_attention(kernels, tmp_path):
    output = tmp_path / "attention.json"
    more = ["--lengths", "1024", "--tokens", "2048", "--heads", "3", "--repetitions", "3", "--warmup", "1"]
    assert main.main(["attention", "--device", "cuda", *more, "--output", str(output)]) == 0
    rows = {(x["layout"], x["direction"], x["variant"]): x for x in json.loads(output.read_text())["results"]}
    for layout in ("equal", "mixed"):
        for direction in ("forward", "backward", "both"):
            for name in ("triton", "triton_exact", "triton_fp32", "triton_no_bias", "flex_alibi", "published"):
                row = rows[layout, direction, name]
                assert row["status"] == "measured", (name, row["reason"])
                assert row["tflops"]["p50"] > 0 and row["peak_memory_bytes_above_inputs"] > 0
    for name in ("sdpa_flash", "sdpa_cudnn", "sdpa_bias_efficient"):
        row = rows["equal", "both", name]
        assert row["status"] == "measured", (name, row["reason"])


def test_encoder(kernels, tmp_path):
    config = {"model_type": "dnabert2", "vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    output = tmp_path / "encoder.json"
    more = ["--config", str(tmp_path / "config.json"), "--shapes", "2x600", "--memory_shapes", "1x2048", "1x4096"]
    assert main.main(["encoder", "--device", "cuda", *more, "--repetitions", "3", "--output", str(output)]) == 0
    rows = {(x["direction"], x["shape"], x["variant"]): x for x in json.loads(output.read_text())["results"]}
    for direction in ("forward", "training"):
        for name in ("published", "sdpa", "flex_attention", "triton"):
            row = rows[direction, "2x600", f"{name}:bfloat16"]
            assert row["status"] == "measured", (name, row["reason"])
            assert row["peak_memory_bytes_above_weights"] > 0
        short, long = (rows[direction, f"1x{n}", "triton:bfloat16"] for n in (2048, 4096))
        key = "peak_memory_bytes_above_weights"
        assert short["status"] == long["status"] == "measured" and long[key] < 2.2 * short[key]
