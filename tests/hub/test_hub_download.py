"""Models as strangers get them, in fresh interpreters: from a disk, from a Hub, and from where they saved them."""

import functools
import json

import huggingface_hub
import pytest

from dnabert2 import DNABert2ForSequenceClassification
from dnabert2.hub.export import export, main
from dnabert2.modeling_dnabert2 import AUTO_MAP
from dnabert2.remote_code import make_self_contained
from dnabert2.tokenizer.files import wrap_tokenizer

CLASSES = [name for name in AUTO_MAP if name != "AutoConfig"]


@pytest.fixture(scope="module")
def from_disk(tmp_path_factory, exported, expected, run_stranger):
    """What a stranger saved who loaded the exported folder through every Auto class, once with a stock BertConfig."""
    saved = tmp_path_factory.mktemp("saved")
    load = {"source": str(exported), "expected": str(expected), "auto_class": "AutoModelForMaskedLM"}
    run_stranger([{**load, "save_to": str(saved), "label": "disk", "stock": True}])
    return saved


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory, exported, expected, run_stranger, serve):
    """What a stranger saved who loaded the same from a Hub, and the requests that the Hub saw."""
    saved = tmp_path_factory.mktemp("saved")
    load = {"source": "genomes/tiny", "expected": str(expected), "auto_class": "AutoModelForMaskedLM"}
    with serve({"genomes/tiny": exported}) as hub:
        run_stranger([{**load, "save_to": str(saved), "label": "hub"}], endpoint=hub.url)
    return saved, hub.requests


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_config, fill, inputs, stranger, tokenizer_json):
    """A folder such as our own training leaves behind, made self-contained, and its `expected` file beside it."""
    folder = tmp_path_factory.mktemp("runs") / "run-AutoModelForSequenceClassification"
    model = fill(DNABert2ForSequenceClassification(small_config(id2label={0: "a", 1: "b", 2: "c"}))).eval()
    model.save_pretrained(folder)
    wrap_tokenizer(tokenizer_json).save_pretrained(folder)
    assert not list(folder.glob("*.py"))
    make_self_contained(folder)
    make_self_contained(folder)  # safe to call again
    stranger.record(model, inputs, folder.with_suffix(".safetensors"))
    return folder


def test_from_disk(from_disk):
    """Every Auto class and a stock configuration: the stranger asserts the numbers and the keys, see stranger.py."""
    names = {path.name for path in from_disk.iterdir() if path.is_dir()}
    assert names == {f"disk-{name}" for name in CLASSES} | {"stock-AutoModelForMaskedLM"}


def test_over_http(from_hub, exported):
    """The same through the real client, which fetched every file a stranger needs from the Hub."""
    _, requests = from_hub
    downloads = {
        request.rsplit("/", 1)[-1] for request in requests if request.startswith("GET /genomes/tiny/resolve/")
    }
    code = {path.name for path in exported.glob("*.py")}
    assert downloads >= code | {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_saved_folders_load_alone(from_disk, from_hub, trained, run_stranger, exported):
    """Whatever was saved, trained or not, loads through every Auto class, offline and with nothing cached."""
    folders = [path for saved in (from_disk, from_hub[0]) for path in sorted(saved.iterdir()) if path.is_dir()]
    code = {path.name for path in exported.glob("*.py")}
    loads = []
    for folder in [*folders, trained]:
        assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP, folder.name
        assert {path.name for path in folder.glob("*.py")} == code, folder.name
        expected = str(folder.with_suffix(".safetensors"))
        loads.append({"source": str(folder), "expected": expected, "auto_class": folder.name.split("-")[1]})
    assert len(loads) == 2 * len(CLASSES) + 2
    run_stranger(loads)


def test_trained_folder_keeps_its_settings(trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    # The class name that transformers 4 and 5 share.
    assert json.loads((trained / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not list(trained.glob("*.tmp"))


def test_export_of_a_hub_id(published, serve, tmp_path, monkeypatch, capsys):
    """A Hub id is downloaded and exported; one that the Hub does not know is one sentence and exit code 2."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serve({"genomes/published": published}) as hub:
        # As HF_ENDPOINT and HF_HOME do, which are read once a process.
        download = functools.partial(huggingface_hub.snapshot_download, endpoint=hub.url, cache_dir=tmp_path / "cache")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        export("genomes/published", tmp_path / "good", check=False)
        assert main(["--checkpoint", "genomes/absent", "--output", str(tmp_path / "bad")]) == 2
    assert (tmp_path / "good/tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: genomes/absent: no such folder")
    assert not (tmp_path / "bad").exists()
