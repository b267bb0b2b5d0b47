"""Fine-tuning tables from the Hub, through the real client, and from folders that the `datasets` library wrote."""

import json
import os
import subprocess
import sys

import datasets
import hub_server
import pytest

from dnabert2.errors import UserError
from dnabert2.tokenizer.policy import TextPolicy
from dnabert2.training.table_hub import HUB_NAME, REVISION_FIRST
from dnabert2.training.tables import find_tables, per_base_ids, read_table

POLICY = TextPolicy()
CARD = """---
configs:
- config_name: promoters
  default: true
  data_files:
  - split: train
    path: train.csv
  - split: validation
    path: dev.csv
- config_name: pairs
  data_files:
  - split: train
    path: pairs.csv
- config_name: untrained
  data_files:
  - split: test
    path: dev.csv
---
"""
HUB_READER = """
import json, sys
from dnabert2.errors import UserError
from dnabert2.tokenizer.policy import TextPolicy
from dnabert2.training.tables import find_tables, read_table
for name in sys.argv[1:]:
    try:
        found = {split: vars(read_table(source, TextPolicy())) for split, source in find_tables(name).items()}
    except UserError as error:
        found = str(error)
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """What the Hub serves: a card that names three configurations, and their files."""
    folder = tmp_path_factory.mktemp("promoters")
    (folder / "README.md").write_text(CARD)
    (folder / "train.csv").write_text("sequence,label\nacgu,1\nGG,0\n")
    (folder / "dev.csv").write_text("sequence,label\nAC,1\n")
    (folder / "pairs.csv").write_text("sequence,sequence2,label\nAC,GT,x\n")
    return folder


@pytest.fixture(scope="module")
def read_from_hub(hub_folder, tmp_path_factory):
    """What a fresh interpreter, whose Hub is the local one, made of each name."""
    names = [
        "lab/promoters",
        "lab/promoters@main",
        "lab/promoters:pairs",
        f"lab/promoters:pairs@{hub_server.COMMIT}",
        "lab/promoters:untrained",
        "lab/promoters:absent",
        "lab/promoters@absent",
        "lab/absent",
    ]
    with hub_server.serve({"lab/promoters": hub_folder}) as server:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        environment |= {"HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_ENDPOINT": server.url}
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        command = [sys.executable, "-c", HUB_READER, *names]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "Generating" not in result.stderr  # no progress bar where there is no terminal
    return dict(zip(names, map(json.loads, result.stdout.splitlines()), strict=True))


def test_splits_of_the_hub(read_from_hub):
    found = read_from_hub["lab/promoters"]
    assert set(found) == {"train", "dev"}
    assert found["train"]["sequences"] == ["ACGT", "GG"] and found["train"]["labels"] == [["1"], ["0"]]
    assert found["train"]["lines"] == [1, 2] and found["train"]["unit"] == "row"
    assert found["dev"]["path"] == "lab/promoters (validation)" and found["dev"]["sequences"] == ["AC"]
    assert read_from_hub["lab/promoters@main"]["train"]["sequences"] == ["ACGT", "GG"]


def test_configurations_and_revisions(read_from_hub):
    for name in ("lab/promoters:pairs", f"lab/promoters:pairs@{hub_server.COMMIT}"):
        (found,) = read_from_hub[name].values()
        assert (found["sequences"], found["pairs"], found["labels"]) == (["AC"], ["GT"], [["x"]])
    for pattern, name in ((HUB_NAME, "a/b.c:d-e@refs/pr/1"), (REVISION_FIRST, "a/b.c@refs/pr/1:d-e")):
        assert pattern.fullmatch(name).groupdict() == {"name": "a/b.c", "config": "d-e", "revision": "refs/pr/1"}
    assert not HUB_NAME.fullmatch("https://a/b") and not HUB_NAME.fullmatch("a/b/c")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lab/promoters:untrained", "has no split train, only test; rename"),
        ("lab/promoters:absent", "'absent' not found. Available: ['promoters', 'pairs', 'untrained']"),
        ("lab/promoters@absent", "neither a folder nor a data set that the Hub gives"),
        ("lab/absent", "neither a folder nor a data set that the Hub gives (Dataset 'lab/absent' doesn't exist"),
    ],
)
def test_what_the_hub_lacks_is_one_sentence(read_from_hub, name, message):
    assert read_from_hub[name].startswith(f"{name}: ") and message in read_from_hub[name]


def test_a_saved_data_set_keeps_names_of_classes(tmp_path):
    """`save_to_disk`, and a Parquet file of `datasets`: a ClassLabel is its name, one a base too, and -1 is none."""
    kind = datasets.ClassLabel(names=["intron", "exon"])
    features = {"sequence": datasets.Value("string"), "label": kind, "bases": datasets.Sequence(kind)}
    columns = {"sequence": ["AC", "GTA"], "label": [1, 0], "bases": [[0, 1], [1, -1, 0]]}
    split = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.DatasetDict({"train": split}).save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    split.to_parquet(tmp_path / "files/train.parquet")
    for folder in (tmp_path / "saved", tmp_path / "files"):
        (source,) = find_tables(folder).values()
        assert read_table(source, POLICY).labels == [["exon"], ["intron"]]
        bases = read_table(source, POLICY, label_columns=["bases"], per_base=True)
        assert bases.labels == [["intron", "exon"], ["exon", "", "intron"]]
        assert per_base_ids(bases, ["exon", "intron"]) == [[1, 0], [0, -100, 1]]


def test_a_local_folder_with_a_card(hub_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (source,) = find_tables(f"{hub_folder}:pairs").values()
    assert read_table(source, POLICY).pairs == ["GT"]
    with pytest.raises(UserError, match=r"cannot load this folder \(BuilderConfig 'absent' not found"):
        find_tables(f"{hub_folder}:absent")
    sharded = tmp_path / "sharded/data"
    sharded.mkdir(parents=True)
    for i in range(2):
        shard = datasets.Dataset.from_dict({"sequence": ["ACGT"[i]], "label": [i]})
        shard.to_parquet(sharded / f"train-0000{i}-of-00002.parquet")
    found = find_tables(sharded.parent)
    assert read_table(found["train"], POLICY).sequences == ["A", "C"]


def test_a_folder_of_tasks_is_not_taken_for_one(tmp_path):
    """`datasets` would mix the tables of all tasks below it."""
    for task in ("tf/0", "tf/1"):
        (tmp_path / task).mkdir(parents=True)
        (tmp_path / task / "train.csv").write_text("sequence,label\nAC,1\n")
    (tmp_path / "README.md").write_text("# Tasks\n")
    with pytest.raises(UserError, match=r"no train\.csv in this folder"):
        find_tables(tmp_path)
