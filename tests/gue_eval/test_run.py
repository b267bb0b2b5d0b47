"""The harness, end to end on a small copy in the original layout: records, resuming, failures, floors, bad input."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from finetuning import RICH_IN_AT, RICH_IN_GC, TINY, arguments, random_sequence, write_tables

from dnabert2 import DNABert2Config
from dnabert2.cli import main
from dnabert2.errors import UserError
from dnabert2.gue_eval import one_run, run
from dnabert2.gue_eval.jobs import record_path
from dnabert2.gue_eval.records import load_records
from dnabert2.gue_eval.sequences import training_sequences
from dnabert2.gue_eval.tasks import all_tasks, select
from dnabert2.training import finetune
from dnabert2.training.metrics import classification_scores

QUICK = [
    "--set",
    "num_train_epochs=6",
    "learning_rate=0.01",
    "global_batch_size=8",
    "use_cpu=true",
    "confidence_resamples=20",
]


@pytest.fixture(scope="module", autouse=True)
def environment():
    """A call chooses its GPU in the environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


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
    path = record_path(results, recipe, str(model), all_tasks()[task], seed)
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


@pytest.fixture
def broken(tmp_path):
    """A model whose weights are not there, which shows when it is loaded."""
    DNABert2Config(**TINY).save_pretrained(tmp_path / "broken")
    return tmp_path / "broken"


def test_a_failure_is_recorded_and_the_others_go_on(gue, broken, tmp_path, capsys):
    command = words(gue, tmp_path / "r", "--tasks", "mouse/2", "--seeds", "1", models=[broken, "majority"])
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "1 of 2 runs failed" in captured.err and "Traceback" not in captured.err
    records = {record["model"]: record for record in load_records([tmp_path / "r"])}
    failed = records[str(broken)]
    assert records["majority"]["status"] == "finished" and failed["status"] == "failed"
    assert str(broken) in failed["error"] and "test" not in failed and "traceback" not in failed
    assert main(command) == 1  # tried again
    assert "1 of 1: " in capsys.readouterr().out


