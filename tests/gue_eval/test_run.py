"""The harness, end to end on a small copy in the original layout: records, resuming, failures, shares, floors."""

import json
import os
import subprocess
import sys
from itertools import chain

import numpy as np
import pyarrow.parquet as pq
import pytest
from finetuning import RICH_IN_AT, RICH_IN_GC, arguments, random_sequence, write_tables

from dnabert2.cli import main
from dnabert2.errors import UserError
from dnabert2.gue_eval import run
from dnabert2.gue_eval.records import load_records
from dnabert2.gue_eval.sequences import training_sequences
from dnabert2.gue_eval.tasks import all_tasks, select
from dnabert2.training.metrics import classification_scores

QUICK = [
    "--set",
    "num_train_epochs=6",
    "learning_rate=0.01",
    "global_batch_size=8",
    "use_cpu=true",
    "confidence_resamples=20",
]


@pytest.fixture(scope="module")
def gue(tmp_path_factory):
    """Two tasks; of tf/0, four test rows stand in train."""
    folder = tmp_path_factory.mktemp("gue")

    def row(draw, i):
        return random_sequence(draw, RICH_IN_AT if i % 2 else RICH_IN_GC), i % 2

    for seed, task in enumerate(("tf/0", "mouse/2")):
        write_tables(folder / task, "sequence,label", row, seed)
    train = (folder / "tf/0/train.csv").read_text().splitlines()
    test = (folder / "tf/0/test.csv").read_text().splitlines()
    (folder / "tf/0/test.csv").write_text("\n".join([*test[:-4], *train[-4:]]) + "\n")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, gue):
    """A tiny checkpoint of ours."""
    output = tmp_path_factory.mktemp("model") / "tiny"
    assert main(arguments(gue / "mouse/2", output, num_train_epochs=1)) == 0
    return output


def words(gue, output, *more, models=("majority",)):
    return ["gue", "run", "--model", *map(str, models), "--data", str(gue), "--output", str(output), *more]


