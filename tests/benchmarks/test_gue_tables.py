"""The README's tables of GUE, from records of a folder."""

import json

import pytest

from dnabert2.benchmarks import gue_tables

PROVENANCE = {
    "date": "2026-11-26T11:00:00+00:00",
    "versions": {"torch": "2.13.0", "transformers": "5.23.0", "python": "3.11"},
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "device": {"name": "a processor"},
}


def write(folder, name, **record):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"status": "finished", "provenance": PROVENANCE, **record}))


def auroc(*values):
    return {
        protocol: {"auroc": {"mean": value, "standard_deviation": 0.01, "seeds": [value]}}
        for protocol, value in zip(("full", "10-shot", "1-shot"), values, strict=True)
    }


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / gue_tables.FOLDER
    for seed, score in ((1, 0.5), (2, 0.7)):
        run = {"benchmark": "gue", "model": "ours", "task": "tf/0", "recipe": "robust", "seed": seed}
        write(folder, f"run{seed}", **run, metric="matthews_correlation", test={"matthews_correlation": score})
    probe = {"benchmark": "gue-probe", "task": "tf/0", "pooling": "mean"}
    write(folder / "probe", "one", **probe, model="ours", protocols=auroc(0.8, 0.6, 0.5))
    write(folder / "probe", "two", **probe, model="other", protocols=auroc(0.9, 0.7, 0.55))
    write(folder / "probe", "three", **{**probe, "task": "tf/2"}, model="other", protocols=auroc(0.7, 0.6, 0.45))
    return tmp_path


def test_runs_beside_the_paper(results):
    table = gue_tables.runs(results)
    assert "| tf/0 | 60.00 ± 14.14 | **71.99** | **71.99 (DNABERT-2)** |" in table
    origin = "2 records in [gue](benchmarks/results/gue): a processor; torch 2.13.0; transformers 5.23.0; commit"
    assert f"{origin} 0123456789; 2026-11-26." in table


def test_probes_beside_published_ones(results):
    table = gue_tables.probes(results)
    assert "| dataset | other: full / 10-shot / 1-shot | ours: full / 10-shot / 1-shot | DNABERT-2 | Caduc" in table
    assert "| tf/0 | 90.0 / 70.0 / 55.0 | 80.0 / 60.0 / 50.0 | 83.8 | 88.0 |" in table
    # A mean over both datasets only for those that have both.
    assert "| mean | 80.0 / 65.0 / 50.0 |  | 81.4 | 85.2 |" in table


def test_without_records_there_is_no_table(tmp_path):
    assert gue_tables.runs(tmp_path) is None and gue_tables.probes(tmp_path) is None
