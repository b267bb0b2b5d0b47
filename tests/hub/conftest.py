"""Fixtures of the publishing tests: a tiny published-layout folder, the Hub folder of it, fresh interpreters."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
from dnabert2.hub.export import export
from dnabert2.modeling_dnabert2 import AUTO_MAP
from dnabert2.tokenizer.files import SPECIAL_TOKENS, wrap_tokenizer

HERE = Path(__file__).parent


def load_helper(name: str):
    """A module beside this one: test folders are no packages."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def stranger():
    """The module that fresh interpreters run, for the parts that the tests themselves use."""
    return load_helper("stranger")


@pytest.fixture
def unregistered(monkeypatch):
    """
    The Auto classes as they are where this package is not: a class that is registered goes before a folder's code, and
    tests/test_transformers_common.py registers ours in every process that collects it.
    """
    kind = DNABert2Config.model_type
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", _without(CONFIG_MAPPING, lambda key: key == kind))
    for name in AUTO_MAP:
        if name != "AutoConfig":
            mapping = getattr(transformers, name)._model_mapping
            monkeypatch.setattr(mapping, "_extra_content", _without(mapping, lambda key: key.model_type == kind))


def _without(mapping, is_ours) -> dict:
    return {key: value for key, value in mapping._extra_content.items() if not is_ours(key)}


@pytest.fixture(scope="session")
def serve():
    """Context manager: folders as repositories of a Hub on the loopback."""
    return hub_server.serve


@pytest.fixture(scope="session")
def run_stranger(tmp_path_factory):
    """Function: run loads (see stranger.py) in a fresh interpreter with its own home, offline unless told a Hub."""

    def run(loads: list[dict], endpoint: str | None = None):
        home = tmp_path_factory.mktemp("home")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        environment |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        environment |= {"HF_ENDPOINT": endpoint} if endpoint else {"HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", (HERE / "stranger.py").read_text(), json.dumps({"loads": loads})]
        result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-6000:]

    return run


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory) -> Path:
    """A tokenizer laid out as the published one, with 13 tokens."""
    words = [*SPECIAL_TOKENS, "A", "C", "G", "T", "AC", "GT", "ACGT", "TT"]
    merges = [("A", "C"), ("G", "T"), ("AC", "GT"), ("T", "T")]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="[UNK]"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def inputs(tokenizer_json, stranger) -> dict[str, torch.Tensor]:
    """The batch every interpreter runs."""
    return stranger.tokenize(wrap_tokenizer(tokenizer_json))


@pytest.fixture(scope="session")
def masked_lm(small_config, fill):
    """The source of all numbers here, never saved or loaded."""
    return fill(DNABert2ForMaskedLM(small_config())).eval()


@pytest.fixture(scope="session")
def published(tmp_path_factory, masked_lm, tokenizer_json, small_config) -> Path:
    """A folder laid out like the published checkpoint."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(dict(masked_lm.state_dict()), folder / "pytorch_model.bin")
    shutil.copyfile(tokenizer_json, folder / "tokenizer.json")
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = {
        "_name_or_path": "",
        "alibi_starting_size": 512,
        "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_bert.BertConfig",
            "AutoModel": "bert_layers.BertModel",
            "AutoModelForMaskedLM": "bert_layers.BertForMaskedLM",
            "AutoModelForSequenceClassification": "bert_layers.BertForSequenceClassification",
        },
        "classifier_dropout": None,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "transformers_version": "4.28.0",
        "type_vocab_size": 2,
        "use_cache": True,
        **{name: getattr(small_config(), name) for name in sizes},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


@pytest.fixture(scope="session")
def expected(tmp_path_factory, masked_lm, inputs, stranger) -> Path:
    """What the source computes, for the strangers."""
    path = tmp_path_factory.mktemp("expected") / "masked_lm.safetensors"
    stranger.record(masked_lm, inputs, path)
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory, published) -> Path:
    """The Hub folder of `published`, built with everything the command does."""
    return export(published, tmp_path_factory.mktemp("hub") / "DNABERT-2-tiny")


@pytest.fixture
def variant(tmp_path, published):
    """Factory: a copy of `published` with other weights or configuration keys (None removes one) or missing files."""

    def make(weights: dict | None = None, without: tuple = (), **values) -> Path:
        folder = tmp_path / "source"
        shutil.copytree(published, folder)
        if weights is not None:
            torch.save(weights, folder / "pytorch_model.bin")
        config = {**json.loads((folder / "config.json").read_text()), **values}
        (folder / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
        for name in without:
            (folder / name).unlink()
        return folder

    return make
