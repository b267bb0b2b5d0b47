"""The loss, twin to the network's own; evaluation against one row at a time; and what counts as a dead run."""

import numpy as np
import pytest
import torch

from dnabert2 import DNABert2Config, DNABert2ForSequenceClassification
from dnabert2.bert_layers.losses import sequence_loss, token_loss
from dnabert2.tokenizer.files import OURS, load_tokenizer
from dnabert2.training.examples import Examples
from dnabert2.training.finetune_arguments import FineTuningArguments
from dnabert2.training.finetuner import FineTuner, is_flat, row_losses, weighted_loss
from dnabert2.training.problems import Bases, MultiLabel, Problem, Regression

KINDS = {
    "single_label_classification": lambda n: torch.randint(0, 3, (n,)),
    "multi_label_classification": lambda n: torch.randint(0, 2, (n, 3)).float(),
    "regression": lambda n: torch.randn(n, 3),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("items", [None, 11])
def test_without_weights_it_is_the_networks_own_loss(kind, items):
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3, requires_grad=True), KINDS[kind](5)
    ours, theirs = weighted_loss(logits, labels, kind, None, items), sequence_loss(logits, labels, kind, items)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))
    if items is None and kind != "regression":
        torch.testing.assert_close(row_losses(logits, labels, kind, None).mean(), theirs)


def test_labels_of_bases_are_token_losses_of_any_shape():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 3, 5, requires_grad=True), torch.randint(0, 5, (2, 4, 3))
    labels[0, 1:] = -100
    labels[1, :, 2] = -100
    ours, theirs = weighted_loss(logits, labels, "base_classification"), token_loss(logits, labels)
    torch.testing.assert_close(ours, theirs)
    rows = row_losses(logits, labels, "base_classification", None)
    torch.testing.assert_close(rows[0], token_loss(logits[:1], labels[:1]))


def test_weights_count_a_class_as_often_as_they_say():
    """A weight of 3 is the row three times over, but for the number of rows that the sum is divided by."""
    torch.manual_seed(1)
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 0, 0])
    weighted = weighted_loss(logits, labels, "single_label_classification", torch.tensor([1.0, 3.0]))
    repeated = torch.tensor([0, 1, 1, 1, 2, 3])
    plain = weighted_loss(logits[repeated], labels[repeated], "single_label_classification", None, 4)
    torch.testing.assert_close(weighted, plain)


def test_balanced_weights():
    weights = Problem(("a", "b")).weights([0, 0, 0, 1])
    assert weights == pytest.approx([4 / 6, 4 / 2]) and (weights * [3, 1]).sum() == pytest.approx(4)
    assert MultiLabel(("a", "b")).weights([[1, 0], [0, 0], [0, 1], [0, 1]]) == pytest.approx([3, 1])
    # A label that every row has, or none, is not switched off.
    assert MultiLabel(("a", "b")).weights([[1, 0]] * 4) == pytest.approx([1 / 3, 3])
    assert Bases(("a", "b")).weights([[0, -100, 0], [1, 0]]) == pytest.approx([4 / 6, 2])


def test_flat_predictions():
    two = Problem(("a", "b"))
    labels = np.array([0, 1, 1])
    assert is_flat(two, np.array([[2.0, 1], [2.1, 1], [2, 1]]), labels)
    assert not is_flat(two, np.array([[2.0, 1], [3, 0], [0, 1]]), labels)
    assert not is_flat(two, np.array([[5.0, 0], [3, 0], [1, 0]]), labels)  # one class, but not as probable: it learns
    assert not is_flat(two, np.array([[2.0, 1]] * 3), np.array([1, 1, 1]))  # nothing else to say
    assert not is_flat(two, np.array([[2.0, 1]]), labels[:1])
    assert is_flat(two, np.array([[2.0, 1], [np.nan, 0], [0, 1]]), labels)
    regression, targets = Regression(("y",)), np.array([[0.0], [5], [9]])
    assert is_flat(regression, np.array([[1.0], [1.0001], [1]]), targets)
    assert not is_flat(regression, np.array([[1.0], [1.5], [1]]), targets)


