"""Embeddings depend on nothing but sequence and model: not on batch, padding, order, backend or windows.

Differences are relative to the greatest value: in float32 at most 1e-5, of which 2e-6 were seen; in bfloat16 at most
0.03 from float32, of which 0.028 were seen with the bundled checkpoint and 0.017 here.
"""

import random

import numpy as np
import pytest
import torch
from foreign_models import dnabert, gena_lm

from dnabert2.errors import UserError
from dnabert2.genome.base_map import spread, token_spans
from dnabert2.genome.strands import reverse_complement
from dnabert2.genome.windows import split
from dnabert2.inference import embedding as module
from dnabert2.inference.defaults import POOLINGS
from dnabert2.inference.embedding import Embedding
from dnabert2.inference.models import load_encoder
from dnabert2.inference.pooling import pool

FLOAT32, BFLOAT16 = 1e-5, 0.03
BACKENDS = ("eager", "sdpa", "flex_attention")


@pytest.fixture(scope="module")
def loaded(tiny):
    return load_encoder(str(tiny), attn_implementation="eager")


def sequences(count: int = 20, longest: int = 300) -> list[str]:
    draw = random.Random(count)
    made = ["".join(draw.choices("ACGT", k=draw.choice([1, 2, 9, 40, longest]))) for _ in range(count)]
    made[1] = "ACGTNNNNNNNGTAC" * 3 + "A" * 50
    return made


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float = FLOAT32):
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def states(loaded, sequence: str, layer: int = -1) -> np.ndarray:
    """The readable twin: (tokens, hidden) of one whole sequence, special tokens included."""
    ids = torch.tensor([loaded.tokenizer(sequence)["input_ids"]])
    with torch.no_grad():
        return loaded.model(ids, output_hidden_states=True).hidden_states[layer][0].float().numpy()


def pooled(hidden: np.ndarray, pooling: str) -> np.ndarray:
    return {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.max(0)}[pooling]


@pytest.fixture(scope="module")
def expected(loaded) -> dict[str, np.ndarray]:
    hidden = [states(loaded, sequence) for sequence in sequences()]
    return {pooling: np.stack([pooled(x, pooling) for x in hidden]) for pooling in POOLINGS}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_vector_whatever_batch_order_and_backend(tiny, expected, backend, pooling):
    loaded, rows = load_encoder(str(tiny), attn_implementation=backend), sequences()
    order = random.Random(5).sample(range(len(rows)), len(rows))
    batches = ({}, {"batch_size": 1}, {"batch_size": 3}, {"batch_tokens": 100}, {"batch_tokens": 1})
    for options in batches if backend == "eager" else batches[-2:-1]:  # flex_attention on a CPU is slow
        embedding = Embedding(loaded, pooling=pooling, **options)
        assert_near(embedding.vectors(rows), expected[pooling])
        assert_near(embedding.vectors([rows[i] for i in order]), expected[pooling][order])
    assert_near(embedding.vectors([rows[4]] * 3), expected[pooling][[4] * 3])


