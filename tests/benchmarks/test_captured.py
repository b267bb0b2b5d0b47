"""A checkpoint's own q, k and v: they are what its layers project, and their norms are recorded by layer and head."""

import json

import pytest
import torch

from dnabert2 import DNABert2ForMaskedLM
from dnabert2.benchmarks import main
from dnabert2.benchmarks.captured import Checkpoint
from dnabert2.benchmarks.norms import norms
from dnabert2.tokenizer.files import OURS, load_tokenizer, write_tokenizer

BASES = "ACGTTGCATTTAGCCA"


@pytest.fixture(scope="module")
def checkpoint(build, tmp_path_factory):
    """A folder with two layers of three heads, the real tokenizer, and weights that make attention matter."""
    folder = tmp_path_factory.mktemp("checkpoint")
    build(DNABert2ForMaskedLM, vocab_size=4096).save_pretrained(folder)
    write_tokenizer(OURS / "tokenizer.json", folder)
    return folder


@pytest.fixture
def sequences(tmp_path):
    pytest.importorskip("pysam")
    path = tmp_path / "genome.fa"
    generator = torch.Generator().manual_seed(0)
    text = "".join(BASES[i] for i in torch.randint(0, len(BASES), (4000,), generator=generator))
    path.write_text(f">one\n{text[:2500].lower()}\n>two\n{text[2500:]}\n")
    return path


def load(checkpoint, sequences, lengths, tokens):
    return Checkpoint(str(checkpoint), sequences, lengths, tokens, dtype="float32", device=torch.device("cpu"))


def test_each_layer_is_a_problem_of_what_it_projects(checkpoint, sequences):
    source = load(checkpoint, sequences, [60, 150], tokens=400)
    assert (source.heads, source.head_dim) == (3, 8)
    found = list(source.problems(150))
    assert [x.source for x in found] == ["layer 0", "layer 1"] and found[0].lengths == [150, 150]
    assert torch.equal(found[0].slopes, source.model.alibi())

    text = "".join(line for line in sequences.read_text().splitlines() if not line.startswith(">")).upper()
    ids = load_tokenizer(checkpoint)(text[:2500], add_special_tokens=False)["input_ids"]
    window = torch.tensor([[1, *ids[:148], 2]])  # [CLS], the first window, [SEP]
    with torch.no_grad():
        states = source.model(window, output_hidden_states=True).hidden_states
        for layer, problem in enumerate(found):
            expected = source.model.encoder.layer[layer].attention.self.Wqkv(states[layer])[0].view(150, 3, 3, 8)
            torch.testing.assert_close(problem.qkv[:150], expected, rtol=1e-4, atol=1e-5)
    assert not source.model.encoder.layer[0].attention.self.Wqkv._forward_hooks


def test_norms_are_recorded_by_layer_head_and_length(checkpoint, sequences, tmp_path):
    output = tmp_path / "result.json"
    more = ["--lengths", "40", "300", "--tokens", "300", "--directions", "forward", "--repetitions", "1"]
    more += ["--variants", "triton_no_bias", "published", "--heads", "99", "--output", output]
    command = ["attention", "--device", "cpu", "--model", checkpoint, "--input", sequences, *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        assert main.main([str(x) for x in command]) == 0
    result = json.loads(output.read_text())
    assert result["input"] == {"model": str(checkpoint), "file": str(sequences)}
    assert (result["heads"], result["head_dim"]) == (3, 8)  # the model's, whatever was asked for
    places = [(x["length"], x["source"]) for x in result["problems"]]
    assert places == [(n, layer) for n in (40, 300) for layer in ("layer 0", "layer 1")]
    source = load(checkpoint, sequences, [40, 300], tokens=300)
    for record, problem in zip(result["problems"][2:], source.problems(300), strict=True):
        expected = norms(problem.qkv, [300], problem.slopes)
        for key in ("q_max", "key_max", "u_max"):
            assert record["norms"][key] == pytest.approx(expected[key], rel=1e-5) and len(expected[key]) == 3
        assert record["norms"]["computed_share"] == expected["computed_share"]
    statuses = {(x["variant"], x["status"]) for x in result["results"]}
    assert statuses == {("triton_no_bias", "skipped"), ("published", "measured")}


def test_a_table_will_do_where_fasta_cannot_be_read(checkpoint, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sequence,label\n" + "".join(f"{BASES[i % 8 :] * 6},0\n" for i in range(30)))
    assert next(load(checkpoint, path, [50], tokens=100).problems(50)).lengths == [50, 50]


@pytest.mark.parametrize(
    ("model", "name", "length", "message"),
    [
        ("missing", "genome.fa", 50, "no such folder"),
        (None, "missing.fa", 50, "no such file"),
        (None, "missing.csv", 50, "no such file"),
        (None, "genome.fa", 100_000, "needs 99,998"),
        (None, "genome.fa", 2, "at least 3"),
    ],
)
def test_what_cannot_be_used_is_named(checkpoint, sequences, capsys, model, name, length, message):
    model = checkpoint if model is None else sequences.parent / model
    command = ["--device", "cpu", "--model", model, "--input", sequences.parent / name, "--lengths", length]
    assert main.main(["attention", *map(str, command)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]  # before it transformers shows its progress
    assert last.startswith("error: ") and message in last
