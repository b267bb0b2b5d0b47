"""bench embed and bench brca1: what they compute, on a tiny network and a made-up gene, and what they refuse."""

import csv
import json
import random

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
from dnabert2.benchmarks import brca1, embed
from dnabert2.benchmarks.inference_tables import brca1 as brca1_table
from dnabert2.benchmarks.inference_tables import embed as embed_table
from dnabert2.cli import main
from dnabert2.genome.variants import Variant
from dnabert2.inference.models import load_encoder
from dnabert2.tokenizer.files import OURS, write_tokenizer

EXON = range(1000, 1030)  # of the plus strand, from 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    DNABert2ForMaskedLM(DNABert2Config(**sizes, initializer_range=0.2)).save_pretrained(path)
    write_tokenizer(OURS / "tokenizer.json", path)
    return path


@pytest.fixture(scope="module")
def gene(tmp_path_factory):
    """A chromosome and the experiment's table of an exon in it, with six bases of intron on either side."""
    path, draw = tmp_path_factory.mktemp("gene"), random.Random(5)
    text = "".join(draw.choices("ACGT", k=2000))
    (path / "genome.fa").write_text(f">17\n{text}\n")
    rows = []
    for pos in range(EXON.start - 6, EXON.stop + 6):
        before, behind = EXON.start - pos, pos - EXON.stop + 1
        offset = f"1-{before}" if before > 0 else f"30+{behind}" if behind > 0 else str(pos - EXON.start + 1)
        ref = text[pos - 1]
        for alt in sorted(set("ACGT") - {ref}):
            kind = draw.choices(["LOF", "FUNC", "INT"], [3, 5, 1])[0]
            rows.append(["17", pos, ref, alt, f"c.{offset}{ref}>{alt}", "Missense", kind])
    with open(path / "table.tsv", "w", newline="") as handle:
        writer = csv.writer(handle, delimiter="\t")
        writer.writerows([brca1.COLUMNS, *rows])
    return path


def test_sequences_per_second(folder, gene, tmp_path, capsys):
    fasta, draw = tmp_path / "reads.fa", random.Random(1)
    reads = ["".join(draw.choices("ACGT", k=draw.randint(20, 700))) for _ in range(9)]
    fasta.write_text("".join(f">r{i}\n{read}\n" for i, read in enumerate(reads)))
    words = ["--model", folder, "--input", fasta, "--sequences", 4, "--batch_size", 2, "--window", 64, "--overlap", 8]
    words += ["--repetitions", 2, "--output", tmp_path / "embed.json"]
    assert main(["bench", "embed", *map(str, words)]) == 0
    result = json.loads((tmp_path / "embed.json").read_text())
    assert [row["way"] for row in result["results"]] == [
        "published:float32",
        *(f"{kind}:{dtype}" for dtype in ("float32", "bfloat16") for kind in ("whole", "windows")),
    ]
    loaded = load_encoder(str(folder))
    chosen = reads[::2][:4]
    lengths = [len(loaded.tokenizer(read)["input_ids"]) for read in chosen]
    assert result["sequences"]["tokens"] == sum(lengths) and result["sequences"]["longest"] == max(map(len, chosen))
    assert result["padded_tokens"] == 2 * max(lengths[:2]) + 2 * max(lengths[2:])
    assert result["agreement"][0]["relative_error"] < 1e-5 < result["agreement"][1]["relative_error"] < 1
    for row in result["results"]:
        assert row["sequences_per_second"] == pytest.approx(4 / row["seconds"]["p50"])
    assert embed_table(result) in capsys.readouterr().out

    one_by_one = [loaded.model(**loaded.tokenizer(read, return_tensors="pt"))[0][0].mean(dim=0) for read in chosen]
    theirs = embed.published_way(loaded, 3, chosen)
    assert np.allclose(theirs, torch.stack(one_by_one).detach(), atol=2e-5)


