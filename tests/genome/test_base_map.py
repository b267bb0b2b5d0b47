"""The base <-> token map, against what the spans mean letter by letter, on random DNA and every kind of tokenizer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert2.errors import UserError
from dnabert2.genome.base_map import (
    attention_of_bases,
    base_to_token,
    batch_spans,
    gather_base_labels,
    longest_token,
    mean_of_bases,
    scatter_base_logits,
    share,
    spread,
    token_spans,
)
from dnabert2.tokenizer.files import OURS, load_tokenizer
from dnabert2.tokenizer.kmer import kmer_tokenizer

TOKENIZERS = {
    "byte pairs": load_tokenizer(OURS),
    "words of 3": kmer_tokenizer(3, False),
    "k-mers": kmer_tokenizer(3, True),
}
PARTITIONS = ["byte pairs", "words of 3"]
BASES = "ACGT"
DNA = st.lists(
    st.one_of(st.text(BASES, min_size=1, max_size=40), st.text("N", min_size=1, max_size=5), st.sampled_from("acgtR")),
    min_size=1,
    max_size=6,
).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(sequence=DNA)
@settings(max_examples=60, deadline=None)
def test_spans_are_what_the_tokens_spell(name, sequence):
    tokenizer = TOKENIZERS[name]
    (spans,) = token_spans(tokenizer, sequence)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(sequence)["input_ids"])
    assert len(tokens) == len(spans) and spans[0].tolist() == spans[-1].tolist() == [-1, -1]
    for token, (start, end) in zip(tokens[1:-1], spans[1:-1].tolist(), strict=True):
        assert 0 <= start < end <= len(sequence)
        assert token in ("[UNK]", sequence[start:end])
        assert token != "[UNK]" or set(sequence[start:end]) - set(BASES) or len(sequence) < 3
        assert end - start <= longest_token(tokenizer)
    if name in PARTITIONS:  # every base once, in order
        assert [i for start, end in spans.tolist() for i in range(start, end)] == list(range(len(sequence)))


@pytest.mark.parametrize("name", TOKENIZERS)
@given(sequence=DNA, data=st.data())
@settings(max_examples=60, deadline=None)
def test_labels_of_bases_come_back(name, sequence, data):
    """Through the tokens and back, exactly: as labels, as logits, and as values of tokens."""
    tokenizer = TOKENIZERS[name]
    (spans,) = token_spans(tokenizer, sequence)
    size = len(sequence)
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    room = longest_token(tokenizer)
    gathered = gather_base_labels(labels, spans, room)
    assert gathered.shape == (len(spans), room)
    for row, (start, end) in zip(gathered.tolist(), spans.tolist(), strict=True):
        assert row == labels[start:end].tolist() + [-100] * (room - (end - start))
    logits = np.eye(4, dtype=np.float32)[np.maximum(gathered, 0)]
    back = scatter_base_logits(logits, spans, size)
    assert back.dtype == np.float32 and np.array_equal(back, np.eye(4)[labels])

    owner = base_to_token(spans, size)
    assert owner.tolist() == [min(t for t, (s, e) in enumerate(spans.tolist()) if s <= b < e) for b in range(size)]
    values = np.arange(2.0 * len(spans)).reshape(-1, 2)
    means = [values[(spans[:, 0] <= b) & (b < spans[:, 1])].mean(axis=0) for b in range(size)]
    assert np.allclose(spread(values, spans, size), means, rtol=1e-12)
    if name in PARTITIONS:
        assert np.array_equal(spread(values, spans, size), values[owner])


@pytest.mark.parametrize("name", TOKENIZERS)
@given(sequence=DNA, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_attributions_attention_and_tracks(name, sequence, seed):
    """Sums of attributions and of rows of attention stay; a track goes to tokens and back where it is flat on them."""
    (spans,) = token_spans(TOKENIZERS[name], sequence)
    size, draw = len(sequence), np.random.default_rng(seed)
    real = spans[:, 0] >= 0
    values = draw.normal(size=(len(spans), 2))
    shared = share(values, spans, size)
    assert shared.shape == (size, 2) and np.allclose(shared.sum(axis=0), values[real].sum(axis=0), atol=1e-9)
    assert np.allclose(shared[0], sum(v / (e - s) for v, (s, e) in zip(values, spans, strict=True) if s == 0))

    attention = draw.random((3, len(spans), len(spans)))
    attention /= attention.sum(axis=-1, keepdims=True)
    mapped = attention_of_bases(attention, spans, size)
    assert mapped.shape == (3, size, size)
    owner = base_to_token(spans, size)
    if name in PARTITIONS:
        assert np.allclose(mapped.sum(axis=-1), attention[:, owner][..., real].sum(axis=-1))
        lengths = (spans[:, 1] - spans[:, 0])[owner]
        assert np.allclose(mapped, attention[:, owner][..., owner] / lengths)

        track = values[owner, 0]
        assert np.allclose(mean_of_bases(track, spans)[real], values[real, 0])
    means = mean_of_bases(np.arange(size), spans)
    assert np.isnan(means[~real]).all() and np.allclose(means[real], (spans[real].sum(axis=1) - 1) / 2)


def test_a_batch_and_its_padding():
    tokenizer = TOKENIZERS["words of 3"]
    sequences = ["ACGTNA", "AC"]
    padded = batch_spans(tokenizer(sequences, padding=True))
    assert [spans.tolist() for spans in padded] == [
        [[-1, -1], [0, 3], [3, 4], [4, 5], [5, 6], [-1, -1]],
        [[-1, -1], [0, 1], [1, 2], [-1, -1], [-1, -1], [-1, -1]],
    ]
    for spans, sequence in zip(token_spans(tokenizer, sequences), sequences, strict=True):
        assert spans.tolist() == token_spans(tokenizer, sequence)[0].tolist()
    assert token_spans(tokenizer, []) == []


@pytest.mark.parametrize("name", ["words of 3", "k-mers"])
def test_bases_that_were_cut_off_have_no_token(name):
    (spans,) = token_spans(TOKENIZERS[name], "ACGTACGTAC", max_length=4)
    covered = spans.max()
    assert len(spans) == 4 and covered < 10
    owner = base_to_token(spans, 10)
    assert (owner[:covered] > 0).all() and (owner[covered:] == -1).all()
    for values in (
        spread(np.arange(4), spans, 10),
        scatter_base_logits(np.ones((4, 3, 2), np.float16), spans, 10)[:, 1],
        spread(np.ones((4, 2, 2)), spans, 10)[:, 1, 0],
    ):
        assert np.isfinite(values[:covered]).all() and np.isnan(values[covered:]).all()


def test_overlapping_tokens_share_a_base():
    (spans,) = token_spans(TOKENIZERS["k-mers"], "ACGTA")
    assert base_to_token(spans, 5).tolist() == [1, 1, 1, 2, 3]
    assert spread([9, 1, 2, 6, 9], spans, 5).tolist() == [1, 1.5, 3, 4, 6]


def test_longest_token_leaves_out_special_tokens():
    assert longest_token(TOKENIZERS["k-mers"]) == 3
    vocabulary = set(TOKENIZERS["byte pairs"].get_vocab()) - set(TOKENIZERS["byte pairs"].all_special_tokens)
    assert longest_token(TOKENIZERS["byte pairs"]) == max(map(len, vocabulary))


def test_what_does_not_fit_is_refused():
    (spans,) = token_spans(TOKENIZERS["words of 3"], "ACGT")
    with pytest.raises(ValueError, match="ends at base 4, but the sequence has 3"):
        base_to_token(spans, 3)
    with pytest.raises(ValueError, match="has 3 bases, but there is room for 2"):
        gather_base_labels([0, 1, 0, 1], spans, 2)
    with pytest.raises(ValueError, match="token_values has 3 tokens, but there are spans of 4"):
        spread([1, 2, 3], spans, 4)
    with pytest.raises(ValueError, match="logits has 3 tokens"):
        scatter_base_logits(np.zeros((3, 3, 2)), spans, 4)
    with pytest.raises(UserError, match="object does not say which bases"):
        token_spans(object(), "ACGT")
