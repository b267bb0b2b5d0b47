"""Checkpoints: the published names in every layout, and what is said of files that hold something else."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from dnabert2 import (
    DNABert2Config,
    DNABert2ForMaskedLM,
    DNABert2ForSequenceClassification,
    DNABert2ForTokenClassification,
    DNABert2Model,
)

ATTENTION = ("self.Wqkv.weight", "self.Wqkv.bias", "output.dense.weight", "output.dense.bias")
ATTENTION += ("output.LayerNorm.weight", "output.LayerNorm.bias")
MLP = ("gated_layers.weight", "wo.weight", "wo.bias", "layernorm.weight", "layernorm.bias")
LAYER = [f"attention.{name}" for name in ATTENTION] + [f"mlp.{name}" for name in MLP]
EMBEDDINGS = {f"bert.embeddings.{name}.weight" for name in ("word_embeddings", "token_type_embeddings", "LayerNorm")}
ENCODER = {"bert.embeddings.LayerNorm.bias", *EMBEDDINGS}
ENCODER |= {f"bert.encoder.layer.{i}.{name}" for i in range(2) for name in LAYER}
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
CLASSIFIER = {"classifier.weight", "classifier.bias"}
HEAD = {
    f"cls.predictions.{name}"
    for name in (
        *("transform.dense.weight", "transform.dense.bias", "transform.LayerNorm.weight", "transform.LayerNorm.bias"),
        *("decoder.weight", "decoder.bias"),
    )
}
KEYS = {
    DNABert2Model: {key.removeprefix("bert.") for key in ENCODER | POOLER},
    DNABert2ForMaskedLM: ENCODER | HEAD,
    DNABert2ForSequenceClassification: ENCODER | POOLER | CLASSIFIER,
    DNABert2ForTokenClassification: ENCODER | CLASSIFIER,
}
FORMATS = ("model.safetensors", "pytorch_model.bin")


@pytest.fixture(scope="module")
def published(small_config, fill):
    """The masked-LM model's weights under the published names, and a pooler's."""
    weights = dict(fill(DNABert2ForMaskedLM(small_config())).state_dict())
    pooler = fill(DNABert2Model(small_config())).pooler.dense.state_dict()
    return weights, {f"bert.pooler.dense.{name}": value for name, value in pooler.items()}


def write(folder, weights, file, config):
    config.save_pretrained(folder)
    if file == "pytorch_model.bin":
        torch.save(weights, folder / file)
    else:
        save_file({key: value.clone() for key, value in weights.items()}, folder / file, metadata={"format": "pt"})


@pytest.mark.parametrize("model_class", KEYS)
def test_published_names(model_class, small_config):
    names = set(model_class(small_config()).state_dict())
    assert names == KEYS[model_class]


@pytest.mark.parametrize("with_pooler", [False, True])
@pytest.mark.parametrize("prefix", ["bert.", ""])
@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("model_class", KEYS)
def test_every_layout_loads_key_by_key(model_class, file, prefix, with_pooler, published, small_config, tmp_path):
    weights, pooler = published
    if with_pooler:
        weights = {**weights, **pooler}
    write(tmp_path, {key.replace("bert.", prefix, 1): value for key, value in weights.items()}, file, small_config())
    model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)

    missing = set(CLASSIFIER) if KEYS[model_class].issuperset(CLASSIFIER) else set()
    if not with_pooler and model_class is DNABert2Model:
        missing = {"pooler.dense.weight", "pooler.dense.bias"}
    if not with_pooler and model_class is DNABert2ForSequenceClassification:
        missing |= POOLER
    assert set(info["missing_keys"]) == missing
    assert set(info["unexpected_keys"]) == set()
    assert set(info["mismatched_keys"]) == set()

    for key, value in model.state_dict().items():
        assert not value.is_meta
        if key not in missing:
            published_name = key if hasattr(model, "bert") else f"bert.{key}"
            assert torch.equal(value, weights[published_name]), key


def test_weights_that_belong_nowhere_are_reported(published, small_config, tmp_path):
    write(tmp_path, {**published[0], "bert.encoder.layer.0.extra": torch.zeros(1)}, FORMATS[0], small_config())
    _, info = DNABert2ForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"bert.encoder.layer.0.extra"}


@pytest.mark.parametrize("model_class", KEYS)
def test_save_and_load_give_the_same_numbers(model_class, build, batch, tmp_path):
    model = build(model_class, "sdpa", num_labels=5)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    saved = set(load_file(tmp_path / "model.safetensors"))
    # One of two tied weights is stored.
    assert saved == KEYS[model_class] - {"cls.predictions.decoder.weight"}
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert not loaded.training and loaded.config.num_labels == 5
    with torch.no_grad():
        assert torch.equal(loaded(**batch("mixed"))[0], model(**batch("mixed"))[0])


PUBLISHED_CONFIG = {
    "architectures": ["BertForMaskedLM"],
    "alibi_starting_size": 512,
    "attention_probs_dropout_prob": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_bert.BertConfig",
        "AutoModel": "bert_layers.BertModel",
        "AutoModelForMaskedLM": "bert_layers.BertForMaskedLM",
    },
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_size": 24,
    "initializer_range": 0.02,
    "intermediate_size": 20,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "transformers_version": "4.28.0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 64,
}


@pytest.mark.parametrize("extra", [{}, {"model_type": "bert"}, {"model_type": "bert", "pad_token_id": 0}])
@pytest.mark.parametrize("file", FORMATS)
def test_a_folder_in_the_published_layout(extra, file, published, build, batch, small_config, tmp_path):
    write(tmp_path, published[0], file, small_config())
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED_CONFIG, **extra}))
    model = DNABert2ForMaskedLM.from_pretrained(tmp_path)
    assert model.config.pad_token_id == 3 and model.config.model_type == "dnabert2"
    inputs = batch("mixed")
    del inputs["attention_mask"]
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, build(DNABert2ForMaskedLM, "sdpa")(**inputs).logits)


@pytest.mark.parametrize("source", ["file", "keywords"])
def test_a_stock_configuration_as_argument(source, published, build, batch, small_config, tmp_path):
    """The published README's own work-around: `config=BertConfig.from_pretrained(folder)`."""
    write(tmp_path, published[0], FORMATS[0], small_config())
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED_CONFIG, "model_type": "bert"}))
    if source == "file":
        stock = BertConfig.from_pretrained(tmp_path, num_labels=4)
    else:
        shape = {key: PUBLISHED_CONFIG[key] for key in ("vocab_size", "hidden_size", "intermediate_size")}
        stock = BertConfig(num_hidden_layers=2, num_attention_heads=3, num_labels=4, **shape)
    assert stock.pad_token_id == 0
    model = DNABert2ForMaskedLM.from_pretrained(tmp_path, config=stock)
    assert type(model.config) is DNABert2Config
    assert model.config.pad_token_id == 3 and model.config.num_labels == 4
    assert model.bert.embeddings.word_embeddings.padding_idx == 3
    inputs = batch("mixed")
    del inputs["attention_mask"]
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, build(DNABert2ForMaskedLM, "sdpa")(**inputs).logits)


