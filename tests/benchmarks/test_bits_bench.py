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
from dnabert2.training.markov import BaseTable, markov_bits, probability_tables

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
    bases = BaseTable(tokenizer)
    whole, given_length = bits.model_bits(model, held_out, bases, 2, torch.float32)
    assert (whole > 0).sum() == (held_out.labels >= 0).sum() > 50
    for row in (0, 4):
        place = int(np.flatnonzero(held_out.labels[row] >= 0)[3])
        token = int(held_out.labels[row, place])
        with torch.no_grad():
            p = model(held_out.inputs[row : row + 1]).logits[0, place].double().softmax(-1)
        same = [i for i in range(len(tokenizer)) if bases.lengths[i] == bases.lengths[token]]
        assert whole[row, place] == pytest.approx(-math.log2(p[token]), rel=1e-4)
        assert given_length[row, place] == pytest.approx(-math.log2(p[token] / p[same].sum()), rel=1e-4)
        assert len(same) > 1


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
    bases = BaseTable(tokenizer)
    blanks = bits.find_blanks(held_out, 0, bases, margin=3)
    draw = np.random.default_rng(2)
    counts = {"one": draw.integers(0, 9, (4**3, 4)), bits.ALL: draw.integers(0, 9, (4**3, 4))}
    best = bits.best_markov(blanks, counts, ["one", bits.ALL], bases)
    assert set(best["markov_by_order"]) == {0, 1, 2, 3}
    found = best["markov"]
    assert found["bits_per_base"] == min(best["markov_by_order"].values())
    per_base = markov_bits(probability_tables(counts[found["counted_on"]], found["prior"]), blanks.codes)
    scored = [i for s, n in zip(blanks.starts, blanks.lengths, strict=True) for i in range(s, s + n)]
    assert found["bits_per_base"] == pytest.approx(per_base[found["order"]][scored].mean())
    # Knowing the length, and the bases behind, costs less.
    assert best["markov_given_length"]["bits_per_base"] < found["bits_per_base"]


def test_the_command(corpus, model, tmp_path, capsys):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    write_tokenizer(OURS / "tokenizer.json", folder)
    path = tmp_path / "bits.json"
    words = ["bench", "bits", "--model", str(folder), "--corpus", str(corpus), "--sequences", "4", "--order", "3"]
    assert main([*words, "--output", str(path)]) == 0
    result = json.loads(path.read_text())
    assert [row["group"] for row in result["results"]] == ["Animal one", "Bacterium two"]
    assert all(row["sequences"] == 4 and row["bases"] > 50 for row in result["results"])
    assert result["parameters"] > 100_000 and result["provenance"]["versions"]
    assert "| Animal one | " in table(result) and table(result).count("\n") == 3
    assert "Bacterium two: model " in capsys.readouterr().out

    def fails_with(message, *more):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err

    fails_with("--order must be from 0 to 12", "--order", "13")
    fails_with("no such folder; build a corpus", "--corpus", str(tmp_path / "absent"))
    swap_two_tokens(folder)
    fails_with("was built with another tokenizer")
    (folder / "tokenizer.json").write_text('{"model": 3}')
    fails_with("no tokenizer could be loaded from it")
