"""Folders of tiny, random models of other people's architectures, laid out as on the Hub.

DNABERT, Nucleotide Transformer v1 and GROVER are classes of transformers and are the real ones. The others are code of
their own repositories, which is not copied here: their folders hold **stand-ins** written for these tests, small
networks with the same `model_type`, `auto_map`, tokenization, forward arguments and quirks, loaded as remote code.
"""

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    PreTrainedTokenizerFast,
)

from dnabert2.training import metric_plots

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.5,  # far larger than usual, so that what is attended to matters
}
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def no_plots():
    """Runs draw no pictures, which takes longer than all else in a run of three steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric_plots, "save", lambda figure, path: None)
        yield


@pytest.fixture
def with_mamba(tmp_path, monkeypatch):
    """An empty package of the name that Caduceus imports."""
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mamba_ssm", None)


def kmers(k: int) -> list[str]:
    return ["".join(letters) for letters in itertools.product("ATCG", repeat=k)]


def dnabert(folder: Path, k: int) -> Path:
    words = [*BERT_SPECIAL, *kmers(k)]
    BertForMaskedLM(BertConfig(vocab_size=len(words), max_position_embeddings=40, **SIZES)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def nucleotide_transformer(folder: Path) -> Path:
    words = ["<unk>", "<pad>", "<mask>", "<cls>", *kmers(6), *"ATCGN"]
    config = EsmConfig(
        vocab_size=len(words), pad_token_id=1, mask_token_id=2, max_position_embeddings=22, token_dropout=True, **SIZES
    )
    EsmForMaskedLM(config).save_pretrained(folder)
    _write_esm_tokenizer(folder, words)
    return folder


def _write_esm_tokenizer(folder: Path, words: list[str]):
    (folder / "vocab.txt").write_text("\n".join(words))
    special = {f"{name}_token": f"<{name}>" for name in ("unk", "pad", "mask", "cls")}
    settings = {**special, "eos_token": None, "bos_token": None, "tokenizer_class": "EsmTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 20}))


def byte_pairs(vocabulary_size: int, letters: str = "ACGT") -> PreTrainedTokenizerFast:
    """Byte pairs with the special tokens in BERT's order; the vocabulary is filled up with words that no DNA has."""
    a, c, g, t = letters
    words = [*BERT_SPECIAL, a, c, g, t, a + c, g + t, letters, t + t]
    words += [f"unused{i}" for i in range(vocabulary_size - len(words))]
    merges = [(a, c), (g, t), (a + c, g + t), (t, t)]
    model = models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges, unk_token="[UNK]")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(names, BERT_SPECIAL, strict=True)))


def grover(folder: Path) -> Path:
    BertForMaskedLM(BertConfig(vocab_size=609, max_position_embeddings=40, **SIZES)).save_pretrained(folder)
    byte_pairs(609).save_pretrained(folder)
    return folder


CHARACTERS = '''
from transformers import PreTrainedTokenizer


class LettersTokenizer(PreTrainedTokenizer):
    """Bases one by one, [SEP] behind; pads on the left."""

    def __init__(self, **kwargs):
        words = ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", *"ACGTN"]
        self.ids = {word: i for i, word in enumerate(words)}
        kwargs = {"unk_token": "[UNK]", "sep_token": "[SEP]", "padding_side": "left", **kwargs}
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self.ids)

    def get_vocab(self):
        return dict(self.ids)

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.ids.get(token, self.ids["[UNK]"])

    def _convert_id_to_token(self, index):
        return list(self.ids)[index]

    def build_inputs_with_special_tokens(self, first, second=None):
        return first + [1] + ([] if second is None else second + [1])

    def save_vocabulary(self, save_directory, filename_prefix=None):
        return ()
'''
CONFIGURATION = """
from transformers import PretrainedConfig


class TinyConfig(PretrainedConfig):
    model_type = "{model_type}"

    def __init__(self, vocab_size=12, d_model=8, max_seq_len=24, **kwargs):
        self.vocab_size, self.d_model, self.max_seq_len = vocab_size, d_model, max_seq_len
        super().__init__(**kwargs)
"""
# Causal: a running mean of what came before stands in for the long convolution. The head reads the token before the
# first pad, or the last one. As there, one module stands in two places, and its weight once in the checkpoint.
HYENA = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from .configuration_tiny import TinyConfig


class Mixer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x):
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return self.out_proj(torch.tanh(self.in_proj(x)).cumsum(1) / steps)


class Sine(nn.Module):
    def __init__(self):
        super().__init__()
        self.freq = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.sin(self.freq * x)


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        sine = Sine()
        self.filter = nn.Sequential(sine, nn.Identity(), sine)
        self.mixer, self.mlp = Mixer(size), nn.ModuleDict({"fc1": nn.Linear(size, size), "fc2": nn.Linear(size, size)})

    def forward(self, x):
        x = x + self.mixer(x)
        return x + self.mlp["fc2"](self.filter(self.mlp["fc1"](x)))


class TinyModel(PreTrainedModel):
    config_class, base_model_prefix = TinyConfig, "hyena"

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList([Block(config.d_model) for _ in range(2)])
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight)

    def forward(self, input_ids):
        x = self.embeddings(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


class HyenaDNAForSequenceClassification(PreTrainedModel):
    config_class, base_model_prefix = TinyConfig, "hyena"

    def __init__(self, config):
        super().__init__(config)
        self.hyena = TinyModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels, bias=False)
        self.post_init()

    _init_weights = TinyModel._init_weights

    def forward(self, input_ids=None, labels=None, return_dict=None):
        logits = self.score(self.hyena(input_ids))
        if self.config.pad_token_id is None and len(input_ids) > 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        last = torch.eq(input_ids, self.config.pad_token_id).long().argmax(-1) - 1
        return SequenceClassifierOutput(logits=logits[torch.arange(len(logits)), last])