def test_the_same_vector_by_the_kernels(kernels, tiny, expected):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_encoder(str(tiny), attn_implementation="triton", device=device)
    some = [i for i, sequence in enumerate(sequences()) if len(sequence) < 100][:3]
    found = Embedding(loaded).vectors([sequences()[i] for i in some])
    assert_near(found, expected["mean"][some])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_near(tiny, expected, backend):
    loaded = load_encoder(str(tiny), attn_implementation=backend, dtype="bfloat16")
    for pooling in POOLINGS:
        for options in ({}, {"batch_tokens": 100}):
            embedding = Embedding(loaded, pooling=pooling, **options)
            assert_near(embedding.vectors(sequences()), expected[pooling], BFLOAT16)
    assert embedding.identity["dtype"] == "bfloat16"


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_of_windows_is_that_of_the_padded_batch(loaded, pooling):
    batch = loaded.tokenizer(sequences(), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = loaded.model(**batch)[0]
    whole = pool(hidden, batch["attention_mask"], pooling).numpy()
    assert_near(Embedding(loaded, pooling=pooling, window=None).vectors(sequences()), whole)
    longest = batch["input_ids"].shape[1]
    assert_near(Embedding(loaded, pooling=pooling, window=longest).vectors(sequences()), whole)
    cut = Embedding(loaded, pooling=pooling, window=longest - 1, overlap=9).vectors(sequences())
    assert np.abs(cut - whole).max() > 1e-3  # the longest of them, and no other
    is_cut = batch["attention_mask"].sum(1).numpy() == longest
    assert_near(cut[~is_cut], whole[~is_cut])


def by_windows(loaded, sequence: str, window: int, overlap: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The readable twin of windows: states that count, special tokens included, and the windows' [CLS] ones."""
    ids = loaded.tokenizer.backend_tokenizer.encode(sequence, add_special_tokens=False).ids
    kept, summaries = [], []
    for part in split(len(ids), window - 2, overlap):
        inputs = [loaded.tokenizer.cls_token_id, *ids[part.span], loaded.tokenizer.sep_token_id]
        with torch.no_grad():
            hidden = loaded.model(torch.tensor([inputs]))[0][0].numpy()
        first = 0 if part.keep.start == 0 else 1 + part.kept.start
        last = len(inputs) if part.keep.stop == len(ids) else 1 + part.kept.stop
        kept.append(hidden[first:last])
        summaries.append(hidden[0])
    return np.concatenate(kept), summaries


@pytest.mark.parametrize(("window", "overlap"), [(3, 0), (10, 3), (16, 8), (40, 1), (41, 38)])
def test_windows(loaded, window, overlap, monkeypatch):
    rows = sequences(6)
    twins = [by_windows(loaded, row, window, overlap) for row in rows]
    for pooling in POOLINGS:
        embedding = Embedding(loaded, pooling=pooling, window=window, overlap=overlap, batch_tokens=150)
        expected = [
            np.mean(summaries, axis=0) if pooling == "cls" else pooled(kept, pooling) for kept, summaries in twins
        ]
        assert_near(embedding.vectors(rows), np.stack(expected))
    for at_once in (1, 64, 10_000):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
        parts = list(embedding.tokens(rows))
        assert all(len(part.ids) <= max(at_once, window) for part in parts)
        assert [part.sequence for part in parts] == sorted(part.sequence for part in parts)
        assert at_once < 10_000 or len(parts) == len(rows)
        for i, row in enumerate(rows):
            own = [part for part in parts if part.sequence == i]
            whole = loaded.tokenizer.backend_tokenizer.encode(row, add_special_tokens=False)
            assert np.concatenate([part.ids for part in own]).tolist() == whole.ids  # each token once
            assert np.concatenate([part.spans for part in own]).tolist() == [list(span) for span in whole.offsets]
            assert_near(np.concatenate([part.vectors for part in own]), twins[i][0][1:-1])


@pytest.mark.parametrize("rc_average", [False, True])
@pytest.mark.parametrize("at_once", [(10_000, 4_096), (64, 7), (1, 1)])
def test_vectors_of_bases_are_those_of_their_tokens(loaded, monkeypatch, at_once, rc_average):
    rows = [*sequences(4), "", "ACGT"]
    monkeypatch.setattr(module, "AT_ONCE", at_once[0])
    monkeypatch.setattr(module, "BASES_AT_ONCE", at_once[1])

    def twin(sequence: str) -> np.ndarray:
        (spans,) = token_spans(loaded.tokenizer, sequence)
        return spread(states(loaded, sequence), spans, len(sequence))

    found = list(Embedding(loaded, window=None, rc_average=rc_average).bases(rows))
    for i, row in enumerate(rows):
        own = [(first, vectors) for number, first, vectors in found if number == i]
        assert all(len(vectors) <= at_once[1] for _, vectors in own)
        ends = np.cumsum([0, *(len(vectors) for _, vectors in own)])
        assert [first for first, _ in own] == ends[:-1].tolist() and ends[-1] == len(row)
        if row:
            expected = twin(row)
            if rc_average:
                expected = (expected + twin(reverse_complement(row))[::-1]) / 2
            assert_near(np.concatenate([vectors for _, vectors in own]), expected)


@pytest.mark.parametrize("window", [None, 20])
def test_the_mean_over_strands_is_that_of_either_strand(loaded, window):
    rows = sequences()
    other = [reverse_complement(row) for row in rows]
    for pooling in POOLINGS:
        embedding = Embedding(loaded, pooling=pooling, rc_average=True, window=window, overlap=5)
        found = embedding.vectors(rows)
        assert_near(embedding.vectors(other), found)
        one = Embedding(loaded, pooling=pooling, window=window, overlap=5)
        assert_near((one.vectors(rows) + one.vectors(other)) / 2, found)
        assert np.abs(one.vectors(rows) - one.vectors(other)).max() > 0.1
    for row, complement in zip(rows[:5], other[:5], strict=True):
        forward = np.concatenate([vectors for _, _, vectors in embedding.bases([row])])
        assert_near(np.concatenate([vectors for _, _, vectors in embedding.bases([complement])])[::-1], forward)


def test_layers(loaded):
    rows, layers = sequences(5), loaded.model.config.num_hidden_layers
    blocks = list(loaded.model.encoder.layer)
    for layer in range(-layers - 1, layers + 1):
        embedding = Embedding(loaded, layer=layer)
        assert_near(embedding.vectors(rows), np.stack([states(loaded, row, layer).mean(0) for row in rows]))
        for part in embedding.tokens(rows[:2]):
            assert_near(part.vectors, states(loaded, rows[part.sequence], layer)[1:-1])
        assert embedding.identity["layer"] == layer % (layers + 1)
        assert list(loaded.model.encoder.layer) == blocks
    for layer in (layers + 1, -layers - 2):
        with pytest.raises(UserError, match=rf"--layer {layer}: the model has {layers} layers; give 0"):
            Embedding(loaded, layer=layer)


def test_pairs_are_read_together(loaded):
    rows, pairs = sequences(5), sequences(6)[1:]
    expected = []
    for both in zip(rows, pairs, strict=True):
        with torch.no_grad():
            hidden = loaded.model(**loaded.tokenizer(*both, return_tensors="pt"))[0][0]
        expected.append(hidden.mean(0).numpy())
    found = Embedding(loaded).vectors(rows, pairs)
    assert_near(found, np.stack(expected))
    assert np.abs(found - Embedding(loaded).vectors(rows)).max() > 0.01


def test_nothing_and_empty_sequences(loaded):
    embedding = Embedding(loaded)
    assert embedding.vectors([]).shape == (0, 32) and embedding.size == 32
    assert list(embedding.tokens([])) == list(embedding.bases([])) == list(embedding.bases([""])) == []
    assert [len(part.ids) for part in embedding.tokens(["", "A"])] == [0, 1]
    assert_near(embedding.vectors([""]), states(loaded, "").mean(0)[None])  # [CLS] and [SEP]


def test_what_decides_the_vectors_is_in_the_identity(loaded, tiny):
    options = [{}, {"pooling": "max"}, {"layer": 0}, {"window": None}, {"window": 99}, {"overlap": 9}]
    options += [{"rc_average": True}]
    identities = [Embedding(loaded, **given).identity for given in options]
    identities.append(Embedding(load_encoder(str(tiny), dtype="bfloat16")).identity)
    identities.append(Embedding(load_encoder(str(tiny), random_weights=True)).identity)
    for i, identity in enumerate(identities):
        assert identity["model"] == str(tiny) and identity not in identities[:i]
    same = Embedding(loaded, batch_size=3, batch_tokens=9).identity
    assert same == identities[0] == Embedding(load_encoder(str(tiny), attn_implementation="sdpa")).identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "sum"}, "--pooling sum: choose one of mean, cls, max"),
        ({"window": 64, "overlap": 62}, "windows of 64 tokens, two of them .* cannot overlap by 62"),
        ({"window": 2}, "windows of 2 tokens"),
        ({"overlap": -1}, "cannot overlap by -1"),
    ],
)
def test_options_that_make_no_sense(loaded, options, message):
    with pytest.raises(UserError, match=message):
        Embedding(loaded, **{"overlap": 0, **options})


