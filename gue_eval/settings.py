"""The settings of a run: those of its recipe, what `--set` changes about them, and what follows from the model.

facts = model_facts("mini")
finetune_settings("mini", facts, all_tasks()["tf/0"], Plan("robust"), seed=42)    # what `finetune` is given
"""

import difflib
from dataclasses import dataclass, fields

import torch

from ..architectures.models import architecture_of, hidden_size, hub_commit
from ..checksums import model_sha256
from ..errors import UserError
from ..precision import has_fast_bfloat16
from ..training.finetune_arguments import DataArguments, FineTuningArguments, ModelArguments
from .jobs import Plan
from .recipes import recipe
from .tasks import Task

DATACLASSES = (ModelArguments, DataArguments, FineTuningArguments)
# Options of `finetune` that `gue run` sets itself, and how a user says them.
OWN = {
    "model_name_or_path": "--model",
    "data_path": "--data",
    "output_dir": "--output",
    "seed": "--seeds",
    "trust_remote_code": "--trust_remote_code",
    "overwrite": "--overwrite",
    "config_overrides": None,
    "class_names": None,
    "disable_tqdm": None,
}


@dataclass(frozen=True)
class ModelFacts:
    """
    What a run depends on beside a model's name.

    Attributes:
        hidden_size: width of its vectors; None if the configuration calls it otherwise.
        has_our_head: its classifier is ours, whose pooling can be chosen.
        sha256: of its folder; None for one on the Hub.
        revision: commit of one on the Hub; None for a folder.
    """

    hidden_size: int | None
    has_our_head: bool
    sha256: str | None
    revision: str | None


def model_facts(name: str, trust_remote_code: bool = False) -> ModelFacts:
    """Look at a model, running nothing of it; raises UserError if it is not there, or its code is not trusted."""
    architecture = architecture_of(name, trust_remote_code)
    return ModelFacts(hidden_size(name), architecture.code == "ours", model_sha256(name), hub_commit(name))


def finetune_settings(
    model: str, facts: ModelFacts, task: Task, plan: Plan, seed: int, train_rows: int | None = None
) -> dict:
    """
    Settings of `finetune` for a run, as its record has them; what is None is left to `finetune`.

    Args:
        train_rows: rows of the training split; by default the table's.

    Raises:
        UserError: if there is no such recipe, or it has nothing for the task.
    """
    settings = recipe(
        plan.recipe,
        task,
        gpu=torch.cuda.is_available(),
        fast_cpu=has_fast_bfloat16("cpu"),
        model=model,
        train_rows=train_rows,
        hidden_size=facts.hidden_size,
    )
    if not facts.has_our_head:
        del settings["pooling"]
    settings |= {"seed": seed, "trust_remote_code": plan.trust_remote_code, **plan.overrides}
    return {key: value for key, value in settings.items() if value is not None}


def check_overrides(overrides: dict):
    """Raise UserError for a name that is no option of `finetune`, or not to be set by `--set`."""
    known = {field.name for group in DATACLASSES for field in fields(group) if field.init} - set(OWN)
    for key in overrides:
        if key in OWN:
            hint = f"say {OWN[key]} instead" if OWN[key] else "leave it out"
            raise UserError(f"--set {key}: `gue run` chooses it itself; {hint}.")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "`dnabert2 finetune --help` lists them."
            raise UserError(f"--set {key}: `finetune` has no such option; {hint}")
