"""The small CNN: what it may not depend on, and that it learns a motif."""

import random

import numpy as np
import pytest
import torch

from dnabert2.genome.strands import reverse_complement
from dnabert2.gue_eval import cnn
from dnabert2.gue_eval.floors import FLOORS, FloorLimits, joined
from dnabert2.training.metrics import classification_scores

CHANNELS = 16
MOTIF = "TGACGTAAC"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few channels, and float32 wherever the tests run."""
    monkeypatch.setattr(cnn, "CHANNELS", CHANNELS)
    monkeypatch.setattr(cnn, "has_fast_bfloat16", lambda device: False)


def draw_sequences(count: int, seed: int = 0, least: int = 20, most: int = 60) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("ACGTN", (9, 9, 9, 9, 2), k=draw.randint(least, most))) for _ in range(count)]


@pytest.fixture
def network():
    """Factory: a network that has seen some sequences, so that its norms have statistics of their own."""

    def make(strandless: bool):
        torch.manual_seed(5)
        made = cnn.MotifNetwork(3, strandless, CHANNELS)
        for norm in made.norms:
            torch.nn.init.normal_(norm.bias)  # pads are not zero by chance
        for seed in range(3):
            made(*cnn.encode(draw_sequences(20, seed)))
        return made.eval()

    return make


def test_encoding_and_the_other_strand():
    sequences = ["ACGTN", "GG", "TTTAC"]
    codes, lengths = cnn.encode(sequences)
    assert codes.tolist() == [[0, 1, 2, 3, -1], [2, 2, -1, -1, -1], [3, 3, 3, 0, 1]] and lengths.tolist() == [5, 2, 5]
    turned = cnn.reverse_complement(codes, lengths)
    expected = cnn.encode([reverse_complement(sequence) for sequence in sequences])[0]
    assert torch.equal(turned, expected)


def test_a_sequence_and_its_other_strand_get_one_prediction(network):
    sequences = draw_sequences(20)
    turned = [reverse_complement(sequence) for sequence in sequences]
    both, stranded = network(True), network(False)
    same = [cnn.predict(both, *cnn.encode(rows)) for rows in (sequences, turned)]
    other = [cnn.predict(stranded, *cnn.encode(rows)) for rows in (sequences, turned)]
    assert same[0] == pytest.approx(same[1], abs=1e-5)
    assert np.abs(other[0] - other[1]).max() > 1e-3
    assert np.ptp(same[0], axis=0).max() > 1e-3  # and not one prediction for all


@pytest.mark.parametrize("strandless", (False, True))
def test_padding_and_company_change_nothing(network, strandless):
    """Each sequence alone, beside others, and with 40 pads behind it."""
    sequences, made = draw_sequences(13), network(strandless)
    codes, lengths = cnn.encode(sequences)
    together = cnn.predict(made, codes, lengths, batch_size=4)
    alone = np.concatenate([cnn.predict(made, *cnn.encode([sequence])) for sequence in sequences])
    assert together == pytest.approx(alone, abs=1e-5)
    padded = torch.nn.functional.pad(codes, (0, 40), value=-1)
    with torch.no_grad():
        assert made(padded, lengths).softmax(-1).numpy() == pytest.approx(alone, abs=1e-5)


@torch.no_grad()
def test_of_a_pair_the_places_of_both_are_seen_and_none_of_them_together():
    """Norms that have not learnt yet make nothing of N; lengths are even, so that the pooling parts all alike."""
    made = cnn.MotifNetwork(2, False, CHANNELS).eval()
    first, second = (["".join(random.Random(i).choices("ACGT", k=40)) for i in range(a, a + 20)] for a in (0, 20))
    nothing = [""] * 20
    pairs = (first, nothing), (nothing, second), (first, second)
    one, other, both = (made.pooled(*cnn.encode(joined(*pair))) for pair in pairs)
    assert torch.allclose(both, torch.maximum(one, other), atol=1e-6)
    assert (both > one + 1e-3).any() and (both > other + 1e-3).any()


def motif_rows(count: int, seed: int):
    draw, sequences = random.Random(seed), []
    labels = [i % 2 for i in range(count)]
    for label in labels:
        background, place = "".join(draw.choices("ACGT", k=40)), draw.randrange(30)
        motif = draw.choice((MOTIF, reverse_complement(MOTIF))) if label else ""
        sequences.append((background[:place] + motif + background[place:])[:40])
    return sequences, labels


def test_it_learns_a_motif_on_either_strand_and_repeats_exactly():
    splits = {"train": motif_rows(600, 1), "dev": motif_rows(80, 2), "test": motif_rows(80, 3)}
    options = {"classes": ["0", "1"], "strandless": True, "device": "cpu", "limits": FloorLimits(epochs=8)}
    first, again, other = (FLOORS["cnn"]("cnn", splits, seed=seed, **options) for seed in (4, 4, 5))
    labels = {split: np.array(ids) for split, (_, ids) in splits.items()}

    def mcc(split, probabilities):
        return classification_scores(labels[split], probabilities.argmax(axis=1))["matthews_correlation"]

    assert mcc("test", first.test_probabilities) > 0.8
    assert (first.test_probabilities == again.test_probabilities).all()
    assert (first.test_probabilities != other.test_probabilities).any()
    # The epoch with the best development score is the one that is kept.
    history = first.settings["dev_mcc_by_epoch"]
    assert max(history) == history[first.settings["best_epoch"] - 1]
    assert mcc("dev", first.dev_probabilities) == pytest.approx(max(history), abs=1e-4)
    weights = CHANNELS * (4 * 15 + 2 * 5 * CHANNELS) + 6 * CHANNELS + 2 * (CHANNELS + 1)
    assert first.parameters == weights


def test_limits():
    splits = {name: motif_rows(32, 1) for name in ("train", "dev", "test")}
    options = {"classes": ["0", "1"], "strandless": False, "seed": 1, "device": "cpu"}
    stopped = FLOORS["cnn"]("cnn", splits, limits=FloorLimits(seconds=0), **options)
    assert stopped.notes == ["Stopped after 1 of 30 epochs, at its limit of 0 seconds."]
    few = FLOORS["cnn"]("cnn", splits, limits=FloorLimits(bases=5 * 32 * 40), **options)
    assert few.settings["epochs"] == 5 and len(few.settings["dev_mcc_by_epoch"]) == 5 and not few.notes
