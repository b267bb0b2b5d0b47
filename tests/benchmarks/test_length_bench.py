"""`bench length`: the same masked tokens at every length, numbers written out by hand, what cannot be measured."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
from dnabert2.benchmarks import tables
from dnabert2.benchmarks.length import scores
from dnabert2.benchmarks.stretches import (
    MaskedStretches,
    all_of,
    cut,
    held_out_sources,
    mask_stretches,
    read_stretches,
)
from dnabert2.cli import main
from dnabert2.errors import UserError
from dnabert2.tokenizer.files import OURS, load_tokenizer, write_tokenizer
from dnabert2.training.corpus_sources import Record, find_sources, scan
from dnabert2.training.learned_positions import LearnedPositionsConfig, LearnedPositionsForMaskedLM
from dnabert2.training.masking import IGNORE_INDEX

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
LENGTHS = [16, 32, 64]  # 14, 30 and 62 tokens inside: neither 14 nor 30 goes evenly into 62


def bases(count: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=count))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(OURS)


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    """Two species; one record is cut by N, one is too short for a stretch of 62 tokens."""
    folder = tmp_path_factory.mktemp("genomes")
    first = bases(3_000, 1)
    first = first[:1_000] + "N" * 9 + first[1_009:2_000].lower() + "R" + first[2_001:]
    (folder / "Animal_one__v1.fa").write_text(f">chr1 the first\n{first}\n>chr2\n{bases(1_500, 2)}\n>tiny\nACGT\n")
    (folder / "Plant_two.fa").write_text(f">P1\n{bases(2_000, 3)}\n")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders: a network without a layer, thus without context; one with ALiBi; one with 32 learned positions."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    made = {
        "blind": DNABert2ForMaskedLM(DNABert2Config(**SIZES | {"num_hidden_layers": 0})),
        "alibi": DNABert2ForMaskedLM(DNABert2Config(**SIZES)),
        "learned": LearnedPositionsForMaskedLM(LearnedPositionsConfig(32, **SIZES)),
    }
    for name, model in made.items():
        for parameter in model.parameters():
            if parameter.ndim == 2:  # far from their start, where every network says the same of every token
                parameter.data *= 8
        model.save_pretrained(folder / name)
        write_tokenizer(OURS / "tokenizer.json", folder / name)
    return folder


@pytest.fixture(scope="module")
def words(genomes, models):
    """Function: the words of the command."""

    def make(*names, **options) -> list[str]:
        values = {"input": [genomes], "lengths": LENGTHS, "stretches": 3, "batch_tokens": 100, **options}
        text = ["bench", "length", "--model", *(str(models / name) for name in names)]
        for key, value in values.items():
            if value is not None:
                text += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        return text

    return make


@pytest.fixture(scope="module")
def result(words, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "length.json"
    assert main(words("blind", "alibi", "learned", output=path)) == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(x.name for x in path.parent.iterdir()) == ["length.json", "length.png"]
    return json.loads(path.read_text())


@pytest.mark.parametrize("length", [3, 16, 32, 33, 64])
def test_every_length_has_the_same_masked_tokens(tokenizer, length):
    """Ids that tell their place: 1000 * (stretch + 1) + place; a third of them is to be predicted."""
    codes = 1000 * np.arange(1, 4)[:, None] + np.arange(62)
    chosen = np.random.default_rng(0).random(codes.shape) < 0.3
    masked = MaskedStretches(codes, np.where(chosen, codes, IGNORE_INDEX), np.ones(9000))
    pieces = cut(masked, length, tokenizer, 9000)
    inner = pieces.inputs[:, 1:-1]
    assert pieces.inputs.shape == pieces.labels.shape == (3 * math.ceil(62 / (length - 2)), length)
    assert (pieces.inputs[:, 0] == tokenizer.cls_token_id).all() and (pieces.inputs[:, -1] == 2).all()
    assert (inner.diff(dim=1) == 1).all()  # contiguous, of one stretch
    assert torch.equal(inner // 1000 - 1, pieces.group_ids[:, None].expand_as(inner))
    is_scored = pieces.labels != IGNORE_INDEX
    assert torch.equal(pieces.inputs[is_scored], pieces.labels[is_scored])
    assert pieces.labels[is_scored].tolist() == codes[chosen].tolist()  # each once, in order


def test_stretches_are_what_stands_in_the_files(genomes, tokenizer):
    sources = all_of([str(genomes)])
    stretches = read_stretches(sources, tokenizer, 62, 5, seed=1)
    texts = {record: text for path in genomes.iterdir() for record, text in read_records(path)}
    ends = {}
    for stretch in sorted(stretches, key=lambda x: (x.accession, x.start)):
        text = "".join(tokenizer.convert_ids_to_tokens(stretch.ids.tolist()))
        assert len(stretch.ids) == 62 and set(text) <= set("ACGT")
        assert texts[stretch.accession][stretch.start :].upper().startswith(text)
        assert stretch.start >= ends.get(stretch.accession, 0)  # none overlap
        ends[stretch.accession] = stretch.start + len(text)
    groups = [stretch.group for stretch in stretches]
    assert groups == sorted(groups) and groups.count("Animal one") == 5 and 0 < groups.count("Plant two") <= 5
    assert {stretch.accession for stretch in stretches} == {"chr1", "chr2", "P1"}
    places = [(x.accession, x.start) for x in stretches]
    assert places == [(x.accession, x.start) for x in read_stretches(sources, tokenizer, 62, 5, seed=1)]
    assert places != [(x.accession, x.start) for x in read_stretches(sources, tokenizer, 62, 5, seed=2)]


def read_records(path):
    for entry in path.read_text().split(">")[1:]:
        head, text = entry.split("\n", 1)
        yield head.split()[0], text.replace("\n", "")


def test_held_out_records_alone_and_only_of_the_same_file(genomes, tokenizer, tmp_path):
    """A manifest that holds chr2 out, with a file that has moved since."""
    found = [scan(source) for source in find_sources([str(genomes)])]
    found[0].records = [
        Record(r.accession, r.bases, "validation" if r.accession == "chr2" else "train") for r in found[0].records
    ]
    listed = [source.to_dict() | {"path": f"elsewhere/{source.path.rpartition('/')[2]}"} for source in found]
    corpus = SimpleNamespace(manifest={"sources": listed}, name="a corpus")
    sources = held_out_sources(corpus, [str(genomes)])
    stretches = read_stretches(sources, tokenizer, 62, 20, seed=0)
    assert {(x.group, x.accession) for x in stretches} == {("Animal one", "chr2")}
    with pytest.raises(UserError, match=r"elsewhere/Animal_one__v1.fa: .* name the folder it is in now with --input"):
        held_out_sources(corpus, None)
    with pytest.raises(UserError, match="which is not there"):
        held_out_sources(corpus, [str(genomes / "Plant_two.fa")])
    (tmp_path / "Animal_one__v1.fa").write_text(">chr2\nACGT\n")
    with pytest.raises(UserError, match="its checksum is another"):
        held_out_sources(corpus, [str(tmp_path)])
    listed[0]["records"] = []
    with pytest.raises(UserError, match="holds no record out"):
        held_out_sources(corpus, [str(genomes)])


def rows_of(result, name):
    [model] = [model for model in result["models"] if model["model"] == name]
    return model["results"]


def test_without_context_every_length_scores_the_same(result):
    for row in rows_of(result, "blind"):
        assert row["status"] == "measured"
        assert row["difference"] == pytest.approx(0, abs=1e-6)
        assert row["bits_per_base"] == pytest.approx(rows_of(result, "blind")[0]["bits_per_base"], rel=1e-6)
    assert any(abs(row["difference"]) > 1e-4 for row in rows_of(result, "alibi"))


def test_what_a_table_of_positions_cannot(result):
    rows = rows_of(result, "learned")
    assert [row["status"] for row in rows] == ["measured", "measured", "cannot"]
    assert rows[2]["reason"] == "the input has 64 tokens, and the model 32 learned positions: cut it."
    assert "bits_per_base" not in rows[2]
    assert [model["positions"] for model in result["models"]] == ["ALiBi", "ALiBi", "32 learned"]
    lines = tables.length(result).splitlines()
    assert lines[0] == "| bits per base | positions | 16 | 32 | 64 | 64 against 16 |"
    bits = [f"{row['bits_per_base']:.3f}" for row in rows[:2]]
    assert lines[4] == f"| learned | 32 learned | {bits[0]} | {bits[1]} | cannot |  |"
    last = rows_of(result, "alibi")[2]
    assert lines[3].endswith(f"| {last['difference']:+.4f} ± {last['standard_error']:.4f} |")


def test_what_is_recorded(result):
    data = result["data"]
    assert result["complete"] and result["lengths"] == LENGTHS and result["provenance"]["versions"]
    assert data["stretches_by_group"] == {"Animal one": 3, "Plant two": 3} and len(data["stretches"]) == 6
    assert [source["file"] for source in data["files"]] == ["Animal_one__v1.fa", "Plant_two.fa"]
    for row in rows_of(result, "alibi"):
        assert row["tokens_per_second"] > 0 and sorted(row["groups"]) == ["Animal one", "Plant two"]
    assert "/" not in json.dumps(data)  # where the files were on this machine


@pytest.mark.parametrize(("length", "row"), [(16, 0), (32, 1)])
def test_the_numbers_written_out(words, models, genomes, tokenizer, tmp_path, length, row):
    """One stretch, one token after the other, each in a sequence of its own."""
    path = tmp_path / "one.json"
    options = {"input": [genomes / "Plant_two.fa"], "stretches": 1, "mlm_probability": 0.3, "seed": 5}
    assert main(words("alibi", output=path, **options)) == 0
    found = json.loads(path.read_text())
    [place] = found["data"]["stretches"]
    text = dict(read_records(genomes / "Plant_two.fa"))[place["accession"]][place["start"] :]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:62]
    [stretch] = read_stretches(all_of([str(genomes / "Plant_two.fa")]), tokenizer, 62, 1, 5)
    assert stretch.ids.tolist() == ids
    labels = mask_stretches([stretch], tokenizer, 0.3, 5).labels[0]
    model = DNABert2ForMaskedLM.from_pretrained(models / "alibi", attn_implementation="eager").eval()
    inner = length - 2
    nats, right, letters, tokens = 0.0, 0, 0, 0
    for place in np.flatnonzero(labels >= 0):
        start = min(place // inner * inner, 62 - inner)
        inside = [4 if labels[i] >= 0 else ids[i] for i in range(start, start + inner)]
        with torch.no_grad():
            logits = model(torch.tensor([[1, *inside, 2]])).logits[0, 1 + place - start].double()
        nats -= float(logits.log_softmax(-1)[ids[place]])
        right += int(logits.argmax()) == ids[place]
        letters += len(tokenizer.convert_ids_to_tokens(ids[place]))
        tokens += 1
    scored = found["models"][0]["results"][row]
    assert (found["data"]["masked_tokens"], found["data"]["masked_bases"]) == (tokens, letters) and tokens > 5
    assert scored["bits_per_base"] == pytest.approx(nats / math.log(2) / letters, rel=1e-5)
    assert scored["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert scored["accuracy"] == pytest.approx(right / tokens)
    assert scored["standard_error"] is None


def test_the_standard_error_is_that_of_paired_differences():
    draw = torch.Generator().manual_seed(0)
    first = torch.rand(6, 4, generator=draw, dtype=torch.float64) + 50
    change = torch.randn(6, generator=draw, dtype=torch.float64)
    first[:, 3] = 200.0  # with equal bases a ratio of sums is a mean
    later = first.clone()
    later[:, 0] += change
    found = scores(later, first)
    bits = change / math.log(2) / 200
    assert found["difference"] == pytest.approx(float(bits.mean()))
    assert found["standard_error"] == pytest.approx(float(bits.std() / math.sqrt(6)))
    # A change that is the same a base in every stretch has no error, however long the stretches.
    first[:, 3] = later[:, 3] = torch.arange(100.0, 106.0)
    later[:, 0] = first[:, 0] + 0.1 * first[:, 3]
    assert scores(later, first)["standard_error"] == pytest.approx(0, abs=1e-12)


def test_bad_input(words, models, genomes, tmp_path, capsys):
    def fails_with(message, *names, **options):
        assert main(words(*(names or ("alibi",)), output=tmp_path / "out" / "x.json", **options)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not (tmp_path / "out" / "x.json").exists()

    fails_with("--lengths 2: must be at least 3", lengths=[2, 16])
    fails_with("--stretches must be at least 1, not 0", stretches=0)
    fails_with("--batch_tokens must be at least 1", batch_tokens=0)
    fails_with("--mlm_probability 1.0: must be between", mlm_probability=1.0)
    fails_with("--seed must be at least 0", seed=-1)
    fails_with("give --corpus, whose held-out records", input=None)
    fails_with("no such folder; build a corpus", corpus=tmp_path / "absent")
    fails_with("no precision 'int8'", dtype="int8")
    fails_with("'tpu' is not", device="tpu")
    fails_with("absent: no such folder; give a model folder", "absent")
    fails_with("two of them are called alibi", "alibi", "alibi")
    fails_with("no held-out record has 9,998 tokens without an N", lengths=[16, 10_000])
    fails_with("leaves a stretch without a masked token", mlm_probability=1e-6)
    fails_with("no such file or folder", input=[tmp_path / "absent.fa"])
    other = tmp_path / "other"
    DNABert2ForMaskedLM(DNABert2Config(**SIZES)).save_pretrained(other)
    write_tokenizer(OURS / "tokenizer.json", other)
    rules = json.loads((OURS / "tokenizer.json").read_text())
    vocabulary = rules["model"]["vocab"]
    vocabulary["A"], vocabulary["C"] = vocabulary["C"], vocabulary["A"]
    (other / "tokenizer.json").write_text(json.dumps(rules))
    fails_with("has another tokenizer than", "alibi", other)
