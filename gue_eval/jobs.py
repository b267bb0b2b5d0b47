"""Which runs a call of `gue run` asks for, in which order, which of them are this process's, and their files' names.

jobs = list_jobs(["mini", "cnn"], Path("GUE"), "tf", [42, 43, 44])
share_of(jobs, "2/4")                                                        # the second of four shares
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .tasks import Task, available

FIRST_SEED = 42


@dataclass(frozen=True)
class Job:
    """One run: a model, or a floor, on a dataset with a seed."""

    model: str
    task: Task
    seed: int


@dataclass(frozen=True)
class Plan:
    """
    What a call asks of all its runs.

    Attributes:
        recipe: of `recipes.json`.
        name: what records call it; by default the recipe's name.
        overrides: settings of `finetune` instead of the recipe's.
        trust_remote_code: run the code that foreign models bring along.
    """

    recipe: str
    name: str = ""
    overrides: dict = field(default_factory=dict)
    trust_remote_code: bool = False

    def __post_init__(self):
        object.__setattr__(self, "name", self.name or self.recipe)


def list_jobs(models: list[str], gue: Path, tasks: str, seeds: list[int]) -> list[Job]:
    """
    Every run asked for, the longest first, so that shares of them take about as long.

    A floor that is the same with every seed has the first alone.

    Raises:
        UserError: if a task that is named, or all of them, are not whole on this disk, or two models' records would
            have the same name.
    """
    from .floors import WITHOUT_CHANCE

    complete, incomplete = available(gue, tasks)
    if incomplete and (tasks not in ("all", "gue") or not complete):
        name, missing = next(iter(incomplete.items()))
        raise UserError(f"{gue}: {name} lacks {' and '.join(missing)}; fetch it with `dnabert2 gue download`.")
    if incomplete:
        print(f"left out, not whole on this disk: {', '.join(incomplete)}", flush=True)
    models, slugs = list(dict.fromkeys(models)), {}
    for model in models:
        if slugs.setdefault(slug(model), model) != model:
            raise UserError(
                f"--model {slugs[slug(model)]} and {model} would have the same records, called {slug(model)}; run one "
                "of them with another --output."
            )
    if len(seeds) > 1 and (certain := [model for model in models if model in WITHOUT_CHANCE]):
        print(f"the same with every seed, so run with {seeds[0]} alone: {', '.join(certain)}", flush=True)
    jobs = [
        Job(model, task, seed)
        for model in models
        for task in complete
        for seed in (seeds[:1] if model in WITHOUT_CHANCE else seeds)
    ]
    return sorted(jobs, key=lambda job: -(job.task.train or 0) * job.task.length_bp)


def parse_seeds(text: str) -> list[int]:
    """ "3" is 42, 43 and 44; "7,8" is these two."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"--seeds {text}: give how many, such as 3, or numbers with commas, such as 42,43.") from None
    if "," not in text and numbers:
        numbers = list(range(FIRST_SEED, FIRST_SEED + numbers[0]))
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


def share_of(jobs: list, shard: str | None, rank: int = 0, size: int = 1) -> list:
    """The runs of this process: of `--shard` its place, `rank`, among the `size` that a launcher started."""
    first, step = 1, 1
    if shard is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", shard)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard {shard}: give I/N with I from 1 to N, such as 1/4.")
        first, step = int(match[1]), int(match[2])
    return jobs[first - 1 :: step][rank::size]


def record_path(output: Path, recipe_name: str, model: str, task: Task, seed: int) -> Path:
    """Where the record of a run lies."""
    parts = (slug(model), task.dataset.replace("/", "_"), slug(recipe_name))
    return output / f"{'--'.join(parts)}--seed{seed}.json"


def slug(name: str) -> str:
    """A model's name as a part of a file's: the last two parts of a path, and letters that every disk takes."""
    parts = [part for part in Path(name).parts if part not in ("/", ".", "..")]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts[-2:]))
