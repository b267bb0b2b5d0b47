"""`dnabert2 predict`: of every kind of fine-tuned folder it says what the run itself predicted."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from finetuned_folders import KINDS
from foreign_models import dnabert

from dnabert2 import DNABert2ForSequenceClassification
from dnabert2.cli import main
from dnabert2.inference.predicting import load_predictor

pytestmark = pytest.mark.usefixtures("no_plots")


def words(model, inputs, output, *more) -> list[str]:
    options = {"model": model, "input": inputs, "output": output, "device": "cpu"}
    return ["predict", *(word for key, value in options.items() for word in (f"--{key}", str(value))), *map(str, more)]


def predict(model, inputs, output, *more) -> dict[str, list]:
    assert main(words(model, inputs, output, *more)) == 0
    return pq.read_table(output).to_pydict()


def flat(values) -> np.ndarray:
    return np.array([x for row in values for x in (row if isinstance(row, list) else [row])])


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_run_predicted(folder_of, tmp_path, kind):
    """Names of columns, classes, and numbers to 1e-5; in other batches than the run's."""
    run = folder_of(kind)
    more = [name for name in ("rc_average", "trust_remote_code") if run.options.get(name)]
    found = predict(
        run.model, run.test, tmp_path / "p.parquet", *(f"--{name}" for name in more), "--batch_tokens", 500
    )
    labels = {"sequence", "sequence2", "label", "label_at", "label_poly", "label_a", "label_c"}
    expected = {name: values for name, values in run.predictions.items() if name not in labels}
    assert set(found) == {"id", *expected} and found["id"] == [str(i) for i in range(64)]
    numbers = [name for name, values in expected.items() if flat(values).dtype.kind == "f"]
    for name in numbers:
        np.testing.assert_allclose(flat(found[name]), flat(expected[name]), rtol=0, atol=1e-5, err_msg=name)
        assert flat(expected[name]).std() > 1e-4  # it is not the same for every row
    for name in expected.keys() - set(numbers):
        assert [np.shape(row) for row in found[name]] == [np.shape(row) for row in expected[name]]
        differ = flat(found[name]) != flat(expected[name])
        assert differ.mean() < 0.02, name  # but for rows whose two classes are as likely


def test_classes_are_those_of_the_greatest_probability(folder_of, tmp_path):
    run = folder_of("one label")
    found = predict(run.model, run.test, tmp_path / "p.parquet")
    names = json.loads((run.model / "config.json").read_text())["id2label"].values()
    table = np.array([found[f"probability_{name}"] for name in names]).T
    assert np.abs(table.sum(axis=1) - 1).max() < 1e-6
    assert [list(names)[i] for i in table.argmax(axis=1)] == found["prediction"]
    found = predict(folder_of("several labels").model, folder_of("several labels").test, tmp_path / "q.parquet")
    for name in ("label_at", "label_poly"):
        assert [int(p > 0.5) for p in found[f"probability_{name}"]] == found[f"prediction_{name}"]


# Inputs and outputs


def test_inputs(folder_of, tmp_path, monkeypatch):
    """FASTA, lower case and RNA, BED and a table of other names say the same as the run's table."""
    run = folder_of("one label")
    sequences = run.predictions["sequence"]
    expected = run.predictions["probability_gc"]
    (tmp_path / "a.fa").write_text("".join(f">r{i}\n{s.lower()}\n" for i, s in enumerate(sequences)))
    (tmp_path / "rna.fa").write_text("".join(f">r{i}\n{s.replace('T', 'U')}\n" for i, s in enumerate(sequences)))
    (tmp_path / "genome.fa").write_text(f">chr1\n{''.join(sequences)}\n")
    ends = np.cumsum([0, *map(len, sequences)])
    lines = (f"chr1\t{low}\t{high}\tr{i}" for i, (low, high) in enumerate(itertools.pairwise(ends)))
    (tmp_path / "a.bed").write_text("\n".join(lines))
    frame = pd.DataFrame({"name": [f"r{i}" for i in range(64)], "dna": sequences})
    frame.to_parquet(tmp_path / "a.parquet")
    for name, more in (
        ("a.fa", []),
        ("rna.fa", []),
        ("a.bed", ["--fasta", tmp_path / "genome.fa"]),
        ("a.parquet", ["--sequence_column", "dna", "--id_column", "name"]),
    ):
        found = predict(run.model, tmp_path / name, tmp_path / f"{name}.p.parquet", *more)
        assert found["id"] == frame["name"].tolist()
        np.testing.assert_allclose(found["probability_gc"], expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["one label", "several labels", "two numbers", "bases"])