@pytest.fixture(scope="module")
def results(gue, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("results")
    command = words(gue, output, "--tasks", "all", "--seeds", "7,8", *QUICK, "--name", "quick", models=[model])
    assert main(command) == 0
    assert main(words(gue, output, "--seeds", "1", models=["majority", "kmer-logistic"])) == 0
    return output


def record_of(results, model, task, recipe, seed):
    path = run.record_path(results, recipe, str(model), all_tasks()[task], seed)
    return json.loads(path.read_text()), pq.read_table(path.with_suffix(".predictions.parquet")).to_pydict()


def test_one_record_a_run(results, model):
    records = load_records([results])
    assert len(records) == 2 * 2 + 2 * 2 and {record["status"] for record in records} == {"finished"}
    assert not (results / "models").exists() or not list((results / "models").iterdir())
    record, _ = record_of(results, model, "tf/0", "quick", 8)
    assert record["seed"] == 8 and record["settings"]["seed"] == 8 and record["settings"]["num_train_epochs"] == 6
    assert record["settings"]["rc_augment"] is True and record["settings"]["pooling"] == "mean"  # of the recipe
    assert record["metric"] == "matthews_correlation" and record["data"]["rows"]["train"] == 96
    assert len(record["data"]["sha256"]["test"]) == 64 and record["provenance"]["versions"]["torch"]
    assert record["test"]["matthews_correlation"] > 0.3 and record["restarts"] == []


def test_scores_with_and_without_rows_that_stand_in_train(results, model, gue):
    record, predictions = record_of(results, model, "tf/0", "quick", 7)
    columns = [np.array(predictions[name]) for name in ("label", "prediction")]
    probabilities = np.array([predictions["probability_0"], predictions["probability_1"]]).T
    all_rows = classification_scores(*columns, probabilities)
    assert {name: record["test"][name] for name in all_rows} == pytest.approx(all_rows)
    kept = classification_scores(*(column[:-4] for column in columns), probabilities[:-4])
    assert record["test_without_train"] == {"rows_removed": 4, **{k: pytest.approx(v) for k, v in kept.items()}}
    assert record_of(results, model, "mouse/2", "quick", 7)[0]["test_without_train"] is None
    labels = [int(line.rsplit(",", 1)[1]) for line in (gue / "tf/0/test.csv").read_text().split()[1:]]
    assert predictions["label"] == labels


def test_floors_are_runs_like_any_other(results):
    majority, _ = record_of(results, "majority", "mouse/2", "robust", 42)
    assert majority["test"]["matthews_correlation"] == 0 and majority["test"]["accuracy"] == 0.5
    logistic, _ = record_of(results, "kmer-logistic", "mouse/2", "robust", 42)
    assert logistic["test"]["matthews_correlation"] > 0.9 and logistic["settings"]["chosen_on"] == "dev MCC"


def test_what_is_finished_is_not_run_again(results, gue, capsys):
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    assert main(words(gue, results, "--seeds", "1", models=["majority", "kmer-logistic"])) == 0
    assert "4 runs, 4 of them here, 4 finished already." in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before


def test_a_failure_is_recorded_and_the_others_go_on(gue, tmp_path, capsys):
    command = words(gue, tmp_path / "r", "--tasks", "mouse/2", "--seeds", "1", models=["no/such/model", "majority"])
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "1 of 2 runs failed" in captured.err and "Traceback" not in captured.err
    records = {record["model"]: record for record in load_records([tmp_path / "r"])}
    assert records["majority"]["status"] == "finished" and records["no/such/model"]["status"] == "failed"
    assert "no such folder" in records["no/such/model"]["error"] and "test" not in records["no/such/model"]
    assert main(command) == 1  # tried again


def test_a_run_that_was_killed_before_its_record_is_not_trained_again(gue, model, tmp_path, capsys, monkeypatch):
    command = words(gue, tmp_path, "--tasks", "mouse/2", "--seeds", "1", *QUICK, "--name", "q", models=[model])
    assert main([*command, "--keep_models"]) == 0
    path = run.record_path(tmp_path, "q", str(model), all_tasks()["mouse/2"], 42)
    record = json.loads(path.read_text())
    assert (tmp_path / "models" / path.stem / "model.safetensors").is_file()
    path.unlink()
    from dnabert2.training import finetune

    monkeypatch.setattr(finetune, "make_trainer", None)  # would fail, if it were called
    assert main(command) == 0
    again = json.loads(path.read_text())
    assert again["test"] == record["test"] and again["train_seconds"] == record["train_seconds"]


def test_shares_are_disjoint_and_together_all(gue):
    jobs = list(range(7))
    shares = [run.share_of(jobs, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(chain(*shares)) == jobs and max(map(len, shares)) - min(map(len, shares)) <= 1
    for shard in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(UserError, match="--shard"):
            run.share_of(jobs, shard)


def test_the_longest_runs_come_first(gue):
    options = run.options_of(words(gue, "out", "--tasks", "mouse/2,tf/0", "--seeds", "2")[2:])
    assert [job[1].dataset for job in run.list_jobs(options)] == ["tf/0"] * 2 + ["mouse/2"] * 2


def test_seeds_and_settings():
    assert run.parse_seeds("3") == [42, 43, 44] and run.parse_seeds("7,9") == [7, 9] and run.parse_seeds("7,") == [7]
    assert run.parse_settings(["a=1e-4", "b=true", "c=mean"]) == {"a": 1e-4, "b": True, "c": "mean"}
    for seeds in ("x", "0", "3,3", "-1,2"):
        with pytest.raises(UserError, match="--seeds"):
            run.parse_seeds(seeds)
    with pytest.raises(UserError, match="KEY=VALUE"):
        run.parse_settings(["learning_rate"])


def test_names_of_files():
    assert run.slug("zhihan1996/DNABERT-2-117M") == "zhihan1996_DNABERT-2-117M"
    assert run.slug("/a/b/c d") == "b_c-d" and run.slug("../x") == "x"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "tf/1"], "tf/1 lacks train and dev and test"),
        (["--tasks", "tf/9"], "there is no GUE task 'tf/9'"),
        (["--recipe", "robst"], "did you mean robust"),
        (["--set", "learning_rate=1"], "name what comes of it with --name"),
    ],
)
def test_bad_input(gue, tmp_path, capsys, more, message):
    assert main(words(gue, tmp_path / "r", *more)) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("error:") == 1 and not (tmp_path / "r").exists()


@pytest.mark.slow
def test_processes_of_a_launcher_share_the_runs(gue, tmp_path):
    """As `accelerate launch` and `torchrun` set the environment; each trains alone."""
    environment = {**os.environ, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    seen = []
    for rank in "01":
        command = [sys.executable, "-m", "dnabert2.gue_eval.run", *words(gue, tmp_path, "--seeds", "1")[2:]]
        done = subprocess.run(command, env={**environment, "RANK": rank}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "2 runs, 1 of them here" in done.stdout
        seen.append(len(load_records([tmp_path])))
    assert seen == [1, 2]


def test_sequences_to_go_on_pretraining_on(gue):
    """Each once, and none that is scored, on either strand."""
    found, left_out = training_sequences(gue, select("tf/0,mouse/2"))
    assert left_out == 4 and {task: len(set(rows)) for task, rows in found.items()} == {"tf/0": 92, "mouse/2": 96}
    scored = {line.split(",")[0] for line in (gue / "tf/0/test.csv").read_text().split()[1:]}
    assert not scored & set(found["tf/0"])
    with pytest.raises(UserError, match="no training split"):
        training_sequences(gue, select("tf/1"))
