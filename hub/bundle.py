"""Replace the bundled checkpoint `mini` by a finished run of `pretrain`.

    python -m dnabert2.hub.bundle --run runs/mini

`checkpoints/mini/` receives the network and its tokenizer, `benchmarks/results/pretrain-mini.json` what the run was:
recipe, corpus, curve, held-out scores, time, versions and device. `make mini GENOMES=folder` does everything, from
genomes to the README's tables.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from ..atomic import write_whole
from ..bundled import BUNDLED
from ..configuration_dnabert2 import DNABert2Config
from ..errors import UserError, run_verb
from ..provenance import ROOT
from ..tokenizer.files import write_tokenizer
from .checkpoints import check_tokenizer, load_checkpoint

MOST_PARAMETERS, MOST_BYTES = 16_000_000, 40_000_000
RESULTS = ROOT / "benchmarks" / "results"
# Of a run's settings, what the recipe decides; the rest are transformers' defaults.
RECIPE = (
    *("config_overrides", "initial_embeddings", "model_name_or_path", "hidden_dropout_prob"),
    *("max_length", "mlm_probability", "neighbour_weight", "short_steps", "torch_compile"),
    *("global_batch_size", "max_steps", "warmup_steps", "lr_scheduler_type", "learning_rate", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "low_precision_layer_norm", "seed"),
)


def bundle(run: Path, folder: Path, results: Path) -> dict:
    """
    Put a run's network into `folder` and its record and curve into `results`.

    Returns:
        The record.

    Raises:
        UserError: if the run is not whole, the network is too large to be bundled, or its corpus is gone.
    """
    metrics, settings = _read(run / "metrics.json"), _read(run / "run.json")
    corpus = _read(Path(settings["corpus"]) / "manifest.json")
    model = load_checkpoint(run)
    size = (run / "model.safetensors").stat().st_size
    if metrics["parameters"] > MOST_PARAMETERS or size > MOST_BYTES:
        raise UserError(
            f"{run}: {metrics['parameters']:,} parameters in {size:,} bytes; a bundled checkpoint has at most "
            f"{MOST_PARAMETERS:,} in {MOST_BYTES:,}."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        build = Path(scratch) / folder.name
        build.mkdir()
        write_tokenizer(check_tokenizer(run, model.config), build)
        # In the package the code is at hand; `export` writes it beside the weights.
        if hasattr(model.config, "auto_map"):
            del model.config.auto_map
        # Short pretraining goes without dropout; who fine-tunes wants the published one.
        model.config.hidden_dropout_prob = DNABert2Config().hidden_dropout_prob
        model.save_pretrained(build)
        (build / "model.safetensors").chmod(0o644)  # written for the user's eyes only, unlike the rest
        if folder.exists():
            shutil.move(folder, Path(scratch) / "replaced")
        shutil.move(build, folder)
    record = {
        **_describe(run),
        "corpus": {
            "settings": {k: v for k, v in corpus["settings"].items() if k not in ("input", "tokenizer")},
            "passes": corpus["passes"],
            "splits": {
                split: {k: v for k, v in counts.items() if k != "shards"} for split, counts in corpus["splits"].items()
            },
        },
    }
    write_whole(results / "pretrain-mini.json", json.dumps(record, indent=1) + "\n")
    shutil.copyfile(run / "curve.png", results / "pretrain-mini.png")
    return record


def _describe(run: Path) -> dict:
    """What a run was and, as `before`, the run that it went on from, if that is at hand."""
    settings, metrics = _read(run / "run.json"), _read(run / "metrics.json")
    recipe = {name: settings[name] for name in RECIPE if settings.get(name) not in (None, False)}
    record = {"recipe": recipe, "corpus_sha256": settings.get("corpus_sha256")}
    record |= {key: value for key, value in metrics.items() if key != "checkpoints"}
    before = Path(settings.get("model_name_or_path") or run)
    if before != run and (before / "metrics.json").is_file():
        record["before"] = _describe(before)
    return record


def _read(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder of a finished pretrain run, and keep its corpus.")
    return json.loads(path.read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Replace the bundled checkpoint by a finished pretrain run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, help="folder that pretrain wrote")
    parser.add_argument("--output", type=Path, default=BUNDLED["mini"], help="folder of the bundled checkpoint")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record and the curve")
    options = parser.parse_args(argv)

    def body():
        record = bundle(options.run, options.output, options.results)
        print(f"{options.output}: {record['parameters']:,} parameters after {record['steps']:,} steps.")

    return run_verb(body)


if __name__ == "__main__":
    sys.exit(main())
