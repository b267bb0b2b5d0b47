"""What the training tests share: a corpus, and runs of pretrain on it."""

import json
import os

import pytest
from corpora import TINY, corpus, genomes  # noqa: F401 (fixtures)
from finetuning import tables  # noqa: F401 (a fixture)
from foreign_models import no_plots, with_mamba  # noqa: F401 (fixtures)


@pytest.fixture(autouse=True)
def no_traces_of_accelerate():
    """transformers 4 leaves precision and sharding of a run in the environment, where the next one finds them."""
    yield
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def pretrain_words():
    """Function: the words of a command that pretrains a tiny network for twelve steps of eight sequences."""

    def words(folder, output, **options) -> list[str]:
        values = {
            "config_overrides": json.dumps(TINY),
            "corpus": folder,
            "output_dir": output,
            "max_length": 32,
            "short_steps": 3,
            "neighbour_weight": 0.3,
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
        kept = ("step", "loss", "neighbour_loss", "grad_norm", "learning_rate")
        wanted = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
        return [{k: v for k, v in entry.items() if k in kept or k.startswith("eval_")} for entry in wanted]

    return of
