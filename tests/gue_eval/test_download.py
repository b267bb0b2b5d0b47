"""`gue download` through the real client, from a Hub on the loopback, in every layout it knows."""

import functools
import os
import random
import shutil
import subprocess
import sys

import hub_server
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from dnabert2.errors import UserError
from dnabert2.gue_eval.download import download, main, plan
from dnabert2.gue_eval.tasks import HERE, SPLITS, select

TATA = HERE.parent / "data" / "gue" / "prom" / "prom_core_tata"


@pytest.fixture
def repository(tmp_path):
    """A folder to be served as the dataset genomes/gue."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text("# A benchmark\n")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch, repository):
    """The Hub that serves it; HF_ENDPOINT and HF_HOME are read once a process, so what they set is set here."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_server.serve({"genomes/gue": repository}) as server:
        monkeypatch.setattr(huggingface_hub, "HfApi", functools.partial(huggingface_hub.HfApi, endpoint=server.url))
        yield server


def synthetic(rows: int, pairs: bool = False) -> list[tuple]:
    draw = random.Random(rows)
    sequences = [["".join(draw.choices("ACGT", k=101)) for _ in range(1 + pairs)] for _ in range(rows)]
    return [(*sequence, i % 2) for i, sequence in enumerate(sequences)]


def as_text(rows: list[tuple], header: str = "sequence,label") -> str:
    return "".join(f"{','.join(map(str, row))}\n" for row in [(header,), *rows])


def fetched(requests: list[str]) -> set[str]:
    return {x.split("/resolve/")[1].split("/", 1)[1] for x in requests if x.startswith("GET") and "/resolve/" in x}


@pytest.mark.parametrize("place", ["GUE/prom/prom_core_tata", "prom/prom_core_tata", "GUE/prom_core_tata"])
def test_every_layout_gives_the_original_one(hub, repository, tmp_path, capsys, place):
    shutil.copytree(TATA, repository / place)
    output = tmp_path / "GUE"
    assert main(["--dataset", "genomes/gue", "--output", str(output)]) == 0
    for split in SPLITS:
        assert (output / f"prom/prom_core_tata/{split}.csv").read_bytes() == (TATA / f"{split}.csv").read_bytes()
    assert sorted(path.name for path in output.rglob("*") if path.is_file()) == ["dev.csv", "test.csv", "train.csv"]
    assert "16 of 613 test rows stand in train too" in capsys.readouterr().out  # the check has run
    assert fetched(hub.requests) == {f"{place}/{split}.csv" for split in SPLITS}  # not the README


