"""Which records are taken for finished: those of the same run, of the same settings, data and weights."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hub_server
import pytest
from finetuning import TINY, write_tables

from dnabert2 import DNABert2Config
from dnabert2.checksums import model_sha256
from dnabert2.errors import UserError
from dnabert2.gue_eval.checksums import tables_sha256
from dnabert2.gue_eval.earlier import differences, is_finished
from dnabert2.gue_eval.floors import FLOORS, fixed_settings
from dnabert2.gue_eval.jobs import Job, Plan
from dnabert2.gue_eval.settings import finetune_settings, model_facts
from dnabert2.gue_eval.tasks import all_tasks

ROWS = 96
TASK = all_tasks()["tf/0"]


@pytest.fixture
def gue(tmp_path):
    write_tables(tmp_path / "gue" / "tf/0", "sequence,label", lambda draw, i: ("ACGT", i % 2))
    return tmp_path / "gue"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    DNABert2Config(**TINY).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    return str(folder)


@pytest.fixture
def record(gue, model):
    """Of a run of `model` as it would be written today."""
    settings = finetune_settings(model, model_facts(model), TASK, Plan("robust"), 42, ROWS)
    return {
        **{"benchmark": "gue", "model": model, "task": "tf/0", "recipe": "robust", "seed": 42, "status": "finished"},
        "model_sha256": model_sha256(model),
        "settings": settings,
        "data": {"rows": {"train": ROWS}, "sha256": tables_sha256(TASK, gue)},
    }


@pytest.fixture
def finished(gue, model, tmp_path):
    """Function: whether a record counts as that of the run of `model`, or of a floor, with settings changed."""

    def ask(record, name=model, overwrite=False, **overrides):
        (tmp_path / "record.json").write_text(json.dumps(record))
        facts = None if name in FLOORS else model_facts(name)
        plan = Plan("robust", overrides=overrides)
        return is_finished(tmp_path / "record.json", Job(name, TASK, 42), plan, facts, gue, overwrite)

    return ask


def refused(finished, record, said: str, **options):
    """Whatever differs is said, and may be run again."""
    with pytest.raises(UserError, match=said) as caught:
        finished(record, **options)
    assert "record.json" in str(caught.value) and "--overwrite" in str(caught.value)
    assert not finished(record, overwrite=True, **options)


def test_the_same_run_is_finished(finished, record):
    assert finished(record)
    del record["model_sha256"]  # as records once were
    assert finished(record)
    assert not finished(record | {"status": "failed"})


def test_settings(finished, record):
    refused(finished, record, "learning_rate 0.0003, not 0.1", learning_rate=0.1)
    refused(finished, record, "merge_lora by default, not true", merge_lora=True)
    record["settings"] |= {"learning_rate": 0.1, "lora": True}
    refused(finished, record, r"learning_rate 0\.1, not 0\.0003; lora true, not by default")


def test_what_depends_on_the_machine_is_no_difference(finished, record):
    record["settings"] |= {"bf16": True, "use_cpu": True, "per_device_eval_batch_size": 7}
    assert finished(record)
    refused(finished, record, "bf16 true, not false", bf16=False)


def test_data(finished, record, gue):
    with open(gue / "tf/0/test.csv", "a") as handle:
        handle.write("ACGT,1\n")
    refused(finished, record, "other rows in test")


def test_weights(finished, record, model):
    with open(f"{model}/model.safetensors", "ab") as handle:
        handle.write(b"!")
    refused(finished, record, "other weights")


HUB_READER = """
from dnabert2.gue_eval.settings import model_facts
facts = model_facts("genomes/tiny")
print(facts.sha256, facts.revision)
"""


def test_a_model_on_the_hub_is_known_by_its_commit(gue, model, tmp_path, record):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    with hub_server.serve({"genomes/tiny": Path(model)}) as server:
        command = [sys.executable, "-c", HUB_READER]
        done = subprocess.run(command, env=environment | {"HF_ENDPOINT": server.url}, capture_output=True, text=True)
    assert done.stdout.split() == ["None", hub_server.COMMIT], done.stderr[-4000:]

    facts = model_facts(model)
    job, plan = Job(model, TASK, 42), Plan("robust")
    del record["model_sha256"]
    record["model_revision"] = hub_server.COMMIT
    for revision, expected in ((hub_server.COMMIT, []), ("0" * 40, ["other weights"])):
        on_the_hub = replace(facts, sha256=None, revision=revision)
        assert differences(record, job, plan, on_the_hub, gue) == expected


def test_the_record_of_another_model_with_this_name(finished, record):
    for status in ("finished", "failed"):
        refused(finished, record | {"model": "other/model", "status": status}, "model other/model, not ")


def test_floors_are_known_by_what_is_fixed(finished, record):
    record["model"], record["settings"] = "cnn", {**fixed_settings("cnn", True), "epochs": 3, "precision": "float32"}
    assert finished(record, name="cnn")
    record["settings"] |= {"strands": "as given"}
    refused(finished, record, 'strands "as given", not "maximum over both"', name="cnn")
    assert finished(record | {"model": "majority"}, name="majority")


@pytest.mark.parametrize("damage", [["settings"], ["data"], ["model"], ["status"]])
def test_what_is_no_record_is_refused(finished, record, damage):
    for key in damage:
        del record[key]
    with pytest.raises(UserError, match="no record of a run"):
        finished(record)
    with pytest.raises(UserError, match="no record of a run"):
        finished([])


def test_settings_that_the_recipe_leaves_open_are_not_recorded(record):
    assert None not in record["settings"].values() and record["settings"]["warmup_steps"] == round(0.06 * 2 * 6)