"""
# Mamba's paths: the fused one takes weights, so that an adapter around a layer is never called.
CADUCEUS = """
import mamba_ssm
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from .configuration_tiny import TinyConfig


class Mamba(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.use_fast_path = True
        self.in_proj, self.x_proj, self.out_proj = (nn.Linear(size, size, bias=False) for _ in range(3))

    def forward(self, x):
        x = x @ self.in_proj.weight.T
        if self.use_fast_path:
            return torch.tanh(x @ self.x_proj.weight.T) @ self.out_proj.weight.T
        return self.out_proj(torch.tanh(self.x_proj(x)))


class Caduceus(PreTrainedModel):
    config_class, base_model_prefix = TinyConfig, "caduceus"

    def __init__(self, config):
        super().__init__(config)
        self.embeddings, self.mixer = nn.Embedding(config.vocab_size, config.d_model), Mamba(config.d_model)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight)

    def forward(self, input_ids):
        return self.mixer(self.embeddings(input_ids))


class CaduceusForSequenceClassification(PreTrainedModel):
    config_class, base_model_prefix = TinyConfig, "caduceus"

    def __init__(self, config):
        super().__init__(config)
        self.caduceus, self.score = Caduceus(config), nn.Linear(config.d_model, config.num_labels, bias=False)
        self.post_init()

    _init_weights = Caduceus._init_weights

    def forward(self, input_ids=None, labels=None):
        return SequenceClassifierOutput(logits=self.score(self.caduceus(input_ids).mean(1)))
"""


def letters_model(folder: Path, model_type: str, code: str, class_name: str, base: str) -> Path:
    """A stand-in that reads bases one by one: its code, its tokenizer, and weights without a head."""
    folder.mkdir()
    (folder / "configuration_tiny.py").write_text(CONFIGURATION.format(model_type=model_type))
    (folder / "modeling_tiny.py").write_text(code)
    (folder / "tokenization_tiny.py").write_text(CHARACTERS)
    modules = {
        "AutoConfig": "configuration_tiny.TinyConfig",
        "AutoModelForSequenceClassification": f"modeling_tiny.{class_name}",
    }
    sizes = {"vocab_size": 12, "d_model": 8, "max_seq_len": 24}
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": modules, **sizes}))
    tokenizer = {
        "tokenizer_class": "LettersTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_tiny.LettersTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    generator = torch.Generator().manual_seed(0)
    size = (sizes["d_model"], sizes["d_model"])
    weights = {f"{base}.embeddings.weight": torch.randn(12, 8, generator=generator)}
    if base == "hyena":
        weights |= {f"hyena.layers.{layer}.filter.0.freq": torch.full((1,), 2.5) for layer in range(2)}
        for layer, name in itertools.product(range(2), ("mixer.in_proj", "mixer.out_proj", "mlp.fc1", "mlp.fc2")):
            weights[f"hyena.layers.{layer}.{name}.weight"] = torch.randn(size, generator=generator)
            weights[f"hyena.layers.{layer}.{name}.bias"] = torch.randn(8, generator=generator)
    else:
        weights |= {
            f"caduceus.mixer.{name}.weight": torch.randn(size, generator=generator)
            for name in ("in_proj", "x_proj", "out_proj")
        }
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def hyenadna(folder: Path) -> Path:
    return letters_model(folder, "hyenadna", HYENA, "HyenaDNAForSequenceClassification", "hyena")


def caduceus(folder: Path) -> Path:
    return letters_model(folder, "caduceus", CADUCEUS, "CaduceusForSequenceClassification", "caduceus")


def gena_lm(folder: Path) -> Path:
    """Layer norm before instead of behind, and an `auto_map` that names no classifier."""
    config = BertConfig(vocab_size=40, max_position_embeddings=40, pre_layer_norm=True, **SIZES)
    BertForMaskedLM(config).save_pretrained(folder)
    byte_pairs(40).save_pretrained(folder)
    code = """
from transformers import BertForMaskedLM as Stock, BertForSequenceClassification as StockClassifier


class BertForMaskedLM(Stock):
    pass


class BertForSequenceClassification(StockClassifier):
    is_of_gena_lm = True
"""
    return _with_code(folder, "modeling_bert", code, {"AutoModel": "modeling_bert.BertForMaskedLM"})


def nucleotide_transformer_v2(folder: Path) -> Path:
    """`model_type` "esm", as stock ESM, and a configuration and classifier of its own."""
    nucleotide_transformer(folder)
    code = """
from transformers import EsmConfig as Stock, EsmForSequenceClassification as StockClassifier


class EsmConfig(Stock):
    pass


class EsmForSequenceClassification(StockClassifier):
    config_class = EsmConfig
    is_of_version_2 = True
"""
    modules = {
        "AutoConfig": "modeling_esm.EsmConfig",
        "AutoModelForSequenceClassification": "modeling_esm.EsmForSequenceClassification",
    }
    return _with_code(folder, "modeling_esm", code, modules)


def _with_code(folder: Path, module: str, code: str, modules: dict) -> Path:
    (folder / f"{module}.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": modules}))
    return folder
