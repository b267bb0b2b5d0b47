"""Likelihoods over all tokenizations: sums against enumerations, sites against what they mean, a readable twin."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert2.genome.windows import tokenize
from dnabert2.inference.likelihood import AlleleLikelihood, Site, Spelling, masked_log_probabilities
from dnabert2.inference.models import load_masked_lm
from dnabert2.tokenizer.files import load_tokenizer

TOKENIZER = load_tokenizer("mini")
FLANK = st.lists(
    st.one_of(st.text("ACGT", max_size=25), st.text("A", max_size=8), st.text("N", max_size=3)), max_size=4
).map("".join)
ALLELE = st.text("ACGT", min_size=1, max_size=8)


@pytest.fixture(scope="module")
def loaded():
    return load_masked_lm("mini")


def segmentations(bases: str, words, count: int):
    """Every way to write bases as so many words, by trying each first word."""
    if count == 0:
        return [[]] if not bases else []
    found = []
    for stop in range(1, len(bases) + 1):
        if bases[:stop] in words:
            found += [[bases[:stop], *rest] for rest in segmentations(bases[stop:], words, count - 1)]
    return found


def log_sum(values) -> float:
    return float(np.logaddexp.reduce(np.array([-np.inf, *values])))


@given(
    bases=st.text("AC", min_size=1, max_size=9),
    words=st.sets(st.text("AC", min_size=1, max_size=4), max_size=12),
    masks=st.integers(0, 6),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1_000.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=300, deadline=None)
def test_the_sum_over_all_ways_to_write_bases(bases, words, masks, scale, seed):
    """Also where some ways are hundreds of orders of magnitude more likely than those that spell all of the bases."""
    ids = {word: i + 2 for i, word in enumerate(sorted(words))}
    values = -scale * np.random.default_rng(seed).random((masks, len(ids) + 2))
    expected = log_sum(
        sum(values[i, ids[word]] for i, word in enumerate(way)) for way in segmentations(bases, ids, masks)
    )
    found = Spelling(bases, ids, 4).log_probability(values)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-9)


def test_words_longer_than_the_longest_are_never_tried():
    ids = {"A": 0, "AA": 1, "AAA": 2}
    edges = Spelling("AAA", ids, 2)
    assert sorted(zip(edges.starts.tolist(), edges.stops.tolist(), edges.ids.tolist(), strict=True)) == [
        (0, 1, 0),
        (0, 2, 1),
        (1, 2, 0),
        (1, 3, 1),
        (2, 3, 0),
    ]


def spelled(ids) -> str:
    return "".join("N" if t == "[UNK]" else t for t in TOKENIZER.convert_ids_to_tokens([int(i) for i in ids]))


@given(left=FLANK, right=FLANK, alleles=st.lists(ALLELE, min_size=2, max_size=4, unique=True))
@settings(max_examples=300, deadline=None)
def test_sites(left, right, alleles):
    """What all share, and of each text at least a token between; no base is lost, and no N has to be spelt."""
    texts = [left + allele + right for allele in alleles]
    tokens = tokenize(TOKENIZER, texts)
    site = Site.of(texts, tokens)
    for text, own, bases, count in zip(texts, tokens, site.bases, site.counts, strict=True):
        assert count >= 1 and len(site.left) + count + len(site.right) == len(own)
        assert own.ids[: len(site.left)].tolist() == site.left.tolist()
        assert own.ids[len(own) - len(site.right) :].tolist() == site.right.tolist()
        assert spelled(site.left) + bases + spelled(site.right) == text
        assert bases and set(bases) <= set("ACGT")
    assert site.masks == range(min(site.counts), max(site.counts) + 1)
    # Nothing more is shared, but where one of the texts would have had nothing left.
    inner = [own.ids[len(site.left) : len(own) - len(site.right)].tolist() for own in tokens]
    if min(site.counts) > 1:
        assert len({ids[0] for ids in inner}) > 1 and len({ids[-1] for ids in inner}) > 1


def test_a_site_behind_n():
    """Between N and what follows nothing is left of the shorter text: the site takes in a base, not the N."""
    for left, right in (("ACGTN", "CCGT"), ("TGCA", "NACGT"), ("N", "N")):
        texts = [left + "GGC" + right, left + "C" + right]
        site = Site.of(texts, tokenize(TOKENIZER, texts))
        assert all(bases and set(bases) <= set("ACGT") for bases in site.bases)


def twin(loaded, texts: list[str]) -> list[float]:
    """`AlleleLikelihood.score` of one site as its text says it: the network asked once for each number of masks."""
    rows = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    shortest = min(map(len, rows))
    before = next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
    rest = shortest - before
    behind = next((i for i in range(rest) if len({row[-1 - i] for row in rows}) > 1), rest)
    if before + behind == shortest:
        if before and loaded.tokenizer.convert_ids_to_tokens(rows[0][before - 1]) != "[UNK]":
            before -= 1
        else:
            behind -= 1
    words = loaded.tokenizer.get_vocab()
    mask, cls, sep = (getattr(loaded.tokenizer, f"{name}_token_id") for name in ("mask", "cls", "sep"))
    counts = [len(row) - before - behind for row in rows]
    found = [[] for _ in texts]
    for count in range(min(counts), max(counts) + 1):
        ids = [cls, *rows[0][:before], *[mask] * count, *rows[0][len(rows[0]) - behind :], sep]
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([ids])).logits[0, before + 1 : before + 1 + count]
        values = logits.double().log_softmax(-1).numpy()
        for own, row in zip(found, rows, strict=True):
            bases = spelled(row[before : len(row) - behind])
            ways = segmentations(bases, words, count)
            own.append(log_sum(sum(values[i, words[word]] for i, word in enumerate(way)) for way in ways))
    return [log_sum(own) - math.log(len(own)) for own in found]


SITES = [
    ["ACGTAGGCTTAC" + base + "TTGACATATAAAAG" for base in "ACGT"],
    ["ACGTAGGCTTACA" + "TTGACATATAAAAG", "ACGTAGGCTTACAGGT" + "TTGACATATAAAAG"],
    ["CCGATATAAAAGGCGC" + "TTTTTTT" + "GACCA", "CCGATATAAAAGGCGC" + "TTTTTT" + "GACCA"],
    ["NNACGTTAGC" + "A" + "NCGTAC", "NNACGTTAGC" + "ACC" + "NCGTAC"],
    ["TTACGN" + "AC" + "CCGTNN", "TTACGN" + "C" + "CCGTNN"],
    ["A", "C", "G", "T"],
    ["AC", "A"],
    ["GATTACAGATTACA", "GATTACAGATTACT"],
]


def test_the_readable_twin_says_the_same(loaded):
    found = AlleleLikelihood(loaded).score(SITES)
    for own, texts in zip(found, SITES, strict=True):
        assert own == pytest.approx(twin(loaded, texts), abs=1e-5)
        assert np.isfinite(own).all() and (own < 0).all()


def test_batches_do_not_matter(loaded):
    """Nor what else is asked for, nor in which order."""
    one_by_one = [AlleleLikelihood(loaded, 1).score([texts])[0] for texts in SITES]
    for budget, order in ((4_096, range(len(SITES))), (40, reversed(range(len(SITES))))):
        order = list(order)
        found = AlleleLikelihood(loaded, budget).score([SITES[i] for i in order])
        for i, own in zip(order, found, strict=True):
            assert own == pytest.approx(one_by_one[i], abs=1e-5)
    assert AlleleLikelihood(loaded).score([]) == []


@given(left=FLANK, right=FLANK, alleles=st.lists(ALLELE, min_size=2, max_size=3, unique=True))
@settings(max_examples=40, deadline=None)
def test_whatever_the_alleles(loaded, left, right, alleles):
    """A finite number each, the same whatever their order."""
    likelihood = AlleleLikelihood(loaded)
    (found,) = likelihood.score([[left + allele + right for allele in alleles]])
    (turned,) = likelihood.score([[left + allele + right for allele in alleles[::-1]]])
    assert np.isfinite(found).all() and (found < 0).all()
    assert turned[::-1] == pytest.approx(found, abs=1e-5)


def test_the_probabilities_of_all_that_could_stand_there(loaded):
    """All that one mask can spell, and the special tokens beside it, have a probability of 1."""
    draw = random.Random(1)
    ids = np.array(TOKENIZER("".join(draw.choices("ACGT", k=40)), add_special_tokens=False)["input_ids"])
    place = len(ids) // 2
    ids[place] = TOKENIZER.mask_token_id
    ((_, values),) = masked_log_probabilities(loaded, [ids], [np.array([place])], 4_096)
    likelihood = AlleleLikelihood(loaded)
    texts = sorted(likelihood.ids)
    assert set(itertools.chain(*texts)) == set("ACGT") and len(texts) == len(TOKENIZER) - 5
    sums = [Spelling(text, likelihood.ids, likelihood.longest).log_probability(values) for text in texts]
    special = [values[0, i] for i in TOKENIZER.all_special_ids]
    assert values.shape == (1, len(TOKENIZER)) and log_sum(values[0]) == pytest.approx(0.0, abs=1e-6)
    assert log_sum([*sums, *special]) == pytest.approx(log_sum(values[0]), abs=1e-12)
