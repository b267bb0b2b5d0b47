"""`dnabert2 finetune` of every architecture, end to end: the folder it writes is whole and says what the run said.

The models are those of tests/helpers/foreign_models.py, tiny and random, some of them stand-ins.
"""

import json
import shutil

import foreign_models
import pyarrow.parquet as pq
import pytest
import torch
from finetuning import RICH_IN_AT, RICH_IN_GC, arguments, random_sequence, write_tables
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from dnabert2 import DNABert2ForMaskedLM
from dnabert2.architectures.adapters import load_adapted
from dnabert2.architectures.encoding import encode
from dnabert2.architectures.models import architecture_of, load_any_tokenizer
from dnabert2.architectures.shared_weights import save_apart
from dnabert2.cli import main
from dnabert2.tokenizer.files import OURS, write_tokenizer

pytestmark = pytest.mark.usefixtures("no_plots")
LENGTH = 20  # HyenaDNA's stand-in takes 24 tokens
FOREIGN = {
    "dnabert": lambda folder: foreign_models.dnabert(folder, 3),
    "nucleotide_transformer": foreign_models.nucleotide_transformer,
    "nucleotide_transformer_v2": foreign_models.nucleotide_transformer_v2,
    "grover": foreign_models.grover,
    "gena_lm": foreign_models.gena_lm,
    "hyenadna": foreign_models.hyenadna,
    "caduceus": foreign_models.caduceus,
}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Tables of three classes, so that no head fits by chance."""
    weights = {"at": RICH_IN_AT, "gc": RICH_IN_GC, "even": (1, 1, 1, 1)}

    def row(draw, i):
        name = list(weights)[i % 3]
        return random_sequence(draw, weights[name], LENGTH), name

    return write_tables(tmp_path_factory.mktemp("short"), "sequence,label", row)


def finetune(tables, source, output, **options) -> list[str]:
    values = {"model_name_or_path": source, "config_overrides": None, "trust_remote_code": True, "max_steps": 3}
    return arguments(tables, output, **{**values, "confidence_resamples": 0, **options})


def says_what_the_run_said(model, output):
    """The probabilities of reloaded model and tokenizer are those of predictions.parquet."""
    table = pq.read_table(output / "predictions.parquet").to_pydict()
    architecture = architecture_of(output, True)
    tokenizer = load_any_tokenizer(output, architecture, True)
    columns = encode(tokenizer, table["sequence"][:8], None, architecture)
    batch = tokenizer.pad(columns, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**{name: batch[name] for name in columns}).logits.softmax(-1)
    names = model.config.id2label
    assert sorted(names.values()) == ["at", "even", "gc"]
    expected = torch.tensor([table[f"probability_{names[i]}"][:8] for i in range(3)]).T
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5)
    assert expected.std(dim=0).max() > 1e-3


@pytest.fixture
def source_of(tmp_path, small_config, fill):
    """Function: a folder with the model of a name."""

    def make(key):
        folder = tmp_path / f"source_{key}"
        if key != "ours":
            return FOREIGN[key](folder)
        fill(DNABert2ForMaskedLM(small_config(vocab_size=4096))).save_pretrained(folder)
        write_tokenizer(OURS / "tokenizer.json", folder)
        return folder

    return make


@pytest.mark.parametrize("key", ["ours", *FOREIGN])
def test_a_whole_model(source_of, key, short, tmp_path, with_mamba):
    source, output = source_of(key), tmp_path / f"run_{key}"
    assert main(finetune(short, source, output)) == 0
    name = json.loads((output / "config.json").read_text())["architectures"][0]
    shutil.rmtree(source)
    model = AutoModelForSequenceClassification.from_pretrained(output, trust_remote_code=True)
    assert type(model).__name__ == name
    assert getattr(model, "is_of_gena_lm", False) == (key == "gena_lm")
    assert getattr(model, "is_of_version_2", False) == (key == "nucleotide_transformer_v2")
    says_what_the_run_said(model, output)


@pytest.mark.parametrize("key", ["gena_lm", "hyenadna", "caduceus"])
def test_adapters_apart_and_added_in(source_of, key, short, tmp_path, with_mamba):
    source, output = source_of(key), tmp_path / f"run_{key}"
    targets = ["out_proj"] if key == "caduceus" else None  # by hand, where one path would pass them by
    assert main(finetune(short, source, output, lora=True, merge_lora=True, lora_target_modules=targets)) == 0
    weights = load_file(output / "adapter" / "adapter_model.safetensors")
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
    says_what_the_run_said(load_adapted(output / "adapter", True), output)
    shutil.rmtree(source)
    says_what_the_run_said(AutoModelForSequenceClassification.from_pretrained(output, trust_remote_code=True), output)


def test_code_beside_the_weights_that_was_not_run_is_not_named(short, tmp_path):
    source, output = foreign_models.dnabert(tmp_path / "source", 3), tmp_path / "run"
    config = json.loads((source / "config.json").read_text())
    modules = {"AutoModelForSequenceClassification": "dnabert_layer.DNABertForSequenceClassification"}
    (source / "config.json").write_text(json.dumps({**config, "auto_map": modules}))
    assert main(finetune(short, source, output, trust_remote_code=None)) == 0
    model = AutoModelForSequenceClassification.from_pretrained(output, trust_remote_code=True)
    says_what_the_run_said(model, output)


class Shared(nn.Module):
    """One weight of two modules, which a file of one of its names could not restore."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(3, 3) for _ in range(3))
        self.second.weight = self.first.weight
        self.third.weight = self.first.weight


def test_shared_weights_are_copied_unless_the_tie_is_declared():
    model = Shared()
    save_apart(model)
    state = nn.ModuleDict({"inner": model}).state_dict()
    places = {state[f"inner.{name}.weight"].data_ptr() for name in ("first", "second", "third")}
    assert len(places) == 3 and torch.equal(state["inner.first.weight"], state["inner.third.weight"])
    assert model.first.weight is model.third.weight

    model = Shared()
    model._tied_weights_keys = ["third.weight"]
    save_apart(model)
    state = model.state_dict()
    assert state["third.weight"].data_ptr() == state["first.weight"].data_ptr() != state["second.weight"].data_ptr()

    model = BertModel(BertConfig(vocab_size=69, **foreign_models.SIZES))
    save_apart(model)
    assert not model._state_dict_hooks
