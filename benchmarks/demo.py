"""What pretraining is worth on the demo's data: `mini` fine-tuned, beside networks that start from random weights.

    dnabert2 bench demo --output benchmarks/results/demo.json                # minutes on two CPU cores
    dnabert2 bench demo --seeds 1 --epochs 0.1                               # seconds

All see the same tables with the same seeds: `mini` with the recipe of `make demo`; its architecture from random
weights with the same recipe; and the small network of `demo-scratch.json`, whose size, dropout and learning rate were
chosen for this data without pretraining.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

from ..bundled import BUNDLED
from ..errors import UserError
from ..provenance import ROOT, provenance
from ..training.arguments import read_settings
from ..training.finetune import finetune
from . import tables
from .output import check_output, save

RECIPES = ROOT / "training" / "recipes"
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_dropout_prob")
METRICS = ("matthews_correlation", "f1", "accuracy")


def starts() -> dict[str, dict]:
    """Name -> settings of `finetune`: what is compared."""
    recipe, scratch = (read_settings(RECIPES / f"{name}.json") for name in ("demo", "demo-scratch"))
    config = read_settings(BUNDLED["mini"] / "config.json")
    random = {key: value for key, value in recipe.items() if key != "model_name_or_path"}
    return {
        "mini": recipe,
        "mini's network, random weights": random | {"config_overrides": {key: config[key] for key in SHAPE}},
        "small network, random weights": scratch,
    }


def run(options: argparse.Namespace) -> None:
    """
    Body of `bench demo`: fine-tune each with each seed, print a table, write `--output`.

    Raises:
        UserError: for options that cannot be used.
    """
    check_output(options.output)
    if options.seeds < 1 or (options.epochs is not None and not options.epochs > 0):
        raise UserError("--seeds must be at least 1, --epochs more than 0.")
    results = []
    for name, settings in starts().items():
        runs = [_finetune(name, settings, seed, options.epochs) for seed in range(42, 42 + options.seeds)]
        results.append({"start": name, "settings": settings, "parameters": runs[0]["parameters"], **_together(runs)})
    result = {"benchmark": "demo", "seeds": options.seeds, "starts": results, "provenance": provenance()}
    save(result, options.output)
    print(tables.demo(result))


def _finetune(name: str, settings: dict, seed: int, epochs: float | None) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        settings = settings | {
            "seed": seed,
            "output_dir": f"{folder}/run",
            "data_path": str(ROOT / settings["data_path"]),
        }
        if epochs is not None:
            settings["num_train_epochs"] = epochs
        path = Path(folder) / "recipe.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        with contextlib.redirect_stdout(sys.stderr):
            finetune([str(path)])
        metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text(encoding="utf-8"))
    print(f"{name}, seed {seed}: test MCC {metrics['test']['matthews_correlation']:.3f}", flush=True)
    return metrics


def _together(runs: list[dict]) -> dict:
    """Means over seeds, their standard deviations, and each seed's scores."""
    values = {split: {metric: [run[split][metric] for run in runs] for metric in METRICS} for split in ("dev", "test")}
    return {
        "train_seconds": statistics.mean(run["train_seconds"] for run in runs),
        **{
            split: {
                metric: {
                    "mean": statistics.mean(x),
                    "standard_deviation": statistics.stdev(x) if len(x) > 1 else None,
                    "seeds": x,
                }
                for metric, x in found.items()
            }
            for split, found in values.items()
        },
    }