def test_of_several_gpus_the_loss_is_that_of_the_whole_batch(trainer, monkeypatch):
    """DataParallel gathers logits first; the Trainer then multiplies by the number of GPUs, which the loss undoes."""
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    alone = trainer._loss({"logits": logits}, labels, torch.tensor(4))
    monkeypatch.setattr(type(trainer.args), "n_gpu", property(lambda self: 4))
    together = trainer._loss({"logits": logits}, labels, torch.full((4, 1), 4))
    torch.testing.assert_close(together * 4, alone)
    torch.testing.assert_close(trainer._loss({"logits": logits}, labels), alone)  # when evaluating


def test_scores_that_are_not_defined_choose_no_checkpoint(trainer, monkeypatch):
    """The worst value of each: of a loss that is no number, the greatest."""
    examples = Examples(rows_of(trainer.processing_class, ["ACGT", "GGC"]), [0, 1])
    monkeypatch.setattr(trainer, "logits_and_loss", lambda examples: (np.full((2, 2), np.nan), float("nan")))
    monkeypatch.setattr(Problem, "score", lambda self, *arrays: {"auroc": None, "accuracy": 0.5})
    metrics = trainer.evaluate(examples)
    assert metrics["eval_loss"] == float("inf") and metrics["eval_auroc"] == float("-inf")
    assert metrics["eval_accuracy"] == 0.5 and metrics["eval_flat"] == 1.0
    logged = trainer.state.log_history[-1]
    assert "eval_loss" not in logged and logged["eval_accuracy"] == 0.5


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = load_tokenizer(OURS)
    config = DNABert2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        classifier_pooling="mean",
    )
    arguments = FineTuningArguments(
        output_dir=str(tmp_path_factory.mktemp("trainer")),
        use_cpu=True,
        per_device_eval_batch_size=3,
        eval_strategy="no",
        load_best_model_at_end=False,
    )
    model = DNABert2ForSequenceClassification(config).train()
    return FineTuner(model=model, args=arguments, problem=Problem(("a", "b")), processing_class=tokenizer)


def rows_of(tokenizer, sequences):
    return [dict(tokenizer(sequence)) for sequence in sequences]


def test_evaluation_agrees_with_a_row_at_a_time(trainer):
    """Whatever the order of lengths, and in evaluation mode though the model was training."""
    sequences = ["ACGTTGCA", "TTTTAACCGGAATTATATATACGCG" * 3, "GGC", "ACACACGTGTAAATTT", "TTG", "CCCTAATAGAGAC"]
    examples = Examples(rows_of(trainer.processing_class, sequences), [0, 1, 0, 1, 1, 0])
    logits, loss = trainer.logits_and_loss(examples)
    assert trainer.model.training
    trainer.model.eval()
    with torch.no_grad():
        alone = [trainer.model(**trainer.processing_class(s, return_tensors="pt")).logits[0] for s in sequences]
    trainer.model.train()
    assert logits == pytest.approx(torch.stack(alone).numpy(), abs=1e-5)
    expected = sequence_loss(torch.stack(alone), torch.tensor(examples.targets), "single_label_classification")
    assert loss == pytest.approx(float(expected), abs=1e-5)


def test_both_strands_are_averaged(trainer):
    one, other = ["ACGTTGCAAC", "TTTT"], ["GTTGCAACGT", "AAAA"]
    tokenizer = trainer.processing_class
    both = Examples(rows_of(tokenizer, one), [0, 1], other_strand=rows_of(tokenizer, other))
    alone = [trainer.logits_and_loss(Examples(rows_of(tokenizer, s), [0, 1])) for s in (one, other)]
    logits, loss = trainer.logits_and_loss(both)
    assert logits == pytest.approx((alone[0][0] + alone[1][0]) / 2, abs=1e-6)
    assert loss == pytest.approx((alone[0][1] + alone[1][1]) / 2, abs=1e-6)


def test_nothing_but_logits_is_kept(trainer, monkeypatch):
    """Also not of a model that returns its hidden states: memory does not grow with the length of sequences."""
    monkeypatch.setattr(trainer.model.config, "output_hidden_states", True)
    examples = Examples(rows_of(trainer.processing_class, ["ACGT" * 200] * 4), [0, 1, 0, 1])
    logits, _ = trainer.logits_and_loss(examples)
    assert logits.shape == (4, 2)
