"""The `evaluate` modules: loaded by path without network or writable cache, and the same as when imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from dnabert2.training import metrics
from dnabert2.training.metrics import module

FOLDER = Path(metrics.__file__).parent / "metric_modules"
NAMES = sorted(path.name for path in FOLDER.iterdir() if (path / f"{path.name}.py").exists())
CLASSES = {"references": [0, 1, 1, 0, 1, 1], "predictions": [0, 1, 0, 1, 1, 1]}
RANKED = {"references": CLASSES["references"], "prediction_scores": [0.1, 0.9, 0.4, 0.6, 0.7, 0.7]}
SEVERAL = {"references": [[1, 0], [1, 1], [0, 1]], "predictions": [[1, 0], [0, 1], [0, 0]]}

LOAD_ALL = """
import json, sys
sys.modules["transformers"] = None  # evaluate would import its pipelines, which takes seconds
import evaluate
del sys.modules["transformers"]
folder, inputs = sys.argv[1], json.loads(sys.argv[2])
values = {}
for name, words in inputs.items():
    loaded = evaluate.load(f"{folder}/{name}", keep_in_memory=True)
    assert loaded.name == name and loaded.description
    assert "title" in loaded.citation and "Args" in loaded.inputs_description
    values |= loaded.compute(**words)
several = evaluate.load(f"{folder}/f1", "multilabel")  # with its rows in the cache's files
values["several"] = several.compute(**json.loads(sys.argv[3]), average=None)["f1"]
print(json.dumps(values))
"""


def inputs(name: str) -> dict:
    return RANKED if name in ("auroc", "auprc") else CLASSES


def test_there_are_nine():
    assert set(NAMES) == {*metrics.CLASSIFICATION, "pearson", "spearman"}
    for name in NAMES:
        assert module(name).__name__.lower() == name.replace("_", "")


def test_they_load_offline_from_a_read_only_folder_in_several_processes_at_once(tmp_path):
    """Fresh interpreters without our package, all at the same new cache."""
    folder = tmp_path / "modules"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / f"{name}.py").write_bytes((FOLDER / name / f"{name}.py").read_bytes())
        (folder / name).chmod(0o555)
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    words = [str(folder), json.dumps({name: inputs(name) for name in NAMES}), json.dumps(SEVERAL)]
    command = [sys.executable, "-c", LOAD_ALL, *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path, "env": environment}
    running = [subprocess.Popen(command, **options) for _ in range(2)]
    for process in running:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        values = json.loads(output.splitlines()[-1])
        assert values.pop("several") == pytest.approx([2 / 3, 2 / 3])
        assert values == pytest.approx({name: module(name)._compute(**inputs(name))[name] for name in NAMES})
    for name in NAMES:
        (folder / name).chmod(0o755)


def test_our_scores_need_no_cache_and_imports_wait(tmp_path):
    """
    Nothing is written, so a home that cannot be made does no harm; and a command that scores nothing does not wait
    for datasets, scikit-learn and matplotlib.
    """
    code = """
import sys
import numpy as np
import dnabert2
before = set(sys.modules)
from dnabert2.training.metrics import classification_scores, confidence_intervals
import dnabert2.training.metric_plots
heavy = {"datasets", "evaluate", "sklearn", "scipy", "matplotlib", "pandas"}
assert not heavy & (set(sys.modules) - before)
y = np.array([0, 1, 1, 0])
p = np.array([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.9, 0.1]])
assert classification_scores(y, p.argmax(1), p)["auroc"] == 1.0
assert confidence_intervals(classification_scores, (y, p.argmax(1), p), resamples=50)["auroc"] == [1.0, 1.0]
"""
    (tmp_path / "file").write_text("")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    environment["HOME"] = str(tmp_path / "file" / "home")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr


def test_options_of_the_averages():
    draw = np.random.default_rng(0)
    labels, predictions = draw.integers(0, 3, 50), draw.integers(0, 3, 50)
    for name, function in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
        compute = module(name)._compute
        for average in ("micro", "macro", "weighted", None):
            value = compute(references=labels, predictions=predictions, average=average)[name]
            assert value == pytest.approx(function(labels, predictions, average=average))
        assert compute(**CLASSES)[name] == pytest.approx(0.75)
        weights = draw.random(50)
        weighted = compute(references=labels, predictions=predictions, average="macro", sample_weight=weights)
        assert weighted[name] == pytest.approx(function(labels, predictions, average="macro", sample_weight=weights))


@pytest.mark.filterwarnings("error")
def test_zero_division_is_silent_and_a_choice():
    never = {"references": [0, 0], "predictions": [0, 0]}
    for name in ("f1", "precision", "recall"):
        assert module(name)._compute(**never, pos_label=1, labels=[0, 1])[name] == 0
        assert module(name)._compute(**never, average=None, labels=[0, 1], zero_division=1)[name] == [1, 1]


def test_matthews_correlation_of_several_labels():
    compute = module("matthews_correlation")._compute
    pairs = list(zip(np.transpose(SEVERAL["references"]), np.transpose(SEVERAL["predictions"]), strict=True))
    each = [sk.matthews_corrcoef(*pair) for pair in pairs]
    assert compute(**SEVERAL, average=None)["matthews_correlation"] == pytest.approx(each)
    assert compute(**SEVERAL, average="macro")["matthews_correlation"] == pytest.approx(np.mean(each))
    flat = sk.matthews_corrcoef(*(np.ravel(SEVERAL[key]) for key in ("references", "predictions")))
    assert compute(**SEVERAL)["matthews_correlation"] == pytest.approx(flat)


def test_undefined_values_are_none():
    for name in ("auroc", "auprc"):
        compute = module(name)._compute
        assert compute(references=[1, 1], prediction_scores=[0.1, 0.9]) == {name: None}
        assert compute(references=[0, 1], prediction_scores=[0.1, float("nan")]) == {name: None}
        scores = [[0.8, 0.2, 0.0], [0.4, 0.6, 0.0], [0.3, 0.7, 0.0]]
        assert compute(references=[0, 1, 1], prediction_scores=scores, average=None)[name] == [1.0, 1.0, None]
        assert compute(references=[0, 1, 1], prediction_scores=scores)[name] == 1.0
    for name in ("pearson", "spearman"):
        compute = module(name)._compute
        for references, predictions in (([1], [2]), ([1, 2], [3, 3]), ([1, 1], [2, 3]), ([1, 2], [3, float("inf")])):
            assert compute(references=references, predictions=predictions) == {name: None}
        assert compute(references=[1, 2, 3], predictions=[3, 2, 1])[name] == pytest.approx(-1)
    assert module("accuracy")._compute(**CLASSES, normalize=False) == {"accuracy": 4}
