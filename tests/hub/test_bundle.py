"""The bundled checkpoint: what is in it, its name wherever a model is asked for, and replacing it by a run."""

import csv
import json
import math

import pytest
import torch
import torch.nn.functional as F

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
from dnabert2.bundled import BUNDLED, locate
from dnabert2.cli import main
from dnabert2.hub import bundle
from dnabert2.loading import load_model
from dnabert2.provenance import ROOT
from dnabert2.tokenizer.files import OURS, load_tokenizer, write_tokenizer

SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}


@pytest.fixture
def run(tmp_path):
    """What a finished run leaves, as far as bundling reads it."""
    folder, corpus = tmp_path / "run", tmp_path / "corpus"
    model = DNABert2ForMaskedLM(DNABert2Config(**SMALL, hidden_dropout_prob=0.0))
    model.save_pretrained(folder)
    write_tokenizer(OURS / "tokenizer.json", folder)
    corpus.mkdir()
    counts = {"rows": 3, "tokens": 9, "bases": 45, "groups": {}, "shards": [{"file": "train/0.parquet"}]}
    manifest = {
        "settings": {"input": ["/somewhere"], "seed": 0},
        "passes": {"plant": 1.0},
        "splits": {"train": counts},
    }
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    parameters = sum(p.numel() for p in model.parameters())
    (folder / "metrics.json").write_text(json.dumps({"steps": 7, "parameters": parameters, "checkpoints": ["c"]}))
    settings = {"corpus": str(corpus), "max_steps": 7, "config_overrides": SMALL, "bf16": True, "fp16": False}
    (folder / "run.json").write_text(json.dumps(settings))
    (folder / "curve.png").write_bytes(b"PNG")
    return folder


def test_a_run_becomes_the_bundled_checkpoint(run, tmp_path, capsys):
    output, results = tmp_path / "checkpoints" / "mini", tmp_path / "results"
    results.mkdir()
    words = ["--run", str(run), "--output", str(output), "--results", str(results)]
    assert bundle.main(words) == 0
    loaded = load_model("DNABert2ForMaskedLM", str(output)).state_dict()
    expected = DNABert2ForMaskedLM.from_pretrained(run).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    config = json.loads((output / "config.json").read_text())
    assert "auto_map" not in config and config["hidden_dropout_prob"] == 0.1
    record = json.loads((results / "pretrain-mini.json").read_text())
    assert record["recipe"] == {"config_overrides": SMALL, "max_steps": 7, "bf16": True}
    assert record["corpus"]["settings"] == {"seed": 0} and "shards" not in record["corpus"]["splits"]["train"]
    assert record["steps"] == 7 and "checkpoints" not in record
    assert (results / "pretrain-mini.png").read_bytes() == b"PNG"
    assert "before" not in record
    # Again, over the one that is there, as if the run had gone on from another.
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "metrics.json").write_text(json.dumps({"steps": 5, "checkpoints": []}))
    first = {"max_steps": 5, "corpus_sha256": "abc", "seed": 1, "torch_compile": False, "output_dir": "first"}
    (tmp_path / "first" / "run.json").write_text(json.dumps(first))
    settings = json.loads((run / "run.json").read_text()) | {"model_name_or_path": str(tmp_path / "first")}
    (run / "run.json").write_text(json.dumps(settings))
    assert bundle.main(words) == 0
    assert sorted(path.name for path in output.parent.iterdir()) == ["mini"]
    before = json.loads((results / "pretrain-mini.json").read_text())["before"]
    assert before == {"recipe": {"max_steps": 5, "seed": 1}, "corpus_sha256": "abc", "steps": 5}
    (run / "metrics.json").unlink()
    assert bundle.main(words) == 2
    assert "give the folder of a finished pretrain run" in capsys.readouterr().err


def test_a_network_too_large_is_refused(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bundle, "MOST_PARAMETERS", 1000)
    assert bundle.main(["--run", str(run), "--output", str(tmp_path / "new"), "--results", str(tmp_path)]) == 2
    assert "a bundled checkpoint has at most 1,000" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_mini():
    """Within the limits, with our tokenizer, and it reads the context: promoters, which it was not trained on."""
    folder = BUNDLED["mini"]
    assert locate("mini") == str(folder) and locate("./mini") == "./mini"
    model = load_model("DNABert2ForMaskedLM", "mini").eval()
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) <= bundle.MOST_PARAMETERS
    assert sum(path.stat().st_size for path in folder.iterdir()) <= bundle.MOST_BYTES
    assert model.config.hidden_size // model.config.num_attention_heads == 64
    assert (folder / "tokenizer.json").read_bytes() == (OURS / "tokenizer.json").read_bytes()
    with (ROOT / "data" / "gue" / "prom" / "prom_core_tata" / "test.csv").open(newline="") as handle:
        texts = [row["sequence"] for row in csv.DictReader(handle)][:300]
    tokenizer = load_tokenizer("mini")
    ids = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    is_token = ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    is_blank = is_token & (torch.arange(ids.shape[1]) % 7 == 3)

    def nats(inputs):
        with torch.no_grad():
            return float(F.cross_entropy(model(inputs).logits[is_blank], ids[is_blank]))

    mask = tokenizer.mask_token_id
    with_context, without = nats(ids.masked_fill(is_blank, mask)), nats(ids.masked_fill(is_token, mask))
    assert is_blank.sum() > 600
    assert with_context < without - 0.2 and with_context < math.log(len(tokenizer)) - 1


def test_mini_is_exported(tmp_path):
    assert main(["export", "--checkpoint", "mini", "--output", str(tmp_path / "hub")]) == 0
    assert (tmp_path / "hub" / "modeling_dnabert2.py").is_file()
