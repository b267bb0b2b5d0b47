"""bench demo: what is compared, and how seeds become a mean; fine-tuning itself is tested elsewhere."""

import json

import pytest

from dnabert2.benchmarks import demo
from dnabert2.cli import main


def test_all_see_the_same_data_and_differ_in_their_start():
    mini, same, small = demo.starts().values()
    assert mini["model_name_or_path"] == "mini" and "config_overrides" not in mini
    assert {key: same[key] for key in mini if key != "model_name_or_path"} == {
        key: value for key, value in mini.items() if key != "model_name_or_path"
    }
    config = json.loads((demo.BUNDLED["mini"] / "config.json").read_text())
    assert all(same["config_overrides"][key] == config[key] for key in demo.SHAPE)
    assert len({start["data_path"] for start in (mini, same, small)}) == 1
    assert "model_name_or_path" not in small


def test_the_command(tmp_path, monkeypatch, capsys):
    asked = []

    def fake(argv):
        settings = json.loads(demo.Path(argv[0]).read_text())
        asked.append(settings)
        value = 0.5 + 0.1 * (settings["seed"] - 42)
        scores = {"matthews_correlation": value, "f1": value, "accuracy": value}
        folder = demo.Path(settings["output_dir"])
        folder.mkdir()
        record = {"dev": scores, "test": scores, "train_seconds": 2.0, "parameters": 1000}
        (folder / "metrics.json").write_text(json.dumps(record))

    monkeypatch.setattr(demo, "finetune", fake)
    path = tmp_path / "demo.json"
    assert main(["bench", "demo", "--seeds", "2", "--epochs", "0.5", "--output", str(path)]) == 0
    assert [x["seed"] for x in asked] == [42, 43] * 3 and all(x["num_train_epochs"] == 0.5 for x in asked)
    starts = json.loads(path.read_text())["starts"]
    assert len(starts) == 3 and starts[0]["start"] == "mini"
    test = starts[0]["test"]["matthews_correlation"]
    assert test["mean"] == pytest.approx(0.55) and test["seeds"] == [0.5, 0.6]
    assert test["standard_deviation"] == pytest.approx(0.1 / 2**0.5)
    assert "| mini | 1,000 | 2 | 0.550 ± 0.071 |" in capsys.readouterr().out
    assert main(["bench", "demo", "--seeds", "0"]) == 2
    assert "--seeds must be at least 1" in capsys.readouterr().err
