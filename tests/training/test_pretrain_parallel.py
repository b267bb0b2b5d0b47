"""Two processes on CPUs: the same losses as one with DDP and FSDP, through torchrun and accelerate; one killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import __version__ as transformers_version

from dnabert2.cli import main

WORKER = Path(__file__).with_name("fsdp_worker.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
LIMIT = 300  # seconds


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def torchrun(port):
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory, pretrain_words):
    output = tmp_path_factory.mktemp("alone") / "run"
    assert main(["pretrain", *pretrain_words(corpus, output, per_device_train_batch_size=2)]) == 0
    return output


def finish(command):
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


def assert_same(ours, theirs, losses, tolerance=1e-5):
    for found, expected in zip(losses(ours), losses(theirs), strict=True):
        assert found == pytest.approx(expected, rel=tolerance)
    weights = [load_file(folder / "model.safetensors") for folder in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert torch.allclose(value, weights[1][key], rtol=1e-3, atol=1e-5), key


def test_two_processes_of_torchrun(corpus, alone, tmp_path, pretrain_words, losses, torchrun):
    words = pretrain_words(corpus, tmp_path / "run", per_device_train_batch_size=2)
    said = finish([*torchrun, "-m", "dnabert2.training.pretrain", *words])
    assert "in 2 x 2 micro-batches" in said and said.count("step 12 of 12") == 1
    assert_same(tmp_path / "run", alone, losses)


def test_two_processes_of_accelerate(corpus, alone, tmp_path, pretrain_words, losses, port):
    words = pretrain_words(corpus, tmp_path / "run", per_device_train_batch_size=4)
    # Its --cpu starts one process and leaves more to MPI; --multi_gpu starts them, and --use_cpu is our own option.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launch += ["--num_processes", "2", "--main_process_port", str(port), "-m", "dnabert2.training.pretrain"]
    said = finish([*launch, *words])
    assert "in 2 x 1 micro-batches" in said
    assert_same(tmp_path / "run", alone, losses)


@pytest.mark.skipif(transformers_version.startswith("4"), reason="options of FSDP are named otherwise")
def test_two_processes_with_sharded_weights(corpus, alone, tmp_path, pretrain_words, losses, torchrun):
    """Also stopped half-way: the checkpoint of sharded weights is gathered and dealt out again."""
    sharding = ["--fsdp", "--fsdp_config", '{"transformer_layer_cls_to_wrap": ["DNABert2Layer"]}']
    words = pretrain_words(corpus, tmp_path / "run", per_device_train_batch_size=2)
    said = finish([*torchrun, str(WORKER), *words, *sharding])
    assert said.count("parameters are DTensor") == 2
    assert_same(tmp_path / "run", alone, losses, 1e-4)
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had been killed after checkpoint-12, then after 8
    (tmp_path / "run" / "checkpoint-12").rename(tmp_path / "later")
    assert "checkpoint-8" in finish([*torchrun, str(WORKER), *words, *sharding])
    assert_same(tmp_path / "run", alone, losses, 1e-4)


def test_one_process_killed_ends_the_job_and_it_resumes(corpus, alone, tmp_path, pretrain_words, losses, torchrun):
    words = pretrain_words(corpus, tmp_path / "run", per_device_train_batch_size=2)
    command = [*torchrun, "-m", "dnabert2.training.pretrain", *words]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    workers, said = [], []
    for line in job.stdout:
        said.append(line)
        if line.startswith("step 6 of"):
            workers = [p for p in psutil.Process(job.pid).children(recursive=True) if "--corpus" in p.cmdline()]
            workers[-1].send_signal(signal.SIGKILL)
    assert job.wait(timeout=LIMIT) not in (0, None) and len(workers) == 2, "".join(said)
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert len(gone) == 2 and not alive
    assert (tmp_path / "run" / "checkpoint-4").is_dir() and not (tmp_path / "run" / "metrics.json").exists()
    start = time.monotonic()
    assert "checkpoint-4" in finish(command)
    assert time.monotonic() - start < LIMIT
    assert_same(tmp_path / "run", alone, losses)
