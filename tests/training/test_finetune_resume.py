"""Runs that die: on a plateau, by SIGKILL in the middle, and the same run by two processes."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from finetuning import TINY, arguments
from safetensors.torch import load_file

from dnabert2.cli import main
from dnabert2.training.runs import last_whole_checkpoint

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
DEAD = {"learning_rate": 0.0, "num_train_epochs": 4, "plateau_patience": 2}
STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 5, "save_steps": 5}
IN_THE_MIDDLE = {"plain": STEPS, "augmented": {**STEPS, "rc_augment": True}}


def metrics_of(output):
    return json.loads((output / "metrics.json").read_text())


def same_weights(one, other, **tolerance):
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, **tolerance)


def test_a_dead_run_starts_anew_with_the_next_seed(tables, tmp_path, capsys):
    """Without learning, predictions stay the same; after the last restart the run ends and says that it is dead."""
    # A head whose bias decides all by itself: new weights of nearly nothing.
    small = json.dumps({**TINY, "initializer_range": 1e-9})
    output = tmp_path / "run"
    assert main(arguments(tables, output, **DEAD, config_overrides=small, plateau_restarts=2)) == 0
    said, metrics = capsys.readouterr().out, metrics_of(output)
    assert [attempt["seed"] for attempt in metrics["restarts"]] == [3, 4] and metrics["seed"] == 5
    assert "seed 3: all predictions were the same in 2 evaluations in a row; starting anew with seed 4." in said
    assert metrics["dead"] and "all predictions are the same" in said and metrics["test"]["matthews_correlation"] == 0


def test_a_run_that_learns_is_left_alone(tables, tmp_path):
    assert main(arguments(tables, tmp_path / "run", plateau_patience=3)) == 0
    assert metrics_of(tmp_path / "run")["restarts"] == [] and not metrics_of(tmp_path / "run")["dead"]


def test_restarts_are_remembered_by_a_run_that_goes_on(tables, tmp_path, monkeypatch):
    """Killed in its second attempt, it goes on with the second seed, not with the first."""
    from dnabert2.training import finetune

    whole, trainers = finetune.FineTuner, []

    class Killed(whole):
        def train(self, **kwargs):
            trainers.append(self.args.seed)
            if len(trainers) == 1:
                raise finetune.DeadRun("for the test")
            if len(trainers) == 2:
                raise KeyboardInterrupt
            return super().train(**kwargs)

    monkeypatch.setattr(finetune, "FineTuner", Killed)
    options = {"num_train_epochs": 1, "plateau_restarts": 1}  # so that none dies but the one made to
    assert main(arguments(tables, tmp_path / "run", **options)) == 130
    assert main(arguments(tables, tmp_path / "run", **options)) == 0
    assert trainers == [3, 4, 4]
    assert metrics_of(tmp_path / "run")["restarts"] == [{"seed": 3, "reason": "for the test"}]


def test_a_checkpoint_that_was_being_written_is_not_continued_from(tmp_path):
    for step, state in ((2, '{"global_step": 2}'), (10, '{"global_st'), (12, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert last_whole_checkpoint(tmp_path / "checkpoint-2") is None


@pytest.fixture(scope="module")
def killed(tables, tmp_path_factory):
    """Runs that got SIGKILL in the middle of an epoch, after a checkpoint there; side by side, as starting is slow."""
    outputs, jobs = {name: tmp_path_factory.mktemp("killed") / "run" for name in IN_THE_MIDDLE}, {}
    for name, options in IN_THE_MIDDLE.items():
        command = [sys.executable, "-m", "dnabert2", *arguments(tables, outputs[name], **options)]
        jobs[name] = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end, errors = time.monotonic() + 120, {}
    while jobs:
        for name, job in list(jobs.items()):
            if (outputs[name] / "checkpoint-20").is_dir() or job.poll() is not None or time.monotonic() > end:
                job.kill()
                errors[name] = jobs.pop(name).communicate()[1].decode()
        time.sleep(0.01)
    return {name: (outputs[name], errors[name]) for name in outputs}


@pytest.mark.parametrize("name", IN_THE_MIDDLE)
def test_killed_in_the_middle_it_goes_on_as_if_nothing_had_happened(killed, tables, tmp_path, name):
    """The same weights and scores as without."""
    output, errors = killed[name]
    if (output / "metrics.json").exists():
        pytest.skip("it had ended before it was killed")
    assert last_whole_checkpoint(output) is not None, errors
    assert main(arguments(tables, tmp_path / "whole", **IN_THE_MIDDLE[name])) == 0
    assert main(arguments(tables, output, **IN_THE_MIDDLE[name])) == 0
    same_weights(tmp_path / "whole", output, rtol=0, atol=0)
    assert metrics_of(output)["test"] == metrics_of(tmp_path / "whole")["test"]


@pytest.mark.slow
def test_two_processes_train_the_same_network(tables, tmp_path):
    """The global batch is that of one process; its halves are summed, and both see the same scores."""
    overrides = {**TINY, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.0}  # which each process draws by itself
    options = {"config_overrides": json.dumps(overrides), "num_train_epochs": 2, "rc_average": True}
    # Plain gradient descent: Adam makes steps of the rounding noise of gradients that are zero, as of keys' biases.
    options |= {"optim": "sgd", "max_grad_norm": 0, "learning_rate": 0.1}
    assert main(arguments(tables, tmp_path / "one", **options)) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    words = arguments(tables, tmp_path / "two", **options)[1:]
    done = subprocess.run(
        [*launch, "-m", "dnabert2.training.finetune", *words],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("test MCC") == 1
    same_weights(tmp_path / "one", tmp_path / "two", rtol=1e-4, atol=1e-6)
    one, two = (metrics_of(tmp_path / name) for name in ("one", "two"))
    assert two["steps"] == one["steps"] == 24
    assert two["test"]["loss"] == pytest.approx(one["test"]["loss"], abs=1e-4)


def test_other_rows_are_another_run(tables, tmp_path, capsys):
    """Interrupted, and the training table replaced: it does not go on with what it did not begin with."""
    copy = tmp_path / "tables"
    copy.mkdir()
    for path in tables.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    output = tmp_path / "run"
    assert main(arguments(copy, output, num_train_epochs=1)) == 0
    (output / "metrics.json").unlink()  # as if it had been interrupted
    rows = (copy / "train.csv").read_text().splitlines()
    (copy / "train.csv").write_text("\n".join(rows[:-1]) + "\n")
    capsys.readouterr()
    assert main(arguments(copy, output, num_train_epochs=1)) == 2
    assert "unfinished run with other settings (tables_sha256)" in capsys.readouterr().err


def test_nothing_of_an_overwritten_run_is_left(tables, tmp_path):
    """Adapters beside a whole model would be loaded with it."""
    base, output = tmp_path / "base", tmp_path / "run"
    quick = {"num_train_epochs": 1}
    assert main(arguments(tables, base, **quick)) == 0
    adapted = {**quick, "config_overrides": None, "model_name_or_path": base, "lora": True}
    assert main(arguments(tables, output, **adapted)) == 0
    (output / "notes.txt").write_text("mine")
    assert (output / "adapter_config.json").is_file() and not (output / "config.json").exists()
    assert main(arguments(tables, output, **quick, overwrite=True)) == 0
    names = {path.name for path in output.iterdir()}
    assert names - {"notes.txt"} == {path.name for path in base.iterdir()}
    assert main(arguments(tables, output, **adapted, overwrite=True)) == 0
    names = {path.name for path in output.iterdir()}
    assert "adapter_config.json" in names and not {"config.json", "model.safetensors", "modeling_dnabert2.py"} & names
    assert "notes.txt" in names


def test_the_model_is_never_its_own_output(tables, tmp_path, capsys):
    base = tmp_path / "base"
    assert main(arguments(tables, base, num_train_epochs=1)) == 0
    before = (base / "model.safetensors").read_bytes()
    words = arguments(tables, base, config_overrides=None, model_name_or_path=base, overwrite=True)
    assert main(words) == 2
    assert "is the folder of --model_name_or_path" in capsys.readouterr().err
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "config.json").write_text("{}")
    assert main(arguments(tables, stranger)) == 2
    assert "holds a model that is not of this command" in capsys.readouterr().err
    assert (base / "model.safetensors").read_bytes() == before
