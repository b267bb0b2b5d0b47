"""Scores of variants: symmetries, readable twins, the masks of the pseudo-likelihood, and places that are hard."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert2.errors import UserError
from dnabert2.genome.reference import Reference
from dnabert2.genome.strands import reverse_complement
from dnabert2.genome.variants import Variant, normalised
from dnabert2.genome.windows import tokenize
from dnabert2.inference.defaults import SCORES
from dnabert2.inference.models import load_masked_lm
from dnabert2.inference.variant_scores import ANCHOR, Haplotypes, VariantScorer, mask_places
from dnabert2.inference.variants import haplotypes_of, score_schema, score_table
from dnabert2.tokenizer.files import load_tokenizer

TOKENIZER = load_tokenizer("mini")
NEAR = 2e-5  # of sums of some dozen float32 logarithms, whose batches differ


def dna(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=length))


LEFT, RIGHT = dna(60, 1), dna(45, 2)
VARIANTS = {
    "one base": Haplotypes(LEFT, "A", "G", RIGHT),
    "insertion": Haplotypes(LEFT, "T", "TGGCATTA", RIGHT),
    "deletion": Haplotypes(LEFT, "CAGGAT", "C", RIGHT),
    "several bases": Haplotypes(LEFT, "ACG", "TTT", RIGHT),
    "in a repeat": Haplotypes(LEFT + "CACACA", "C", "CAC", "ACACA" + RIGHT),
    "between N": Haplotypes("NNNACGN", "A", "ACC", "NNCGTACNN"),
    "behind N": Haplotypes(LEFT + "N", "AC", "C", "CGT" + RIGHT),
    "first base": Haplotypes("", "A", "C", RIGHT),
    "last base": Haplotypes(LEFT, "A", "AT", ""),
    "nothing around it": Haplotypes("", "A", "C", ""),
    "nothing but N around it": Haplotypes("NN", "A", "AC", "N"),
}


@pytest.fixture(scope="module")
def loaded():
    return load_masked_lm("mini")


@pytest.fixture(scope="module")
def scorer(loaded):
    return VariantScorer(loaded)


@pytest.fixture(scope="module")
def scores(scorer):
    return scorer.score(list(VARIANTS.values()))


def assert_near(found: dict, expected: dict, tolerance=NEAR):
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=tolerance, err_msg=name)


def test_every_kind_of_variant_gets_numbers(scorer, scores):
    assert scorer.columns == list(scores) == ["llr", "pseudo_likelihood", "embedding_l2", "embedding_cosine"]
    for name, values in scores.items():
        assert values.shape == (len(VARIANTS),) and values.dtype == np.float64
        assert np.isfinite(values).all() and (np.abs(values) > 1e-4).all(), name
    assert (scores["embedding_l2"] > 0).all() and (scores["embedding_cosine"] > 0).all()


def test_the_other_strand_says_the_same(scorer, scores, loaded):
    turned = [variant.other_strand() for variant in VARIANTS.values()]
    assert turned[0] == Haplotypes(reverse_complement(RIGHT), "T", "C", reverse_complement(LEFT))
    assert_near(scorer.score(turned), scores)
    # The mean of what each strand says alone, which differ.
    alone = VariantScorer(loaded, both_strands=False)
    here, there = (alone.score(some) for some in (list(VARIANTS.values()), turned))
    assert_near({name: (here[name] + there[name]) / 2 for name in here}, scores)
    assert np.abs(here["llr"] - there["llr"]).max() > 0.1


def test_from_alt_to_ref_is_the_way_back(scorer, scores):
    back = scorer.score([Haplotypes(v.left, v.alt, v.ref, v.right) for v in VARIANTS.values()])
    signs = {"llr": -1, "pseudo_likelihood": -1, "embedding_l2": 1, "embedding_cosine": 1}
    assert_near({name: signs[name] * values for name, values in back.items()}, scores)


def test_no_change_scores_zero(scorer):
    found = scorer.score([Haplotypes(v.left, v.ref, v.ref, v.right) for v in VARIANTS.values()])
    for name, values in found.items():
        assert np.abs(values).max() <= (1e-12 if name == "embedding_cosine" else 0), name


def test_what_else_is_asked_for_does_not_matter(loaded, scores):
    """One by one, in the other order, in small batches, or one score alone."""
    some = list(VARIANTS.values())[::3]
    scores = {name: values[::3] for name, values in scores.items()}
    one_by_one = [VariantScorer(loaded, batch_tokens=1).score([variant]) for variant in some]
    assert_near({name: np.array([found[name][0] for found in one_by_one]) for name in scores}, scores)
    turned = VariantScorer(loaded, batch_tokens=300).score(some[::-1] + some[:2])
    assert_near({name: values[: len(some)][::-1] for name, values in turned.items()}, scores)
    assert_near({name: values[len(some) :] for name, values in turned.items()}, {k: v[:2] for k, v in scores.items()})
    for name in SCORES:
        alone = VariantScorer(loaded, scores=(name,))
        assert_near(alone.score(some), {column: scores[column] for column in alone.columns})
    assert [len(values) for values in VariantScorer(loaded).score([]).values()] == [0] * 4


def test_scores_in_the_order_asked_for(loaded):
    scorer = VariantScorer(loaded, scores=("embedding", "llr"))
    assert scorer.columns == ["embedding_l2", "embedding_cosine", "llr"]
    assert scorer.identity["scores"] == ["embedding", "llr"] and scorer.identity["sha256"]
    for wrong in (("llr", "cadd"), ()):
        with pytest.raises(UserError, match="choose of llr, pseudo_likelihood, embedding"):
            VariantScorer(loaded, scores=wrong)


def test_the_four_bases(scorer, scores):
    """Probabilities that sum to one, whose ratios are the llr, and which the other strand has in the other order."""
    (found,) = scorer.base_log_probabilities([(LEFT, RIGHT)])
    assert np.exp(found).sum() == pytest.approx(1)
    assert found[2] - found[0] == pytest.approx(scores["llr"][0], abs=NEAR)
    (turned,) = scorer.base_log_probabilities([(reverse_complement(RIGHT), reverse_complement(LEFT))])
    np.testing.assert_allclose(turned[::-1], found, atol=NEAR)
    assert scorer.base_log_probabilities([]).shape == (0, 4)


# Twins


def pseudo_log_likelihood(loaded, text: str, groups) -> float:
    """The network asked once a group of masks."""
    tokenizer, total = loaded.tokenizer, 0.0
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    for group in groups:
        places = torch.from_numpy(group) + 1
        masked = ids.clone()
        masked[0, places] = tokenizer.mask_token_id
        with torch.no_grad():
            values = loaded.model(input_ids=masked).logits[0, places].double().log_softmax(-1)
        total += float(values[torch.arange(len(places)), ids[0, places]].sum())
    return total


@pytest.mark.parametrize("stride", [0, 1, 4, 7])
def test_pseudo_likelihood_says_what_its_twin_says(loaded, stride):
    some = [VARIANTS[name] for name in ("one base", "insertion", "behind N", "nothing around it")]
    scorer = VariantScorer(loaded, scores=("pseudo_likelihood",), both_strands=False, stride=stride)
    found = scorer.score(some)["pseudo_likelihood"]
    for value, variant in zip(found, some, strict=True):
        sums = []
        for text in variant.texts:
            (tokens,) = tokenize(TOKENIZER, [text])
            groups = mask_places(tokens.ends, len(variant.left), len(variant.right), stride)
            if stride == 0:
                assert [group.tolist() for group in groups] == [[i] for i in range(len(tokens))]
            sums.append(pseudo_log_likelihood(loaded, text, groups))
        assert value == pytest.approx(sums[1] - sums[0], abs=NEAR)


def test_distances_of_mean_vectors(loaded, scores):
    def mean(text):
        with torch.no_grad():
            hidden = loaded.model.bert(**loaded.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return hidden.double().mean(dim=0)

    for i, variant in enumerate(VARIANTS.values()):
        strands = [[mean(text) for text in strand.texts] for strand in (variant, variant.other_strand())]
        l2 = np.mean([float((alt - ref).norm()) for ref, alt in strands])
        cosine = np.mean([1 - float(torch.cosine_similarity(ref, alt, dim=0)) for ref, alt in strands])
        assert scores["embedding_l2"][i] == pytest.approx(l2, rel=1e-4)
        assert scores["embedding_cosine"][i] == pytest.approx(cosine, rel=1e-3, abs=1e-7)


# Masks


@given(data=st.data(), stride=st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_every_token_is_masked_once(data, stride):
    ends = np.cumsum(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=60)))
    left = data.draw(st.integers(0, int(ends[-1]) - 1))
    right = data.draw(st.integers(0, int(ends[-1]) - left - 1))
    groups = mask_places(ends, left, right, stride)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(ends)))
    assert 1 <= len(groups) <= stride and all(len(group) for group in groups)
    for group in groups:  # on either side of the site every stride-th
        for side in (group[ends[group] <= left], group[ends[group] > left]):
            assert set(np.diff(side).tolist()) <= {stride}
    one_by_one = mask_places(ends, left, right, 0)
    assert [group.tolist() for group in one_by_one] == [[i] for i in range(len(ends))]


def shared_groups(groups, shared: dict[int, object]) -> set[frozenset]:
    """The groups without the tokens that are not shared, and these by names that they have in both texts."""
    return {found for group in groups if (found := frozenset(shared[i] for i in group.tolist() if i in shared))}


def agreement(one, other) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(
    left=st.text("ACGT", max_size=160),
    right=st.text("ACGT", max_size=160),
    alleles=st.lists(st.text("ACGT", min_size=1, max_size=9), min_size=2, max_size=2, unique=True),
    stride=st.integers(1, 9),
)
@settings(max_examples=100, deadline=None)
def test_what_two_alleles_share_is_masked_with_the_same(left, right, alleles, stride):
    """Else the network would see different things around the same token, and the difference would be of that."""
    both = tokenize(TOKENIZER, [left + allele + right for allele in alleles])
    one, other = (tokens.spans.tolist() for tokens in both)
    before = agreement(
        [span for span in one if span[1] <= len(left)], [span for span in other if span[1] <= len(left)]
    )
    from_end = [
        [(len(left + allele + right) - end, end - start) for start, end in spans[::-1] if start >= len(left + allele)]
        for allele, spans in zip(alleles, (one, other), strict=True)
    ]
    behind = agreement(*from_end)
    groups = []
    for tokens in both:
        names = {i: i for i in range(before)} | {len(tokens) - 1 - i: f"-{i}" for i in range(behind)}
        groups.append(shared_groups(mask_places(tokens.ends, len(left), len(right), stride), names))
    assert groups[0] == groups[1]
    assert sum(map(len, groups[0])) == before + behind


def test_masks_stay_where_the_window_begins_elsewhere():
    text, site = dna(700, 5), 350
    seen = []
    for shift in (0, 1, 4, 9):
        low, high = site - 300 + shift, site + 300 + shift
        (tokens,) = tokenize(TOKENIZER, [text[low:high]])
        names = {i: f"{s + low}-{e + low}" for i, (s, e) in enumerate(tokens.spans.tolist())}
        near = {i: name for i, name in names.items() if abs(int(name.split("-")[0]) - site) < ANCHOR + 60}
        seen.append(shared_groups(mask_places(tokens.ends, site - low, high - site - 1, 7), near))
    assert len(seen[0]) == 7 and all(groups == seen[0] for groups in seen)


# From a genome

GENOME = {
    "chr1": LEFT + "CAAAAAAAACAGTTTNNACGTAG" + RIGHT,
    "one": "A",
    "three": "CAG",
    "n": "NNANN",
    "lower": "ggcattagcaR",
}
RUN = len(LEFT) + 1  # of eight A, from 0


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in GENOME.items()))
    return Reference(path)


def of(pos, ref, alt, chrom="chr1") -> Variant:
    assert GENOME[chrom][pos - 1 : pos - 1 + len(ref)].upper() == ref.upper()
    return Variant(chrom, pos, ref, alt, "", 1)


@pytest.mark.parametrize(
    "ways",
    [
        [of(RUN, "C", "CA"), of(RUN + 1, "A", "AA"), of(RUN + 8, "A", "AA"), of(RUN + 3, "AAA", "AAAA")],
        [of(RUN, "CAA", "CA"), of(RUN + 7, "AA", "A"), of(RUN, "CAAAAAAAAC", "caaaaaaac")],
        [of(RUN + 9, "C", "T"), of(RUN + 9, "CAG", "TAG"), of(RUN + 7, "AAC", "AAT")],
        [of(1, GENOME["chr1"][:2], GENOME["chr1"][1]), of(1, GENOME["chr1"][:3], GENOME["chr1"][1:3])],
    ],
    ids=["insertion", "deletion", "one base", "at the beginning"],
)
def test_one_change_written_in_several_ways_has_one_score(scorer, reference, ways):
    table = score_table(scorer, ways, reference, 40, score_schema(scorer.columns)).to_pydict()
    for name in ("score", *scorer.columns):
        assert len(set(table[name])) == 1 and table[name][0] != 0, name
    assert table["pos"] == [variant.pos for variant in ways] and table["alt"] == [variant.alt for variant in ways]


@pytest.mark.parametrize(
    "variant",
    [
        of(1, "A", "C", "one"),
        of(1, "A", "AGG", "one"),
        of(1, "C", "T", "three"),
        of(3, "G", "GA", "three"),
        of(1, "CAG", "C", "three"),
        of(1, "CAG", "TTTT", "three"),
        of(3, "A", "C", "n"),
        of(3, "A", "AAC", "n"),
        of(1, "g", "t", "lower"),
        of(10, "a", "c", "lower"),
        of(RUN + 17, "A", "T"),  # behind N
        of(RUN + 14, "T", "TT"),  # before N
        of(1, LEFT[0], "N" if LEFT[0] == "N" else "ACGT"[("ACGT".index(LEFT[0]) + 1) % 4]),
        of(len(GENOME["chr1"]), RIGHT[-1], "ACGT"[("ACGT".index(RIGHT[-1]) + 1) % 4]),
    ],
    ids=lambda v: f"{v.chrom}:{v.pos}{v.ref}>{v.alt}",
)
def test_ends_of_chromosomes(scorer, reference, variant):
    """The window ends where the chromosome does, and the score is that of what is there."""
    table = score_table(scorer, [variant], reference, 30, score_schema(scorer.columns)).to_pydict()
    sequence = GENOME[variant.chrom].upper().replace("R", "N")
    small = normalised(variant, reference)
    around = Haplotypes(
        sequence[max(0, small.start - 30) : small.start], small.ref, small.alt, sequence[small.end : small.end + 30]
    )
    assert haplotypes_of(small, reference, 30) == around
    expected = scorer.score([around])
    for name in scorer.columns:
        assert np.isfinite(table[name][0]) and table[name][0] == pytest.approx(expected[name][0], abs=NEAR)
    assert table["score"] == table["llr"]


def test_a_table_has_a_row_for_each_allele(scorer, reference):
    some = [of(5, LEFT[4], "<DEL>"), of(RUN + 9, "C", "T"), of(RUN + 9, "C", "A" * 60)]
    some = [
        Variant(v.chrom, v.pos, v.ref, v.alt, "", 7 + i, i, why)
        for i, (v, why) in enumerate(zip(some, ("no sequence", None, "longer than 50 bases"), strict=True))
    ]
    table = score_table(scorer, some, reference, 30, score_schema(scorer.columns))
    assert table.column_names[:5] == ["chrom", "pos", "ref", "alt", "score"]
    found = table.to_pydict()
    assert found["unscored"] == ["no sequence", None, "longer than 50 bases"]
    assert found["line"] == [7, 8, 9] and found["allele"] == [0, 1, 2]
    for name in ("score", *scorer.columns):
        assert found[name][0] is None and found[name][1] is not None and found[name][2] is None
    nothing = score_table(scorer, some[:1], reference, 30, score_schema(scorer.columns))
    assert nothing.num_rows == 1 and nothing["llr"].null_count == 1
