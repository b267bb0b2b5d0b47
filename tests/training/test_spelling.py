"""Word embeddings by spelling: what they are like, and that a run uses them."""

import json

import numpy as np
import pytest
import torch

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
from dnabert2.cli import main
from dnabert2.tokenizer.files import OURS, load_tokenizer
from dnabert2.training.pretrain import ModelArguments, build_model
from dnabert2.training.spelling import initialise_by_spelling, spelling_features

SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}


def test_features():
    one, other, longer = spelling_features(["ACG", "ACT", "ACGACGACGACGACG"])
    assert len(one) == 2 * 4 * 4 + 12 + 4
    # The first base is A in all, and weighs 1; the third differs, and weighs a half; there is no fourth.
    assert one[:4].tolist() == other[:4].tolist() == [1, 0, 0, 0]
    assert one[8:12].tolist() == [0, 0, 0.5, 0.0] and other[8:12].tolist() == [0, 0, 0, 0.5]
    assert one[12:16].tolist() == [0, 0, 0, 0] and one[16:20].tolist() == [0, 0, 1, 0]
    assert np.flatnonzero(one[32:44]).tolist() == [2] and np.flatnonzero(longer[32:44]).tolist() == [11]
    assert one[44:] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_embeddings_of_like_spelling_are_alike():
    tokenizer = load_tokenizer(OURS)
    torch.manual_seed(0)
    model = DNABert2ForMaskedLM(DNABert2Config(**SMALL))
    before = model.get_input_embeddings().weight.detach().clone()
    initialise_by_spelling(model, tokenizer)
    after = model.get_input_embeddings().weight.detach()
    ids = tokenizer.convert_tokens_to_ids(["GCTTT", "GCATT", "AATG"])
    assert (after[:5] == before[:5]).all() and (after[5:] != before[5:]).all()
    assert float(after[5:].std()) == pytest.approx(model.config.initializer_range, rel=0.02)
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(after[ids[0]], after[ids[1]], dim=0) > similarity(after[ids[0]], after[ids[2]], dim=0) + 0.3
    assert model.cls.predictions.decoder.weight is model.get_input_embeddings().weight


def test_a_run_begins_with_them(corpus, tmp_path, pretrain_words, capsys):
    tokenizer = load_tokenizer(OURS)
    arguments = ModelArguments(config_overrides=json.dumps(SMALL), initial_embeddings="spelling")
    torch.manual_seed(3)
    ours = build_model(arguments, tokenizer).get_input_embeddings().weight
    torch.manual_seed(3)
    expected = build_model(ModelArguments(config_overrides=json.dumps(SMALL)), tokenizer)
    assert not torch.equal(ours, expected.get_input_embeddings().weight)
    initialise_by_spelling(expected, tokenizer)
    assert torch.equal(ours, expected.get_input_embeddings().weight)
    words = pretrain_words(corpus, tmp_path / "run", config_overrides=None, initial_embeddings="spelling")
    assert main(["pretrain", *words, "--model_name_or_path", "anything"]) == 2
    assert "is for training from scratch" in capsys.readouterr().err
