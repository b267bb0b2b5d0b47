"""Folders of `dnabert2 finetune`, a tiny one of every kind, each with the predictions that the run itself made."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import foreign_models
import pyarrow.parquet as pq
import pytest
from finetuning import RICH_IN_AT, RICH_IN_GC, TINY, arguments, random_sequence, write_tables

from dnabert2.cli import main

# Far larger weights than usual, so that rows differ after a few steps.
LIVELY = json.dumps({**TINY, "initializer_range": 0.3})
LENGTH = 20  # HyenaDNA's stand-in takes 24 tokens


def one_label(draw: random.Random, i: int):
    weights = (RICH_IN_AT, RICH_IN_GC, (1, 1, 1, 1))[i % 3]
    return random_sequence(draw, weights, LENGTH), ("at", "gc", "even")[i % 3]


def two_labels(draw: random.Random, i: int):
    sequence = random_sequence(draw, RICH_IN_AT if i % 2 else RICH_IN_GC)
    return sequence, i % 2, int("AAA" in sequence)


def number(draw: random.Random, i: int):
    sequence = random_sequence(draw, (i % 7 + 1, 4, 4, i % 7 + 1))
    return sequence, sequence.count("A") / 10 + 0.05


def two_numbers(draw: random.Random, i: int):
    sequence = random_sequence(draw, (i % 7 + 1, 4, 4, i % 7 + 1))
    return sequence, sequence.count("A") / 10 + 0.05, sequence.count("C") / 10 + 0.05


def pair(draw: random.Random, i: int):
    two = [random_sequence(draw, weights, LENGTH) for weights in (RICH_IN_AT, RICH_IN_GC)]
    return (*two, "first") if i % 2 else (*two[::-1], "second")


def bases(draw: random.Random, i: int):
    before, after = (random_sequence(draw, RICH_IN_GC, draw.randint(5, 15)) for _ in range(2))
    return f"{before}TATA{after}", "." * 2 + "0" * (len(before) - 2) + "1111" + "0" * len(after)


NUMBERS = {"problem_type": "regression"}
LORA = {"lora": True, "config_overrides": None}
FOREIGN = {"config_overrides": None, "trust_remote_code": True}
# What the table's columns are, its rows, the options, and where the model begins: None for new weights.
KINDS = {
    "one label": ("sequence,label", one_label, {}, None),
    "several labels": ("sequence,label_at,label_poly", two_labels, {}, None),
    "a number": ("sequence,label", number, NUMBERS, None),
    "two numbers": ("sequence,label_a,label_c", two_numbers, NUMBERS, None),
    "pairs": ("sequence,sequence2,label", pair, {}, None),
    "pairs without types": ("sequence,sequence2,label", pair, {"no_token_types": True}, None),
    "bases": ("sequence,label", bases, {"problem_type": "base_classification", "class_names": ["no", "TATA"]}, None),
    "mean of both strands": ("sequence,label", one_label, {"pooling": "mean", "rc_average": True}, None),
    "adapters": ("sequence,label", one_label, {**LORA, "pooling": "mean"}, "tiny"),
    "adapters of pairs": ("sequence,sequence2,label", pair, LORA, "tiny"),
    "adapters added in": ("sequence,label", one_label, {**LORA, "merge_lora": True}, "tiny"),
    "frozen": ("sequence,label", one_label, {"freeze_backbone": True, "config_overrides": None}, "tiny"),
    "DNABERT": ("sequence,label", one_label, FOREIGN, lambda folder: foreign_models.dnabert(folder, 3)),
    "DNABERT, pairs": ("sequence,sequence2,label", pair, FOREIGN, lambda folder: foreign_models.dnabert(folder, 3)),
    "NT": ("sequence,label", number, {**FOREIGN, **NUMBERS}, foreign_models.nucleotide_transformer),
    "HyenaDNA": ("sequence,label", one_label, {**FOREIGN, "rc_average": True}, foreign_models.hyenadna),
    "GENA-LM, adapters": ("sequence,label", one_label, {**FOREIGN, "lora": True}, foreign_models.gena_lm),
}


@dataclass(frozen=True)
class Finetuned:
    """
    Attributes:
        model: the run's folder.
        test: its test table.
        options: of the run.
        predictions: what the run predicted for that table.
    """

    model: Path
    test: Path
    options: dict
    predictions: dict[str, list]


def finetuned(kind: str, folder: Path, tiny: Path) -> Finetuned:
    """Fine-tune a tiny network, a few steps, in `folder`."""
    header, row_of, options, source = KINDS[kind]
    if callable(source):
        source = source(folder / "source")
    tables = write_tables(folder / "tables", header, row_of)
    settings = {"model_name_or_path": tiny if source == "tiny" else source, "config_overrides": LIVELY, **options}
    assert main(arguments(tables, folder / "run", max_steps=8, confidence_resamples=0, **settings)) == 0
    predictions = pq.read_table(folder / "run" / "predictions.parquet").to_pydict()
    return Finetuned(folder / "run", tables / "test.csv", options, predictions)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory, tiny):
    """Function: the fine-tuned folder of a kind, made once."""
    made = {}

    def of(kind: str) -> Finetuned:
        if kind not in made:
            made[kind] = finetuned(kind, tmp_path_factory.mktemp("kind"), tiny)
        return made[kind]

    return of
