"""The `triton` backend beside `eager` in every layout, and when it gives way to `sdpa`, with one warning and why."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dnabert2 import DNABert2ForMaskedLM, DNABert2Model
from dnabert2.bert_layers import triton_backend
from dnabert2.bert_layers.alibi import alibi_slopes
from dnabert2.bert_layers.attention import ATTENTION_FUNCTIONS
from dnabert2.bert_layers.triton_backend import triton_or_fallback
from dnabert2.bert_layers.unpadding import packed_layout, padded_layout

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def warnings(monkeypatch):
    """What the backend says; transformers keeps a warning it has given, so that a test would hear it only once."""
    said = []
    monkeypatch.setattr(triton_backend.logger, "warning_once", said.append, raising=False)
    return said


@pytest.fixture
def no_memory():
    """Forgets the self-checks of other tests, and its own."""
    triton_backend._fault.cache_clear()
    yield
    triton_backend._fault.cache_clear()


def layouts(mask):
    packed, padded = packed_layout(mask), padded_layout(None if mask.all() else mask, *mask.shape)
    return [packed, padded] if packed.is_packed else [padded]


@pytest.mark.parametrize("length", [9, 150])
def test_agrees_with_eager_in_every_layout(kernels, length, padding, batch, relative_error):
    mask = (batch(padding, length)["attention_mask"] != 0).to(DEVICE)
    heads, head_dim = 2, 16
    generator = torch.Generator().manual_seed(length)
    qkv = torch.randn((3, *mask.shape, heads, head_dim), generator=generator).to(DEVICE)
    direction = torch.randn(qkv.shape[1:], generator=generator).to(DEVICE)
    slopes = torch.tensor(alibi_slopes(heads), device=DEVICE)

    def run(name, layout):
        inputs = [x.detach().clone().requires_grad_() for x in qkv]
        output, _ = ATTENTION_FUNCTIONS[name](*(layout.gather(x) for x in inputs), slopes, layout)
        output = layout.scatter(output.flatten(-2)).unflatten(-1, (heads, head_dim))
        return output, torch.autograd.grad((output * direction).sum(), inputs)

    expected, expected_gradients = run("eager", layouts(mask)[-1])
    for layout in layouts(mask):
        output, gradients = run("triton", layout)
        assert relative_error(output, expected) < 1e-6
        assert (output[~mask] == 0).all()
        for got, wanted in zip(gradients, expected_gradients, strict=True):
            assert (got[~mask] == 0).all()
            assert (got - wanted).abs().max() < 2e-6 * expected_gradients[2].abs().max()


def test_a_batch_is_planned_once(kernels, build, batch, monkeypatch):
    from dnabert2.bert_layers import flash_alibi

    model = build(DNABert2Model, "triton").to(DEVICE)
    inputs = {key: value.to(DEVICE) for key, value in batch("mixed", 9).items()}
    with torch.no_grad():
        model(**inputs)  # the self-check plans too
        plans = []
        plan = flash_alibi.tile_plan
        monkeypatch.setattr(flash_alibi, "tile_plan", lambda *arguments: plans.append(plan(*arguments)) or plans[-1])
        model(**inputs)
    assert len(plans) == 1 < model.config.num_hidden_layers


def test_model_under_gradient_checkpointing(kernels, build, batch):
    model = build(DNABert2ForMaskedLM, "triton", hidden_dropout_prob=0.0).to(DEVICE).train()
    inputs = {key: value.to(DEVICE) for key, value in batch("mixed", 20).items()}
    found = []
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        switch()
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(plain, checkpointed) for plain, checkpointed in zip(*found, strict=True))


def test_model_under_autocast(kernels, build, batch):
    """Queries come in half precision then, whatever the weights are."""
    dtype = torch.float16 if DEVICE.type == "cpu" else torch.bfloat16
    inputs = {key: value.to(DEVICE) for key, value in batch("mixed", 20).items()}
    found = []
    for backend in ("triton", "sdpa"):
        model = build(DNABert2Model, backend).to(DEVICE)
        with torch.no_grad(), torch.autocast(DEVICE.type, dtype):
            found.append(model(**inputs).last_hidden_state.float())
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02)
    assert not torch.equal(*found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_default_without_a_gpu(small_config):
    assert DNABert2Model(small_config()).config._attn_implementation == "sdpa"


def test_default_on_a_gpu(small_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton_backend, "is_triton_available", lambda: True)
    monkeypatch.setattr(triton_backend, "gpu_architecture", lambda device: "sm_80")
    model = DNABert2ForMaskedLM(small_config())
    assert model.config._attn_implementation == model.bert.config._attn_implementation == "triton"
    model.set_attn_implementation("sdpa")
    assert model.bert.config._attn_implementation == "sdpa"
    assert DNABert2Model._from_config(small_config(), attn_implementation="sdpa").config._attn_implementation == "sdpa"
    monkeypatch.setattr(triton_backend, "gpu_architecture", lambda device: "sm_75")  # a T4
    assert DNABert2Model(small_config()).config._attn_implementation == "sdpa"
    monkeypatch.setattr(triton_backend, "gpu_architecture", lambda device: "gfx942")
    assert DNABert2Model(small_config()).config._attn_implementation == "triton"
    monkeypatch.setattr(triton_backend, "is_triton_available", lambda: False)
    assert DNABert2Model(small_config()).config._attn_implementation == "sdpa"


def test_falls_back_without_triton(build, batch, warnings, monkeypatch):
    monkeypatch.setattr(triton_backend, "is_triton_available", lambda: False)
    model, expected = build(DNABert2Model, "triton"), build(DNABert2Model, "sdpa")
    with torch.no_grad():
        assert torch.equal(model(**batch("mixed"))[0], expected(**batch("mixed"))[0])
    assert warnings == ['Attention falls back from "triton" to "sdpa": Triton is not installed.']


def test_falls_back_from_a_broken_triton(warnings, monkeypatch):
    monkeypatch.setattr(triton_backend, "is_triton_available", lambda: True)
    monkeypatch.setitem(sys.modules, "dnabert2.bert_layers.flash_alibi", None)  # importing it raises
    monkeypatch.delattr(sys.modules["dnabert2.bert_layers"], "flash_alibi", raising=False)
    assert triton_or_fallback(DEVICE, torch.float32, 16, 0.0, False) == "sdpa"
    assert len(warnings) == 1 and "Triton cannot be imported (" in warnings[0]


def test_falls_back_for_attention_dropout(kernels, build, batch, warnings):
    model = build(DNABert2Model, "triton", attention_probs_dropout_prob=0.1).to(DEVICE).train()
    model(**{key: value.to(DEVICE) for key, value in batch("mixed").items()})
    assert len(warnings) == 1 and "it has no attention dropout" in warnings[0]
    model.eval()(**{key: value.to(DEVICE) for key, value in batch("mixed").items()})  # none there, and no warning
    assert len(warnings) == 1
    with pytest.raises(ValueError, match="triton has no attention dropout"):
        q = torch.ones((4, 1, 16), device=DEVICE)
        ATTENTION_FUNCTIONS["triton"](q, q, q, None, None, dropout=0.1)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "reason"),
    [
        (torch.float64, 16, "it does not compute in float64"),
        (torch.float32, 256, "heads of 256 dimensions are larger than its 128"),
    ],
)
def test_falls_back_for_what_the_kernels_do_not_do(kernels, dtype, head_dim, reason, warnings):
    assert triton_or_fallback(DEVICE, dtype, head_dim, 0.0, False) == "sdpa"
    assert warnings == [f'Attention falls back from "triton" to "sdpa": {reason}.']


def test_falls_back_without_a_gpu(kernels, warnings, monkeypatch):
    from dnabert2.bert_layers import flash_alibi

    monkeypatch.setattr(flash_alibi, "IS_INTERPRETED", False)
    assert triton_or_fallback(torch.device("cpu"), torch.float32, 16, 0.0, False) == "sdpa"
    assert "it needs a GPU, and the model is on cpu" in warnings[0]


@pytest.mark.parametrize("backward", [False, True])
def test_checks_itself_once(kernels, no_memory, backward, warnings, monkeypatch):
    runs = []
    error = triton_backend._relative_error
    monkeypatch.setattr(triton_backend, "_relative_error", lambda *options: runs.append(options) or error(*options))
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        for _ in range(2):
            assert triton_or_fallback(DEVICE, torch.float32, 16, 0.0, backward) == "triton"
    assert len(runs) == len(triton_backend.CHECK_LENGTHS) and not warnings
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("value", [1.001, float("nan")])
def test_falls_back_from_wrong_results(kernels, no_memory, value, warnings, monkeypatch):
    from dnabert2.bert_layers import flash_alibi

    attention = flash_alibi.alibi_attention
    monkeypatch.setattr(flash_alibi, "alibi_attention", lambda *arguments: attention(*arguments) * value)
    monkeypatch.setattr(triton_backend, "CHECK_LENGTHS", ([20, 9],))
    assert triton_or_fallback(DEVICE, torch.float32, 16, 0.0, False) == "sdpa"
    assert len(warnings) == 1 and "its first run was off by a relative error of" in warnings[0]


def test_falls_back_from_a_kernel_that_does_not_compile(kernels, no_memory, build, batch, warnings, monkeypatch):
    from dnabert2.bert_layers import flash_alibi

    def fail(*arguments, **options):
        raise RuntimeError("out of resource: shared memory\nRequired: 70000")

    monkeypatch.setattr(flash_alibi, "_launch", fail)
    model = build(DNABert2Model, "triton").to(DEVICE)
    with torch.no_grad():
        assert model(**{key: value.to(DEVICE) for key, value in batch("mixed").items()})[0].isfinite().all()
    assert len(warnings) == 1
    assert "its first run failed (RuntimeError: out of resource: shared memory)" in warnings[0]


def test_triton_is_imported_by_its_first_use_only():
    code = (
        "import sys, torch, dnabert2; from dnabert2 import DNABert2Config, DNABert2Model; "
        "model = DNABert2Model(DNABert2Config(hidden_size=16, num_attention_heads=1, num_hidden_layers=1)); "
        "model(torch.tensor([[5, 6]])); "
        "print(*(name for name in sys.modules if name.split('.')[-1] in ('flash_alibi', 'alibi_kernels')))"
    )
    if torch.cuda.is_available():
        pytest.skip("triton is the default here")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_ddp_of_two_processes(kernels, small_config, tmp_path):
    """The gradient of two processes with half a batch each is that of one process with all of it."""
    config = small_config(hidden_dropout_prob=0.0)
    config.to_json_file(tmp_path / "config.json")
    halves = torch.randint(5, 64, (2, 2, 11), generator=torch.Generator().manual_seed(0))
    torch.save(halves, tmp_path / "inputs.pt")
    files = [str(tmp_path / name) for name in ("config.json", "inputs.pt", "gradients.pt")]
    worker = str(Path(__file__).with_name("ddp_worker.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", worker, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    gradients = torch.load(files[2])

    torch.manual_seed(0)
    model = DNABert2ForMaskedLM._from_config(config, attn_implementation="eager")
    inputs = halves.flatten(0, 1)
    model(input_ids=inputs, labels=inputs).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
