"""What the encoder benchmark compares (backends in precisions), on what shapes, with which weights and batches."""

import copy
import importlib.util
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..bert_layers.attention import ATTENTION_FUNCTIONS
from ..bert_layers.triton_backend import triton_or_fallback
from ..configuration_dnabert2 import DNABert2Config
from ..errors import UserError
from ..modeling_dnabert2 import DNABert2Model
from ..precision import DTYPES, has_fast_bfloat16, has_fast_float16, resolve_dtype
from .published import PublishedEncoder
from .rivals import reason_without_triton

PUBLISHED = "published"
COMPILED = "compiled"


@dataclass(frozen=True)
class Shape:
    """A padded batch: sequences, and tokens in the longest; written "8x512"."""

    batch_size: int
    length: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
            raise UserError(f"{text!r} is not a shape: write sequences x tokens, such as 8x512.")
        return cls(*(int(number) for number in text.split("x")))

    def __str__(self) -> str:
        return f"{self.batch_size}x{self.length}"


@dataclass(frozen=True)
class Variant:
    """
    A backend in a precision; written "sdpa:float32", or "sdpa:auto" until `resolved` says what that is.

    "triton:bfloat16:compiled" has the layers' MLP and output projection go through `torch.compile`, which fuses what
    is not a matrix product; attention is no part of that.
    """

    backend: str
    dtype: str
    is_compiled: bool = False

    @classmethod
    def parse(cls, text: str) -> "Variant":
        backend, _, rest = text.partition(":")
        dtype, _, how = rest.partition(":")
        backends = [PUBLISHED, *ATTENTION_FUNCTIONS]
        is_known = backend in backends and dtype in (*DTYPES, "auto") and how in ("", COMPILED)
        if not is_known or text.endswith(":"):
            raise UserError(
                f"{text!r} is not a variant: write backend:precision, such as sdpa:float32, with a backend of "
                f"{', '.join(backends)} and a precision of {', '.join(DTYPES)} or auto, and perhaps :{COMPILED}."
            )
        return cls(backend, dtype, how == COMPILED)

    def __str__(self) -> str:
        return f"{self.backend}:{self.dtype}" + f":{COMPILED}" * self.is_compiled

    def resolved(self, device: torch.device) -> "Variant":
        """The variant with "auto" replaced by what is fast on `device`."""
        return replace(self, dtype=str(resolve_dtype(self.dtype, device)).removeprefix("torch."))

    @property
    def model_backend(self) -> str:
        """`attn_implementation` of the model that holds the weights."""
        return "eager" if self.backend == PUBLISHED else self.backend

    def reason_to_skip(
        self, device: torch.device, include_slow: bool, direction: str = "forward", head_dim: int = 64
    ) -> str | None:
        """Why this variant cannot or need not be measured on `device`; None if it is to be measured."""
        if self.backend == "flash_attention_2":
            if device.type != "cuda" or importlib.util.find_spec("flash_attn") is None:
                return "flash_attention_2 needs a CUDA device and the flash-attn package"
            if self.dtype == "float32":
                return "flash_attention_2 computes in half precision only"
        if self.backend == "flex_attention" and device.type == "cpu" and direction == "training":
            return "flex_attention has no backward on a CPU"
        if self.backend == "triton":
            reason = reason_without_triton(device)
            # A model of this backend would compute with another, and its numbers would be called ours.
            if reason is None and _falls_back(device, DTYPES[self.dtype], head_dim, direction):
                reason = "the triton backend falls back to sdpa here, for the reason in its warning"
            if reason is not None:
                return reason
        fast = {"float32": lambda _: True, "bfloat16": has_fast_bfloat16, "float16": has_fast_float16}[self.dtype]
        if not include_slow and not fast(device):
            return f"this device has no {self.dtype} instructions; --include_slow measures their emulation"
        return None


def _falls_back(device: torch.device, dtype: torch.dtype, head_dim: int, direction: str) -> bool:
    # The device as tensors name it, which is what the model asks with.
    device = torch.empty(0, device=device).device
    return triton_or_fallback(device, dtype, head_dim, 0.0, direction == "training") != "triton"


def load_config(path: Path | None) -> DNABert2Config:
    """The configuration in a JSON file, or that of DNABERT-2-117M; raises UserError for a file that holds none."""
    if path is None:
        return DNABert2Config()
    try:
        return DNABert2Config.from_dict(json.loads(Path(path).read_text()))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the configuration of a DNABERT-2 network: {error}") from error


