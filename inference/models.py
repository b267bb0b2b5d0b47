"""Models to ask: a network in evaluation mode with its tokenizer, and what decides its answers.

    loaded = load_encoder("mini", device="cpu", dtype="bfloat16")
    loaded.model(**to_inputs(columns, loaded.tokenizer, loaded.device))

Encoders may be any of `architectures/rows.json`; masked language models with base coordinates are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..architectures.encoding import fit_tokenizer, max_tokens
from ..architectures.models import architecture_of, hub_commit, load_any_tokenizer
from ..architectures.rows import Architecture
from ..bert_layers.checkpoints import checkpoint_errors
from ..bundled import locate
from ..checksums import CONFIGURATION, folder_sha256, model_sha256
from ..configuration_dnabert2 import DNABert2Config
from ..errors import UserError
from ..loading import load_model
from ..precision import resolve_dtype
from ..terminal import no_loading_report
from ..tokenizer.files import load_tokenizer

RANDOM_SEED = 42
# What code on the Hub that was written for other versions raises, and what files that are no model's do.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, AttributeError, TypeError)


@dataclass
class Loaded:
    """
    Attributes:
        identity: what decides the numbers, JSON-ready: name, checksum or commit of the weights, precision.
        max_tokens: the most tokens the model has positions for, None if any number.
    """

    model: Any
    tokenizer: Any
    architecture: Architecture
    identity: dict = field(default_factory=dict)
    max_tokens: int | None = None

    @property
    def is_ours(self) -> bool:
        """Whether tokens are byte pairs that have a place on the sequence, and windows of any of them can be read."""
        return self.architecture.code == "ours"

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def load_encoder(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    random_weights: bool = False,
) -> Loaded:
    """
    Args:
        name: a model folder, a Hub id or a bundled checkpoint.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where it is fast.
        attn_implementation: a backend; by default the fastest that works.
        trust_remote_code: run code of the model's repository.
        random_weights: its architecture with new weights, seed 42.

    Raises:
        UserError: if there is no such model, or it cannot be loaded.
    """
    architecture = architecture_of(name, trust_remote_code)
    tokenizer = load_any_tokenizer(name, architecture, trust_remote_code)
    options: dict = {"dtype": resolve_dtype(dtype, device)}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    make = _random_encoder if random_weights else _trained_encoder
    model = make(locate(name), architecture, trust_remote_code, options)
    return _loaded(name, model, tokenizer, architecture, device, options["dtype"], random_weights)


def load_masked_lm(
    name: str, *, device: str = "cpu", dtype: str = "float32", attn_implementation: str | None = None
) -> Loaded:
    """
    A DNABERT-2 model with its masked-LM head, and its encoder as `model.bert`.

    Raises:
        UserError: if there is none of this name, or its checkpoint has no such head.
    """
    architecture = architecture_of(name)
    if architecture.code != "ours":
        raise UserError(f"{name}: is {architecture.name}; variants are scored by DNABERT-2 models alone.")
    options: dict = {"dtype": resolve_dtype(dtype, device)}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    with no_loading_report():
        model, info = load_model("DNABert2ForMaskedLM", name, output_loading_info=True, **options)
    lacking = sorted(key for key in info["missing_keys"] if key.startswith("cls."))
    if lacking:
        raise UserError(
            f"{name}: its checkpoint has no masked-LM head ({lacking[0]} is missing), by which bases are scored; give "
            "a pretrained one."
        )
    return _loaded(name, model, load_tokenizer(name), architecture, device, options["dtype"], False)


def _loaded(name, model, tokenizer, architecture, device, dtype, random_weights) -> Loaded:
    fit_tokenizer(tokenizer, model)
    precision = str(dtype).removeprefix("torch.")
    identity = {"model": name, "dtype": precision, **fingerprint(name, configuration_only=random_weights)}
    model = model.to(device).eval()
    return Loaded(model, tokenizer, architecture, identity, max_tokens(architecture, model.config))


def fingerprint(name: str, configuration_only: bool = False) -> dict[str, str | None]:
    """`sha256` of a folder's configuration, tokenizer and weights in use, or the `revision` of a Hub repository."""
    folder = Path(locate(name))
    if not folder.is_dir():
        return {"revision": hub_commit(name)}
    return {"sha256": folder_sha256(folder, CONFIGURATION) if configuration_only else model_sha256(name)}


def _trained_encoder(name: str, architecture: Architecture, trusted: bool, options: dict):
    from transformers import AutoModel

    if architecture.code == "ours":
        return load_model("DNABert2Model", name, add_pooling_layer=False, **options)
    remote = architecture.runs_code(trusted)

    def load():
        with checkpoint_errors(name):
            return _without_head(AutoModel.from_pretrained(name, trust_remote_code=remote, **options))

    return or_user_error(name, "an encoder", load)


def _random_encoder(name: str, architecture: Architecture, trusted: bool, options: dict):
    from transformers import AutoConfig, AutoModel

    from ..modeling_dnabert2 import DNABert2Model

    torch.manual_seed(RANDOM_SEED)
    if architecture.code == "ours":
        return DNABert2Model(DNABert2Config.from_pretrained(name), add_pooling_layer=False).to(options["dtype"])
    remote = architecture.runs_code(trusted)

    def build():
        config = AutoConfig.from_pretrained(name, trust_remote_code=remote)
        return _without_head(AutoModel.from_config(config, trust_remote_code=remote)).to(options["dtype"])

    return or_user_error(name, "an encoder", build)


def _without_head(model):
    """The encoder: a repository's `auto_map` may name a masked language model as its AutoModel, as GENA-LM's does."""
    return model.base_model


def or_user_error(name: str, what: str, load: Callable):
    """What `load` returns; raises UserError for whatever loading a model raises if it cannot be loaded."""
    try:
        return load()
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(f"{name}: cannot be loaded as {what}: {reason}") from error
