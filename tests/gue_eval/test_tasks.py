"""The table of datasets agrees with the paper's tables and with itself; names select what they say."""

import csv

import pytest

from dnabert2.errors import UserError
from dnabert2.gue_eval.splits import known_checksums
from dnabert2.gue_eval.tasks import HERE, SPLITS, all_tasks, available, main, select


def rows(name: str) -> list[dict]:
    with open(HERE / "data" / name, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_names_agree_with_the_published_tables():
    gue = {name for name, task in all_tasks().items() if task.benchmark == "GUE"}
    assert len(gue) == 28 and len(all_tasks()) == 36
    assert {row["dataset"] for row in rows("gue_table4.csv")} == gue
    assert {row["gue_dataset"] for row in rows("frozen_auc.csv")} - {""} <= gue
    models = {row["model"] for row in rows("gue_recipes.csv")}
    assert {(row["model"], row["dataset"]) for row in rows("gue_recipes.csv")} == {(m, d) for m in models for d in gue}


def test_rows_of_the_table_are_consistent():
    for name, task in all_tasks().items():
        assert name == task.dataset and name.count("/") == 1
        assert len(task.label_names) == len(set(task.label_names)) == task.classes >= 2
        assert task.metric == ("f1" if name == "virus/covid" else "matthews_correlation")
        assert task.pairs == (task.family == "EPI")
        assert task.stranded == (task.family in ("prom", "splice") or name == "virus/covid")
        if task.benchmark == "GUE":
            assert task.train > task.dev > 0 and abs(task.dev - task.test) <= 2
    assert len({task.flat_name for task in all_tasks().values()}) == 36
    assert sum(all_tasks()["virus/covid"].rows(split) for split in SPLITS) == 77669 + 7000 + 7000  # the paper's sum


def test_checksums_agree_with_the_table():
    checksums = known_checksums()
    assert len(checksums) == 36
    for (dataset, split), row in checksums.items():
        assert int(row["rows"]) == all_tasks()[dataset].rows(split)
        assert len(row["file_sha256"]) == len(row["content_sha256"]) == 64
    assert len({row["content_sha256"] for row in checksums.values()}) == 36


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("tf/0", ["tf/0"]),
        ("human_tf_0,tf/0", ["tf/0"]),
        ("mouse/2, tf", ["mouse/2", "tf/0", "tf/1", "tf/2", "tf/3", "tf/4"]),
        ("prom/prom_core_*", ["prom/prom_core_all", "prom/prom_core_notata", "prom/prom_core_tata"]),
        ("fungi,virus/", ["fungi/species_20", "virus/covid", "virus/species_40"]),
    ],
)
def test_select(spec, names):
    assert [task.dataset for task in select(spec)] == names


def test_select_whole_benchmarks():
    assert len(select("all")) == len(select("GUE")) == 28
    assert {task.benchmark for task in select("gue+")} == {"GUE+"} and len(select("gue+")) == 8
    assert len(select("EMP")) == 10 and len(select("EPI")) == 6


@pytest.mark.parametrize(
    ("spec", "said"),
    [("tf/9", "did you mean tf/"), ("tf/0,emp/h3k9AC", "EMP/H3K9ac"), ("imdb", "give a dataset"), (" , ", "no task")],
)
def test_unknown_names_are_refused_with_close_ones(spec, said):
    with pytest.raises(UserError, match=said):
        select(spec)


@pytest.mark.parametrize("place", ["tf/0", "GUE/tf/0", "human_tf_0", "GUE/human_tf_0"])
def test_folders_of_all_layouts_are_found(tmp_path, place):
    task = all_tasks()["tf/0"]
    assert task.folder(tmp_path) == tmp_path / "tf" / "0"
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "dev.csv").write_text("sequence,label\n")
    assert task.folder(tmp_path) == tmp_path / place
    assert available(tmp_path, "tf/0,tf/1") == ([], {"tf/0": ["train", "test"], "tf/1": ["train", "dev", "test"]})
    for split in SPLITS:
        (tmp_path / place / f"{split}.csv").write_text("sequence,label\n")
    assert available(tmp_path, "tf/0") == ([task], {})


def test_the_bundled_dataset_is_available():
    complete, incomplete = available(HERE.parent / "data" / "gue")
    assert [task.dataset for task in complete] == ["prom/prom_core_tata"] and len(incomplete) == 27


def test_command(tmp_path, capsys):
    assert main(["tf/0,EPI/K562", "--data", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "32378/1000/1000" in lines[0] and "?/?/?" in lines[1]
    assert all("lacks train, dev, test" in line for line in lines)
    assert main(["tf/0", "--data", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