def test_a_fresh_process_with_the_hubs_variables(hub, repository, tmp_path):
    shutil.copytree(TATA, repository / "prom" / "prom_core_tata")
    command = [sys.executable, "-m", "dnabert2.gue_eval.download", "--dataset", "genomes/gue", "--output", "GUE"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no progress bar when it is no terminal
    assert result.stdout.startswith("GUE: 3 splits of 1 dataset from genomes/gue.\n")
    assert (tmp_path / "GUE/prom/prom_core_tata/test.csv").read_bytes() == (TATA / "test.csv").read_bytes()


def test_only_what_is_asked_for(hub, repository, tmp_path):
    for i, name in enumerate(("tf/0", "tf/1", "mouse/2")):
        (repository / name).mkdir(parents=True)
        for j, split in enumerate(SPLITS):  # no two files alike: the client would fetch one only
            (repository / name / f"{split}.csv").write_text(as_text(synthetic(3 * i + j + 1)))
    assert download("genomes/gue", tmp_path / "out", "tf/1,mouse,EMP") == {
        "tf/1": list(SPLITS),
        "mouse/2": list(SPLITS),
    }
    assert fetched(hub.requests) == {f"{name}/{split}.csv" for name in ("tf/1", "mouse/2") for split in SPLITS}


def test_parquet_becomes_csv(hub, repository, tmp_path, capsys):
    rows = {split: synthetic(n) for split, n in (("train", 10), ("dev", 4), ("test", 6))}
    folder = repository / "GUE" / "human_tf_3"
    folder.mkdir(parents=True)
    parts = {"train-00000-of-00002": rows["train"][:7], "train-00001-of-00002": rows["train"][7:]}
    for name, part in {**parts, "validation": rows["dev"], "test/0000": rows["test"]}.items():
        sequences, labels = zip(*part, strict=True)
        (folder / name).parent.mkdir(exist_ok=True)
        table = pyarrow.table({"label": labels, "sequence": sequences})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
    # What came is checked, and is not the released dataset.
    assert main(["--dataset", "genomes/gue", "--output", str(tmp_path / "out")]) == 1
    for split in SPLITS:
        assert (tmp_path / f"out/tf/3/{split}.csv").read_text() == as_text(rows[split])
    assert "train has 10 rows, the release 27294" in capsys.readouterr().out


def test_pairs_get_the_header_that_finetune_reads(hub, repository, tmp_path):
    rows = synthetic(4, pairs=True)
    (repository / "EPI_K562").mkdir()
    for split in SPLITS:
        (repository / f"EPI_K562/{split}.csv").write_text(as_text(rows, "enhancer,promoter,label"))
    assert main(["--dataset", "genomes/gue", "--output", str(tmp_path / "out"), "--tasks", "gue+"]) == 0
    assert (tmp_path / "out/EPI/K562/test.csv").read_text() == as_text(rows, "sequence,sequence2,label")


def test_an_interrupted_download_continues(hub, repository, tmp_path, monkeypatch, capsys):
    """The Hub dies before the last file; the second call fetches that file and no other."""
    shutil.copytree(TATA, repository / "prom" / "prom_core_tata")
    command = ["--dataset", "genomes/gue", "--output", str(tmp_path / "out")]
    send_file = hub_server.HubHandler.send_file

    def break_down(handler, path):
        if path.name == "train.csv" and handler.command == "GET":
            return handler.send(503, b"", {})
        return send_file(handler, path)

    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its attempts
    monkeypatch.setattr(hub_server.HubHandler, "send_file", break_down)
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: genomes/gue: the download stopped") and "run the same command" in error
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(hub_server.HubHandler, "send_file", send_file)
    hub.requests.clear()
    assert main(command) == 0
    assert "prom/prom_core_tata/train.csv" in fetched(hub.requests)
    hub.requests.clear()
    (tmp_path / "out/prom/prom_core_tata/dev.csv").unlink()
    assert main(command) == 0 and fetched(hub.requests) == set()  # all is in the client's cache
    assert (tmp_path / "out/prom/prom_core_tata/dev.csv").is_file()


def test_files_that_are_there_stay(hub, repository, tmp_path, capsys):
    shutil.copytree(TATA, repository / "prom" / "prom_core_tata")
    command = ["--dataset", "genomes/gue", "--output", str(tmp_path)]
    mine = tmp_path / "prom/prom_core_tata/dev.csv"
    mine.parent.mkdir(parents=True)
    mine.write_text("sequence,label\nACGT,1\n")
    assert main(command) == 2
    assert "add --overwrite" in capsys.readouterr().err and mine.read_text().endswith("ACGT,1\n")
    assert [path.name for path in mine.parent.iterdir()] == ["dev.csv"]
    assert main([*command, "--overwrite"]) == 0
    assert mine.read_bytes() == (TATA / "dev.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dataset", "genomes/gue"], "holds none of the datasets"),
        (["--dataset", "genomes/absent"], "no such dataset repository"),
        (["--dataset", "genomes/gue", "--revision", "v9"], "no such dataset repository at v9"),
        (["--dataset", "not/an/id"], "no such dataset repository"),
        (["--dataset", "genomes/gue", "--tasks", "tf/77"], "there is no GUE task"),
    ],
)
def test_what_cannot_be_downloaded(hub, tmp_path, capsys, options, said):
    assert main([*options, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said in error and not (tmp_path / "out").exists()


def test_tables_of_other_columns_are_refused(hub, repository, tmp_path):
    (repository / "tf/0").mkdir(parents=True)
    (repository / "tf/0/test.csv").write_text("name,sequences,text,label\na,b,c,1\n")
    with pytest.raises(UserError, match="has the columns name, sequences, text, label"):
        download("genomes/gue", tmp_path / "out")


def test_plan_prefers_csv_and_leaves_out_what_is_unknown():
    files = ["tf/0/train.parquet", "tf/0/train.csv", "tf/0/train.txt", "x/tf/0/dev.csv", "tf/9/test.csv", "train.csv"]
    assert plan(files, select("all")) == {("tf/0", "train"): ["tf/0/train.csv"]}
