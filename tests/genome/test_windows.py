"""Tokens made in pieces are those of the whole text, and windows cover a row once, whatever the text and the sizes."""

import gzip
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dnabert2.genome import windows
from dnabert2.genome.strands import reverse_complement
from dnabert2.genome.windows import Tokens, split, tokenize
from dnabert2.tokenizer.files import OURS, load_tokenizer

OUR_TOKENIZER = load_tokenizer(OURS)
UNIT = st.text("ACGT", min_size=1, max_size=6)
PART = st.one_of(
    st.text("ACGT", max_size=60),
    st.text("N", min_size=1, max_size=40),
    st.text("acgtn", min_size=1, max_size=20),
    st.sampled_from("RYKMSWn"),
    st.builds(lambda unit, length: (unit * length)[:length], UNIT, st.integers(1, 300)),
)
SEQUENCE = st.lists(PART, max_size=8).map("".join)
PIECE_AND_OVERLAP = st.integers(2, 150).flatmap(lambda piece: st.tuples(st.just(piece), st.integers(1, piece // 2)))


@pytest.fixture(scope="module", params=["ours", "published"])
def tokenizer(request):
    if request.param == "ours":
        return OUR_TOKENIZER
    published = request.getfixturevalue("shared") / "reference" / "dnabert2_tokenizer.json"
    if not published.is_file():
        pytest.skip(f"needs {published.name}")
    return PreTrainedTokenizerFast(tokenizer_file=str(published), unk_token="[UNK]")


def assert_is_whole(tokenizer, sequence: str, tokens: Tokens):
    whole = tokenizer.backend_tokenizer.encode(sequence, add_special_tokens=False)
    assert tokens.ids.tolist() == whole.ids
    assert tokens.spans.tolist() == [list(span) for span in whole.offsets]
    assert len(tokens) == len(whole.ids)


def repeats(draw: random.Random, bases: int) -> str:
    """Random sequence broken by homopolymers and microsatellites, as genomes are, some longer than an overlap."""
    parts, size = [], 0
    while size < bases:
        unit = "".join(draw.choices("ACGT", k=draw.choice([1, 1, 2, 2, 3, 4, 5, 6])))
        parts += [unit * draw.randint(1, 400 // len(unit)), "".join(draw.choices("ACGT", k=draw.randint(0, 300)))]
        size = sum(map(len, parts))
    return "".join(parts)[:bases]


# Of seven bases every second token is cut; a homopolymer longer than the overlap has no token in both pieces.
@example(["A" * 200, "", "ACGT"], (20, 7))
@given(st.lists(SEQUENCE, max_size=3), PIECE_AND_OVERLAP)
@settings(max_examples=150, deadline=None)
def test_pieces_of_any_size_give_the_tokens_of_the_whole(tokenizer, sequences, sizes):
    piece, overlap = sizes
    for texts in (sequences, [reverse_complement(text) for text in sequences]):
        made = tokenize(tokenizer, texts, piece, overlap)
        assert len(made) == len(texts)
        for text, tokens in zip(texts, made, strict=True):
            assert_is_whole(tokenizer, text, tokens)


@pytest.mark.parametrize("period", range(1, 7))
def test_long_tandem_repeats(tokenizer, period):
    draw = random.Random(period)
    for _ in range(5):
        sequence = ("".join(draw.choices("ACGT", k=period)) * 10_000)[: draw.randint(8_000, 20_000)]
        for text in (sequence, reverse_complement(sequence), f"ACCGT{sequence}TTGCA"):
            assert_is_whole(tokenizer, text, tokenize(tokenizer, [text])[0])


def test_genomes(tokenizer, monkeypatch):
    draw = random.Random(0)
    text = repeats(draw, 300_000)
    text = text[:100_000] + "N" * 9_000 + text[100_000:].replace("ACGTA", "acgta")
    for strand in (text, reverse_complement(text)):
        (expected,) = tokenize(tokenizer, [strand])
        assert_is_whole(tokenizer, strand, expected)
        monkeypatch.setattr(windows, "PIECES_AT_ONCE", 7)
        found = tokenize(tokenizer, [strand, "ACGT" * 1_500, strand[:5_000]])
        assert np.array_equal(found[0].ids, expected.ids) and np.array_equal(found[0].ends, expected.ends)
        assert_is_whole(tokenizer, strand[:5_000], found[2])


def test_real_sequence(tokenizer, shared):
    with gzip.open(shared / "data" / "examples" / "chr20_1M-2M.fa.gz", "rt") as handle:
        text = "".join(line.strip() for line in handle if not line.startswith(">")).upper()
    assert len(text) > 900_000
    for strand in (text, reverse_complement(text)):
        assert_is_whole(tokenizer, strand, tokenize(tokenizer, [strand])[0])


def test_pieces_without_a_token_in_common_are_read_as_one(monkeypatch):
    """Tokens of a homopolymer are counted from where it is cut, here in two phases that never meet."""
    (size,) = {end - start for start, end in OUR_TOKENIZER.backend_tokenizer.encode("A" * 800).offsets[1:-1]}
    assert size > 1
    text, overlap = "A" * 8 * size * 10, 4 * size
    piece = overlap + 5 * size + 1  # the second piece begins one base behind a token
    joints, encoded = [], []
    joint, encode = windows._joint, windows._encode
    monkeypatch.setattr(windows, "_joint", lambda *both: joints.append(joint(*both)) or joints[-1])
    monkeypatch.setattr(windows, "_encode", lambda t, texts: encoded.append(len(texts[0])) or encode(t, texts))
    (tokens,) = tokenize(OUR_TOKENIZER, [text], piece, overlap)
    assert_is_whole(OUR_TOKENIZER, text, tokens)
    assert None in joints and max(encoded) > piece


def test_tokens_and_their_places():
    (tokens,) = tokenize(OUR_TOKENIZER, ["ACGTNacgt"])
    assert tokens.ids.dtype == np.int32 and tokens.ends.dtype == np.int64
    assert tokens.spans[0, 0] == 0 and tokens.spans[-1, 1] == 9
    assert [span for span in tokens.spans.tolist() if span[0] >= 4] == [[i, i + 1] for i in range(4, 9)]
    assert (tokens.ids[-5:] == OUR_TOKENIZER.unk_token_id).all()
    (empty,) = tokenize(OUR_TOKENIZER, [""])
    assert len(empty) == 0 and empty.spans.shape == (0, 2)
    assert tokenize(OUR_TOKENIZER, []) == []


@pytest.mark.parametrize(("piece", "overlap"), [(10, 0), (10, 6), (0, 0), (10, -1)])
def test_pieces_that_get_nowhere_are_refused(piece, overlap):
    with pytest.raises(ValueError, match=f"an overlap of {overlap} bases on either side does not fit"):
        tokenize(OUR_TOKENIZER, ["ACGT"], piece, overlap)


@given(st.integers(0, 3_000), st.integers(1, 400), st.data())
@settings(max_examples=300, deadline=None)
def test_windows_cover_every_item_once_and_stay_away_from_their_ends(length, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    made = split(length, window, overlap)
    assert [i for part in made for i in range(part.keep.start, part.keep.stop)] == list(range(length))
    for part in made:
        assert 0 <= part.span.start <= part.keep.start <= part.keep.stop <= part.span.stop <= length
        assert part.span.stop - part.span.start == min(window, length)
        assert list(range(length))[part.span][part.kept] == list(range(length))[part.keep]
    assert len(made) == max(1, -(-(length - overlap) // (window - overlap)))  # no window more than needed
    shared = [one.span.stop - other.span.start for one, other in pairwise(made)]
    assert all(size >= overlap for size in shared)
    for (one, other), size in zip(pairwise(made), shared, strict=True):
        assert one.span.stop - one.keep.stop >= size // 2 and other.keep.start - other.span.start >= size // 2
    if len(made) > 1:  # as equal as possible
        assert max(shared) - min(shared) <= 1 and made[-1].span.stop == length


def test_windows_by_hand():
    assert split(7, None) == split(7, 7, 3) == split(7, 9)
    (whole,) = split(7, None)
    assert whole.span == whole.keep == whole.kept == slice(0, 7)
    made = split(10, 6, 2)
    assert [(part.span, part.keep, part.kept) for part in made] == [
        (slice(0, 6), slice(0, 5), slice(0, 5)),
        (slice(4, 10), slice(5, 10), slice(1, 6)),
    ]
    with pytest.raises(ValueError, match="an overlap of 6 leaves nothing of windows of 6"):
        split(10, 6, 6)


def test_what_the_tokenizer_was_told_before_does_not_matter():
    """transformers leaves padding and truncation of its last call in the tokenizer that it shares."""
    tokenizer, texts = load_tokenizer(OURS), ["ACGTTGCA" * 9, "GATTACA"]
    before = [tokens.ids.tolist() for tokens in tokenize(tokenizer, texts)]
    tokenizer(texts, padding=True, truncation=True, max_length=4)
    assert [tokens.ids.tolist() for tokens in tokenize(tokenizer, texts)] == before
    assert [len(ids) for ids in tokenizer(texts, padding=True)["input_ids"]] == [len(before[0]) + 2] * 2
