"""The finetune verb, end to end on a tiny network: outputs, self-containment, seeds, resuming, and bad input."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from finetuning import TINY, arguments

from dnabert2 import DNABert2ForSequenceClassification
from dnabert2.cli import main
from dnabert2.tokenizer.files import load_tokenizer
from dnabert2.training.metrics import classification_scores


@pytest.fixture(scope="module")
def run(tables, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    assert main(arguments(tables, output)) == 0
    return output


def test_metrics_and_predictions_agree(run, tables):
    metrics = json.loads((run / "metrics.json").read_text())
    predictions = pq.read_table(run / "predictions.parquet").to_pydict()
    assert metrics["test"]["matthews_correlation"] > 0.6  # an easy task, learnt
    assert len(predictions["label"]) == 64
    rows = [line.rsplit(",", 1) for line in (tables / "test.csv").read_text().split()[1:]]
    assert [[s, label] for s, label in zip(predictions["sequence"], predictions["label"], strict=True)] == rows
    recomputed = classification_scores(np.array(predictions["label"]), np.array(predictions["prediction"]))
    assert recomputed == pytest.approx({name: metrics["test"][name] for name in recomputed})
    for name, (low, high) in metrics["confidence"].items():
        assert low <= metrics["test"][name] <= high
    total = np.array(predictions["probability_other"]) + np.array(predictions["probability_promoter"])
    assert total == pytest.approx(np.ones(64), abs=1e-6)
    assert metrics["provenance"] and metrics["parameters"] > 0


def test_the_folder_is_a_hub_folder(run, tmp_path):
    """A fresh interpreter without our package loads model and tokenizer and predicts what the run predicted."""
    predictions = pq.read_table(run / "predictions.parquet").to_pydict()
    code = f"""
