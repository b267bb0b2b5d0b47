"""Left and right: what attention with ALiBi cannot tell, pieces of sequences, the loss that asks for neighbours."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
from dnabert2.training.orientation import NeighbourLoss, cut_into_pieces, piece_length

CLS, SEP, PAD, MASK, FIRST = 1, 2, 3, 4, 5  # FIRST: of the tokens that are not special
SMALL = {
    "vocab_size": 25,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.1,
}


def network() -> DNABert2ForMaskedLM:
    torch.manual_seed(0)
    return DNABert2ForMaskedLM._from_config(DNABert2Config(**SMALL), attn_implementation="sdpa")


def random_tokens(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randint(FIRST, SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def test_without_ends_a_network_reads_a_sequence_alike_from_both():
    """Why any of this is needed."""
    model, ids = network().eval(), random_tokens(3, 20)
    with torch.no_grad():
        assert_close(model(ids.flip(1)).logits, model(ids).logits.flip(1), rtol=1e-4, atol=1e-5)
        ids[:, 0], ids[:, -1] = CLS, SEP
        turned = ids.clone()
        turned[:, 1:-1] = ids[:, 1:-1].flip(1)
        difference = model(turned).logits[:, 1:-1] - model(ids).logits[:, 1:-1].flip(1)
    assert difference.abs().amax(dim=(1, 2)).min() > 0.01


def test_pieces_grow():
    lengths = [piece_length(step, 80, 128) for step in range(100)]
    assert lengths == sorted(lengths) and len(lengths[:80]) == sum(n < 128 for n in lengths)
    assert [lengths[i] for i in (0, 29, 30, 40, 50, 60, 70, 79, 80)] == [16, 16, 24, 32, 48, 64, 96, 96, 128]
    assert piece_length(0, 0, 128) == 128 and piece_length(0, 5, 32) == 8 and piece_length(0, 5, 6) == 6


def test_cutting_loses_nothing():
    inputs = np.full((4, 12), PAD)
    labels = np.full((4, 12), -100)
    for i, length in enumerate((10, 7, 1, 0)):
        inputs[i, : length + 2] = [CLS, *range(FIRST, FIRST + length), SEP]
        labels[i, 1 : length + 1] = np.arange(length) + 100
    cut, own = cut_into_pieces(inputs, labels, 6, CLS, SEP, PAD)
    assert cut.tolist() == [
        [CLS, 5, 6, 7, 8, SEP],
        [CLS, 9, 10, 11, SEP, PAD],
        [CLS, 12, 13, 14, SEP, PAD],
        [CLS, 5, 6, 7, 8, SEP],
        [CLS, 9, 10, 11, SEP, PAD],
        [CLS, 5, SEP, PAD, PAD, PAD],
        [CLS, SEP, PAD, PAD, PAD, PAD],
    ]
    assert (own == np.where(cut >= FIRST, cut + 95, -100)).all()
    whole, same = cut_into_pieces(inputs, labels, 12, CLS, SEP, PAD)
    assert (whole == inputs).all() and (same == labels).all()


@pytest.fixture
def masked():
    """Ids as they were, inputs and labels: places 3 and 4 are hidden, 7 holds another token, 1 stays as it was."""
    ids = random_tokens(2, 10)
    ids[:, 0], ids[:, -1] = CLS, SEP
    inputs, labels = ids.clone(), torch.full_like(ids, -100)
    for place in (1, 3, 4, 7):
        labels[:, place] = ids[:, place]
    inputs[:, 3:5] = MASK
    inputs[:, 7] = torch.where(ids[:, 7] == FIRST, FIRST + 1, FIRST)
    return ids, inputs, labels


def states_that_name(loss, embeddings, left, right):
    """States that score the embedding of `left` and of `right` highest under the rotation of each side."""
    return sum(
        60 * embeddings[ids] @ rotation.t() for ids, rotation in zip((left, right), loss.rotations, strict=True)
    )


def test_states_that_name_their_neighbours_cost_nothing(masked):
    ids, inputs, labels = masked
    embeddings, loss = torch.eye(25, 64), NeighbourLoss(64)
    loss.rotations = [torch.eye(64), torch.eye(64).roll(32, dims=0)]  # which do not touch each other
    left, right = ids.roll(1, 1), ids.roll(-1, 1)
    asked = 2 * 6 / 2  # 3 has no right neighbour in sight, 4 no left one: six answers of eight, each counted half
    assert float(loss(states_that_name(loss, embeddings, left, right), embeddings, inputs, labels)) < 0.01
    swapped = float(loss(states_that_name(loss, embeddings, right, left), embeddings, inputs, labels))
    assert swapped > 10 * asked
    both = states_that_name(loss, embeddings, left, left) + states_that_name(loss, embeddings, right, right)
    assert float(loss(both, embeddings, inputs, labels)) == pytest.approx(np.log(2) * asked, rel=1e-4)


def test_it_is_the_mean_of_two_cross_entropies(masked):
    """Place by place, as the text says it."""
    ids, inputs, labels = masked
    generator = torch.Generator().manual_seed(2)
    states, embeddings = torch.randn(2, 10, 16, generator=generator), torch.randn(25, 16, generator=generator)
    loss = NeighbourLoss(16)
    expected = 0.0
    for row in range(2):
        for place, sides in ((1, (-1, 1)), (3, (-1,)), (4, (1,)), (7, (-1, 1))):
            for side in sides:
                rotation = loss.rotations[0 if side == -1 else 1]
                scores = embeddings @ (states[row, place] @ rotation)
                expected -= float(scores.log_softmax(0)[ids[row, place + side]]) / 2
    states.requires_grad_()
    embeddings.requires_grad_()
    found = loss(states, embeddings, inputs, labels)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert embeddings.grad is None
    assert (states.grad.abs().sum(-1) > 0).tolist() == (labels != -100).tolist()


def test_a_small_network_learns_the_sides():
    """Below log 2, where a network stands that knows both neighbours but not which is which."""
    model, loss = network().train(), NeighbourLoss(64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    last = []
    for step in range(400):
        ids = random_tokens(64, 12, seed=step)
        ids[:, 0], ids[:, -1] = CLS, SEP
        labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(step)) > 0.2, -100)
        labels[:, 0] = labels[:, -1] = -100
        inputs = ids.masked_fill(labels != -100, MASK)
        states = model.bert(inputs).last_hidden_state
        value = loss(states, model.get_input_embeddings().weight, inputs, labels) / (labels != -100).sum()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        last.append(value.item())
    assert np.mean(last[-20:]) < 0.45