def test_models_of_other_people(tmp_path):
    """DNABERT reads 3-mers and has 40 positions; its sequences are read whole, or cut if that is asked for."""
    loaded = load_encoder(str(dnabert(tmp_path / "dnabert3", 3)))
    rows = ["ACGTTGCAAC", "TTGACA"]
    embedding = Embedding(loaded, truncate=True)
    assert embedding.identity["window"] is None and embedding.identity["max_tokens"] == 40
    found = embedding.vectors([*rows, "ACGT" * 30])
    assert embedding.size == 16 and embedding.truncated == 1
    expected = []
    for row in [*rows, ("ACGT" * 30)[:40]]:  # 38 3-mers and two special tokens
        words = " ".join(row[i : i + 3] for i in range(len(row) - 2))
        with torch.no_grad():
            expected.append(loaded.model(**loaded.tokenizer(words, return_tensors="pt"))[0][0].mean(0).numpy())
    assert_near(found, np.stack(expected))
    with pytest.raises(UserError, match="1 of 3 sequences have more than 40 tokens, the first is number 2"):
        Embedding(loaded).vectors([rows[0], "ACGT" * 30, rows[1]])
    for method in (embedding.tokens, embedding.bases):
        with pytest.raises(UserError, match="are of DNABERT-2 models alone; pool those of DNABERT"):
            next(method(rows))
    first = Embedding(loaded, layer=0).vectors(rows)
    with torch.no_grad():
        words = loaded.tokenizer("TTG TGA GAC ACA", return_tensors="pt")
        hidden = loaded.model(**words, output_hidden_states=True).hidden_states[0][0]
    assert_near(first[1:], hidden.mean(0)[None].numpy())


def test_an_encoder_has_no_head(tmp_path):
    """GENA-LM's AutoModel is a masked language model, whose first output are logits of the vocabulary."""
    loaded = load_encoder(str(gena_lm(tmp_path / "gena")), trust_remote_code=True)
    embedding = Embedding(loaded)
    assert type(loaded.model).__name__ == "BertModel" and loaded.model.config.vocab_size == 40
    assert embedding.vectors(["ACGTACGT"]).shape == (1, 16) and embedding.size == 16
