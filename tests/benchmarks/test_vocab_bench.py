"""`bench vocab`: nested byte pairs; leakage and stability by hand and by slow twins; the whole verb on made-up DNA."""

import json
import random
import re

import numpy as np
import pytest

from dnabert2.benchmarks import tables
from dnabert2.benchmarks.vocab_measures import (
    EDITS,
    Tokens,
    edit,
    leakage,
    mask_spans,
    mask_tokens_alone,
    spelt_shares,
    stability,
    survivors,
    token_lengths,
    tokenise,
)
from dnabert2.cli import main
from dnabert2.configuration_dnabert2 import DNABert2Config
from dnabert2.tokenizer.kmer import kmer_tokenizer
from dnabert2.tokenizer.train import cut_bpe, train_bpe
from dnabert2.training.throughput import flops_per_token


def genome(bases: int, seed: int) -> str:
    """Random DNA with some repeats, so that there is something to merge."""
    draw = random.Random(seed)
    motifs = ["".join(draw.choices("ACGT", k=12)) for _ in range(5)] + ["ATATATATATAT"]

    def piece():
        return draw.choice(motifs) if draw.random() < 0.3 else "".join(draw.choices("ACGT", k=12))

    return "".join(piece() for _ in range(bases // 12 + 1))[:bases]


@pytest.fixture(scope="module")
def texts():
    return [genome(200, seed) for seed in range(40)]


@pytest.fixture(scope="module")
def byte_pairs(texts):
    return train_bpe(texts, 120)


@pytest.fixture(scope="module")
def backends(byte_pairs):
    made = {"bpe": byte_pairs}
    for k in (3, 6):
        made |= {f"{k}-overlapping": kmer_tokenizer(k, True).backend_tokenizer}
        made |= {f"{k}-apart": kmer_tokenizer(k, False).backend_tokenizer}
    return made


def tokens(spans, ids=None):
    spans = np.array(spans)
    return Tokens(np.array(ids or range(len(spans))), spans[:, 0], spans[:, 1])


# Byte pairs


@pytest.mark.parametrize("size", [9, 10, 33, 64, 119, 120])
def test_cutting_merges_equals_training_at_that_size(byte_pairs, texts, size):
    cut, trained = (json.loads(x.to_str()) for x in (cut_bpe(byte_pairs, size), train_bpe(texts, size)))
    assert cut["model"].pop("merges") == trained["model"].pop("merges")
    assert cut["model"].pop("vocab") == trained["model"].pop("vocab")
    assert cut == trained


@pytest.mark.parametrize("size", [8, 121])
def test_no_cut_below_the_bases_or_above_what_there_is(byte_pairs, size):
    with pytest.raises(ValueError, match="9 to 120 entries"):
        cut_bpe(byte_pairs, size)


# Leakage


def test_leakage_of_overlapping_kmers_by_hand():
    """Seven 3-mers of ACGTACGTA. Token 3 alone is masked: 2 and 1 spell bases 3 and 4, 4 and 5 spell 4 and 5."""
    [found] = tokenise(kmer_tokenizer(3, True).backend_tokenizer, ["ACGTACGTA"])
    assert found.starts.tolist() == [0, 1, 2, 3, 4, 5, 6] and found.ends.tolist() == [3, 4, 5, 6, 7, 8, 9]

    def shares(*masked):
        return spelt_shares(found, np.isin(np.arange(7), masked)).tolist()

    assert shares(3) == [1.0]
    # Three neighbours masked, as DNABERT does: only base 4 is in none of the others.
    assert shares(2, 3, 4) == pytest.approx([2 / 3] * 3)
    # The first token alone: nobody else spells base 0.
    assert shares(0) == pytest.approx([2 / 3])
    assert shares(2, 3, 4, 5) == pytest.approx([2 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert shares(*range(7)) == [0.0] * 7
    assert shares() == []
    summary = leakage([found], lambda count: np.isin(np.arange(count), [0, 3]))
    assert summary == {
        "masked_tokens": 2,
        "masked_share": 2 / 7,
        "wholly_spelt": 0.5,
        "mean_share_spelt": pytest.approx(5 / 6),
    }
    assert leakage([found], lambda count: np.zeros(count, dtype=bool))["wholly_spelt"] is None


def test_shares_are_those_of_sets_of_bases(backends, texts):
    draw = np.random.default_rng(0)
    for backend in backends.values():
        for found in tokenise(backend, texts[:5]):
            masked = mask_tokens_alone(len(found), 0.4, draw)
            spans = list(zip(found.starts, found.ends, strict=True))
            spelt = {base for span, hidden in zip(spans, masked, strict=True) if not hidden for base in range(*span)}
            slow = [
                len(set(range(*span)) & spelt) / (span[1] - span[0])
                for span, hidden in zip(spans, masked, strict=True)
                if hidden
            ]
            np.testing.assert_allclose(spelt_shares(found, masked), slow)


def test_only_overlapping_tokens_leak(backends, texts):
    for name, backend in backends.items():
        draw = np.random.default_rng(1)
        found = leakage(tokenise(backend, texts), lambda count, draw=draw: mask_tokens_alone(count, 0.15, draw))
        if "overlapping" in name:
            assert found["mean_share_spelt"] > 0.9
        else:
            assert found["wholly_spelt"] == found["mean_share_spelt"] == 0 and found["masked_tokens"] > 50


def test_spans_are_those_of_dnabert():
    """The published offsets around a centre; about the same share of tokens as if masked alone."""
    published = {3: [-1, 0, 1], 4: [-1, 0, 1, 2], 5: [-2, -1, 0, 1, 2], 6: [-2, -1, 0, 1, 2, 3]}

    class OneCentre:
        def __init__(self, centre):
            self.centre = centre

        def random(self, count):
            return np.where(np.arange(count) == self.centre, 0.0, 1.0)

    for k, around in published.items():
        assert np.flatnonzero(mask_spans(50, k, 0.15, OneCentre(20))).tolist() == [20 + x for x in around]
        assert np.flatnonzero(mask_spans(50, k, 0.15, OneCentre(0))).tolist() == [x for x in around if x >= 0]
        assert np.flatnonzero(mask_spans(50, k, 0.15, OneCentre(49))).tolist() == [49 + x for x in around if x <= 0]
        assert 0.13 < mask_spans(200_000, k, 0.15, np.random.default_rng(k)).mean() < 0.15


# Stability


def test_survivors_are_the_same_tokens_over_the_same_bases(backends, texts):
    draw = np.random.default_rng(2)
    for backend in backends.values():
        for kind in EDITS:
            edited = [edit(text, kind, draw) for text in texts[:8]]
            pairs = zip(tokenise(backend, texts[:8]), tokenise(backend, [x for x, _ in edited]), strict=True)
            for (before, after), (_, shift) in zip(pairs, edited, strict=True):
                moved = set(zip(after.ids, after.starts + shift, after.ends + shift, strict=True))
                slow = [x in moved for x in zip(before.ids, before.starts, before.ends, strict=True)]
                assert survivors(before, after, shift).tolist() == slow


def test_stability_by_hand():
    """Two words of known fate: 3-mers that do not overlap lose all, those that overlap lose what holds the base."""
    text, draw = "ACGTCAGGTCTA", np.random.default_rng(0)
    apart, overlapping = (kmer_tokenizer(3, kind).backend_tokenizer for kind in (False, True))
    lost = stability(apart, [text], "deletion_at_start", draw)
    assert lost["surviving_share"]["mean"] == 0 and lost["never_in_step"] == 1
    assert lost["disturbed_bases"]["p50"] == 12
    kept = stability(overlapping, [text], "deletion_at_start", draw)
    assert kept["surviving_share"]["mean"] == pytest.approx(9 / 10) and kept["never_in_step"] == 0
    assert kept["disturbed_bases"]["p50"] == 3
    # Base 6 is in the 3-mers that start at 4, 5 and 6, and in the third of the others.
    kept = stability(overlapping, [text], "substitution_in_middle", draw)
    assert kept["surviving_share"]["mean"] == pytest.approx(7 / 10) and kept["disturbed_bases"]["p50"] == 5
    kept = stability(apart, [text], "substitution_in_middle", draw)
    assert kept["surviving_share"]["mean"] == pytest.approx(3 / 4) and kept["disturbed_bases"]["p50"] == 3
    kept = stability(overlapping, [text], "insertion_at_start", draw)
    assert kept["surviving_share"]["mean"] == 1 and kept["disturbed_bases"]["p95"] == 0


def test_the_distance_ends_with_the_last_token_out_of_step():
    before = tokens([(0, 2), (2, 5), (5, 6), (6, 9)], ids=[10, 11, 12, 13])
    after = tokens([(0, 1), (1, 4), (4, 5), (5, 6), (6, 8)], ids=[20, 11, 30, 31, 13])
    assert survivors(before, after, 1).tolist() == [False, True, False, False]
    assert survivors(before, before, 0).all() and not survivors(before, before, -6)[:3].any()


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_changes_one_base(kind):
    draw, text = np.random.default_rng(0), "ACGTACGTA"
    expected = {"deletion_at_start": "CGTACGTA", "insertion_at_start": "[ACGT]ACGTACGTA"}
    for _ in range(20):
        edited, shift = edit(text, kind, draw)
        assert re.fullmatch(expected.get(kind, "ACGT[CGT]CGTA"), edited)
        differing = [i for i, base in enumerate(edited) if i + shift >= 0 and text[i + shift] != base]
        assert differing == ([4] if kind == "substitution_in_middle" else [])


# Lengths


def test_lengths_of_tokens():
    found = token_lengths([tokens([(0, 2), (2, 5)]), tokens([(0, 3), (3, 4)])])
    assert found["mean"] == 2.25 and found["p50"] == 2.5
    assert found["histogram"] == [[1, 0.25], [2, 0.25], [3, 0.5]]


# The verb


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genomes")
    for name, bases in (("plant", 60_000), ("virus", 20_000)):
        (folder / f"{name}.fa").write_text(f">{name}\n{genome(bases, bases)}\n")
    (folder / "groups.tsv").write_text("file\tgroup\nplant.fa\tplant\nvirus.fa\tvirus\n")
    return folder


@pytest.fixture(scope="module")
def arguments(genomes):
    sizes = ["--sizes", "256", "64", "--kmers", "3", "6", "--window", "200", "--shift_windows", "20"]
    bases = ["--max_bases", "40e3", "--eval_bases", "8e3"]
    return ["bench", "vocab", "--input", str(genomes), "--groups", str(genomes / "groups.tsv"), *sizes, *bases]


@pytest.fixture(scope="module")
def result(arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("measured") / "vocab.json"
    assert main([*arguments, "--output", str(output)]) == 0
    assert sorted(path.name for path in output.parent.iterdir()) == ["vocab.json", "vocab.png"]
    assert (output.parent / "vocab.png").read_bytes().startswith(b"\x89PNG")
    return json.loads(output.read_text())


def test_every_tokenizer_is_measured(result):
    rows = {row["tokenizer"]: row for row in result["tokenizers"]}
    assert list(rows) == [
        "BPE 64",
        "BPE 256",
        "3-mer, overlapping",
        "6-mer, overlapping",
        "3-mer, non-overlapping",
        "6-mer, non-overlapping",
    ]
    assert [row["entries"] for row in rows.values()] == [64, 256, 69, 4101, 73, 4105]
    assert rows["3-mer, overlapping"]["tokens_per_base"] == 198 / 200
    # 66 3-mers and two single bases; 33 6-mers and two.
    assert rows["3-mer, non-overlapping"]["tokens_per_1000_bases"] == 340
    assert rows["6-mer, non-overlapping"]["tokens_per_1000_bases"] == 175
    assert rows["BPE 256"]["tokens_per_base"] < rows["BPE 64"]["tokens_per_base"] < 0.5
    assert rows["BPE 256"]["flops_relative"] == {"encoder": 1.0, "with_head": 1.0}
    assert result["flops"]["relative_to"] == "BPE 256"
    assert set(rows["3-mer, overlapping"]["leakage"]) == {"alone", "spans"}
    assert set(rows["3-mer, non-overlapping"]["leakage"]) == {"alone"} == set(rows["BPE 64"]["leakage"])
    for row in rows.values():
        assert 0 < row["vocabulary_used"] <= 1 and set(row["stability"]) == set(EDITS)
        assert row["token_bases"]["mean"] == pytest.approx(
            sum(bases * share for bases, share in row["token_bases"]["histogram"])
        )
        if row["kind"] != "overlapping":
            assert row["token_bases"]["mean"] * row["tokens_per_base"] == pytest.approx(1)


def test_flops_are_those_of_the_network(result):
    """Every window of non-overlapping 3-mers is 68 tokens and two special ones."""
    row = next(row for row in result["tokenizers"] if row["tokenizer"] == "3-mer, non-overlapping")
    config = DNABert2Config(vocab_size=73)
    assert row["flops_per_window"] == {
        "encoder": pytest.approx(70 * flops_per_token(config, 70, 0)),
        "with_head": pytest.approx(70 * flops_per_token(config, 70, 0.15)),
    }


def test_settings_and_text_are_recorded(result):
    text, settings = result["text"], result["settings"]
    assert settings["sizes"] == [64, 256] and settings["inputs"] and settings["groups"] == "groups.tsv"
    assert not re.search(r'"/', json.dumps(settings))
    assert set(text["files"]) == {"plant.fa", "virus.fa"} and set(text["groups"]) == {"plant", "virus"}
    assert text["held_out_bases"] == 200 * text["held_out_windows"] > 0
    for group in text["groups"].values():
        assert group["held_out"] > 0 and group["training"] > 0
        assert group["training"] + group["held_out"] <= group["bases"]
    assert 30_000 < text["training_bases"] < 50_000
    assert result["provenance"]["versions"]["transformers"]


def test_what_is_measured_on_did_not_train(genomes, arguments):
    from dnabert2.benchmarks.main import _parser
    from dnabert2.benchmarks.vocab import Texts
    from dnabert2.tokenizer.sampling import find_groups

    options = _parser().parse_args([*arguments[1:], "--max_bases", "1e9"])  # all that is not held out
    texts = Texts(find_groups(options.input, options.groups, options.group_column), options, lambda x, _: x)
    trained = list(texts.training())
    held_out = [window for _, window in texts.held_out]
    whole = [genome(60_000, 60_000), genome(20_000, 20_000)]
    windows = {sequence[i : i + 200] for sequence in whole for i in range(0, len(sequence), 200)}
    assert held_out and set(trained).isdisjoint(held_out) and set(trained) | set(held_out) == windows


def test_the_table_has_a_row_a_tokenizer(result):
    lines = tables.vocab(result).splitlines()
    assert len(lines) == 2 + 6 + 2 and "of 2 groups" in lines[-1] and "FLOPs, BPE 256 = 1" in lines[0]
    row = next(line for line in lines if line.startswith("| 3-mer, non-overlapping | 73 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3] == "340" and cells[6] == "0.0" and len(cells) == lines[0].count("|") - 1
    spans = next(line for line in lines if line.startswith("| 3-mer, overlapping")).split("|")[7]
    assert re.fullmatch(r" \d+\.\d / \d+\.\d ", spans)


def test_running_twice_gives_the_same_numbers(arguments, result, tmp_path):
    assert main([*arguments, "--output", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["tokenizers"] == result["tokenizers"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sizes", "8"], "--sizes 8"),
        (["--kmers", "7"], "--kmers 7"),
        (["--window", "19"], "--window 19"),
        (["--window", "50000"], "smaller --window"),
        (["--max_bases", "0"], "--max_bases 0"),
        (["--eval_bases", "nan"], "--eval_bases nan"),
        (["--shift_windows", "0"], "--shift_windows 0"),
        (["--masking", "1"], "--masking 1"),
        (["--masking", "1e-9"], "--masking 1e-09"),
        (["--seed", "-1"], "--seed -1"),
        (["--sizes", "30000"], "--sizes 30000"),
        (["--input", "absent.fa"], "absent.fa"),
        (["--groups", "absent.tsv"], "absent.tsv"),
        (["--group_column", "kingdom"], "kingdom"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, tmp_path, capsys, more, message):
    assert main([*arguments, *more, "--output", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error:") and error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "x.png"])
def test_an_output_that_cannot_be_is_refused_before_the_work(arguments, tmp_path, capsys, name):
    assert main([*arguments, "--output", str(tmp_path / name)]) == 2
    assert "--output" in capsys.readouterr().err and not list(tmp_path.iterdir())