def test_an_interrupted_call_stops_and_leaves_no_record(gue, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(one_run, "run_one", interrupt)
    assert main(words(gue, tmp_path)) == 130 and not list(tmp_path.iterdir())


def test_a_run_of_other_settings_data_or_weights_is_not_taken_for_this_one(results, gue, model, tmp_path, capsys):
    """The file's name is the same; `--overwrite` runs it again."""
    shutil.copytree(results, tmp_path / "r")
    path = record_path(tmp_path / "r", "quick", str(model), all_tasks()["mouse/2"], 7)
    command = words(gue, tmp_path / "r", "--tasks", "mouse/2", "--seeds", "7,", "--name", "quick", models=[model])
    other = [word.replace("epochs=6", "epochs=1") for word in QUICK]
    before = path.read_text()
    assert main([*command, *QUICK]) == 0
    assert main([*command, *other]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and "num_train_epochs 6, not 1" in said and "--overwrite" in said
    assert said.count("\n") == 1
    assert path.read_text() == before
    assert main([*command, *other, "--overwrite"]) == 0
    assert json.loads(path.read_text())["settings"]["num_train_epochs"] == 1


def test_a_run_that_was_killed_before_its_record_is_not_trained_again(gue, model, tmp_path, capsys, monkeypatch):
    command = words(gue, tmp_path, "--tasks", "mouse/2", "--seeds", "1", *QUICK, "--name", "q", models=[model])
    assert main([*command, "--keep_models"]) == 0
    path = record_path(tmp_path, "q", str(model), all_tasks()["mouse/2"], 42)
    record = json.loads(path.read_text())
    assert (tmp_path / "models" / path.stem / "model.safetensors").is_file()
    path.unlink()
    monkeypatch.setattr(finetune, "make_trainer", None)  # would fail, if it were called
    assert main(command) == 0
    again = json.loads(path.read_text())
    assert again["test"] == record["test"] and again["train_seconds"] == record["train_seconds"]


def test_what_a_killed_run_left_is_of_use_to_the_same_run_alone(gue, model, tmp_path, monkeypatch):
    words_of = words(gue, tmp_path, "--tasks", "mouse/2", "--seeds", "1", *QUICK, "--name", "q", models=[model])
    command = [word.replace("epochs=6", "epochs=3") for word in words_of]
    path = record_path(tmp_path, "q", str(model), all_tasks()["mouse/2"], 42)
    whole, resumed, evaluations = finetune.FineTuner, [], []

    class Killed(whole):
        """In its second epoch, twice."""

        def train(self, resume_from_checkpoint=None, **kwargs):
            resumed.append(resume_from_checkpoint and resume_from_checkpoint.rpartition("/")[2])
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

        def evaluate(self, *args, **kwargs):
            evaluations.append(len(resumed))
            if evaluations.count(len(resumed)) == 2 and len(resumed) < 3:
                raise KeyboardInterrupt
            return super().evaluate(*args, **kwargs)

    monkeypatch.setattr(finetune, "FineTuner", Killed)
    assert main(command) == 130 and not path.exists()
    faster = [word.replace("rate=0.01", "rate=0.02") for word in command]
    assert main(faster) == 130 and main(faster) == 0
    assert resumed == [None, None, "checkpoint-12"]
    assert json.loads(path.read_text())["settings"]["learning_rate"] == 0.02


@pytest.mark.parametrize(
    ("models", "more", "message"),
    [
        (["majority"], ["--tasks", "tf/1"], "tf/1 lacks train and dev and test"),
        (["majority"], ["--tasks", "tf/9"], "there is no GUE task 'tf/9'"),
        (["majority"], ["--recipe", "robst", "--seeds", "1"], "did you mean robust"),
        (["majority"], ["--set", "learning_rate=1"], "name what comes of it with --name"),
        (["majority"], ["--set", "learning_rate=1", "--name", "n"], "majority chooses its settings itself"),
        (["mini"], ["--set", "lerning_rate=1", "--name", "n"], "did you mean learning_rate"),
        (["mini"], ["--set", "seed=1", "--name", "n"], "say --seeds instead"),
        (["mini"], ["--set", "global_batch_size=a", "--name", "n"], "invalid int value: 'a'"),
        (["mini"], ["--set", "max_length=1", "--name", "n"], "--max_length 1: must be at least 3"),
        (["majority", "no/such/model"], [], "no/such/model: no such folder"),
        (["a/b/c", "x/b/c"], [], "would have the same records, called b_c"),
    ],
)
def test_bad_input_is_refused_before_anything_is_run(gue, tmp_path, capsys, models, more, message):
    assert main(words(gue, tmp_path / "r", *more, models=models)) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("error:") == captured.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_code_that_is_not_trusted_is_refused_before_anything_is_run(gue, tmp_path, capsys):
    folder = tmp_path / "foreign"
    folder.mkdir()
    modules = {"AutoModelForSequenceClassification": "modeling.Model", "AutoConfig": "modeling.Config"}
    (folder / "config.json").write_text(json.dumps({"model_type": "of_my_own", "auto_map": modules}))
    assert main(words(gue, tmp_path / "r", models=["majority", folder])) == 2
    assert "--trust_remote_code" in capsys.readouterr().err and not (tmp_path / "r").exists()


@pytest.mark.parametrize("verb", ["run", "probe", "sequences", "check", "report"])
def test_an_output_that_cannot_be_written_is_said_in_a_sentence(verb, gue, results, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    models = {"run": ["--model", "majority"], "probe": ["--model", "kmer-counts"]}.get(verb, [])
    source = ["--results", str(results)] if verb == "report" else ["--data", str(gue), "--tasks", "mouse/2"]
    taken = tmp_path if verb in ("check", "sequences") else file
    for output in (taken, file / "below"):
        assert main(["gue", verb, *models, *source, "--output", str(output)]) == 2
        said = capsys.readouterr().err
        assert f"error: --output {output} cannot be" in said and said.count("\n") == 1
    assert file.read_text() == "mine"


def test_pairs_are_read_whole_by_floors(tmp_path):
    """The label is in the second sequence alone; the strand of either says nothing."""

    def row(draw, i):
        first, second = random_sequence(draw, (1, 1, 1, 1)), random_sequence(draw, RICH_IN_AT if i % 2 else RICH_IN_GC)
        return first, second, i % 2

    write_tables(tmp_path / "gue/EPI/K562", "sequence,sequence2,label", row)
    models = ["kmer-logistic", "cnn"]
    command = words(tmp_path / "gue", tmp_path / "r", "--tasks", "EPI/K562", "--seeds", "1", models=models)
    assert main(command) == 0
    for name in models:
        record, _ = record_of(tmp_path / "r", name, "EPI/K562", "robust", 42)
        assert record["test"]["matthews_correlation"] > 0.8 and record["settings"]["pairs"] == "joined by 32 N"
        assert record["settings"]["strands"] in ("both, added up", "maximum over both")


def test_memory_is_that_of_the_run_or_not_said(monkeypatch):
    peaks = iter((100, 100, 100, 130))
    monkeypatch.setattr(one_run, "peak_memory", lambda device: next(peaks))
    before = one_run.peak_memory(one_run.CPU)
    assert [one_run.new_peak(before) for _ in range(3)] == [None, None, 130]


@pytest.mark.parametrize(
    ("environment", "gpus", "seen"),
    [
        ({}, 4, "0"),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 4, "2"),
        ({"CUDA_VISIBLE_DEVICES": ""}, 4, ""),
        ({"LOCAL_RANK": "1"}, 4, "1"),
        ({"LOCAL_RANK": "1"}, 1, "0"),
        ({"LOCAL_RANK": "3", "CUDA_VISIBLE_DEVICES": "5,7"}, 8, "7"),
        ({"LOCAL_RANK": "1"}, 0, None),
    ],
)
def test_a_process_sees_one_gpu(monkeypatch, environment, gpus, seen):
    launched = {"RANK": "1", "WORLD_SIZE": "4"} if "LOCAL_RANK" in environment else {}
    monkeypatch.setattr(os, "environ", {**environment, **launched})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    run.be_alone()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == seen
    assert "WORLD_SIZE" not in os.environ and os.environ.get(run.SIZE) == launched.get("WORLD_SIZE")


@pytest.mark.slow
def test_processes_of_a_launcher_share_the_runs(gue, tmp_path):
    """As `accelerate launch` and `torchrun` set the environment; each trains alone."""
    environment = {**os.environ, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "dnabert2.gue_eval.run", *words(gue, tmp_path, "--seeds", "1")[2:]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    jobs = [subprocess.Popen(command, env={**environment, "RANK": rank}, **pipes) for rank in "01"]
    for job in jobs:
        said, errors = job.communicate(timeout=300)
        assert job.returncode == 0, errors
        assert "2 runs, 1 of them here" in said
    assert len(load_records([tmp_path])) == 2


def test_sequences_to_go_on_pretraining_on(gue):
    """Each once, and none that is scored, on either strand."""
    found, left_out = training_sequences(gue, select("tf/0,mouse/2"))
    assert left_out == 4 and {task: len(set(rows)) for task, rows in found.items()} == {"tf/0": 92, "mouse/2": 96}
    scored = {line.split(",")[0] for line in (gue / "tf/0/test.csv").read_text().split()[1:]}
    assert not scored & set(found["tf/0"])
    with pytest.raises(UserError, match="no training split"):
        training_sequences(gue, select("tf/1"))
