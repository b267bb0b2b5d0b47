"""What the tests of fine-tuning share: tables that any network learns, and the words of a command on them."""

import json
import random

import pytest

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SPLITS = (("train", 96), ("dev", 64), ("test", 64))
RICH_IN_AT, RICH_IN_GC = (6, 1, 1, 6), (1, 6, 6, 1)


def random_sequence(draw: random.Random, weights, length: int = 40) -> str:
    return "".join(draw.choices("ACGT", weights, k=length))


def write_tables(folder, header: str, row_of, seed: int = 0):
    """CSV tables of three splits; `row_of(draw, i)` gives the cells of row i."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in SPLITS:
        lines = [header, *(",".join(map(str, row_of(draw, i))) for i in range(rows))]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """A data set any network learns: one class is rich in A and T, the other in C and G."""

    def row(draw, i):
        return random_sequence(draw, RICH_IN_AT if i % 2 else RICH_IN_GC), "promoter" if i % 2 else "other"

    return write_tables(tmp_path_factory.mktemp("tables"), "sequence,label", row)


def arguments(tables, output, **options) -> list[str]:
    """Words of `dnabert2 finetune` for a tiny network; options that are None are left out, lists are several words."""
    values = {
        "config_overrides": json.dumps(TINY),
        "data_path": tables,
        "output_dir": output,
        "learning_rate": 1e-2,
        "num_train_epochs": 4,
        "global_batch_size": 8,
        "confidence_resamples": 50,
        "seed": 3,
        "use_cpu": True,
        **options,
    }
    words = ["finetune"]
    for key, value in values.items():
        if value is not None:
            words += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words