def test_outputs(folder_of, tmp_path, capsysbinary, kind):
    run = folder_of(kind)
    expected = predict(run.model, run.test, tmp_path / "p.parquet")
    described = json.loads(pq.read_schema(tmp_path / "p.parquet").metadata[b"dnabert2"])
    assert described["model"] == str(run.model) and len(described["sha256"]) == 64 and described["window"] is None
    for output, more in (("p.tsv", []), ("p.jsonl", []), ("folder", []), ("-", []), ("-", ["--format", "jsonl"])):
        capsysbinary.readouterr()
        assert main(words(run.model, run.test, output if output == "-" else tmp_path / output, *more)) == 0
        said = capsysbinary.readouterr()
        assert b"bases in 64 sequences" in said.err
        path = tmp_path / output
        if output == "-":
            path = tmp_path / ("said.jsonl" if more else "said.tsv")
            path.write_bytes(said.out)
        if path.suffix == ".tsv":
            frame = pd.read_csv(path, sep="\t", dtype={"id": str})
            found = frame.to_dict("list")
            if kind == "bases":
                kinds = {name: str if name == "prediction" else float for name in found if name != "id"}
                found |= {
                    name: [[of(x) for x in cell.split(",")] for cell in found[name]] for name, of in kinds.items()
                }
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found = {name: [row[name] for row in rows] for name in rows[0]}
        else:
            found = pq.read_table(path).to_pydict()
        assert list(found) == list(expected)
        for name, values in expected.items():
            if flat(values).dtype.kind == "f":
                np.testing.assert_allclose(flat(found[name]), flat(values), rtol=1e-6)
            else:
                assert found[name] == values
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


@pytest.mark.parametrize("kind", ["one label", "bases", "DNABERT", "HyenaDNA"])
def test_bad_records_are_skipped_and_listed(folder_of, tmp_path, capsys, kind):
    run = folder_of(kind)
    good = run.predictions["sequence"][0]
    bad = {"protein": "MKVLA", "empty": "", "unknown": "NNN"}
    if kind == "DNABERT":
        bad |= {"short": "AC", "long": good * 3}
    if kind == "HyenaDNA":
        bad |= {"long": good * 3}
    frame = pd.DataFrame({"id": ["a", *bad, "b"], "sequence": [good, *bad.values(), good]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    more = [f"--{name}" for name in ("trust_remote_code",) if run.options.get(name)]
    assert main(words(run.model, tmp_path / "a.csv", tmp_path / "p.parquet", *more)) == 2
    said = capsys.readouterr().err
    assert (
        f"error: {tmp_path / 'a.csv'}, line 3 (protein): holds 'L', which no nucleotide code uses" in said
        and "Traceback" not in said
    )
    assert not (tmp_path / "p.parquet").exists()
    bad["a"] = good
    frame.loc[len(frame)] = ["a", good]
    frame.to_csv(tmp_path / "a.csv", index=False)
    found = predict(run.model, tmp_path / "a.csv", tmp_path / "p.parquet", "--skip_bad", *more)
    assert found["id"] == ["a", "b"]
    name = next(name for name in found if name.startswith("probability"))
    assert flat(found[name][:1]) == pytest.approx(flat(found[name][1:]), abs=1e-6)
    listed = pd.read_csv(tmp_path / "p.parquet.skipped.tsv", sep="\t", keep_default_na=False)
    assert sorted(listed["id"]) == sorted(bad) and len(listed) == len(bad)
    reasons = dict(zip(listed["id"], listed["reason"], strict=True))
    assert "already" in reasons["a"] and "is empty" in reasons["empty"] and "no base but N" in reasons["unknown"]
    if "long" in bad:
        assert "tokens that" in reasons["long"]
    if "short" in bad:
        assert "shorter than the 3 bases of one k-mer of DNABERT" in reasons["short"]


def test_pairs_and_single_sequences_do_not_mix(folder_of, tmp_path, capsys):
    run = folder_of("pairs")
    (tmp_path / "single.csv").write_text("sequence\nACGTTGCA\n")
    both = words(run.model, run.test, tmp_path / "p.parquet")
    both.insert(both.index(str(run.test)) + 1, str(tmp_path / "single.csv"))
    both += ["--id_column", "sequence"]
    assert main(both) == 2
    said = capsys.readouterr().err
    assert (
        f"error: {tmp_path / 'single.csv'}, line 2 (ACGTTGCA): it has no second sequence and others have one" in said
    )


# What cannot be


def refused(capsys, *expected: str):
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if "error" in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in said.err
    assert lines[0].endswith(".") and not said.out
    for part in expected:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        (
            "one label",
            ["--output", "p.npy"],
            "p.npy: its name says npy, which this cannot be written as",
        ),
        ("one label", ["--output", "there.tsv"], "there.tsv: is there already; choose another --output or add --over"),
        ("one label", ["--output", "there.tsv/p.tsv"], "there.tsv/p.tsv: cannot be written"),
        ("one label", ["--output", "p.vcf", "--skip_bad"], "p.vcf"),
        ("one label", ["--input", "none.csv"], "none.csv: no such file or folder"),
        ("one label", ["--sequence_column", "dna"], "has no column dna (its columns are sequence, label)"),
        (
            "one label",
            ["--window", "10", "--overlap", "8"],
            "windows of 10 tokens, two of them [CLS] and [SEP], cannot",
        ),
        ("one label", ["--batch_tokens", "0"], "--batch_tokens 0"),
        ("one label", ["--attn_implementation", "magic"], "magic"),
        ("one label", ["--dtype", "int8"], "int8"),
        ("bases", ["--n", "drop"], "--n drop would shift the places of bases; leave it out."),
        ("bases", ["--input", "pairs.csv"], "reads single sequences; leave the pairs out."),
        ("pairs", ["--window", "32"], "--window 32: pairs of sequences are read whole; leave it out."),
        ("DNABERT", ["--window", "32"], "--window 32: DNABERT reads sequences whole; leave it out."),
        ("NT", ["--input", "pairs.csv"], "pairs.csv, line 2: Nucleotide Transformer takes single sequences only"),
        (
            "HyenaDNA",
            [],
            "is code of its own repository; read it there, then allow it to run with --trust_remote_code",
        ),
    ],
)
def test_options_that_cannot_be(folder_of, tmp_path, capsys, monkeypatch, kind, more, message):
    run = folder_of(kind)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.tsv").write_text("mine")
    (tmp_path / "pairs.csv").write_text("sequence,sequence2\nACGTTGCAACGT,GGCATTAGGCAT\n")
    capsys.readouterr()
    assert main(words(run.model, run.test, "p.tsv", *more)) == 2
    refused(capsys, message)
    assert (tmp_path / "there.tsv").read_text() == "mine" and not (tmp_path / "p.tsv").exists()