def check_device(name: str) -> torch.device:
    """The device called `name`; raises UserError if it is not cpu or cuda, or not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{name!r} is not a device: choose cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{name!r} cannot be measured here: choose cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices.")
    return device if device.type == "cpu" else torch.device("cuda", device.index or 0)


class LastHiddenState(nn.Module):
    """A model of this package as a function of ids and mask, in the signature of `PublishedEncoder`."""

    def __init__(self, model: DNABert2Model):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, attention_mask).last_hidden_state


def build_encoders(
    config: DNABert2Config, variants: list[Variant], device: torch.device, seed: int
) -> dict[Variant, nn.Module]:
    """
    One encoder a variant, all with the same random weights (`benchmark_config`), held once a precision.

    Returns:
        Modules that take (batch, length) ids and mask and give the last hidden state (batch, length, hidden).
    """
    config = benchmark_config(config)
    torch.manual_seed(seed)
    weights = {"float32": _build_model(config, "eager").to(device).state_dict()}
    encoders = {}
    for variant in variants:
        if variant.dtype not in weights:
            dtype = DTYPES[variant.dtype]
            weights[variant.dtype] = {name: tensor.to(dtype) for name, tensor in weights["float32"].items()}
        model = _build_model(config, variant.model_backend).to(device)
        model.load_state_dict(weights[variant.dtype], assign=True)
        encoders[variant] = encoder_of(model, variant)
    return encoders


def benchmark_config(config: DNABert2Config) -> DNABert2Config:
    """
    `config` for random weights of the right size.

    Their standard deviation is 0.02 at 768 wide, as in the published model, and scaled to any other width, so that
    attention carries as much of the output there: with 0.02 in a narrow network a fault in it would go unseen.
    """
    config = copy.deepcopy(config)
    config.initializer_range = 0.02 * (768 / config.hidden_size) ** 0.5
    return config


def encoder_of(model: DNABert2Model, variant: Variant) -> nn.Module:
    """`model` as a function of ids and mask, computing as `variant` says."""
    if variant.is_compiled:
        for layer in model.encoder.layer:
            for module in (layer.mlp, layer.attention.output):
                module.compile(dynamic=True)  # one graph for every length; torch gives up after eight
    return PublishedEncoder(model) if variant.backend == PUBLISHED else LastHiddenState(model)


def _build_model(config: DNABert2Config, backend: str) -> DNABert2Model:
    # The published algorithm has no pooler either: all variants end at the last hidden state.
    model = DNABert2Model._from_config(copy.deepcopy(config), attn_implementation=backend, add_pooling_layer=False)
    return model.eval()


def batch_of(
    config: DNABert2Config, shape: Shape, padding: float, device: torch.device, seed: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], int]:
    """The batch of a shape, (ids, mask) as in `draw_batch`, and its number of tokens; the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    lengths = draw_lengths(shape, padding, generator)
    return draw_batch(config, lengths, shape.length, device, generator), sum(lengths)


def draw_lengths(shape: Shape, padding: float, generator: torch.Generator) -> list[int]:
    """
    Tokens of each sequence, at least one, so that pads are `padding` of the batch, to the nearest token possible.

    With more than one sequence and room for it the longest fills its row, as a tokenizer's padding has it.
    """
    room = shape.length - 1  # pads a row can take
    pads = min(round(padding * shape.batch_size * shape.length), shape.batch_size * room)
    full_rows = int(pads <= (shape.batch_size - 1) * room)
    shares = torch.rand(shape.batch_size - full_rows, generator=generator)
    dropped = [min(room, int(pads * share)) for share in (shares / shares.sum()).tolist()]
    left = pads - sum(dropped)
    for row, taken in enumerate(dropped):
        dropped[row] += min(left, room - taken)
        left -= dropped[row] - taken
    return [shape.length] * full_rows + [shape.length - taken for taken in dropped]


def draw_batch(
    config: DNABert2Config, lengths: list[int], width: int, device: torch.device, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and mask, (batch, width) int64 on `device`: sequences of `lengths` tokens, pads on the right."""
    first = min(5, config.vocab_size - 1)  # ids below 5 are special tokens
    input_ids = torch.randint(first, config.vocab_size, (len(lengths), width), generator=generator)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    input_ids = input_ids.masked_fill(~mask, config.pad_token_id or 0)
    return input_ids.to(device), mask.long().to(device)
