"""Tables as input: either strand, other byte pairs, the report on truncation, and batches padded on either side."""

import numpy as np
import pytest
import torch

from dnabert2.architectures.rows import match_architecture
from dnabert2.errors import UserError
from dnabert2.genome.strands import reverse_complement
from dnabert2.tokenizer.files import OURS, load_tokenizer
from dnabert2.tokenizer.policy import PolicyReport
from dnabert2.training.examples import Collator, Examples, encode_tables
from dnabert2.training.problems import problem_of
from dnabert2.training.tables import Table

SEQUENCES = ["ACGTTGCATTTAGCCAATAAAGGCCTTAGGA", "GGGCGCGCCATATTTAACG", "TTTTTTTTTTAACCGGTTAC"]


def table(sequences=SEQUENCES, pairs=None, path="train.csv"):
    labels = [["0"], ["1"], ["0"]][: len(sequences)]
    return Table(path, list(sequences), pairs, labels, list(range(2, 2 + len(sequences))))


def encoded(tables, **options):
    problem = problem_of(tables["train"], None)
    settings = {"max_length": None, "allow_truncation": False, **options}
    tokenizer = load_tokenizer(OURS)
    report = PolicyReport()
    ours = match_architecture("", {"model_type": "dnabert2"})
    return (*encode_tables(tables, problem, tokenizer, ours, report, **settings), tokenizer, report)


def text(tokenizer, row):
    return tokenizer.decode(row["input_ids"], skip_special_tokens=True).replace(" ", "")


def test_rows_are_the_tokenizers():
    examples, truncations, tokenizer, report = encoded({"train": table()})
    for i, sequence in enumerate(SEQUENCES):
        row = examples["train"][i]
        assert row["input_ids"] == tokenizer(sequence)["input_ids"] and row["labels"] == i % 2
        assert set(row) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    lengths = [len(row["input_ids"]) for row in examples["train"].rows]
    found = truncations["train"]
    assert (found.rows, found.longest, found.cut) == (3, max(lengths), 0)
    assert report.tokens == sum(lengths)


def test_either_strand_by_seed_and_epoch():
    examples, _, tokenizer, _ = encoded({"train": table()}, rc_augment=True, seed=4)
    train, seen = examples["train"], set()
    for epoch in range(12):
        train.set_epoch(epoch)
        texts = tuple(text(tokenizer, row) for row in train.rows)
        for found, sequence in zip(texts, SEQUENCES, strict=True):
            assert found in (sequence, reverse_complement(sequence))
        seen.add(texts)
        train.set_epoch(epoch)  # the same epoch again is the same
        assert tuple(text(tokenizer, row) for row in train.rows) == texts
    assert len(seen) > 3


def test_both_strands_follow_one_another():
    tables = {"train": table(), "test": table(pairs=None, path="test.csv")}
    examples, _, tokenizer, _ = encoded(tables, rc_average=True)
    assert len(examples["train"]) == 3 and len(examples["test"]) == 6
    for i, sequence in enumerate(SEQUENCES):
        there, back = examples["test"][i], examples["test"][i + 3]
        assert text(tokenizer, there) == sequence and text(tokenizer, back) == reverse_complement(sequence)
        assert there["labels"] == back["labels"]


def test_pairs_have_token_types_unless_told():
    pairs = {"train": table(pairs=SEQUENCES[::-1])}
    row = encoded(pairs)[0]["train"][0]
    assert row["token_type_ids"][0] == 0 and row["token_type_ids"][-1] == 1
    row = encoded(pairs, token_types=False)[0]["train"][0]
    assert set(row["token_type_ids"]) == {0}


def test_truncation_stops_unless_allowed():
    tables = {"train": table(), "test": table(SEQUENCES[:1] * 3, path="test.csv")}
    lengths = [len(load_tokenizer(OURS)(s)["input_ids"]) for s in SEQUENCES]
    limit = max(lengths) - 1
    first = next(i for i, length in enumerate(lengths) if length > limit)
    said = f"train.csv, line {first + 2}: more than {limit} tokens, as have 1 of 3 in train, 3 of 3 in test"
    with pytest.raises(UserError, match=said):
        encoded(tables, max_length=limit)
    examples, truncations, _, _ = encoded(tables, max_length=limit, allow_truncation=True)
    assert truncations["train"].cut == sum(length > limit for length in lengths) == 1
    assert max(len(row["input_ids"]) for row in examples["train"].rows) == limit
    assert f"1 cut to {limit} (33.3%)" in truncations["train"].describe()


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_pad_inputs_and_targets_of_bases(side):
    tokenizer = load_tokenizer(OURS)
    tokenizer.padding_side = side
    rows = [{"input_ids": [1, 7, 8, 2], "attention_mask": [1] * 4}, {"input_ids": [1, 2], "attention_mask": [1] * 2}]
    targets = [np.arange(8).reshape(4, 2), np.arange(4).reshape(2, 2)]
    batch = Collator(tokenizer)([Examples(rows, targets)[i] for i in range(2)])
    real = slice(0, 2) if side == "right" else slice(2, 4)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].shape == (2, 4, 2) and batch["labels"][1, real].flatten().tolist() == [0, 1, 2, 3]
    pads = batch["attention_mask"][1] == 0
    assert pads.sum() == 2 and (batch["labels"][1, pads] == -100).all()
    assert (batch["input_ids"][1, pads] == tokenizer.pad_token_id).all()


def test_a_model_without_a_mask_gets_none():
    tokenizer = load_tokenizer(OURS)
    batch = Collator(tokenizer)([{"input_ids": [1, 7, 2], "labels": 0}, {"input_ids": [1, 2], "labels": 1}])
    assert set(batch) == {"input_ids", "labels"} and batch["labels"].dtype == torch.int64


def test_the_other_strand_counts_where_it_is_read():
    """Byte pairs of the other strand may be more."""
    lengths = [[len(load_tokenizer(OURS)(f(s))["input_ids"]) for s in SEQUENCES] for f in (str, reverse_complement)]
    i = max(range(3), key=lambda i: lengths[1][i] - lengths[0][i])
    assert lengths[1][i] > lengths[0][i]
    tables = {"train": table(), "test": table(SEQUENCES[i : i + 1], path="test.csv")}
    options = {"max_length": lengths[0][i], "allow_truncation": True}
    assert encoded(tables, **options)[1]["test"].cut == 0
    examples, truncations, _, _ = encoded(tables, rc_average=True, **options)
    assert truncations["test"].cut == 1 and len(examples["test"][1]["input_ids"]) == lengths[0][i]


def test_pairs_are_turned_together():
    tables = {"train": table(pairs=SEQUENCES[::-1])}
    examples, _, tokenizer, _ = encoded(tables, rc_augment=True)
    seen = set()
    for epoch in range(8):
        examples["train"].set_epoch(epoch)
        for row, one, two in zip(examples["train"].rows, SEQUENCES, SEQUENCES[::-1], strict=True):
            both = text(tokenizer, row)
            assert both in (one + two, reverse_complement(one) + reverse_complement(two))
            seen.add(both == one + two)
    assert seen == {True, False}
