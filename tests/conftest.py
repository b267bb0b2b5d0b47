"""Shared fixtures: tiny models under known weights, batches with every kind of padding, the folder of golden outputs.

Test modules are imported by path (`--import-mode=importlib`): helpers are fixtures that return functions, or modules
of `helpers`.
"""

import os
import sys
import zlib
from pathlib import Path

# Before torch loads, and for the interpreters that tests start: threads that wait for each other on a busy machine
# cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy
import pytest
import torch
from transformers import dynamic_module_utils
from transformers.utils import is_triton_available

# Before the kernels' first import: without a GPU, Triton's interpreter runs them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from dnabert2 import DNABert2Config

SHARED = Path(__file__).parents[2] / "shared"
PAD = 3
PADDINGS = ("none", "right", "left", "both", "mixed", "holes", "all_pad_row")


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    """Tiny tensors are slower on many threads, and test processes share the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def code_cache(tmp_path_factory):
    """
    Where transformers copies the code that it runs: not the user's cache, which other processes write to, and none of
    another module's code, which is found again under the names of folders such as `run`.
    """
    path = str(tmp_path_factory.mktemp("modules"))
    forget_remote_code()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", path)
        patch.setattr(sys, "path", [path, *sys.path])
        yield
    forget_remote_code()


def forget_remote_code():
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def shared():
    """The folder of reference material beside the repository; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED.name}/ beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def kernels():
    """Skips a test where the Triton kernels can run neither on a GPU nor under the interpreter."""
    if not is_triton_available():
        pytest.skip("Triton is not installed")
    import triton

    if torch.cuda.is_available():
        yield
        return
    versions = [tuple(int(x) for x in module.__version__.split(".")[:2]) for module in (triton, numpy)]
    if versions[0] < (3, 7) and versions[1] >= (2, 4):
        pytest.skip("the interpreter of Triton before 3.7 does not work with numpy 2.4")
    with pytest.MonkeyPatch.context() as patch:
        interpret_bfloat16(patch)
        yield


def interpret_bfloat16(patch):
    """Mends Triton's interpreter, which multiplies the bits of bfloat16 as integers and rounds to it towards zero."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widen(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(numpy.uint32) << 16).view(numpy.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return dot(self, widen(a), widen(b), *rest)

    def cast_impl(self, source, target):
        source = widen(source)
        if target.scalar != tl.bfloat16:
            return cast(self, source, target)
        rounded = torch.from_numpy(source.data.astype(numpy.float32)).bfloat16()
        return TensorHandle(rounded.view(torch.int16).numpy().view(numpy.uint16), tl.bfloat16)

    patch.setattr(InterpreterBuilder, "create_dot", create_dot)
    patch.setattr(InterpreterBuilder, "cast_impl", cast_impl)


@pytest.fixture
def poison(monkeypatch):
    """`torch.empty` and `torch.empty_like` give NaN, and integers that are no place in any sequence."""
    empty, empty_like = torch.empty, torch.empty_like

    def spoil(x):
        return x.fill_(float("nan") if x.is_floating_point() else -(2**30))

    monkeypatch.setattr(torch, "empty", lambda *args, **options: spoil(empty(*args, **options)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **options: spoil(empty_like(*args, **options)))


@pytest.fixture(scope="session")
def small_config():
    """Factory: a configuration that differs from the default in size alone; three heads, not a power of two."""

    def make(**overrides) -> DNABert2Config:
        sizes = {
            "vocab_size": 64,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 20,
        }
        return DNABert2Config(**{**sizes, **overrides})

    return make


def known_weight(key: str, shape) -> torch.Tensor:
    """The weight called `key` under the rule of the golden outputs: a function of its name and shape alone."""
    values = numpy.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape)).astype("float32")
    if key.endswith(("LayerNorm.weight", "layernorm.weight")):
        values = 1 + 0.1 * values
    elif key.endswith("bias"):
        values = 0.05 * values
    elif "Wqkv" in key:
        values = values * 2 / numpy.sqrt(shape[-1])
    elif len(shape) == 2 and "embeddings" not in key and "decoder" not in key:
        values = values / numpy.sqrt(shape[-1])
    else:
        values = 0.5 * values
    return torch.from_numpy(values.astype("float32"))


@pytest.fixture(scope="session")
def fill():
    """Function: give a model the known weights, far larger than new ones, so that attention matters; returns it."""

    def apply(model):
        prefix = "" if hasattr(model, "bert") else "bert."
        weights = {key: known_weight(prefix + key, value.shape) for key, value in model.state_dict().items()}
        if "cls.predictions.decoder.weight" in weights:
            weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
        model.load_state_dict(weights)
        return model

    return apply


@pytest.fixture(scope="session")
def build(small_config, fill):
    """Factory: a small model of a class in evaluation mode, under the known weights, with a backend of choice."""

    def make(model_class, backend: str = "eager", **overrides):
        model = fill(model_class(small_config(**overrides))).eval()
        model.set_attn_implementation(backend)
        return model

    return make


def make_mask(kind: str, length: int) -> torch.Tensor:
    half, third = length // 2, length // 3
    mask = torch.ones((3, length), dtype=torch.int64)
    if kind in ("right", "mixed"):
        mask[1, length - half :] = 0
        mask[2, min(1, length - 1) + 1 :] = 0
    if kind == "left":
        mask[0, :third] = 0
        mask[2, :half] = 0
    if kind == "mixed":  # one sequence padded on each side, one almost empty
        mask[0, :third] = 0
    if kind == "both":
        mask[:, :third] = 0
        mask[1:, length - third :] = 0
    if kind == "holes":
        mask[0, 1::3] = 0
        mask[2, third : third + 2] = length < 3
    if kind == "all_pad_row":
        mask[1] = 0
        mask[2, length - half :] = 0
    return mask


@pytest.fixture(scope="session")
def batch():
    """Factory: `input_ids`, `attention_mask` and `token_type_ids` of three sequences with a kind of padding."""

    def make(kind: str = "right", length: int = 12, vocab_size: int = 64) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(length)
        mask = make_mask(kind, length)
        ids = torch.randint(5, vocab_size, mask.shape, generator=generator)
        types = torch.randint(0, 2, mask.shape, generator=generator)
        return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask, "token_type_ids": types}

    return make


@pytest.fixture(params=PADDINGS)
def padding(request) -> str:
    """Every kind of padding in turn."""
    return request.param


@pytest.fixture(scope="session")
def relative_error():
    """Function: greatest absolute difference over the reference's greatest absolute value, both in float64."""

    def error(actual: torch.Tensor, reference: torch.Tensor) -> float:
        assert actual.shape == reference.shape
        if not reference.numel():
            return 0.0
        actual, reference = actual.detach().double(), reference.detach().double()
        difference = (actual - reference).abs().max()
        return float(difference / reference.abs().max().clamp(min=1e-30))

    return error
