"""Each kind of label, end to end on a tiny network: several labels, numbers, pairs, bases, weights, class names."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from finetuning import RICH_IN_AT, RICH_IN_GC, arguments, random_sequence, write_tables
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from dnabert2.cli import main
from dnabert2.genome.base_map import scatter_base_logits, token_spans


def finetuned(tables, output, **options):
    """Metrics and predictions of a run, which must succeed."""
    assert main(arguments(tables, output, **options)) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    return metrics, pq.read_table(output / "predictions.parquet").to_pydict()


def reloaded(output, auto_class=AutoModelForSequenceClassification):
    """The folder as anybody loads it."""
    model = auto_class.from_pretrained(output, trust_remote_code=True).eval()
    return model, AutoTokenizer.from_pretrained(output, trust_remote_code=True)


def test_several_labels(tmp_path):
    def row(draw, i):
        sequence = random_sequence(draw, RICH_IN_AT if i % 2 else RICH_IN_GC)
        return sequence, i % 2, int("AAA" in sequence)

    tables = write_tables(tmp_path / "tables", "sequence,label_at,label_poly", row)
    output = tmp_path / "run"
    metrics, predictions = finetuned(tables, output, class_weights="balanced")
    assert metrics["problem_type"] == "multi_label_classification"
    assert metrics["test"]["auroc"] > 0.8 and metrics["test"]["f1"] > 0.6
    model, tokenizer = reloaded(output)
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == {0: "label_at", 1: "label_poly"}
    inputs = tokenizer(predictions["sequence"][:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.sigmoid()
    found = [predictions[f"probability_{name}"][:3] for name in ("label_at", "label_poly")]
    assert pytest.approx(expected.numpy(), abs=1e-4) == np.array(found).T
    assert set(predictions["label_at"]) == {"0", "1"} and (output / "curves.png").is_file()


def test_numbers(tmp_path):
    def row(draw, i):
        sequence = random_sequence(draw, (i % 7 + 1, 4, 4, i % 7 + 1))
        return sequence, round(sum(sequence.count(base) for base in "AT") / 10 + 0.05, 2)

    tables = write_tables(tmp_path / "tables", "sequence,label", row)
    metrics, predictions = finetuned(tables, tmp_path / "run", problem_type="regression", num_train_epochs=20)
    assert metrics["test"]["pearson"] > 0.7 and metrics["best_by"] == "pearson"
    assert metrics["test"]["pearson"] == pytest.approx(
        np.corrcoef(predictions["label"], predictions["prediction"])[0, 1], abs=1e-5
    )
    low, high = metrics["confidence"]["pearson"]
    assert low < metrics["test"]["pearson"] < high and (tmp_path / "run" / "regression.png").is_file()
    assert reloaded(tmp_path / "run")[0].config.problem_type == "regression"


def test_decimals_are_asked_about(tmp_path, capsys):
    tables = write_tables(tmp_path / "tables", "sequence,label", lambda draw, i: ("ACGTTGCA", i + 0.5))
    assert main(arguments(tables, tmp_path / "run")) == 2
    assert "say --problem_type regression" in capsys.readouterr().err


def test_pairs_are_told_apart_by_token_types(tmp_path):
    """The class is which of the two is rich in A and T: without token types nearly nothing tells the network."""

    def row(draw, i):
        two = [random_sequence(draw, weights, 20) for weights in (RICH_IN_AT, RICH_IN_GC)]
        return (*two, "first") if i % 2 else (*two[::-1], "second")

    tables = write_tables(tmp_path / "tables", "sequence,sequence2,label", row)
    metrics, predictions = finetuned(tables, tmp_path / "run")
    assert metrics["test"]["matthews_correlation"] > 0.9
    model, tokenizer = reloaded(tmp_path / "run")
    pair = predictions["sequence"][:2], predictions["sequence2"][:2]
    inputs = tokenizer(*pair, padding=True, return_tensors="pt")
    with torch.no_grad():
        together, apart = (
            model(**{**inputs, "token_type_ids": types}).logits.softmax(-1)
            for types in (inputs["token_type_ids"], torch.zeros_like(inputs["token_type_ids"]))
        )
    assert together[:, 0].tolist() == pytest.approx(predictions["probability_first"][:2], abs=1e-4)
    assert not torch.allclose(together, apart, atol=1e-3)


def test_labels_of_bases(tmp_path):
    """Each base of a TATA is labelled, though byte pairs begin and end anywhere in it."""

    def row(draw, i):
        before, after = (random_sequence(draw, RICH_IN_GC, draw.randint(5, 15)) for _ in range(2))
        return f"{before}TATA{after}", "." * 2 + "0" * (len(before) - 2) + "1111" + "0" * len(after)

    tables = write_tables(tmp_path / "tables", "sequence,label", row)
    output = tmp_path / "run"
    metrics, predictions = finetuned(
        tables, output, problem_type="base_classification", class_names=["other", "TATA"], num_train_epochs=10
    )
    score, (low, high) = metrics["test"]["matthews_correlation"], metrics["confidence"]["matthews_correlation"]
    assert score > 0.6 and low < score < high < 1
    model, tokenizer = reloaded(output, AutoModelForTokenClassification)
    assert model.config.id2label == {0: "other", 1: "TATA"}
    right = total = 0
    for i, sequence in enumerate(predictions["sequence"]):
        assert len(predictions["prediction"][i]) == len(sequence)
        inputs = tokenizer(sequence, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0].numpy()
        bases = scatter_base_logits(logits, token_spans(tokenizer, sequence)[0], len(sequence))
        assert [model.config.id2label[int(c)] for c in bases.argmax(-1)] == predictions["prediction"][i]
        for label, prediction in zip(predictions["label"][i], predictions["prediction"][i], strict=True):
            if label != ".":
                total, right = total + 1, right + (label == prediction)
    assert metrics["test"]["accuracy"] == pytest.approx(right / total)


def test_class_names_and_early_stopping(tables, tmp_path, capsys):
    options = {"class_names": ["coding", "regulatory"], "early_stopping_patience": 1, "num_train_epochs": 30}
    metrics, predictions = finetuned(tables, tmp_path / "run", **options)
    assert set(predictions["label"]) == {"coding", "regulatory"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["id2label"] == {"0": "coding", "1": "regulatory"}
    assert metrics["steps"] < 30 * 12
    assert main(arguments(tables, tmp_path / "other", class_names=["one"])) == 2
    assert "--class_names one: give 2 different names, for other, promoter" in capsys.readouterr().err


def test_head_on_the_mean(tables, tmp_path):
    finetuned(tables, tmp_path / "run", pooling="mean", rc_augment=True, rc_average=True)
    model, tokenizer = reloaded(tmp_path / "run")
    assert model.config.classifier_pooling == "mean" and model.bert.pooler is None
    inputs = tokenizer(["ACGTTGCATTAACG", "GGC"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.bert(**inputs).last_hidden_state
        mean = hidden.sum(1) / inputs["attention_mask"].sum(1, keepdim=True)
        torch.testing.assert_close(model(**inputs).logits, model.classifier(mean))


def test_the_published_choice_of_checkpoint(tables, tmp_path):
    metrics, _ = finetuned(tables, tmp_path / "run", metric_for_best_model="loss", pooling="cls")
    assert metrics["best_by"] == "loss" and metrics["best_dev"] == pytest.approx(metrics["dev"]["loss"], abs=1e-4)


def test_a_folder_without_dev_or_test(tables, tmp_path, capsys):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "train.csv").write_bytes((tables / "train.csv").read_bytes())
    assert main(arguments(alone, tmp_path / "run", num_train_epochs=1)) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "test" not in metrics and metrics["best_by"] is None and (tmp_path / "run" / "model.safetensors").is_file()
    assert main(arguments(alone, tmp_path / "other", early_stopping_patience=1)) == 2
    assert "needs a dev table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": True, "freeze_backbone": True}, "give one"),
        ({"merge_lora": True}, "--merge_lora is for --lora"),
        ({"lora": True}, "give --model_name_or_path"),
        ({"metric_for_best_model": "pearson"}, "these labels have no such score"),
        ({"label_smoothing_factor": 0.1}, "has no effect"),
        ({"auto_find_batch_size": True}, "would change what a step sees"),
        ({"early_stopping_patience": 2, "eval_strategy": "no", "load_best_model_at_end": False}, "needs --eval_strat"),
        ({"output_dir": "/sys/kernel"}, "cannot be written"),
        ({"metric_for_best_model": "accurcy"}, "there is no such score"),
        ({"problem_type": "base_classification", "rc_augment": True}, "not of bases"),
        ({"problem_type": "base_classification", "pooling": "mean"}, "not of bases"),
        ({"problem_type": "base_classification", "allow_truncation": True}, "cut off bases"),
        ({"gradient_accumulation_steps": 2}, "follows from --global_batch_size"),
        ({"plateau_restarts": -1}, "--plateau_restarts -1: must be at least 0"),
        ({"problem_type": "regression", "class_weights": "balanced"}, "float"),
        ({"label_columns": ["sequence", "label"], "problem_type": "single_label_classification"}, "one label column"),
    ],
)
def test_what_cannot_be_asked_for(tables, tmp_path, capsys, options, message):
    assert main(arguments(tables, tmp_path / "run", **options)) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and "Traceback" not in said and not (tmp_path / "run" / "metrics.json").exists()
    if message != "float":
        assert message in said


def test_what_is_recorded(tables, tmp_path):
    metrics, _ = finetuned(tables, tmp_path / "run")  # after one epoch, predictions may still be all the same
    assert metrics["rows"] == {"train": 96, "dev": 64, "test": 64} and metrics["restarts"] == []
    assert metrics["truncation"]["train"]["cut"] == 0 and metrics["parameters"] == metrics["trained_parameters"]