# Files that hold something else


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("model_class", [DNABert2Model, DNABert2ForSequenceClassification])
def test_a_truncated_file(model_class, file, part, published, small_config, tmp_path):
    write(tmp_path, published[0], file, small_config())
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(
        OSError, match=r"the weight file is damaged or cut short .*; download or copy it again"
    ) as caught:
        model_class.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "weights_only" not in str(caught.value)  # PyTorch's advice is to turn its safety off


@pytest.mark.parametrize("model_class", KEYS)
@pytest.mark.parametrize("stock_class", [BertModel, BertForMaskedLM])
@pytest.mark.parametrize("file", FORMATS)
def test_the_checkpoint_of_another_model(stock_class, file, model_class, small_config, tmp_path):
    config = small_config()
    shape = {key: getattr(config, key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
    stock = stock_class(BertConfig(num_hidden_layers=2, num_attention_heads=3, **shape))
    write(tmp_path, stock.state_dict(), file, config)
    message = r"the checkpoint lacks 14 weights of the DNABERT-2 encoder \(the first is .*Wqkv\.bias\)"
    with pytest.raises(OSError, match=message) as caught:
        model_class.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_an_incomplete_checkpoint(published, small_config, tmp_path):
    weights = {key: value for key, value in published[0].items() if "layer.1.mlp" not in key}
    write(tmp_path, weights, FORMATS[0], small_config())
    with pytest.raises(OSError, match=r"lacks 5 weights of the DNABERT-2 encoder .* or is incomplete"):
        DNABert2ForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("model_class", [DNABert2Model, DNABert2ForSequenceClassification])
@pytest.mark.parametrize(
    ("key", "shape"), [("embeddings.word_embeddings.weight", (70, 24)), ("encoder.layer.1.mlp.wo.weight", (24, 21))]
)
def test_weights_of_other_shapes(key, shape, model_class, file, published, small_config, tmp_path):
    write(tmp_path, {**published[0], f"bert.{key}": torch.zeros(shape)}, file, small_config())
    with pytest.raises(
        RuntimeError, match=rf"weights of the checkpoint have other shapes .*\(1; the first is .*{key}\)"
    ) as caught:
        model_class.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_another_number_of_labels(build, tmp_path):
    build(DNABert2ForSequenceClassification, num_labels=5).save_pretrained(tmp_path)
    assert DNABert2ForSequenceClassification.from_pretrained(tmp_path).classifier.out_features == 5
    with pytest.raises(RuntimeError, match=r"\(2; the first is classifier\.bias\).*ignore_mismatched_sizes=True"):
        DNABert2ForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    model = DNABert2ForSequenceClassification.from_pretrained(tmp_path, num_labels=2, ignore_mismatched_sizes=True)
    assert model.classifier.weight.shape == (2, 24) and model.classifier.weight.std() < 0.03


def test_an_empty_folder_is_named(small_config, tmp_path):
    small_config().save_pretrained(tmp_path)
    with pytest.raises(OSError, match=str(tmp_path)):
        DNABert2Model.from_pretrained(tmp_path)
