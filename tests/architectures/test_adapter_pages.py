"""The page beside adapters, and `load_adapted`: both give the model that the run had, whatever its base says."""

import json
import os
import subprocess
import sys

import foreign_models
import pyarrow.parquet as pq
import pytest
from finetuning import TINY, arguments, write_tables

from dnabert2 import DNABert2Config, DNABert2Model
from dnabert2.architectures.adapters import load_adapted
from dnabert2.cli import main
from dnabert2.errors import UserError
from dnabert2.tokenizer.files import OURS, write_tokenizer

pytestmark = pytest.mark.usefixtures("no_plots")
# Runs the block of code of each page as it stands, and prints the probabilities of the first sequences.
READER = """
import json, os, re, sys
import torch
from transformers import AutoTokenizer

found = {}
for folder, inputs, sequences in json.loads(sys.argv[1]):
    os.chdir(folder)
    variables = {}
    code = re.search("```python\\n(.*?)```", open("README.md").read(), re.DOTALL).group(1)
    exec(code, variables)
    tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)
    batch = tokenizer(sequences, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = variables["model"](**{name: batch[name] for name in inputs}).logits
    config = variables["model"].get_base_model().config
    found[folder] = logits.softmax(-1).tolist(), config.id2label, config.problem_type
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Tables of three classes: every base has the labels and the number of them that transformers gives by default."""

    def row(draw, i):
        return "".join(draw.choices("ACGT", k=20)), ("at", "even", "gc")[i % 3]

    return write_tables(tmp_path_factory.mktemp("short"), "sequence,label", row)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A pretrained network of ours, whose configuration names neither code nor labels."""
    folder = tmp_path_factory.mktemp("bases") / "ours"
    DNABert2Model(DNABert2Config(vocab_size=4096, **TINY)).save_pretrained(folder)
    write_tokenizer(OURS / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def adapted(short, base, tmp_path_factory, no_plots):
    """Function: the output folder of a run with adapters on a base of a name."""
    root = tmp_path_factory.mktemp("adapted")
    options = {"config_overrides": None, "lora": True, "max_steps": 3, "confidence_resamples": 0}
    sources = {
        "cls": {"model_name_or_path": base},
        "mean": {"model_name_or_path": base, "pooling": "mean"},
        "mini": {"model_name_or_path": "mini"},
    }
    foreign = {
        "stock": foreign_models.grover,
        "remote": foreign_models.hyenadna,
        "no_auto_class": foreign_models.gena_lm,
    }
    for key, make in foreign.items():
        sources[key] = {"model_name_or_path": make(base.with_name(key)), "trust_remote_code": True}
    folders = {}
    for key, source in sources.items():
        folders[key] = root / key
        assert main(arguments(short, folders[key], **options, **source)) == 0
    return folders


def test_the_code_of_the_page_loads_the_model_that_was_trained(adapted, tmp_path):
    tables = {key: pq.read_table(folder / "predictions.parquet").to_pydict() for key, folder in adapted.items()}
    asked = [
        (
            str(folder),
            ["input_ids"] if key == "remote" else ["input_ids", "attention_mask"],
            tables[key]["sequence"][:8],
        )
        for key, folder in adapted.items()
    ]
    result = subprocess.run(
        [sys.executable, "-c", READER, json.dumps(asked)],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    for key, folder in adapted.items():
        probabilities, names, problem_type = found[str(folder)]
        assert names == {"0": "at", "1": "even", "2": "gc"} and problem_type == "single_label_classification", key
        for i, name in names.items():
            expected = tables[key][f"probability_{name}"][:8]
            assert [row[int(i)] for row in probabilities] == pytest.approx(expected, abs=1e-5), key
            assert max(expected) > min(expected)


def test_the_page_says_no_more_than_it_must(adapted):
    pages = {key: (folder / "README.md").read_text() for key, folder in adapted.items()}
    assert "base_model: mini\n" in pages["mini"] and 'load_adapted(".")' in pages["mini"]
    assert "trust_remote_code=True" in pages["remote"] and "trust_remote_code=True" in pages["no_auto_class"]
    assert "trust_remote_code" not in pages["stock"] and "dnabert2" not in pages["stock"].split("```")[1]
    assert not any((folder / "config.json").exists() for folder in adapted.values())


def test_pooling_of_the_run_and_not_of_the_base(adapted):
    for key in ("cls", "mean"):
        assert load_adapted(adapted[key]).get_base_model().config.classifier_pooling == key


def test_what_holds_no_adapters_is_said_in_a_sentence(adapted, base, tmp_path):
    with pytest.raises(UserError, match=r"holds no adapters that dnabert2 finetune wrote"):
        load_adapted(base)
    with pytest.raises(UserError, match="--trust_remote_code"):
        load_adapted(adapted["remote"])
    for name in ("base_config.json", "adapter_config.json"):
        (tmp_path / name).write_bytes((adapted["cls"] / name).read_bytes())
    weights = (adapted["cls"] / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(UserError, match=r"its adapters do not load .* damaged or cut short"):
        load_adapted(tmp_path)
    (tmp_path / "base_config.json").write_text(json.dumps({"base": str(base)}))
    with pytest.raises(UserError, match=r"base_config\.json cannot be read"):
        load_adapted(tmp_path)
