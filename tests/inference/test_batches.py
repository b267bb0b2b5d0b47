"""Batches of rows of tokens: bounded, complete, of like length; and the tensors they become."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert2.inference.batches import batches, to_inputs

LENGTHS = st.lists(st.integers(0, 300), max_size=30)


def test_batches_are_bounded_in_tokens_and_complete():
    lengths = [3, 90, 200, 30, 31, 5, 5, 30]
    made = list(batches(lengths, 100, 4))
    assert [rows.tolist() for rows in made] == [[2], [1], [4, 3, 7], [5, 6, 0]]
    equal = list(batches(lengths, 100, 4, mixed=False))
    assert [rows.tolist() for rows in equal] == [[2], [1], [4], [3, 7], [5, 6], [0]]


@given(LENGTHS, st.integers(1, 500), st.none() | st.integers(1, 8), st.booleans())
@settings(max_examples=100, deadline=None)
def test_whatever_the_lengths(lengths, budget, most, mixed):
    made = [rows.tolist() for rows in batches(lengths, budget, most, mixed)]
    assert sorted(row for rows in made for row in rows) == list(range(len(lengths)))
    of_batch = [[lengths[row] for row in rows] for rows in made]
    assert [length for part in of_batch for length in part] == sorted(lengths, reverse=True)
    for part in of_batch:
        assert len(part) == 1 or len(part) * max(part) <= budget
        assert len(part) <= (most or len(lengths))
        assert mixed or len(set(part)) == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_on_the_tokenizer_s_side(side):
    tokenizer = SimpleNamespace(pad_token_id=3, padding_side=side)
    columns = {"input_ids": [np.array([7, 8, 9]), [7]], "attention_mask": [[1, 1, 1], [1]]}
    inputs = to_inputs(columns, tokenizer, "cpu")
    short = {"left": ([3, 3, 7], [0, 0, 1]), "right": ([7, 3, 3], [1, 0, 0])}[side]
    assert inputs["input_ids"].tolist() == [[7, 8, 9], short[0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], short[1]]
    assert inputs["input_ids"].dtype == torch.int64
