"""The record beside a result says which code it came from, and admits when it cannot."""

import json
import subprocess

import torch

from dnabert2 import __version__
from dnabert2.provenance import git_state, provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_record_is_json_and_complete():
    record = json.loads(json.dumps(provenance()))
    assert record["versions"]["dnabert2"] == __version__ and record["versions"]["torch"] == torch.__version__
    assert record["device"]["type"] == "cpu" and record["device"]["name"] and record["device"]["memory_bytes"] > 0
    assert record["threads"] == torch.get_num_threads()
    assert record["date"].endswith("+00:00")


def test_dirty_means_that_something_but_results_and_pages_differs(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1\n")
    (tmp_path / "README.md").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "README.md").write_text("2\n")
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "new.json").write_text("{}")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "new.py").write_text("1\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    (tmp_path / "new.py").unlink()
    (tmp_path / "code.py").write_text("2\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_somebody_elses_repository_is_not_ours(tmp_path):
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert git_state(inside) == {"commit": None, "dirty": None}


def test_no_git_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
