"""Genomes and a corpus for tests, as fixtures: small, made up, with something to learn in them."""

import gzip
import json
import random
from pathlib import Path

import pytest

from dnabert2.cli import main

# A network that trains in no time.
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.0,
}


def sequence(bases: int, seed: int) -> str:
    """DNA with repeats, so that there is something to learn."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("ACGT", k=12)) for _ in range(20)]
    text = ""
    while len(text) < bases:
        text += draw.choice(words) if draw.random() < 0.7 else "".join(draw.choices("ACGT", k=5))
    return text[:bases]


def swap_two_tokens(folder: Path):
    """Make the tokenizer of a folder another one of the same size."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["ACA"], vocabulary["TGT"] = vocabulary["TGT"], vocabulary["ACA"]
    path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def genomes(tmp_path_factory):
    """Two species: one of three chromosomes, with N and soft-masked sequence, and a bacterium, gzipped."""
    folder = tmp_path_factory.mktemp("genomes")
    first = sequence(30_000, 1)
    first = first[:9_000] + "N" * 50 + first[9_050:20_000].lower() + "R" + first[20_001:]
    lines = [f">chr1 the first\n{first}", f">chr2\n{sequence(20_000, 2)}", f">chr3\n{sequence(6_000, 3)}"]
    (folder / "Animal_one__v1.fa").write_text("\n".join(lines) + "\n")
    with gzip.open(folder / "Bacterium_two.fna.gz", "wt") as handle:
        handle.write(f">NC_1\n{sequence(40_000, 4)}\n>plasmid\n{sequence(5_000, 5)}\n")
    return folder


@pytest.fixture(scope="session")
def corpus(genomes, tmp_path_factory):
    """The corpus of these genomes, in windows of 30 tokens, with chr3 and the plasmid held out."""
    output = tmp_path_factory.mktemp("corpus") / "corpus"
    words = ["--input", genomes, "--output", output, "--window_tokens", 30, "--min_tokens", 4, "--shards", 4]
    words += ["--held_out", "chr3", "plasmid", "--workers", 1, "--passes", 2]
    assert main(["build-corpus", *map(str, words)]) == 0
    return output
