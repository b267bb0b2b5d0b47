"""Losses of the heads."""

import pytest
import torch
import torch.nn.functional as F

from dnabert2.bert_layers.losses import sequence_loss, token_loss

GENERATOR = torch.Generator().manual_seed(0)
TOKEN_LOGITS = torch.randn(2, 5, 4, generator=GENERATOR)
LOGITS = torch.randn(6, 3, generator=GENERATOR)
IDS = torch.tensor([0, 1, 2, 2, 0, 1])
MANY = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
FLOATS = torch.randn(6, 3, generator=GENERATOR)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_token_loss_is_the_mean_over_labelled_tokens():
    labels = torch.tensor([[1, -100, 0, 3, -100], [-100, 2, 0, 0, 1]])
    kept = labels != -100
    close(token_loss(TOKEN_LOGITS, labels), F.cross_entropy(TOKEN_LOGITS[kept], labels[kept]))


def test_label_zero_counts():
    labels = torch.full((2, 5), -100)
    labels[0, 2] = 0
    close(token_loss(TOKEN_LOGITS, labels), -TOKEN_LOGITS[0, 2].log_softmax(-1)[0])


def test_ignored_tokens_get_no_gradient():
    logits = TOKEN_LOGITS.clone().requires_grad_()
    labels = torch.tensor([[1, -100, 0, 3, -100], [-100, 2, 0, 0, 1]])
    token_loss(logits, labels).backward()
    assert torch.equal((logits.grad != 0).any(-1), labels != -100)


def test_all_labels_ignored_is_zero_with_zero_gradient():
    logits = TOKEN_LOGITS.clone().requires_grad_()
    loss = token_loss(logits, torch.full((2, 5), -100))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_num_items_makes_accumulated_token_losses_add_up(as_tensor):
    labels = torch.tensor([[1, -100, -100, -100, -100], [3, 2, 0, 0, 1]])
    items = torch.tensor(6) if as_tensor else 6
    parts = sum(token_loss(TOKEN_LOGITS[i : i + 1], labels[i : i + 1], items) for i in range(2))
    close(parts, token_loss(TOKEN_LOGITS, labels))


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [("single_label_classification", IDS), ("multi_label_classification", MANY), ("regression", FLOATS)],
)
def test_num_items_divides_sequence_losses(problem_type, labels):
    whole = sequence_loss(LOGITS, labels, problem_type)
    items = labels.numel()
    parts = sum(sequence_loss(LOGITS[i : i + 2], labels[i : i + 2], problem_type, items) for i in (0, 2, 4))
    close(parts, whole)


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_single_label(problem_type, shape):
    close(sequence_loss(LOGITS, IDS.reshape(shape), problem_type), F.cross_entropy(LOGITS, IDS))


def test_single_label_ignores_minus_100():
    labels = torch.tensor([0, -100, 2, -100, 0, 1])
    kept = labels != -100
    close(sequence_loss(LOGITS, labels, None), F.cross_entropy(LOGITS[kept], labels[kept]))


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [(None, MANY.float()), ("multi_label_classification", MANY), ("multi_label_classification", MANY.double())],
)
def test_multi_label(problem_type, labels):
    close(sequence_loss(LOGITS, labels, problem_type), F.binary_cross_entropy_with_logits(LOGITS, MANY.float()))


@pytest.mark.parametrize("problem_type", [None, "regression"])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_regression_on_one_output(problem_type, shape, dtype):
    labels = torch.tensor([1, -2, 3, 0, 5, 8], dtype=dtype).reshape(shape)
    expected = F.mse_loss(LOGITS[:, 0], labels.flatten().float())
    close(sequence_loss(LOGITS[:, :1], labels, problem_type), expected)


def test_regression_on_several_outputs():
    close(sequence_loss(LOGITS, FLOATS, "regression"), F.mse_loss(LOGITS, FLOATS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_for_half_precision_logits(dtype):
    logits = LOGITS.to(dtype)
    for problem_type, labels in ((None, IDS), ("multi_label_classification", MANY), ("regression", FLOATS)):
        loss = sequence_loss(logits, labels, problem_type)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, sequence_loss(logits.float(), labels, problem_type))


@pytest.mark.parametrize(
    ("problem_type", "labels", "message"),
    [
        ("ranking", IDS, "problem_type='ranking' is unknown"),
        ("regression", IDS, r"regression takes a label for each of 3 outputs: labels of shape \(6,\)"),
        ("multi_label_classification", IDS, r"multi_label_classification takes a label for each of 3 outputs"),
        (None, FLOATS[:, 0], r"multi_label_classification takes a label for each of 3 outputs"),
    ],
)
def test_labels_that_do_not_fit(problem_type, labels, message):
    with pytest.raises(ValueError, match=message):
        sequence_loss(LOGITS, labels, problem_type)
