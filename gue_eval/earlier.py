"""Whether a record that lies in the folder already is that of the run about to start, or of another one.

if is_finished(path, job, plan, facts, gue, overwrite=False): ...          # see `run.py`
"""

import json
from pathlib import Path

from ..errors import UserError
from .checksums import tables_sha256
from .floors import FLOORS, fixed_settings
from .jobs import Job, Plan
from .records import RUN
from .settings import ModelFacts, finetune_settings

# What depends on the machine, or says how fast a run is. So does precision, which a recipe chooses by the device.
OF_THE_MACHINE = {
    "bf16",
    "fp16",
    "tf32",
    "use_cpu",
    "trust_remote_code",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "dataloader_num_workers",
    "dataloader_pin_memory",
}
MOST_NAMED = 4


def is_finished(path: Path, job: Job, plan: Plan, facts: ModelFacts | None, gue: Path, overwrite: bool) -> bool:
    """
    Whether the run's record is there, says that it is finished, and has the same settings, data and model.

    Args:
        path: where its record belongs.
        facts: of its model; None for a floor.
        overwrite: run what differs again instead of refusing it.

    Raises:
        UserError: if another run's record is there, or no record.
    """
    record = read_record(path)
    if record is None:
        return False
    differing = other_run(record, job, plan)
    if record["status"] == "finished" and not differing:
        differing = differences(record, job, plan, facts, gue)
    if differing and not overwrite:
        more = f"; and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
        raise UserError(
            f"{path}: holds a run that differs from this one ({'; '.join(differing[:MOST_NAMED])}{more}); give "
            "another --output or --name, or add --overwrite to run it again."
        )
    return record["status"] == "finished" and not differing


def read_record(path: Path) -> dict | None:
    """The record at `path`, None if there is no file; raises UserError for a file that is no record of a run."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = all(key in record for key in ("benchmark", "model", "task", "recipe", "seed"))
        if record["status"] == "finished":
            parts = record["settings"], record["data"]["sha256"], record["data"]["rows"]
            whole = whole and all(isinstance(part, dict) for part in parts) and "train" in parts[2]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no record of a run ({error!r}); remove it.") from error
    if not whole:
        raise UserError(f"{path}: no record of a run, it lacks what tells one from another; remove it.")
    return record


def other_run(record: dict, job: Job, plan: Plan) -> list[str]:
    """What a record calls its run otherwise, failed or not: names of files are shorter than what they stand for."""
    own = {"benchmark": RUN, "model": job.model, "task": job.task.dataset, "recipe": plan.name, "seed": job.seed}
    return [f"{key} {record[key]}, not {value}" for key, value in own.items() if record[key] != value]


def differences(record: dict, job: Job, plan: Plan, facts: ModelFacts | None, gue: Path) -> list[str]:
    """What of a finished record would be otherwise today: its data, its model or its settings, each as words."""
    found, data = [], tables_sha256(job.task, gue)
    changed = [split for split, sha256 in record["data"]["sha256"].items() if data.get(split) != sha256]
    if changed:
        found.append(f"other rows in {', '.join(changed)}")
    # The first records say neither.
    before = record.get("model_sha256"), record.get("model_revision")
    if facts is not None and any(before) and before != (facts.sha256, facts.revision):
        found.append("other weights")
    recorded = record["settings"]
    if job.model in FLOORS:
        expected = fixed_settings(job.model, not job.task.stranded, job.task.pairs)
        compared = set(expected)
    else:
        rows = record["data"]["rows"]["train"]
        # As it comes back from JSON.
        expected = json.loads(json.dumps(finetune_settings(job.model, facts, job.task, plan, job.seed, rows)))
        compared = (set(expected) | set(recorded)) - (OF_THE_MACHINE - set(plan.overrides))
    for key in sorted(compared):
        if expected.get(key) != recorded.get(key):
            found.append(f"{key} {_shown(recorded, key)}, not {_shown(expected, key)}")
    return found


def _shown(settings: dict, key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "by default"
