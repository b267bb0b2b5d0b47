"""Which runs are asked for: their order, shares of them, seeds, and names of files."""

from itertools import chain

import pytest
from finetuning import write_tables

from dnabert2.errors import UserError
from dnabert2.gue_eval.jobs import list_jobs, parse_seeds, parse_settings, share_of, slug


@pytest.fixture(scope="module")
def gue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gue")
    for task in ("tf/0", "mouse/2"):
        write_tables(folder / task, "sequence,label", lambda draw, i: ("ACGT", i % 2))
    return folder


def test_shares_are_disjoint_and_together_all():
    jobs = list(range(7))
    shares = [share_of(jobs, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(chain(*shares)) == jobs and max(map(len, shares)) - min(map(len, shares)) <= 1
    for shard in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(UserError, match="--shard"):
            share_of(jobs, shard)


def test_processes_of_a_launcher_share_a_share():
    jobs = list(range(23))
    shares = [share_of(jobs, f"{i}/3", rank, 2) for i in (1, 2, 3) for rank in (0, 1)]
    assert sorted(chain(*shares)) == jobs and max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sorted(chain(share_of(jobs, None, 0, 2), share_of(jobs, None, 1, 2))) == jobs


def test_the_longest_runs_come_first(gue):
    jobs = list_jobs(["mini"], gue, "mouse/2,tf/0", [1, 2])
    assert [job.task.dataset for job in jobs] == ["tf/0"] * 2 + ["mouse/2"] * 2


def test_floors_without_chance_are_run_once(gue, capsys):
    jobs = list_jobs(["majority", "cnn", "kmer-logistic", "majority"], gue, "tf/0", [7, 8])
    assert [(job.model, job.seed) for job in jobs] == [
        ("majority", 7),
        ("cnn", 7),
        ("cnn", 8),
        ("kmer-logistic", 7),
    ]
    assert capsys.readouterr().out == "the same with every seed, so run with 7 alone: majority, kmer-logistic\n"
    list_jobs(["majority"], gue, "tf/0", [7])
    assert not capsys.readouterr().out


def test_models_whose_records_would_have_one_name_are_refused(gue):
    with pytest.raises(UserError, match="--model runs/a/final and other/a/final would have the same records"):
        list_jobs(["runs/a/final", "other/a/final"], gue, "tf/0", [1])


def test_seeds_and_settings():
    assert parse_seeds("3") == [42, 43, 44] and parse_seeds("7,9") == [7, 9] and parse_seeds("7,") == [7]
    assert parse_settings(["a=1e-4", "b=true", "c=mean"]) == {"a": 1e-4, "b": True, "c": "mean"}
    for seeds in ("x", "0", "3,3", "-1,2"):
        with pytest.raises(UserError, match="--seeds"):
            parse_seeds(seeds)
    with pytest.raises(UserError, match="KEY=VALUE"):
        parse_settings(["learning_rate"])


def test_names_of_files():
    assert slug("zhihan1996/DNABERT-2-117M") == "zhihan1996_DNABERT-2-117M"
    assert slug("/a/b/c d") == "b_c-d" and slug("../x") == "x"