def test_models_without_a_trained_head(folder_of, tiny, tmp_path, capsys):
    """transformers would begin one from random numbers, and predict."""
    test = folder_of("one label").test
    lost = tmp_path / "lost"  # adapters whose base is gone
    shutil.copytree(folder_of("adapters").model, lost)
    for name in ("base_config.json", "adapter_config.json"):
        described = json.loads((lost / name).read_text())
        key = "base" if name == "base_config.json" else "base_model_name_or_path"
        (lost / name).write_text(json.dumps({**described, key: str(tmp_path / "gone")}))
    bare = tmp_path / "bare"  # peft's own, without what the base must be told
    shutil.copytree(folder_of("adapters").model, bare)
    (bare / "base_config.json").unlink()
    broken = tmp_path / "broken"
    shutil.copytree(folder_of("one label").model, broken)
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    run = tmp_path / "run"
    shutil.copytree(folder_of("one label").model, run)
    (run / "run.json").write_text("{")
    for model, message in (
        ("mini", "mini: its checkpoint has no trained classifier ("),
        (tiny, f"{tiny}: its checkpoint has no trained classifier ("),
        (dnabert(tmp_path / "dnabert", 3), "its checkpoint has no trained classifier ("),
        (tmp_path / "nowhere", "nowhere"),
        (lost, f"{tmp_path / 'gone'}"),
        (bare, "config.json"),
        (broken, f"{broken}"),
        (run, f"{run / 'run.json'}: cannot be read"),
    ):
        capsys.readouterr()
        assert main(words(model, test, tmp_path / "p.tsv")) == 2, model
        refused(capsys, message)
        assert not (tmp_path / "p.tsv").exists()


def test_a_classifier_from_elsewhere(small_config, fill, tiny, tmp_path):
    """Saved by transformers, with labels of its own; words and probabilities are its."""
    names = {0: "low", 1: "high"}
    config = small_config(vocab_size=4096, id2label=names, label2id={name: i for i, name in names.items()})
    model = fill(DNABert2ForSequenceClassification(config)).eval()
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, tmp_path / "model" / name)
    (tmp_path / "a.fa").write_text(">a\nACGTTGCATT\n>b\nGGGCGC\n")
    found = predict(tmp_path / "model", tmp_path / "a.fa", tmp_path / "p.parquet")
    tokenizer = load_predictor(str(tmp_path / "model")).tokenizer
    with torch.no_grad():
        logits = model(**tokenizer(["ACGTTGCATT", "GGGCGC"], padding=True, return_tensors="pt")).logits
    expected = logits.softmax(-1)
    np.testing.assert_allclose(np.array([found["probability_low"], found["probability_high"]]).T, expected, atol=1e-5)
    assert found["prediction"] == [names[i] for i in logits.argmax(-1).tolist()]


def test_nothing_but_the_sentence_is_said_of_a_model_without_a_head(tmp_path):
    """transformers would report the missing weights as well; it writes to the standard error of its first import."""
    (tmp_path / "s.csv").write_text("sequence\nACGT\n")
    words = ["predict", "--model", "mini", "--input", str(tmp_path / "s.csv"), "--output", "-", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-m", "dnabert2", *words], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert "has no trained classifier" in done.stderr and done.stderr.count("\n") == 1
