"""k-mer tokenizers: literal ids and offsets, a readable twin, and everything a fast tokenizer promises."""

import copy
import pickle
import random

import pytest
from transformers import PreTrainedTokenizerFast

from dnabert2.errors import UserError
from dnabert2.tokenizer.files import load_tokenizer
from dnabert2.tokenizer.kmer import BLOCK, SIZES, OverlappingKmerTokenizer, kmer_tokenizer

SPECIALS = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "[MASK]": 4}
KINDS = [(k, overlapping) for k in SIZES for overlapping in (True, False)]


def rank(kmer: str) -> int:
    """Place of a k-mer in alphabetical order: its letters are the digits of a number to base 4."""
    return sum("ACGT".index(letter) * 4**i for i, letter in enumerate(reversed(kmer)))


def twin(text: str, k: int, overlapping: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a text, letter by letter."""
    ids, offsets, place = [], [], 0
    for word in text.split():
        place = text.index(word, place)
        if overlapping:
            spans = [(i, i + k) for i in range(len(word) - k + 1)] or [(0, len(word))]
        else:
            spans, i = [], 0
            while i < len(word):
                size = k if len(word) >= i + k and set(word[i : i + k]) <= set("ACGT") else 1
                spans.append((i, i + size))
                i += size
        for start, end in spans:
            piece = word[start:end]
            if not set(piece) <= set("ACGT") or len(piece) not in ((k,) if overlapping else (1, k)):
                ids.append(0)
            elif overlapping:
                ids.append(5 + rank(piece))
            else:
                ids.append(5 + rank(piece) if len(piece) == 1 else 9 + rank(piece))
            offsets.append((place + start, place + end))
        place += len(word)
    return ids, offsets


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{'overlapping' if kind[1] else 'apart'}")
def made(request):
    k, overlapping = request.param
    return kmer_tokenizer(k, overlapping), k, overlapping


def texts(k):
    draw = random.Random(k)
    yield from (
        "",
        "A",
        "ACGTACGT"[: k - 1],
        "ACGTACGT"[:k],
        "N",
        "N" * 9,
        "ACGTNACGTACGTACG",
        "acgtACGTACGTA",
        " ACG TAC\n",
    )
    for length in (50, BLOCK + k - 2, BLOCK + k - 1, BLOCK + k, 3 * BLOCK + 7):
        yield "".join(draw.choices("ACGT", k=length))
        yield "".join(draw.choices("ACGTNacR ", weights=[30] * 4 + [1] * 5, k=length))


def test_ids_and_offsets_are_those_of_the_twin(made):
    tokenizer, k, overlapping = made
    for text in texts(k):
        ids, offsets = twin(text, k, overlapping)
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert found["input_ids"] == ids
        assert found["offset_mapping"] == offsets


def test_vocabulary_and_special_ids(made):
    tokenizer, k, overlapping = made
    assert tokenizer.is_fast and len(tokenizer) == 5 + 4**k + (0 if overlapping else 4)
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS} == SPECIALS
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.padding_side) == (3, 4, "right")
    assert tokenizer.convert_ids_to_tokens([len(tokenizer) - 1]) == ["T" * k]


def test_literal_ids_of_a_batch():
    batch = ["ACGTNACG", "ACGT", "AC"]
    overlapping = kmer_tokenizer(3, True)(batch, padding=True)
    # ACG is 0*16 + 1*4 + 2 = 6, CGT 1*16 + 2*4 + 3 = 27; five special tokens come before.
    assert overlapping["input_ids"] == [
        [1, 11, 32, 0, 0, 0, 11, 2],
        [1, 11, 32, 2, 3, 3, 3, 3],
        [1, 0, 2, 3, 3, 3, 3, 3],
    ]
    assert overlapping["attention_mask"] == [[1] * 8, [1] * 4 + [0] * 4, [1] * 3 + [0] * 5]
    apart = kmer_tokenizer(3, False)(batch, padding=True)
    assert apart["input_ids"] == [[1, 15, 8, 0, 15, 2], [1, 15, 8, 2, 3, 3], [1, 5, 6, 2, 3, 3]]


@pytest.mark.parametrize(
    ("overlapping", "ids", "types"),
    [(True, [1, 11, 32, 2, 68, 2], [0, 0, 0, 0, 1, 1]), (False, [1, 15, 8, 2, 72, 2], [0, 0, 0, 0, 1, 1])],
)
def test_pairs_have_two_types(overlapping, ids, types):
    pair = kmer_tokenizer(3, overlapping)("ACGT", "TTT")
    assert (pair["input_ids"], pair["token_type_ids"]) == (ids, types)


def test_special_tokens_in_the_text_are_spanned_by_no_kmer():
    assert kmer_tokenizer(3, True).tokenize("ACGT[MASK]ACG") == ["ACG", "CGT", "[MASK]", "ACG"]
    assert kmer_tokenizer(3, False).tokenize("ACGT[MASK]ACG") == ["ACG", "T", "[MASK]", "ACG"]


def test_truncation_and_what_overflows():
    found = kmer_tokenizer(3, True)(
        "ACGTACGT",
        truncation=True,
        max_length=5,
        stride=1,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert found["offset_mapping"] == [
        [(0, 0), (0, 3), (1, 4), (2, 5), (0, 0)],
        [(0, 0), (2, 5), (3, 6), (4, 7), (0, 0)],
        [(0, 0), (4, 7), (5, 8), (0, 0)],
    ]
    assert found["overflow_to_sample_mapping"] == [0, 0, 0]
    cut = kmer_tokenizer(3, False)("ACGTACGTA", truncation=True, max_length=4)["input_ids"]
    assert cut == [1, 15, 9 + rank("TAC"), 2]


def test_saved_pickled_and_copied_tokenizers_are_the_same(made, tmp_path):
    tokenizer, k, overlapping = made
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["[EXTRA]"])
    tokenizer.save_pretrained(tmp_path)
    loaded = (OverlappingKmerTokenizer if overlapping else PreTrainedTokenizerFast).from_pretrained(tmp_path)
    text = next(text for text in texts(k) if len(text) > BLOCK) + "[EXTRA]N"
    expected = dict(tokenizer([text, "ACGT"], padding=True, return_offsets_mapping=True))
    assert expected["input_ids"][0].count(len(tokenizer) - 1) == 1
    for other in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), tokenizer):
        assert dict(other([text, "ACGT"], padding=True, return_offsets_mapping=True)) == expected
        assert len(other) == len(tokenizer) and other.model_input_names == tokenizer.model_input_names
        assert other.model_max_length == tokenizer.model_max_length


def test_a_folder_of_overlapping_kmers_loads_as_nothing_else(tmp_path):
    """Without the cutting every sequence would be one [UNK]: an error is better."""
    kmer_tokenizer(3, True).save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_folder_of_other_kmers_loads_as_any_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = kmer_tokenizer(4, False)
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert loaded("ACGTACGTNA")["input_ids"] == tokenizer("ACGTACGTNA")["input_ids"]


@pytest.mark.parametrize("k", [2, 7, 0, -3, 3.5, "6", None])
@pytest.mark.parametrize("overlapping", [True, False])
def test_other_sizes_are_refused(k, overlapping):
    with pytest.raises(ValueError, match="3 to 6 bases"):
        kmer_tokenizer(k, overlapping)
