"""The benchmark of block sizes, under Triton's interpreter on a small problem with few candidates."""

import importlib
import json

import pytest
import torch

from dnabert2.benchmarks import kernels as bench_kernels
from dnabert2.benchmarks import main
from dnabert2.bert_layers.kernel_configs import KernelConfig, kind_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = ["--device", DEVICE, "--dtype", "float16", "--tokens", "140", "--heads", "1", "--head_dim", "16"]
SMALL += ["--repetitions", "3", "--warmup", "0"]


def bench(*more):
    return main.main(["kernels", *map(str, [*SMALL, *more])])


@pytest.fixture
def few(kernels, monkeypatch):
    """Two candidates a kernel."""
    for kernel in bench_kernels.CANDIDATES:
        candidates = [KernelConfig(64, 64, 4, 1), KernelConfig(128, 128, 8, 1)]
        monkeypatch.setitem(bench_kernels.CANDIDATES, kernel, candidates)


def test_times_each_kernel_that_a_length_runs(few, tmp_path, capsys):
    assert bench("--lengths", 60, 140, "--output", tmp_path / "kernels.json") == 0
    result = json.loads((tmp_path / "kernels.json").read_text())
    assert result["complete"] and result["architecture"] and result["products"] == "half"
    found = {(x["length"], x["kernel"]) for x in result["results"]}
    assert found == {
        *((60, x) for x in ("forward", "block_gradient")),
        *((140, x) for x in ("forward", "query_gradient", "key_gradient")),
    }
    for place in found:
        rows = [x for x in result["results"] if (x["length"], x["kernel"]) == place]
        assert all(x["status"] == "measured" and x["seconds"]["p50"] > 0 for x in rows)
        assert sum(x["is_table"] for x in rows) == 1 and 2 <= len(rows) <= 3
    printed = capsys.readouterr().out
    assert printed.count("the table's") == 5 and "128x128 | 8 | 1" in printed


def test_each_candidate_is_what_runs(few, monkeypatch, tmp_path):
    flash_alibi = importlib.import_module("dnabert2.bert_layers.flash_alibi")
    seen, launch = set(), flash_alibi._launch

    def spy(kernel, q, mask, plan, max_seqlen, *arguments, **options):
        name = kernel.fn.__name__.removesuffix("_kernel")
        seen.add((name, flash_alibi.kernel_config(name, *kind_of(q), max_seqlen)))
        launch(kernel, q, mask, plan, max_seqlen, *arguments, **options)

    monkeypatch.setattr(flash_alibi, "_launch", spy)
    before = flash_alibi.kernel_config
    assert bench("--lengths", 140, "--kernels", "key_gradient") == 0
    tried = {config for name, config in seen if name == "key_gradient"}
    assert tried >= set(bench_kernels.CANDIDATES["key_gradient"])
    assert len({config for name, config in seen if name == "query_gradient"}) == 1
    assert flash_alibi.kernel_config is before


def test_what_fails_is_in_the_result(few, monkeypatch, tmp_path):
    """One candidate raises, another is wrong; a sequence too long for its one block is not run."""
    flash_alibi = importlib.import_module("dnabert2.bert_layers.flash_alibi")
    attention = flash_alibi.planned_attention

    def planned_attention(q, *arguments, **options):
        config = flash_alibi.kernel_config("forward", *kind_of(q), 140)
        if config.block_n == 128:
            raise RuntimeError("out of resource: shared memory")
        return attention(q, *arguments, **options) + (0.1 if config.num_stages == 4 else 0.0)

    monkeypatch.setattr(flash_alibi, "planned_attention", planned_attention)
    wrong = KernelConfig(64, 64, 4, 4)
    monkeypatch.setitem(bench_kernels.CANDIDATES, "forward", [wrong, KernelConfig(64, 128, 4, 1)])
    output = tmp_path / "kernels.json"
    assert bench("--lengths", 140, "--kernels", "forward", "--output", output) == 0
    own, wrong, raised = json.loads(output.read_text())["results"]
    assert own["is_table"] and own["status"] == "measured"
    assert wrong["status"] == "failed" and wrong["reason"].startswith("differs by ")
    assert raised["status"] == "failed" and "out of resource" in raised["reason"]
    monkeypatch.setitem(bench_kernels.CANDIDATES, "block_gradient", [KernelConfig(32, 32, 4, 1)])
    assert bench("--lengths", 60, "--kernels", "block_gradient", "--output", output) == 0
    assert "shorter than the sequence" in json.loads(output.read_text())["results"][1]["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernels", "sideways"], "'sideways' is not a kernel"),
        (["--dtype", "int8"], "--dtype takes"),
        (["--lengths", "0"], "must be at least 1"),
        (["--repetitions", "0"], "--repetitions must be at least 1"),
        (["--device", "tpu"], "is not a device"),
    ],
)
def test_options_that_cannot_be_used(arguments, message, capsys):
    assert bench(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has them")
def test_the_interpreter_has_no_bfloat16_products(capsys):
    pytest.importorskip("triton", reason="Triton is not installed")
    assert bench("--dtype", "bfloat16") == 2
    assert "no bfloat16 products" in capsys.readouterr().err
