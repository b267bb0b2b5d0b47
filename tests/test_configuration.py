"""DNABert2Config: defaults, checks, and what becomes of older and foreign configurations."""

import json

import pytest
import torch
from transformers import BertConfig

from dnabert2 import DNABert2Config

OLD_CODE = {"AutoConfig": "configuration_bert.BertConfig", "AutoModel": "bert_layers.BertModel"}


def test_defaults_are_the_published_model():
    config = DNABert2Config()
    expected = {
        "model_type": "dnabert2",
        "vocab_size": 4096,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.0,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "classifier_dropout": None,
        "unk_token_id": 0,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "pad_token_id": 3,
        "mask_token_id": 4,
        "tie_word_embeddings": True,
    }
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_size": 100}, r"hidden_size \(100\) must be a multiple of num_attention_heads \(12\)"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer, but is 0"),
        ({"num_attention_heads": -1}, "num_attention_heads must be a positive integer, but is -1"),
        ({"intermediate_size": 10.5}, r"intermediate_size must be a positive integer, but is 10\.5"),
        ({"hidden_size": "768"}, "hidden_size must be a positive integer, but is '768'"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be an integer of at least 0, but is -1"),
        ({"hidden_act": "relu"}, "hidden_act must be \"gelu\" .*, but is 'relu'"),
    ],
)
def test_impossible_values(wrong, message):
    with pytest.raises(ValueError, match=message):
        DNABert2Config(**wrong)


def test_round_trip(small_config, tmp_path):
    config = small_config(
        id2label={0: "background", 1: "promoter", 2: "enhancer"},
        label2id={"background": 0, "promoter": 1, "enhancer": 2},
        problem_type="single_label_classification",
        classifier_dropout=0.2,
        pad_token_id=None,
    )
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "dnabert2"
    loaded = DNABert2Config.from_pretrained(tmp_path)
    assert loaded.id2label == {0: "background", 1: "promoter", 2: "enhancer"} and loaded.num_labels == 3
    assert loaded.pad_token_id is None  # ours to say, where the published layout's None is not
    assert loaded.classifier_dropout == 0.2
    ours, theirs = config.to_dict(), loaded.to_dict()
    for values in (ours, theirs):
        values.pop("_name_or_path", None)
    assert theirs == ours


@pytest.mark.parametrize("model_type", [{}, {"model_type": "bert"}])
@pytest.mark.parametrize("pad", [{}, {"pad_token_id": 0}, {"pad_token_id": None}, {"pad_token_id": 7}])
def test_the_published_layout(model_type, pad, small_config):
    sizes = {key: getattr(small_config(), key) for key in ("vocab_size", "hidden_size", "num_attention_heads")}
    dead = {"alibi_starting_size": 512, "max_position_embeddings": 512, "position_embedding_type": "absolute"}
    given = {**sizes, **dead, **model_type, **pad, "use_cache": True, "auto_map": OLD_CODE}
    before = dict(given)
    config = DNABert2Config.from_dict(given)
    assert given == before
    values = config.to_dict()
    assert {key: values[key] for key in sizes} == sizes
    assert not {*dead, "use_cache", "auto_map"} & set(values)
    assert values["model_type"] == "dnabert2"
    assert config.pad_token_id == (pad.get("pad_token_id") or 3)


def test_not_an_object():
    with pytest.raises(ValueError, match="a JSON object, but this is a list"):
        DNABert2Config.from_dict([])


def test_our_own_auto_map_stays(small_config):
    values = {**small_config().to_dict(), "auto_map": {"AutoConfig": "configuration_dnabert2.DNABert2Config"}}
    assert DNABert2Config.from_dict(values).auto_map == values["auto_map"]


def test_from_stock():
    stock = BertConfig(
        hidden_size=24,
        num_attention_heads=3,
        num_hidden_layers=1,
        intermediate_size=20,
        hidden_dropout_prob=0.3,
        classifier_dropout=0.4,
        id2label={0: "no", 1: "maybe", 2: "yes"},
        problem_type="single_label_classification",
        dtype=torch.bfloat16,
        output_hidden_states=True,
        attn_implementation="eager",
    )
    config = DNABert2Config.from_stock(stock)
    assert type(config) is DNABert2Config and config.model_type == "dnabert2"
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (24, 3, 1)
    assert (config.hidden_dropout_prob, config.classifier_dropout, config.vocab_size) == (0.3, 0.4, 30522)
    assert config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert config.problem_type == "single_label_classification"
    assert config.dtype == torch.bfloat16 and config.output_hidden_states is True
    assert config.pad_token_id == 3 and config.cls_token_id == 1 and config.mask_token_id == 4
    assert config._attn_implementation == "eager"
    assert not hasattr(config, "max_position_embeddings") and not hasattr(config, "position_embedding_type")


@pytest.mark.parametrize(("pad", "expected"), [(0, 3), (None, 3), (3, 3), (5, 5)])
def test_pad_id_of_a_stock_configuration(pad, expected):
    assert DNABert2Config.from_stock(BertConfig(pad_token_id=pad)).pad_token_id == expected
