"""The floors without pretraining: k-mer counts beside a readable twin, and classifiers that find what is there."""

import random
from itertools import product

import numpy as np
import pytest

from dnabert2.errors import UserError
from dnabert2.genome.strands import reverse_complement
from dnabert2.gue_eval.floors import FLOORS, joined
from dnabert2.gue_eval.kmer_counts import kmer_counts, strand_columns
from dnabert2.training.metrics import classification_scores

MOTIF = "TGACGTA"


def counted_one_by_one(sequence: str, k: int, both_strands: bool) -> dict[str, int]:
    """The readable twin: slide along the sequence, and name a k-mer by the first of its two spellings."""
    counts = {}
    for start in range(len(sequence) - k + 1):
        kmer = sequence[start : start + k]
        if set(kmer) <= set("ACGT"):
            name = min(kmer, reverse_complement(kmer)) if both_strands else kmer
            counts[name] = counts.get(name, 0) + 1
    return counts


def column_names(k: int, both_strands: bool) -> list[str]:
    kmers = ["".join(letters) for letters in product("ACGT", repeat=k)]
    return [kmer for kmer in kmers if kmer <= reverse_complement(kmer)] if both_strands else kmers


@pytest.mark.parametrize("both_strands", (False, True))
def test_counts_are_those_of_the_readable_twin(both_strands, monkeypatch):
    monkeypatch.setattr("dnabert2.gue_eval.kmer_counts.CHUNK", 100)  # several chunks
    draw = random.Random(1)
    sequences = ["".join(draw.choices("ACGTN", (9, 9, 9, 9, 1), k=draw.randint(1, 70))) for _ in range(30)]
    sequences += ["A", "NNNN", "ACGT", MOTIF]
    table = kmer_counts(sequences, (1, 2, 3, 5), both_strands).toarray()
    names = [name for k in (1, 2, 3, 5) for name in column_names(k, both_strands)]
    assert table.shape == (len(sequences), len(names))
    for sequence, row in zip(sequences, table, strict=True):
        expected = {}
        for k in (1, 2, 3, 5):
            expected |= counted_one_by_one(sequence, k, both_strands)
        assert {name: int(count) for name, count in zip(names, row, strict=True) if count} == expected


def test_both_strands_count_the_same():
    draw = random.Random(2)
    sequences = ["".join(draw.choices("ACGTN", k=50)) for _ in range(20)]
    turned = [reverse_complement(sequence) for sequence in sequences]
    either, other = (kmer_counts(rows, (3, 4), both_strands=True).toarray() for rows in (sequences, turned))
    assert (either == other).all() and either.any()
    assert (kmer_counts(sequences, (3,)).toarray() != kmer_counts(turned, (3,)).toarray()).any()
    assert [strand_columns(k)[1] for k in (1, 2, 3, 4)] == [2, 10, 32, 136]


@pytest.mark.parametrize("both_strands", (False, True))
def test_a_pair_has_the_counts_of_both(both_strands):
    draw = random.Random(6)
    first, second = (["".join(draw.choices("ACGT", k=draw.randint(5, 50))) for _ in range(12)] for _ in range(2))
    one, other, both = (kmer_counts(rows, (3, 6), both_strands) for rows in (first, second, joined(first, second)))
    assert (both.toarray() == (one + other).toarray()).all() and joined(first, None) is first


@pytest.fixture(scope="module")
def splits():
    """Class 1 carries a motif on either strand."""
    draw = random.Random(3)

    def rows(count: int):
        sequences, labels = [], [i % 2 for i in range(count)]
        for label in labels:
            background = "".join(draw.choices("ACGT", k=40))
            motif = draw.choice((MOTIF, reverse_complement(MOTIF))) if label else ""
            place = draw.randrange(30)
            sequences.append((background[:place] + motif + background[place:])[:40])
        return sequences, labels

    return {"train": rows(300), "dev": rows(80), "test": rows(80)}


def run(name, splits, **options):
    return FLOORS[name](
        name,
        splits,
        **{"classes": ["0", "1"], "strandless": True, "seed": 1, "device": "cpu", "limits": None} | options,
    )


def mcc(splits, split, probabilities) -> float:
    return classification_scores(np.array(splits[split][1]), probabilities.argmax(axis=1))["matthews_correlation"]


def test_majority_knows_shares_and_nothing_else(splits):
    skewed = splits | {"train": (["A"] * 10, [1] * 7 + [0] * 3)}
    result = run("majority", skewed)
    assert result.test_probabilities == pytest.approx(np.tile([0.3, 0.7], (80, 1)))
    assert mcc(splits, "test", result.test_probabilities) == 0.0


def test_kmer_logistic_finds_the_motif_and_is_tuned_on_dev(splits):
    result = run("kmer-logistic", splits)
    assert mcc(splits, "test", result.test_probabilities) > 0.7
    assert result.test_probabilities.sum(axis=1) == pytest.approx(np.ones(80))
    tried = {(row["transform"], row["C"]): row for row in result.settings["tried"]}
    chosen = tried[result.settings["transform"], result.settings["C"]]
    assert chosen["dev_mcc"] == max(row["dev_mcc"] for row in tried.values())
    assert mcc(splits, "dev", result.dev_probabilities) == pytest.approx(chosen["dev_mcc"], abs=1e-4)
    assert result.parameters == sum(strand_columns(k)[1] for k in (3, 4, 5, 6)) + 1


def test_kmer_logistic_of_many_bases_is_tuned_on_some_and_fitted_on_all(splits, monkeypatch):
    whole = run("kmer-logistic", splits)
    monkeypatch.setattr("dnabert2.gue_eval.floors.MOST_TUNING_BASES", 150 * 40)
    result = run("kmer-logistic", splits)
    assert (result.settings["tuned_on_rows"], whole.settings["tuned_on_rows"]) == (150, 300)
    assert mcc(splits, "test", result.test_probabilities) > 0.7
    halved = splits | {"train": tuple(rows[:150] for rows in splits["train"])}
    assert result.test_probabilities != pytest.approx(run("kmer-logistic", halved).test_probabilities)


def test_kmer_logistic_cannot_tell_strands_apart_where_there_are_none(splits):
    turned = splits | {"test": ([reverse_complement(s) for s in splits["test"][0]], splits["test"][1])}
    same = [run("kmer-logistic", tables).test_probabilities for tables in (splits, turned)]
    assert same[0] == pytest.approx(same[1])
    other = [run("kmer-logistic", tables, strandless=False).test_probabilities for tables in (splits, turned)]
    assert np.abs(other[0] - other[1]).max() > 0.01


def test_kmer_logistic_with_more_classes_one_of_them_unseen(splits):
    """Probabilities stand in the columns of their classes; a class without training rows has none."""
    tables = {split: (rows, [3 * label for label in labels]) for split, (rows, labels) in splits.items()}
    tables["train"][1][:20] = [1] * 20
    result = run("kmer-logistic", tables, classes=["a", "b", "c", "d"])
    assert result.test_probabilities.shape == (80, 4) and not result.test_probabilities[:, 2].any()
    assert mcc(tables, "test", result.test_probabilities) > 0.6


def test_tuned_floors_need_a_development_table(splits):
    without = {split: rows for split, rows in splits.items() if split != "dev"}
    for name in ("kmer-logistic", "cnn"):
        with pytest.raises(UserError, match=r"this task has none; add dev\.csv"):
            run(name, without)
