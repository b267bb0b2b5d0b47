"""Run the benchmark: any models on any of its tasks, several seeds, one record a run.

    dnabert2 gue run --model mini --data GUE --tasks tf/0,mouse/2 --seeds 3 --output runs/gue
    dnabert2 gue run --model majority kmer-logistic cnn --data GUE --output runs/gue                 # floors, minutes
    dnabert2 gue run --model mini --data GUE --output runs/gue --shard 2/4                          # one of four hosts
    accelerate launch --num_processes 8 -m dnabert2.gue_eval.run --model mini --data GUE --output runs/gue   # 8 GPUs

Each run is one JSON, with its settings, data, versions and device, and its test predictions as Parquet beside it. What
is finished is not run again: the same command, interrupted, goes on. A run that fails is recorded as failed with its
reason, is tried again by the next call, and makes the exit code 1. Runs are shared out, never a single one: each
process trains alone, on one GPU.
"""

import argparse
import json
import os
import re
import shutil
import sys
import traceback
from pathlib import Path

from ..atomic import write_whole
from ..errors import RunFailed, UserError, run_verb
from .recipes import recipe_names, seeds
from .tasks import Task, available

BENCHMARK = "gue"


def options_of(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dnabert2 gue run",
        description="Fine-tune models on tasks of GUE with several seeds, one JSON a run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--model", nargs="+", required=True, help="models: folder, Hub id, mini, or majority, kmer-logistic, cnn"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with GUE in its original layout")
    parser.add_argument("--tasks", default="all", help="datasets or tasks, with commas; of all, those that are whole")
    parser.add_argument("--recipe", default="robust", help=f"{' or '.join(recipe_names())}")
    parser.add_argument("--seeds", default=None, help="how many, or numbers with commas; by default the recipe's")
    parser.add_argument("--output", type=Path, required=True, help="folder of the records")
    parser.add_argument("--shard", default=None, metavar="I/N", help="only the I-th of N shares of the runs, from 1")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of finetune instead of the recipe's"
    )
    parser.add_argument("--name", default=None, help="call the recipe so in the records, if --set changes it")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run the code that foreign models bring along"
    )
    parser.add_argument("--keep_models", action="store_true", help="keep the fine-tuned models, under models/")
    return parser.parse_args(argv)


def run(options: argparse.Namespace):
    """Body of the verb; raises RunFailed at the end if a run failed."""
    overrides = parse_settings(options.set)
    recipe_name = options.name or options.recipe
    if overrides and options.name is None:
        raise UserError(
            "--set changes the recipe: name what comes of it with --name, so that records tell them apart."
        )
    jobs = list_jobs(options)
    mine = share_of(jobs, options.shard)
    done = [job for job in mine if is_finished(record_path(options.output, recipe_name, *job))]
    print(f"{len(jobs)} runs, {len(mine)} of them here, {len(done)} finished already.", flush=True)
    failed = []
    for number, (model, task, seed) in enumerate((job for job in mine if job not in done), start=1):
        path = record_path(options.output, recipe_name, model, task, seed)
        record = _attempt(options, overrides, recipe_name, model, task, seed, path)
        said = record["error"] or f"test {task.metric} {record['test'][task.metric]:.4f}"
        print(f"{number} of {len(mine) - len(done)}: {model}, {task.dataset}, seed {seed}: {said}", flush=True)
        if record["status"] == "failed":
            failed.append(path)
    if failed:
        raise RunFailed(f"{len(failed)} of {len(mine)} runs failed; the first is {failed[0]}, which says why.")


