"""Held-out scores: against sums written out, in any batches and processes; bits per base; groups."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
from dnabert2.errors import UserError
from dnabert2.tokenizer.files import load_tokenizer
from dnabert2.training.corpus_stream import Corpus
from dnabert2.training.corpus_windows import token_bases
from dnabert2.training.evaluation import Sums, mask_held_out, read_held_out, score_held_out

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return load_tokenizer(corpus / "tokenizer")


@pytest.fixture(scope="module")
def held_out(corpus, tokenizer):
    return mask_held_out(read_held_out(Corpus.open(str(corpus)), 20), tokenizer, 32, 0.3)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return DNABert2ForMaskedLM(
        DNABert2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )


def test_groups_and_rows(corpus, held_out):
    rows = read_held_out(Corpus.open(str(corpus)), 20)
    assert {name: len(group) for name, group in rows.items()} == {"Animal one": 20, "Bacterium two": 20}
    assert all(row["group"] == name for name, group in rows.items() for row in group)
    assert len(held_out) == 40 and held_out.group_ids.bincount().tolist() == [20, 20]
    assert (held_out.inputs[held_out.labels >= 0] == 4).all()


def test_scores_are_sums_written_out(model, held_out, tokenizer):
    metrics = score_held_out(model, held_out, 7, CPU).metrics("eval_")
    nats, right, tokens, bases = 0.0, 0, 0, 0
    with torch.no_grad():
        logits = model.eval()(input_ids=held_out.inputs).logits.double().log_softmax(-1)
    for row in range(20, 40):  # the second group
        for place in range(32):
            label = int(held_out.labels[row, place])
            if label >= 0:
                nats -= float(logits[row, place, label])
                right += int(logits[row, place].argmax()) == label
                tokens += 1
                bases += len(tokenizer.convert_ids_to_tokens(label))
    assert metrics["eval_Bacterium_two_loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert metrics["eval_Bacterium_two_accuracy"] == pytest.approx(right / tokens)
    assert metrics["eval_Bacterium_two_bits_per_base"] == pytest.approx(nats / math.log(2) / bases, rel=1e-5)
    total = score_held_out(model, held_out, 40, CPU).metrics("eval_")
    assert total == pytest.approx(metrics, rel=1e-5)


def test_training_mode_is_kept(model, held_out):
    for training in (True, False):
        model.train(training)
        score_held_out(model, held_out, 16, CPU)
        assert model.training is training


class Counting:
    """A model that counts its calls."""

    training = False

    def __init__(self, model):
        self.model, self.calls = model, 0

    def __call__(self, **inputs):
        self.calls += 1
        return self.model(**inputs)

    def eval(self):
        self.model.eval()

    def train(self, mode):
        self.model.train(mode)


@pytest.mark.parametrize("batch_size", [7, 8])
def test_processes_share_the_batches(model, held_out, monkeypatch, batch_size):
    """Three, with six batches or five: then the last turn has a call that counts nothing."""
    alone = score_held_out(model, held_out, 7, CPU).values
    parts = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: parts.append(sums.clone()))
    models = [Counting(model) for _ in range(3)]
    for rank, counting in enumerate(models):
        score_held_out(counting, held_out, batch_size, CPU, rank, 3)
    assert [counting.calls for counting in models] == [2, 2, 2]
    assert torch.allclose(sum(parts), alone, rtol=1e-5)


def test_uniform_bases_cost_two_bits():
    """A model that spreads a token of n bases over 4 ** n equally likely ones."""
    bases = 7.0
    values = torch.tensor([[10 * bases * math.log(4), 1.0, 10.0, 10 * bases], [0.0, 0.0, 0.0, 0.0]])
    metrics = Sums(["a b", "empty"], values).metrics()
    assert metrics["a_b_bits_per_base"] == pytest.approx(2) and metrics["bits_per_base"] == pytest.approx(2)
    assert metrics["a_b_accuracy"] == 0.1 and not any(name.startswith("empty") for name in metrics)


def test_bases_of_tokens(tokenizer):
    bases = token_bases(tokenizer)
    ids = tokenizer("ACGTTGCANACG", add_special_tokens=False)["input_ids"]
    assert bases[ids].sum() == 12 and bases[tokenizer.unk_token_id] == 1
    assert all(bases[i] == 0 for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id)
    assert isinstance(bases, np.ndarray)


def test_nothing_held_out(tokenizer):
    corpus = SimpleNamespace(manifest={"splits": {}}, shards=lambda split: [])
    with pytest.raises(UserError, match="the corpus holds nothing out"):
        mask_held_out(read_held_out(corpus, 5), tokenizer, 32, 0.15)
