"""Genomes and corpora of the training tests: small, made up, with something to learn in them."""

import gzip
import json
import random

import pytest

from dnabert2.cli import main

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


@pytest.fixture(scope="session")
def pretrain_words():
    """Function: the words of a command that pretrains a tiny network for twelve steps of eight sequences."""

    def words(corpus, output, **options) -> list[str]:
        values = {
            "config_overrides": json.dumps(TINY),
            "corpus": corpus,
            "output_dir": output,
            "max_length": 32,
            "learning_rate": 5e-3,
            "warmup_steps": 2,
            "max_steps": 12,
            "global_batch_size": 8,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_steps": 4,
            "eval_steps": 6,
            "eval_sequences": 8,
            "use_cpu": True,
            "report_to": "none",
            **options,
        }
        return [word for key, value in values.items() if value is not None for word in (f"--{key}", str(value))]

    return words


@pytest.fixture(scope="session")
def losses():
    """Function: what a finished run logged of its training and evaluations, without how fast it was."""

    def of(output) -> list[dict]:
        history = json.loads((output / "metrics.json").read_text())["history"]
        kept = ("step", "loss", "grad_norm", "learning_rate")
        wanted = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
        return [{k: v for k, v in entry.items() if k in kept or k.startswith("eval_")} for entry in wanted]

    return of


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