import sys, torch
sys.modules["dnabert2"] = None  # any import of the package fails
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained({str(run)!r}, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained({str(run)!r}, trust_remote_code=True)
with torch.no_grad():
    logits = model(**tokenizer({predictions["sequence"][:4]!r}, padding=True, return_tensors="pt")).logits
print([model.config.id2label[i] for i in logits.argmax(-1).tolist()])
print([round(x, 4) for x in logits.softmax(-1)[:, 1].tolist()])
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr
    labels, probabilities = map(eval, result.stdout.strip().splitlines()[-2:])
    assert labels == predictions["prediction"][:4]
    assert probabilities == pytest.approx(predictions["probability_promoter"][:4], abs=2e-4)


def test_only_the_result_is_left(run):
    assert not list(run.glob("checkpoint-*")) and not list(run.glob("*.tmp"))
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_dnabert2.py"} <= {
        p.name for p in run.iterdir()
    }
    config = json.loads((run / "config.json").read_text())
    assert config["id2label"] == {"0": "other", "1": "promoter"}
    assert json.loads((run / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_seed_decides_the_run(run, tables, tmp_path):
    """Also the new head: it is made after seeding, not before, as in the published script."""
    assert main(arguments(tables, tmp_path / "same")) == 0
    assert main(arguments(tables, tmp_path / "other", seed=4)) == 0
    load = DNABert2ForSequenceClassification.from_pretrained
    first, same, other = (load(p).state_dict() for p in (run, tmp_path / "same", tmp_path / "other"))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_an_interrupted_run_continues(run, tables, tmp_path, monkeypatch, capsys):
    """Stopped after two of four epochs, started again: the same weights as without the interruption."""
    from transformers import TrainerCallback

    from dnabert2.training import finetune

    class Stop(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            if state.epoch and state.epoch >= 2:
                raise KeyboardInterrupt

    whole_trainer = finetune.FineTuner

    def stopped(callbacks, **kwargs):
        return whole_trainer(callbacks=[*callbacks, Stop()], **kwargs)

    monkeypatch.setattr(finetune, "FineTuner", stopped)
    assert main(arguments(tables, tmp_path / "run")) == 130
    assert list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.setattr(finetune, "FineTuner", whole_trainer)
    assert main(arguments(tables, tmp_path / "run")) == 0
    assert "continuing from" in capsys.readouterr().out
    load = DNABert2ForSequenceClassification.from_pretrained
    expected, continued = load(run).state_dict(), load(tmp_path / "run").state_dict()
    assert all(torch.equal(expected[key], continued[key]) for key in expected)


def test_gradient_accumulation_is_the_larger_batch(tables, tmp_path):
    """Two passes of 4 sequences are one of 8: the losses are divided by the labels of the whole, not of each part."""
    still = {**TINY, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.0}
    # Plain gradient descent: Adam would hide a gradient that is off by a factor.
    options = {"optim": "sgd", "max_grad_norm": 0, "learning_rate": 0.1}
    options |= {"config_overrides": json.dumps(still), "num_train_epochs": 1}
    parts = {"per_device_train_batch_size": 4}
    assert main(arguments(tables, tmp_path / "whole", **options)) == 0
    assert main(arguments(tables, tmp_path / "parts", **options, **parts)) == 0
    load = DNABert2ForSequenceClassification.from_pretrained
    whole, parts = load(tmp_path / "whole").state_dict(), load(tmp_path / "parts").state_dict()
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-6)


def test_an_earlier_run_is_kept_unless_told(run, tables, tmp_path, capsys):
    """A finished run and an unfinished one with other settings stop a new one; --overwrite replaces results only."""
    output = tmp_path / "run"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    (output / "metrics.json").write_text("{}")
    short = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    assert main(arguments(tables, output, **short)) == 2
    assert "holds a finished run" in capsys.readouterr().err
    # Bad input is found before anything is removed.
    assert main([*arguments(tmp_path / "absent", output, **short), "--overwrite"]) == 2
    assert (output / "metrics.json").read_text() == "{}"
    assert main([*arguments(tables, output, **short), "--overwrite"]) == 0
    assert json.loads((output / "metrics.json").read_text())["test"] and (output / "notes.txt").exists()
    (output / "metrics.json").unlink()  # as if it had been interrupted
    capsys.readouterr()
    assert main(arguments(tables, output, **{**short, "learning_rate": 1})) == 2
    assert "unfinished run with other settings (learning_rate)" in capsys.readouterr().err


def test_finetuning_a_checkpoint(run, tables, tmp_path):
    """Its classes keep their ids, its tokenizer is used, and its weights are where training starts."""
    words = arguments(tables, tmp_path / "again", num_train_epochs=1)
    words[1:3] = ["--model_name_or_path", str(run)]  # in place of --config_overrides
    assert main(words) == 0
    metrics = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert metrics["test"]["matthews_correlation"] > 0.6
    assert len(load_tokenizer(tmp_path / "again")) == len(load_tokenizer(run))


def test_a_lone_json_is_a_whole_run_and_bad_ones_are_refused(tables, tmp_path, capsys):
    recipe = tmp_path / "recipe.json"
    values = {"config_overrides": TINY, "data_path": str(tables), "output_dir": str(tmp_path / "run"), "max_steps": 1}
    values |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "use_cpu": True}
    values |= {"confidence_resamples": 50}
    recipe.write_text(json.dumps(values))
    assert main(["finetune", str(recipe)]) == 0
    assert "test MCC" in capsys.readouterr().out
    assert main(["finetune", str(recipe)]) == 2
    assert "holds a finished run" in capsys.readouterr().err
    recipe.write_text(json.dumps(values | {"learning_rat": 1}))
    assert main(["finetune", str(recipe)]) == 2
    assert "learning_rat" in capsys.readouterr().err
    assert main(["finetune", str(tmp_path / "absent.json")]) == 2
    (tmp_path / "recipe.yaml").write_text("data_path: [unclosed")
    assert main(["finetune", str(tmp_path / "recipe.yaml")]) == 2
    assert "recipe.yaml: not a configuration" in capsys.readouterr().err


def test_bad_input(tables, run, tmp_path, capsys):
    """One sentence, exit code 2, and no output folder."""
    output = tmp_path / "out"

    def fails_with(message, words):
        assert main(words) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("error:") == 1 and "Traceback" not in captured.err
        assert not (output / "metrics.json").exists() and not (output / "model.safetensors").exists()

    fails_with("no such folder", arguments(tmp_path / "absent", output))
    fails_with(
        "more than 5 tokens, as have 96 of 96 in train, 64 of 64 in dev", arguments(tables, output, max_length=5)
    )
    fails_with("give either --model_name_or_path", arguments(tables, output, model_name_or_path=run))
    fails_with("num_attention_heads", arguments(tables, output, config_overrides='{"hidden_size": 7}'))
    fails_with("'hiden_size' is no value", arguments(tables, output, config_overrides='{"hiden_size": 8}'))
    fails_with("--config_overrides is not a JSON object", arguments(tables, output, config_overrides="{hidden"))
    fails_with(
        "vocabulary ends at 99", arguments(tables, output, config_overrides=json.dumps({**TINY, "vocab_size": 100}))
    )
    without = [word for word in arguments(tables, output) if word not in ("--config_overrides", json.dumps(TINY))]
    (tmp_path / "hollow").mkdir()
    fails_with(
        "no config.json", [*without, "--model_name_or_path", str(tmp_path / "hollow"), "--tokenizer_name", str(run)]
    )
    fails_with(
        "no such folder", [*without, "--model_name_or_path", str(tmp_path / "gone"), "--tokenizer_name", str(run)]
    )
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((run / name).read_bytes())
    weights = (run / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    fails_with("damaged or cut short", [*without, "--model_name_or_path", str(broken)])
