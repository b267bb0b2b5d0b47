"""Settings of `finetune` for a task, by recipe: the released scripts' own, or ours, which avoid what went wrong there.

    python -m dnabert2.gue_eval.recipes robust tf/0            # print them as the .json file that `finetune` takes

`published` is a row of `data/gue_recipes.csv`: sequences cut at a length, the checkpoint with the least development
loss, the summary token, one seed. `robust` is in `recipes.json`: nothing is cut; the checkpoint with the best score
counts; tokens are averaged; a run that stays at chance is started anew; several seeds; and tasks whose sequences have
no strand (by `tasks.csv`: transcription factors, histone marks, enhancers, pieces of genomes) are trained on both.
There is one exception: small models read both strands of `prom/prom_core_tata` too, which has few rows and would be
learnt by heart otherwise. Later blocks override earlier ones: `default`, the task, the dataset, the model's family,
small models and theirs.
"""

import argparse
import copy
import csv
import difflib
import functools
import json
import math
import re
import sys

from ..errors import UserError, run_verb
from .tasks import HERE, Task, select

# family of the released scripts -> what the name of a model has in it; the first, for all that none of the others is
MODEL_FAMILIES = {
    "DNABERT-2": r"",
    "DNABERT k-mer": r"dna_?bert[-_]?[3-6](?!\d)",
    "Nucleotide Transformer": r"nucleotide-transformer|InstaDeepAI/",
}
WARMUP_STEPS = 50  # where the size of the training split is not known; the released scripts' usual number


@functools.cache
def _settings() -> dict:
    return json.loads((HERE / "recipes.json").read_text(encoding="utf-8"))


@functools.cache
def _published_rows() -> dict[tuple[str, str], dict]:
    with open(HERE / "data" / "gue_recipes.csv", newline="", encoding="utf-8") as handle:
        return {(row["model"], row["dataset"]): row for row in csv.DictReader(handle)}


def recipe_names() -> list[str]:
    """The recipes there are."""
    return list(_settings())


def seeds(name: str) -> list[int]:
    """The seeds that a recipe runs with, the first of which is in `recipe`."""
    return _block(name)["seeds"]


def recipe(
    name: str,
    task: Task | str,
    model_family: str | None = None,
    *,
    model: str | None = None,
    gpu: bool = False,
    fast_cpu: bool = False,
    train_rows: int | None = None,
    hidden_size: int | None = None,
) -> dict:
    """
    Settings of one fine-tuning run.

    Args:
        name: "published" or "robust".
        task: a task, or the name of one.
        model_family: "DNABERT-2", "DNABERT k-mer" or "Nucleotide Transformer"; by default that of `model`.
        model: folder or Hub id of the model, by which its family is told (`family_of`).
        gpu: the run is on a GPU, where it may be in half precision.
        fast_cpu: the run is on a CPU with bfloat16 arithmetic, which is several times faster; `robust` then uses it.
        hidden_size: the model's width; narrow ones take larger steps in `robust`.
        train_rows: rows of the training split, of which the warm-up is a part in `robust`; by default the table's.

    Returns:
        Option of `finetune` -> value: options of transformers' `TrainingArguments`, and our own. `max_length` is in
        tokens; `global_batch_size` in sequences a step, over all devices and whatever these are.

    Raises:
        UserError: for a name that does not exist, or a task that the released scripts know nothing of.
    """
    block = _block(name)
    model_family = model_family or family_of(model or "")
    if model_family not in MODEL_FAMILIES:
        raise UserError(f"there is no model family {model_family!r}; choose one of {', '.join(MODEL_FAMILIES)}.")
    if isinstance(task, str):
        task = _one_task(task)
    settings, precision = dict(block["default"]), block["precision_on_gpu"]
    if name == "published":
        settings |= _published(task, model_family, block)
    else:
        for key in (task.family, task.dataset):
            settings |= block["tasks"].get(key, {})
        settings |= block["model_families"][model_family]
        if hidden_size is not None and hidden_size <= block["small"]["hidden_size"]:
            precision = block["small"]["precision_on_gpu"]
            settings |= block["small"]["default"]
            for key in (task.family, task.dataset):
                settings |= block["small"]["tasks"].get(key, {})
        settings["warmup_steps"] = _warmup_steps(settings, block["warmup_ratio"], train_rows or task.train)
    settings["seed"] = block["seeds"][0]
    if gpu and precision is not None:
        settings[precision] = True
    if name == "robust" and fast_cpu and not gpu:
        settings["bf16"] = True
    return settings


def family_of(model: str) -> str:
    """The family whose recipe a model takes, told by its name as the released scripts do; DNABERT-2's for others."""
    default, *others = MODEL_FAMILIES
    return next((x for x in others if re.search(MODEL_FAMILIES[x], model, re.IGNORECASE)), default)


def _block(name: str) -> dict:
    if name not in _settings():
        close = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(recipe_names())}."
        raise UserError(f"there is no recipe {name!r}; {hint}")
    return copy.deepcopy(_settings()[name])


def _one_task(name: str) -> Task:
    found = select(name)
    if len(found) > 1:
        raise UserError(f"{name} is {len(found)} datasets; give one, such as {found[0].dataset}.")
    return found[0]


def _warmup_steps(settings: dict, ratio: float, rows: int | None) -> int:
    if rows is None:
        return WARMUP_STEPS
    epoch = math.ceil(rows / settings["global_batch_size"])
    return max(1, round(ratio * epoch * settings["num_train_epochs"]))


def _published(task: Task, model_family: str, block: dict) -> dict:
    row = _published_rows().get((model_family, task.dataset))
    if row is None:
        raise UserError(f"{task.dataset}: the released scripts have no settings for it; use the recipe robust.")
    steps = int(row["eval_and_save_steps"])
    devices = block["gpus"] * int(row["gradient_accumulation_steps"])
    settings = {
        "max_length": int(row["model_max_length"]),
        "learning_rate": float(row["learning_rate"]),
        "num_train_epochs": float(row["num_train_epochs"]),
        "max_steps": int(row["max_steps"] or -1),
        "global_batch_size": int(row["per_device_train_batch_size"]) * devices,
        "warmup_steps": int(row["warmup_steps"]),
        "eval_steps": steps,
        "save_steps": steps,
    }
    if row["lora"] == "yes":
        settings |= block["lora"] | {"lora_target_modules": row["lora_target_modules"].split(",")}
        if row["lora_alpha"]:
            settings["lora_alpha"] = int(row["lora_alpha"])
    return settings


def main(argv: list[str] | None = None) -> int:
    """Print a recipe as JSON; exit code 2 for one that does not exist."""
    parser = argparse.ArgumentParser(
        prog="python -m dnabert2.gue_eval.recipes",
        description="Print the settings of a fine-tuning recipe.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", help=f"the recipe: {' or '.join(_settings())}")
    parser.add_argument("task", help="a dataset of GUE, such as tf/0")
    parser.add_argument("--model_family", default="DNABERT-2", help=f"one of {', '.join(MODEL_FAMILIES)}")
    parser.add_argument("--gpu", action="store_true", help="settings for a GPU")
    options = parser.parse_args(argv)

    def show():
        print(json.dumps(recipe(options.name, options.task, options.model_family, gpu=options.gpu), indent=1))

    return run_verb(show)


if __name__ == "__main__":
    sys.exit(main())
