"""bench bits: the four scores against their definitions, written out, on one window; bad input."""

import json
import math

import numpy as np
import pytest
import torch
from corpora import swap_two_tokens

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
from dnabert2.benchmarks import bits
from dnabert2.benchmarks.tables import bits as table
from dnabert2.cli import main
from dnabert2.tokenizer.files import OURS, load_tokenizer, write_tokenizer
from dnabert2.training.evaluation import mask_held_out
from dnabert2.training.markov import BaseTable, Candidates, fill_bits, markov_bits, probability_tables

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(OURS)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DNABert2ForMaskedLM(DNABert2Config(**SMALL, initializer_range=0.3)).eval()


@pytest.fixture(scope="module")
def held_out(tokenizer):
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("ACGT"), 150)) for _ in range(6)] + ["ACGTN" + "GATTACA" * 20]
    rows = [{"input_ids": np.array(tokenizer(t, add_special_tokens=False)["input_ids"])} for t in texts]
    return mask_held_out({"one": rows[:3], "two": rows[3:]}, tokenizer, 64, 0.3)


def test_the_models_bits(model, held_out, tokenizer):
    place = {row: int(np.flatnonzero(held_out.labels[row] >= 0)[3]) for row in (0, 4)}
    token = {row: int(held_out.labels[row, place[row]]) for row in place}
    candidates = {(row, place[row]): np.array([token[row], 50 + row, 90]) for row in place}
    whole, given_cuts = bits.model_bits(model, held_out, candidates, 2, torch.float32)
    assert (whole > 0).sum() == (given_cuts > 0).sum() == 2
    for row in place:
        with torch.no_grad():
            p = model(held_out.inputs[row : row + 1]).logits[0, place[row]].double().softmax(-1)
        among = p[candidates[row, place[row]]].sum()
        assert whole[row, place[row]] == pytest.approx(-math.log2(p[token[row]]), rel=1e-4)
        assert given_cuts[row, place[row]] == pytest.approx(-math.log2(p[token[row]] / among), rel=1e-4)


def test_blanks_have_known_bases_around_them(held_out, tokenizer):
    bases = BaseTable(tokenizer)
    blanks = bits.find_blanks(held_out, 1, bases, margin=5)
    others = bits.find_blanks(held_out, 1, bases, margin=0)
    assert 0 < len(blanks.tokens) < len(others.tokens) == int((held_out.labels[3:] >= 0).sum())
    assert set(blanks.rows) == {3, 4, 5, 6}
    for token, length, start in zip(blanks.tokens, blanks.lengths, blanks.starts, strict=True):
        spelt = "".join("ACGT"[code] for code in blanks.codes[start : start + length])
        assert spelt == tokenizer.convert_ids_to_tokens(int(token))
        assert (blanks.codes[start - 5 : start + length + 5] >= 0).all()
    # Of the window that begins with ACGTN, nothing within five bases of the N.
    last = held_out.labels[6].numpy()
    assert min(blanks.places[blanks.rows == 6]) > min(np.flatnonzero(last >= 0))


def test_the_best_markov_model(held_out, tokenizer):
    candidates = Candidates(tokenizer)
    blanks = bits.find_blanks(held_out, 0, candidates.bases, margin=3)
    fitting = bits.find_candidates(blanks, held_out, candidates)
    assert all(token in ids for token, (ids, _) in zip(blanks.tokens, fitting, strict=True))
    draw = np.random.default_rng(2)
    counts = {"one": draw.integers(0, 9, (4**3, 4)), bits.ALL: draw.integers(0, 9, (4**3, 4))}
    best = bits.best_markov(blanks, counts, ["one", bits.ALL], fitting)
    assert set(best["markov_by_order"]) == set(best["markov_given_cuts_by_order"]) == {0, 1, 2, 3}
    found, filled = best["markov"], best["markov_given_cuts"]
    assert found["bits_per_base"] == min(best["markov_by_order"].values())
    table = probability_tables(counts[found["counted_on"]], found["prior"])
    per_base = markov_bits(table, blanks.codes)
    scored = [i for s, n in zip(blanks.starts, blanks.lengths, strict=True) for i in range(s, s + n)]
    assert found["bits_per_base"] == pytest.approx(per_base[found["order"]][scored].mean())
    order, total = filled["order"], 0.0
    for start, length, token, (ids, codes) in zip(blanks.starts, blanks.lengths, blanks.tokens, fitting, strict=True):
        sides = blanks.codes[start - order : start], blanks.codes[start + length : start + length + order]
        total += fill_bits(table[order], ids, codes, token, *sides)
    assert filled["bits_per_base"] == pytest.approx(total / blanks.lengths.sum())
    # Knowing what may stand there costs less.
    assert filled["bits_per_base"] < found["bits_per_base"]


def test_token_frequencies(held_out, tokenizer):
    candidates = Candidates(tokenizer)
    blanks = bits.find_blanks(held_out, 0, candidates.bases, margin=3)
    fitting = bits.find_candidates(blanks, held_out, candidates)
    scores = bits.frequency_bits(blanks, np.ones(len(tokenizer)), fitting)
    assert scores["frequency"]["bits_per_base"] == pytest.approx(12 * len(blanks.tokens) / blanks.lengths.sum())
    expected = sum(math.log2(len(ids)) for ids, _ in fitting) / blanks.lengths.sum()
    assert scores["frequency_given_cuts"]["bits_per_base"] == pytest.approx(expected)


def test_the_command(corpus, model, tmp_path, capsys):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    write_tokenizer(OURS / "tokenizer.json", folder)
    path = tmp_path / "bits.json"
    words = ["bench", "bits", "--model", str(folder), "--corpus", str(corpus), "--sequences", "4", "--order", "3"]
    assert main([*words, "--output", str(path)]) == 0
    result = json.loads(path.read_text())
    assert [row["group"] for row in result["groups"]] == ["Animal one", "Bacterium two"]
    assert all(row["sequences"] == 4 and row["bases"] > 50 for row in result["groups"])
    assert result["parameters"] > 100_000 and result["provenance"]["versions"]
    assert "| Animal one | " in table(result) and table(result).count("\n") == 3
    printed = capsys.readouterr().out
    assert "Bacterium two: model " in printed and table(result) in printed

    def fails_with(message, *more):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err

    fails_with("--order must be from 0 to 12", "--order", "13")
    fails_with("--batch_size at least 1", "--batch_size", "0")
    fails_with("--mlm_probability 1.0: must be between", "--mlm_probability", "1.0")
    fails_with("warp", "--device", "warp")
    fails_with("no such folder; build a corpus", "--corpus", str(tmp_path / "absent"))
    swap_two_tokens(folder)
    fails_with("was built with another tokenizer")
    (folder / "tokenizer.json").write_text('{"model": 3}')
    fails_with("no tokenizer could be loaded from it")