def test_nothing_is_timed_if_vectors_disagree(folder, gene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embed, "published_way", lambda loaded, size, sequences: np.ones((len(sequences), 32)))
    words = ["--model", folder, "--input", gene / "genome.fa", "--output", tmp_path / "embed.json"]
    assert main(["bench", "embed", *map(str, words)]) == 1
    assert "nothing was timed" in capsys.readouterr().err and not (tmp_path / "embed.json").exists()


def test_loss_of_function(folder, gene, tmp_path, capsys):
    words = ["--model", folder, "--variants", gene / "table.tsv", "--fasta", gene / "genome.fa", "--context", 40]
    words += ["--resamples", 50, "--output", tmp_path / "brca1.json"]
    assert main(["bench", "brca1", *map(str, words)]) == 0
    result = json.loads((tmp_path / "brca1.json").read_text())
    assert [row["name"] for row in result["entries"]] == [
        *("llr", "pseudo_likelihood", "embedding_l2", "embedding_cosine"),
        *("GC content", "CpG", "transversion", "distance to the exon's edge"),
        *("substitution type", "all of these", "all of these, and llr"),
    ]
    for row in result["entries"]:
        low, high = row["interval"]
        assert 0 < low <= row["auroc"] <= high < 1
    rows = brca1.read_table(gene / "table.tsv")
    lost = sum(row["func_class"] == "LOF" for row in rows)
    positions = len({row["pos_hg19"] for row in rows})
    assert result["counts"] == {"lost": lost, "functional": len(rows) - lost, "positions": positions}
    assert set(result["consequences"]) == {"Missense"} and brca1_table(result) in capsys.readouterr().out


def test_auroc_is_scikit_learns(gene):
    rows = brca1.read_table(gene / "table.tsv")
    variants = [Variant("17", int(row["pos_hg19"]), row["ref"], row["alt"], "", 0) for row in rows]
    values = np.round(np.random.default_rng(0).normal(size=len(rows)), 1)  # with ties
    trivial = {"transversion": (values > 0).astype(float)}
    entries = brca1.measure(rows, variants, {"llr": values}, trivial, 200)["entries"]
    lost = [row["func_class"] == "LOF" for row in rows]
    assert entries[0]["auroc"] == pytest.approx(roc_auc_score(lost, values))
    other = roc_auc_score(lost, trivial["transversion"])
    assert entries[1]["auroc"] == pytest.approx(max(other, 1 - other))


@pytest.mark.parametrize("strand", [1, -1])
def test_exon_edges(strand):
    """c.1-2 lies two bases before the exon's first base, c.30+3 three behind its last, in transcript direction."""
    first, last = (100, 129) if strand == 1 else (129, 100)
    ref = "C" if strand == 1 else "G"
    rows = [
        {"transcript_variant": "c.1-2C>A", "pos_hg19": str(first - 2 * strand), "ref": ref},
        {"transcript_variant": "c.30+3C>A", "pos_hg19": str(last + 3 * strand), "ref": ref},
        {"transcript_variant": "c.7C>A", "pos_hg19": "110", "ref": ref},
    ]
    assert brca1.exon_edges(rows).tolist() == [100, 129]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("func_class", "class"), "has no column func_class"),
        (lambda text: text.replace("LOF", "INT"), "needs variants of both classes"),
        (lambda text: text.replace("17\t9", "17\t8"), "the reference allele is"),
        (lambda text: text.replace("17\t", "18\t"), "has no sequence '18'"),
    ],
)
def test_bad_tables_are_named(change, message, folder, gene, tmp_path, capsys):
    table = tmp_path / "table.tsv"
    table.write_text(change((gene / "table.tsv").read_text()))
    words = ["--model", folder, "--variants", table, "--fasta", gene / "genome.fa", "--scores", "llr"]
    assert main(["bench", "brca1", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert str(table) in error and message in error and error.count("\n") == 1
