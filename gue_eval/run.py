"""Run the benchmark: any models on any of its tasks, several seeds, one record a run.

    dnabert2 gue run --model mini --data GUE --tasks tf/0,mouse/2 --seeds 3 --output runs/gue
    dnabert2 gue run --model majority kmer-logistic cnn --data GUE --output runs/gue                 # floors, minutes
    dnabert2 gue run --model mini --data GUE --output runs/gue --shard 2/4                          # one of four hosts
    accelerate launch --num_processes 8 -m dnabert2.gue_eval.run --model mini --data GUE --output runs/gue   # 8 GPUs

Each run is one JSON, with its settings, data, versions and device, and its test predictions as Parquet beside it. What
is finished is not run again: the same command, interrupted, goes on. A finished run with other settings, data or
weights is neither taken nor replaced, unless `--overwrite` says so. A run that fails is recorded as failed with its
reason, is tried again by the next call, and makes the exit code 1; what can be seen to be wrong makes it 2 before
anything is run. Runs are shared out, never a single one: each process trains alone, on one GPU.
"""

import argparse
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

from ..atomic import write_whole
from ..errors import RunFailed, UserError, run_verb
from .jobs import Job, Plan, list_jobs, parse_seeds, parse_settings, record_path, share_of
from .outputs import output_folder
from .recipes import recipe_names, seeds
from .records import RUN


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
    parser.add_argument(
        "--overwrite", action="store_true", help="run again what has a record of other settings, data or weights"
    )
    parser.add_argument("--keep_models", action="store_true", help="keep the fine-tuned models, under models/")
    return parser.parse_args(argv)


def run(options: argparse.Namespace):
    """Body of the verb; raises UserError before anything is run, RunFailed at the end if a run failed."""
    from .earlier import is_finished

    overrides = parse_settings(options.set)
    if overrides and options.name is None:
        raise UserError(
            "--set changes the recipe: name what comes of it with --name, so that records tell them apart."
        )
    plan = Plan(options.recipe, options.name or options.recipe, overrides, options.trust_remote_code)
    numbers = seeds(plan.recipe)  # asked for first: the recipe is to be there, whatever it is used for
    if options.seeds:
        numbers = parse_seeds(options.seeds)
    jobs = list_jobs(options.model, options.data, options.tasks, numbers)
    mine = share_of(jobs, options.shard, int(os.environ.get(RANK, 0)), int(os.environ.get(SIZE, 1)))
    facts = check_models(jobs, plan)
    paths = {job: record_path(options.output, plan.name, job.model, job.task, job.seed) for job in mine}
    done = {
        job
        for job, path in paths.items()
        if is_finished(path, job, plan, facts[job.model], options.data, options.overwrite)
    }
    if len(done) < len(mine):
        output_folder(options.output)
    print(f"{len(jobs)} runs, {len(mine)} of them here, {len(done)} finished already.", flush=True)
    failed = []
    for number, job in enumerate((job for job in mine if job not in done), start=1):
        record = _attempt(options, plan, job, paths[job])
        metric = job.task.metric
        said = record["error"] or f"test {metric} {record['test'][metric]:.4f}"
        print(
            f"{number} of {len(mine) - len(done)}: {job.model}, {job.task.dataset}, seed {job.seed}: {said}",
            flush=True,
        )
        if record["status"] == "failed":
            failed.append(paths[job])
    if failed:
        raise RunFailed(f"{len(failed)} of {len(mine)} runs failed; the first is {failed[0]}, which says why.")


def check_models(jobs: list[Job], plan: Plan) -> dict:
    """
    What `settings.model_facts` knows of each model, None of a floor.

    Raises:
        UserError: if a model is not there or not trusted, the recipe has nothing for a task, or `--set` cannot be
            used.
    """
    from .floors import FLOORS
    from .one_run import check_values, refuse_overrides
    from .settings import check_overrides, finetune_settings, model_facts

    check_overrides(plan.overrides)
    facts = {}
    for job in jobs:
        if job.model not in facts and job.model in FLOORS:
            refuse_overrides(job.model, plan.overrides)
            facts[job.model] = None
        elif job.model not in facts:
            facts[job.model] = model_facts(job.model, plan.trust_remote_code)
            check_values(job.model, facts[job.model], job.task, plan)
        elif facts[job.model] is not None:
            finetune_settings(job.model, facts[job.model], job.task, plan, job.seed)
    return facts


def _attempt(options: argparse.Namespace, plan: Plan, job: Job, path: Path) -> dict:
    """Run one and write its record, whatever comes of it."""
    from .one_run import run_one, write_predictions

    record = {
        "benchmark": RUN,
        "model": job.model,
        "task": job.task.dataset,
        "recipe": plan.name,
        "seed": job.seed,
        "status": "finished",
        "error": None,
    }
    folder = options.output / "models" / path.stem
    settings = plan.recipe, job.seed, folder, plan.overrides, plan.trust_remote_code
    try:
        found = run_one(job.model, job.task, options.data, *settings)
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


RANK, SIZE = "DNABERT2_GUE_RANK", "DNABERT2_GUE_SIZE"


def be_alone():
    """
    Make this process train by itself, on one GPU, before anything of CUDA starts.

    The Trainer would otherwise train each run with all processes of a launcher together, or on all GPUs of the host.
    """
    take_one_gpu(int(os.environ.get("LOCAL_RANK", 0)))
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    os.environ[RANK], os.environ[SIZE] = os.environ["RANK"], os.environ["WORLD_SIZE"]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "TORCHELASTIC_"))]:
        del os.environ[name]


def take_one_gpu(place: int):
    """Let this process see only one of the GPUs that it could see, the one at its place; several may share one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = [name for name in visible.split(",") if name.strip()]
    elif place == 0:
        gpus = ["0"]
    else:
        import torch  # counts without starting CUDA, which heeds the variable until then

        gpus = [str(i) for i in range(torch.cuda.device_count())]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]


def main(argv: list[str] | None = None) -> int:
    options = options_of(argv)
    be_alone()
    return run_verb(run, options)


if __name__ == "__main__":
    sys.exit(main())
