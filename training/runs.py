"""A run's output folder: what is in it already, whether to continue it, and what may be replaced."""

import json
import os
import shutil
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..atomic import write_whole
from ..errors import UserError
from ..remote_code import code_names

RESTARTS = "restarts.json"
# What a run of any verb may leave in its folder, beside the network's code: all of it goes when another one begins.
RESULTS = (
    *("metrics.json", "predictions.parquet", RESTARTS, "config.json", "generation_config.json"),
    *("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "base_config.json", "training_args.bin"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "kmers.json"),
    *("confusion.png", "curves.png", "regression.png", "training.png", "curve.png"),
)
# Options that do not decide a run's result.
NOT_SETTINGS = {"overwrite", "logging_dir", "disable_tqdm", "report_to", "run_name", "log_level", "_n_gpu"}


def check_output(settings: dict, output: Path, overwrite: bool) -> str | None:
    """
    Look at what is in the output folder, changing nothing.

    Returns:
        The checkpoint of an unfinished run with the same settings, to continue from, or None for a new run.

    Raises:
        UserError: if a finished run, or one with other settings, is in the way and may not be overwritten.
    """
    if output.is_file():
        raise UserError(f"{output}: is a file; give a folder.")
    if (output / "metrics.json").is_file():
        if not overwrite:
            raise UserError(f"{output}: holds a finished run; choose another --output_dir or add --overwrite.")
        return None
    if not (output / "run.json").is_file():
        if any(output.glob("checkpoint-*")) or (output / "config.json").is_file():
            raise UserError(f"{output}: holds a model that is not of this command; choose another --output_dir.")
        return None
    earlier = json.loads((output / "run.json").read_text(encoding="utf-8"))
    changed = sorted(key for key in settings | earlier if settings.get(key) != earlier.get(key))
    if not changed:
        return last_whole_checkpoint(output)
    if not overwrite:
        raise UserError(
            f"{output}: holds an unfinished run with other settings ({', '.join(changed[:5])}); start it with "
            "the same ones to continue, or choose another --output_dir, or add --overwrite."
        )
    return None


def last_whole_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that was not being written when the run was killed; the state is written last."""
    for path in reversed(list_checkpoints(output)):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def list_checkpoints(output: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    found = [path for path in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def read_restarts(settings: dict, output: Path) -> list[dict]:
    """The dead attempts of an unfinished run with these settings, each with its `seed` and the `reason`."""
    if not (output / RESTARTS).is_file() or not (output / "run.json").is_file():
        return []
    earlier = json.loads((output / "run.json").read_text(encoding="utf-8"))
    return json.loads((output / RESTARTS).read_text(encoding="utf-8")) if earlier == settings else []


def write_restarts(restarts: list[dict], output: Path):
    """Record dead attempts, so that a run that goes on knows which seed it had come to."""
    if restarts:
        write_whole(output / RESTARTS, json.dumps(restarts, indent=2) + "\n")


def make_output(output: Path):
    """Make the output folder, before the Trainer does; raises UserError if it cannot be made or written to."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        trial = output / f".writable-{os.getpid()}"  # each of several processes tries
        write_whole(trial, "")
        trial.unlink()
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); choose another --output_dir.") from error


def start_output(settings: dict, output: Path):
    """Remove what an earlier run left in the output folder, and nothing else, and record this run's settings."""
    if (output / "run.json").is_file() or (output / "metrics.json").is_file():
        names = [*RESULTS, *code_names()]
        names += ["README.md"] if (output / "adapter_config.json").is_file() else []
        for path in [path for name in names for path in output.glob(name)]:
            path.unlink()
        for folder in [*output.glob("checkpoint-*"), output / "adapter"]:
            shutil.rmtree(folder, ignore_errors=True)
    write_whole(output / "run.json", json.dumps(settings, indent=2) + "\n")


def run_settings(*arguments, ignore: set[str] = frozenset()) -> dict:
    """The options that decide a run's result, JSON-ready; paths of logs, progress bars and `ignore` do not."""
    settings = {}
    for group in arguments:
        values = group.to_dict() if isinstance(group, TrainingArguments) else vars(group)
        settings |= {key: value for key, value in values.items() if key not in NOT_SETTINGS | ignore}
    return json.loads(json.dumps(settings, default=str))
