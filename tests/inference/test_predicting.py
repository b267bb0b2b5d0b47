"""What a fine-tuned network says: both strands, long sequences in windows, classes of bases, types of pairs."""

import numpy as np
import pytest
import torch

from dnabert2.errors import UserError
from dnabert2.genome.base_map import scatter_base_logits, token_spans
from dnabert2.genome.strands import reverse_complement
from dnabert2.inference.predicting import Kind, Predictor, load_predictor

pytestmark = pytest.mark.usefixtures("no_plots")


def test_both_strands(folder_of):
    """The mean of the logits of the two, of which one alone says otherwise."""
    run = folder_of("mean of both strands")
    loaded = load_predictor(str(run.model))
    sequences = run.predictions["sequence"]
    one, both = (Predictor(loaded, rc_average=average).logits(sequences) for average in (False, True))
    turned = Predictor(loaded).logits([reverse_complement(sequence) for sequence in sequences])
    np.testing.assert_allclose(both, (one + turned) / 2, atol=1e-6)
    assert np.abs(one - both).max() > 1e-3


def test_types_of_pairs_are_those_of_training(folder_of):
    """Of a run without types the second sequence has the first one's."""
    for kind, types in (("pairs", {0, 1}), ("pairs without types", {0})):
        loaded = load_predictor(str(folder_of(kind).model))
        seen, forward = set(), loaded.model.forward

        def spied(input_ids, token_type_ids=None, forward=forward, seen=seen, **rest):
            seen.update([0] if token_type_ids is None else token_type_ids.unique().tolist())
            return forward(input_ids, token_type_ids=token_type_ids, **rest)

        loaded.model.forward = spied
        Predictor(loaded).logits(["ACGTTGCA"], ["GGCATTA"])
        assert seen == types


# Long sequences


def windows_of(length: int, window: int, overlap: int):
    """First and last of as few windows as cover so many tokens, as far apart."""
    count = int(np.ceil((length - overlap) / (window - overlap)))
    return [(start, start + window) for start in np.round(np.linspace(0, length - window, count)).astype(int)]


def long_sequence(bases: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), bases))


def test_windows_of_long_sequences(folder_of):
    """Their logits are averaged; what fits into one window is read whole."""
    loaded = load_predictor(str(folder_of("one label").model))
    tokenizer = loaded.tokenizer
    sequences = [long_sequence(300, 0), long_sequence(20, 1), long_sequence(150, 2)]
    found = Predictor(loaded, window=22, overlap=5, batch_tokens=50).logits(sequences)
    for sequence, logits in zip(sequences, found, strict=True):
        ids = tokenizer(sequence, add_special_tokens=False)["input_ids"]
        spans = windows_of(len(ids), 20, 5) if len(ids) > 20 else [(0, len(ids))]
        made = []
        for start, stop in spans:
            row = torch.tensor([[tokenizer.cls_token_id, *ids[start:stop], tokenizer.sep_token_id]])
            with torch.no_grad():
                made.append(loaded.model(input_ids=row).logits[0])
        np.testing.assert_allclose(logits, torch.stack(made).mean(0).numpy(), atol=1e-5)
        assert (len(spans) > 1) == (len(sequence) > 100)
    whole = Predictor(loaded).logits(sequences)
    np.testing.assert_allclose(Predictor(loaded, window=1_000, overlap=9).logits(sequences), whole, atol=1e-5)
    assert np.abs(found[0] - whole[0]).max() > 1e-3


def test_bases_over_windows(folder_of):
    """Each base has the logits of its token in the window that has more around it; of one window, of the whole."""
    loaded = load_predictor(str(folder_of("bases").model))
    tokenizer, sequence = loaded.tokenizer, long_sequence(400, 3) + "N" + long_sequence(30, 4)
    sequences = [sequence, "ACG", long_sequence(90, 5)]
    whole = Predictor(loaded).logits(sequences)
    assert [rows.shape for rows in whole] == [(len(s), 2) for s in sequences]
    inputs = tokenizer(sequence, return_tensors="pt")
    with torch.no_grad():
        logits = loaded.model(**inputs).logits[0].numpy()
    (spans,) = token_spans(tokenizer, sequence)
    np.testing.assert_allclose(whole[0], scatter_base_logits(logits, spans, len(sequence)), atol=1e-5)
    for fits in (
        Predictor(loaded, window=500, overlap=20).logits(sequences),
        Predictor(loaded, batch_tokens=1).logits(sequences),
    ):
        for here, there in zip(fits, whole, strict=True):
            np.testing.assert_allclose(here, there, atol=1e-5)

    parts = Predictor(loaded, window=32, overlap=10, batch_tokens=100).logits(sequences)
    assert all(np.isfinite(rows).all() for rows in parts)
    ids, inner = inputs["input_ids"][0, 1:-1].tolist(), spans[1:-1]
    places = windows_of(len(ids), 30, 10)
    made = {}
    for start, stop in places:
        row = torch.tensor([[tokenizer.cls_token_id, *ids[start:stop], tokenizer.sep_token_id]])
        with torch.no_grad():
            values = loaded.model(input_ids=row).logits[0, 1:-1].numpy()
        for i in range(start, stop):
            # How many tokens there are up to the nearer end, where the sequence does not end itself.
            room = min(i - start if start else 10**6, stop - 1 - i if stop < len(ids) else 10**6)
            made.setdefault(i, []).append((room, values[i - start]))
    for i, (low, high) in enumerate(inner.tolist()):
        best = max(room for room, _ in made[i])
        wanted = [values[: high - low] for room, values in made[i] if room >= best - 1]
        assert min(np.abs(parts[0][low:high] - values).max() for values in wanted) < 1e-5
    assert len(places) > 3 and np.abs(parts[0] - whole[0]).max() > 1e-3


def test_bases_of_both_strands(folder_of):
    loaded = load_predictor(str(folder_of("bases").model))
    sequence = long_sequence(80, 6)
    (here,), (there,) = (Predictor(loaded).logits([s]) for s in (sequence, reverse_complement(sequence)))
    (both,) = Predictor(loaded, rc_average=True).logits([sequence])
    np.testing.assert_allclose(both, (here + there[::-1]) / 2, atol=1e-5)
    (turned,) = Predictor(loaded, rc_average=True).logits([reverse_complement(sequence)])
    np.testing.assert_allclose(turned[::-1], both, atol=1e-5)


def test_kinds_of_models_that_others_made(small_config):
    """By the number of outputs where the configuration says nothing, as transformers does."""
    for labels, problem, name in (
        (1, None, "regression"),
        (3, None, "single_label_classification"),
        (3, "regression", "regression"),
        (2, "multi_label_classification", "multi_label_classification"),
    ):
        kind = Kind.of(small_config(num_labels=labels, problem_type=problem), False)
        assert kind.name == name and len(kind.labels) == labels
        made = kind.columns(np.arange(2.0 * labels, dtype=np.float32).reshape(2, labels))
        assert ["id", *made] == kind.schema().names
    with pytest.raises(UserError, match="cannot overlap"):
        Predictor(None, window=3, overlap=1)