def _attempt(options, overrides: dict, recipe_name: str, model: str, task: Task, seed: int, path: Path) -> dict:
    """Run one and write its record, whatever comes of it."""
    from .one_run import run_one, write_predictions

    record = {
        "benchmark": BENCHMARK,
        "model": model,
        "task": task.dataset,
        "recipe": recipe_name,
        "seed": seed,
        "status": "finished",
        "error": None,
    }
    folder = options.output / "models" / path.stem
    try:
        found = run_one(model, task, options.data, options.recipe, seed, folder, overrides, options.trust_remote_code)
        write_predictions(found.pop("predictions"), path.with_suffix(".predictions.parquet"))
        record |= found
    except Exception as error:  # recorded, reported and in the exit code: one run must not end the others
        reason = " ".join(str(error).split()) or type(error).__name__
        record |= {"status": "failed", "error": reason, "restarts": []}
        if not isinstance(error, UserError):
            record["traceback"] = traceback.format_exc()
    write_whole(path, json.dumps(record, indent=1) + "\n")
    if record["status"] == "finished" and not options.keep_models:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def list_jobs(options: argparse.Namespace) -> list[tuple[str, Task, int]]:
    """
    Every (model, task, seed) asked for, the longest first, so that shares of them take about as long.

    Raises:
        UserError: if a task that is named, or all of them, are not whole on this disk.
    """
    complete, incomplete = available(options.data, options.tasks)
    if incomplete and (options.tasks not in ("all", "gue") or not complete):
        name, missing = next(iter(incomplete.items()))
        raise UserError(
            f"{options.data}: {name} lacks {' and '.join(missing)}; fetch it with `dnabert2 gue download`."
        )
    if incomplete:
        print(f"left out, not whole on this disk: {', '.join(incomplete)}", flush=True)
    numbers = parse_seeds(options.seeds) if options.seeds else seeds(options.recipe)
    jobs = [(model, task, seed) for model in options.model for task in complete for seed in numbers]
    return sorted(jobs, key=lambda job: -(job[1].train or 0) * job[1].length_bp)


def parse_seeds(text: str) -> list[int]:
    """ "3" is 42, 43 and 44; "7,8" is these two."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"--seeds {text}: give how many, such as 3, or numbers with commas, such as 42,43.") from None
    if "," not in text and numbers:
        numbers = list(range(42, 42 + numbers[0]))
    if not numbers or min(numbers) < 0 or len(set(numbers)) != len(numbers):
        raise UserError(f"--seeds {text}: give at least one seed, each once and none below 0.")
    return numbers


def parse_settings(words: list[str]) -> dict:
    """KEY=VALUE words as settings, the values read as JSON where they are JSON."""
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"--set {word}: give KEY=VALUE, such as learning_rate=1e-4.")
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    return settings


def share_of(jobs: list, shard: str | None) -> list:
    """The runs of this process: of `--shard`, or, started by accelerate or torchrun, of its place among the others."""
    if shard is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", shard)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard {shard}: give I/N with I from 1 to N, such as 1/4.")
        return jobs[int(match[1]) - 1 :: int(match[2])]
    return jobs[int(os.environ.get(RANK, 0)) :: int(os.environ.get(SIZE, 1))]


RANK, SIZE = "DNABERT2_GUE_RANK", "DNABERT2_GUE_SIZE"


def leave_the_group():
    """
    Make one of several processes a process of its own, with one GPU, before anything of torch starts.

    The Trainer would otherwise train each run with all of them together.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    os.environ[RANK], os.environ[SIZE] = os.environ["RANK"], os.environ["WORLD_SIZE"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if visible is None or "," in visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[local] if visible else str(local)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "TORCHELASTIC_"))]:
        del os.environ[name]


def record_path(output: Path, recipe_name: str, model: str, task: Task, seed: int) -> Path:
    """Where the record of a run lies."""
    parts = (slug(model), task.dataset.replace("/", "_"), slug(recipe_name))
    return output / f"{'--'.join(parts)}--seed{seed}.json"


def slug(name: str) -> str:
    """A model's name as a part of a file's: the last two parts of a path, and letters that every disk takes."""
    parts = [part for part in Path(name).parts if part not in ("/", ".", "..")]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts[-2:]))


def is_finished(path: Path) -> bool:
    """Whether a record is there and says so."""
    if not path.is_file():
        return False
    try:
        return json.loads(path.read_text(encoding="utf-8"))["status"] == "finished"
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no record of a run ({error}); remove it.") from error


def main(argv: list[str] | None = None) -> int:
    leave_the_group()
    options = options_of(argv)
    return run_verb(run, options)


if __name__ == "__main__":
    sys.exit(main())
