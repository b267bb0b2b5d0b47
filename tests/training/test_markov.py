"""Markov baselines: against counts and products written out."""

import math

import numpy as np
import pytest

from dnabert2.tokenizer.files import load_tokenizer
from dnabert2.training.corpus_stream import Corpus
from dnabert2.training.markov import (
    BaseTable,
    Candidates,
    contexts,
    count_bases,
    count_tokens,
    fill_bits,
    markov_bits,
    probability_tables,
)


def test_contexts():
    codes = np.array([0, 1, 2, -1, 3, 3, 0])
    assert contexts(codes, 0).tolist() == [0, 1, 2, -1, 3, 3, 0]
    assert contexts(codes, 2).tolist() == [-1, -1, 0 * 16 + 1 * 4 + 2, -1, -1, -1, 3 * 16 + 3 * 4 + 0]


def test_bits_are_those_of_counting_by_hand():
    draw = np.random.default_rng(0)
    history, text = ("".join(draw.choice(list("ACGT"), n, p=[0.5, 0.3, 0.1, 0.1])) for n in (400, 40))
    codes = [np.array(["ACGT".index(base) for base in x]) for x in (history, text)]
    index = contexts(codes[0], 3)
    counts = np.bincount(index[index >= 0], minlength=4**4).reshape(-1, 4)
    bits = markov_bits(probability_tables(counts, alpha=2.0), codes[1])
    for order in range(4):
        # A lower order sums the table's counts, so that its history begins at the same place.
        expected = []
        for place, base in enumerate(text):
            p = 0.25
            for k in range(min(order, place) + 1):
                places = [i for i in range(3, len(history)) if history[i - k : i] == text[place - k : place]]
                p = (sum(history[i] == base for i in places) + 2.0 * p) / (len(places) + 2.0)
            expected.append(-math.log2(p))
        assert bits[order] == pytest.approx(expected)


def test_a_repeat_costs_nothing_and_noise_two_bits():
    repeat = np.tile([0, 1, 2, 3, 3, 1], 500)
    index = contexts(repeat, 4)
    counts = np.bincount(index[index >= 0], minlength=4**5).reshape(-1, 4)
    tables = probability_tables(counts, 1.0)
    assert markov_bits(tables, repeat)[4][10:].mean() < 0.02
    assert markov_bits(probability_tables(np.zeros((4**4, 4), dtype=int), 1.0), repeat) == pytest.approx(2.0)
    assert markov_bits(tables, np.array([0, -1, 1]))[:, 1].tolist() == [0] * 5


def test_candidates_are_cut_as_the_text_was(corpus):
    tokenizer = load_tokenizer(corpus / "tokenizer")
    text = "GATTACAGATTTACCATGACCCATTGGACCA"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    place = len(ids) // 2
    before, after = "".join(tokens[:place]), "".join(tokens[place + 1 :])
    expected = {
        id
        for token, id in tokenizer.get_vocab().items()
        if len(token) == len(tokens[place])
        and set(token) <= set("ACGT")
        and tokenizer(before + token + after, add_special_tokens=False)["input_ids"]
        == [*ids[:place], id, *ids[place + 1 :]]
    }
    found, codes = Candidates(tokenizer).between(ids[:place], ids[place], ids[place + 1 :])
    assert set(found) == expected and ids[place] in expected
    assert 1 < len(expected) < sum(len(token) == len(tokens[place]) for token in tokenizer.get_vocab())
    spelt = ["".join("ACGT"[code] for code in row) for row in codes]
    assert spelt == tokenizer.convert_ids_to_tokens([int(id) for id in found])


def test_a_filled_blank_is_the_chain_over_all_candidates():
    draw = np.random.default_rng(1)
    table = probability_tables(draw.integers(0, 50, (4**2, 4)), 1.0)[2]
    words = ["ACA", "ACC", "GTT", "TTT"]
    left, right = "GT", "CC"
    chain = {}
    for word in words:
        around = ["ACGT".index(base) for base in left + word + right]
        chain[word] = math.prod(table[4 * around[i - 2] + around[i - 1], around[i]] for i in range(2, len(around)))
    codes = np.array([["ACGT".index(base) for base in word] for word in words])
    sides = [np.array(["ACGT".index(base) for base in side]) for side in (left, right)]
    for number, word in enumerate(words):
        expected = -math.log2(chain[word] / sum(chain.values()))
        assert fill_bits(table, np.arange(10, 14), codes, 10 + number, *sides) == pytest.approx(expected)


def test_tokens_of_a_corpus_are_counted(corpus):
    opened = Corpus.open(str(corpus))
    counts = count_tokens(opened, 4096)
    rows = [row for shard in opened.shards("train") for t in opened.rows(shard["file"]) for row in t.to_pylist()]
    for group, found in counts.items():
        ids = [i for row in rows if row["group"] == group for i in row["input_ids"]]
        assert found.tolist() == np.bincount(ids, minlength=4096).tolist() and found.sum() > 1000


def test_tokens_become_bases(corpus):
    tokenizer = load_tokenizer(corpus / "tokenizer")
    text = "ACGTTGCANNACG"
    ids = np.array(tokenizer(text)["input_ids"])
    codes, token = BaseTable(tokenizer).bases(ids)
    assert "".join("ACGTN"[code] for code in codes) == text
    assert (np.bincount(token, minlength=len(ids)) == BaseTable(tokenizer).lengths[ids]).all()


def test_counts_of_a_corpus_are_those_of_its_rows(corpus):
    tokenizer = load_tokenizer(corpus / "tokenizer")
    opened = Corpus.open(str(corpus))
    counts = count_bases(opened, tokenizer, order=2)
    expected = {group: np.zeros((16, 4), dtype=int) for group in counts}
    for shard in opened.shards("train"):
        for table in opened.rows(shard["file"]):
            for row in table.to_pylist():
                text = "".join(tokenizer.convert_ids_to_tokens(row["input_ids"]))
                for i in range(2, len(text)):
                    context = 4 * "ACGT".index(text[i - 2]) + "ACGT".index(text[i - 1])
                    expected[row["group"]][context, "ACGT".index(text[i])] += 1
    assert set(counts) == {"Animal one", "Bacterium two"}
    assert all((counts[group] == expected[group]).all() for group in counts)
