"""Training a part of a network: what is trained, what is saved, and that what is loaded again says the same."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from finetuning import arguments
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dnabert2 import DNABert2ForSequenceClassification
from dnabert2.cli import main
from dnabert2.remote_code import make_self_contained

SEQUENCES = ["ACGTTGCATTAACGGC", "GGCATATATTTACC", "TTG"]


@pytest.fixture(scope="module")
def base(tables, tmp_path_factory):
    """A pretrained network: encoder alone, as a checkpoint of pretraining has it."""
    output = tmp_path_factory.mktemp("base") / "run"
    assert main(arguments(tables, output, num_train_epochs=1)) == 0
    folder = output.parent / "encoder"
    DNABert2ForSequenceClassification.from_pretrained(output).bert.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((output / name).read_bytes())
    make_self_contained(folder)
    return folder


def part_of(tables, output, base, **options):
    words = arguments(tables, output, config_overrides=None, model_name_or_path=base, **options)
    assert main(words) == 0
    return json.loads((output / "metrics.json").read_text())


def logits_of(model, folder):
    inputs = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(
        SEQUENCES, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model.eval()(**inputs).logits


def said(folder):
    """Logits, as differences, that the run's own predictions stand for, and their sequences."""
    return pq.read_table(folder / "predictions.parquet").to_pydict()


@pytest.fixture(scope="module")
def adapted(tables, base, tmp_path_factory):
    output = tmp_path_factory.mktemp("adapted") / "run"
    return output, part_of(tables, output, base, lora=True, lora_r=4)


def predicts_as_it_did(model, folder):
    """The model's probabilities are those that the run wrote."""
    table = said(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(table["sequence"][:8], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**inputs).logits.softmax(-1)[:, 1]
    assert found.tolist() == pytest.approx(table["probability_promoter"][:8], abs=1e-5)


def test_adapters_are_small_and_hold_pooler_and_classifier(adapted):
    output, metrics = adapted
    weights = load_file(output / "adapter_model.safetensors")
    assert not (output / "model.safetensors").exists()
    assert sum(w.numel() for w in weights.values()) == metrics["trained_parameters"] < metrics["parameters"] / 2
    names = " ".join(weights)
    assert "pooler.dense.weight" in names and "classifier.weight" in names
    for layer in ("Wqkv", "attention.output.dense", "gated_layers", "wo"):
        assert f"{layer}.lora_A" in names, layer


def test_reloaded_adapters_give_equal_logits(adapted, base):
    """Onto a base whose pooler and classifier are random anew."""
    output, metrics = adapted
    assert metrics["test"]["matthews_correlation"] > 0.5
    torch.manual_seed(99)
    fresh = DNABert2ForSequenceClassification.from_pretrained(base)
    before = logits_of(fresh, base)
    loaded = PeftModel.from_pretrained(fresh, output)
    predicts_as_it_did(loaded, output)
    assert not torch.allclose(before, logits_of(loaded, base), atol=1e-3)
    # The folder by itself names its base, so that the Auto classes load both.
    predicts_as_it_did(AutoModelForSequenceClassification.from_pretrained(output, trust_remote_code=True), output)
    predicts_as_it_did(AutoPeftModelForSequenceClassification.from_pretrained(output, trust_remote_code=True), output)
    page = (output / "README.md").read_text()
    assert str(base) in page and "{0: 'other', 1: 'promoter'}" in page


def test_merged_adapters_are_a_plain_model(adapted, tables, base, tmp_path):
    output = tmp_path / "run"
    part_of(tables, output, base, lora=True, lora_r=4, merge_lora=True)
    merged = AutoModelForSequenceClassification.from_pretrained(output, trust_remote_code=True)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    predicts_as_it_did(merged, output)
    apart = PeftModel.from_pretrained(DNABert2ForSequenceClassification.from_pretrained(base), output / "adapter")
    torch.testing.assert_close(logits_of(apart, output), logits_of(merged, output), rtol=1e-5, atol=1e-6)
    unmerged = load_file(adapted[0] / "adapter_model.safetensors")
    again = load_file(output / "adapter" / "adapter_model.safetensors")
    assert unmerged.keys() == again.keys() and all(torch.equal(unmerged[key], again[key]) for key in again)


def test_a_frozen_backbone_stays_as_it_was(tables, base, tmp_path):
    metrics = part_of(tables, tmp_path / "run", base, freeze_backbone=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "run"))
    kept = [key for key in before if not key.startswith("pooler")]
    assert kept and all(torch.equal(before[key], after[f"bert.{key}"]) for key in kept)
    head = [key for key in after if key.startswith(("classifier", "bert.pooler"))]
    assert metrics["trained_parameters"] == sum(after[key].numel() for key in head)
    assert not torch.equal(before["pooler.dense.weight"], after["bert.pooler.dense.weight"])


def test_layers_that_are_not_there(tables, base, tmp_path, capsys):
    """The published default of query and value fits no DNABERT-2."""
    options = {"lora": True, "lora_target_modules": ["query", "value"]}
    words = arguments(tables, tmp_path / "run", config_overrides=None, model_name_or_path=base, **options)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "the model has no such layers; its linear ones end in" in error and "Wqkv" in error
