"""The masked-LM objective: shares, what is never chosen, and that the draws depend on nothing but the generator."""

import numpy as np
import pytest

from dnabert2.training.masking import MaskingPolicy, mask_tokens

POLICY = MaskingPolicy(probability=0.15, mask_id=4, special_ids=(0, 1, 2, 3, 4), vocab_size=100)


@pytest.fixture(scope="module")
def ids():
    draw = np.random.default_rng(0)
    ids = draw.integers(5, 100, (400, 128))
    ids[:, 0], ids[:, -2], ids[:, -1] = 1, 2, 3
    ids[:, 5] = 0
    return ids


def test_shares(ids):
    inputs, labels = mask_tokens(ids, POLICY, np.random.default_rng(1))
    chosen = labels != -100
    ordinary = ids > 4
    assert chosen[ordinary].mean() == pytest.approx(0.15, abs=0.005)
    assert (inputs[chosen] == 4).mean() == pytest.approx(0.8, abs=0.02)
    kept = inputs[chosen] == ids[chosen]
    # A tenth stays; one in 95 of the random tokens is the same by chance.
    assert kept.mean() == pytest.approx(0.1 + 0.1 / 95, abs=0.015)
    replaced = inputs[chosen & (inputs != 4) & (inputs != ids)]
    assert set(replaced.tolist()) == set(range(5, 100))
    assert (labels[chosen] == ids[chosen]).all() and (inputs[~chosen] == ids[~chosen]).all()


def test_special_tokens_are_neither_chosen_nor_put_in(ids):
    inputs, labels = mask_tokens(ids, MaskingPolicy(0.99, 4, (0, 1, 2, 3, 4), 100), np.random.default_rng(1))
    assert (labels[ids <= 4] == -100).all() and (inputs[ids <= 4] == ids[ids <= 4]).all()
    assert not np.isin(inputs[ids > 4], [0, 1, 2, 3]).any()


def test_a_sequence_is_masked_alike_whatever_follows(ids):
    """Contents do not shift the stream: the same generator chooses the same places."""
    other = ids.copy()
    other[:, 60:] = 3  # padding
    first, second = (mask_tokens(x, POLICY, np.random.default_rng(2))[1] for x in (ids, other))
    assert ((first != -100)[:, :60] == (second != -100)[:, :60]).all()


def test_for_evaluation_every_chosen_token_is_masked(ids):
    inputs, labels = mask_tokens(ids, POLICY, np.random.default_rng(1), always_mask=True)
    assert (inputs[labels != -100] == 4).all() and (labels != -100).any()
