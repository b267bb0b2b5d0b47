"""`gue probe` on tiny networks and tables: vectors, the cache, resuming, failures, and what is learnt."""

import random

import numpy as np
import pytest
import torch
from foreign_models import dnabert

from dnabert2 import DNABert2ForMaskedLM, DNABert2Model
from dnabert2.errors import UserError
from dnabert2.gue_eval import embeddings, probe
from dnabert2.gue_eval.embeddings import embed_cached, load_embedder
from dnabert2.gue_eval.probe import choose_strength, draw_shots, main, probe_vectors
from dnabert2.gue_eval.records import load_records
from dnabert2.inference.defaults import POOLINGS
from dnabert2.tokenizer.files import OURS, load_tokenizer, write_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory, build):
    """A folder with a network of ours under known weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build(DNABert2ForMaskedLM, vocab_size=4096).save_pretrained(folder)
    write_tokenizer(OURS / "tokenizer.json", folder)
    return folder


def write_task(folder, rows: dict[str, int], seed: int):
    """Class 1 is rich in C and G: a difference of composition, which every embedding shows."""
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    for split, count in rows.items():
        lines = ["sequence,label"]
        for i in range(count):
            weights = (1, 3, 3, 1) if i % 2 else (3, 1, 1, 3)
            lines.append("".join(draw.choices("ACGT", weights, k=draw.randint(30, 60))) + f",{i % 2}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def gue(tmp_path):
    """Two whole tasks, and one without a training table."""
    for task, seed in (("mouse/2", 1), ("tf/0", 2)):
        write_task(tmp_path / "gue" / task, {"train": 120, "dev": 10, "test": 60}, seed)
    write_task(tmp_path / "gue" / "EMP" / "H3", {"dev": 10, "test": 10}, 3)
    return tmp_path / "gue"


def sequences(count: int = 24) -> list[str]:
    draw = random.Random(4)
    return ["".join(draw.choices("ACGT", k=draw.randint(8, 90))) for _ in range(count)]


def by_hand(folder, rows: list[str], pooling: str) -> np.ndarray:
    """The readable twin: one sequence at a time, no pads, no batches."""
    network, tokenizer = DNABert2Model.from_pretrained(folder, add_pooling_layer=False).eval(), load_tokenizer(folder)
    vectors = []
    for row in rows:
        with torch.no_grad():
            hidden = network(torch.tensor([tokenizer(row)["input_ids"]])).last_hidden_state[0]
        vectors.append({"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0)}[pooling].numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings_are_those_of_single_sequences_whatever_the_batch(model, pooling):
    expected = by_hand(model, sequences(), pooling)
    for batch_size in (1, 5, 64):
        found = load_embedder(str(model), pooling=pooling, batch_size=batch_size).embed(sequences())
        assert found.dtype == np.float32 and found == pytest.approx(expected, abs=1e-4)


def test_the_cache_gives_what_was_computed_and_a_killed_run_goes_on(model, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "CHUNK", 10)
    embedder, rows, seen = load_embedder(str(model)), sequences(), []
    compute = embedder.embed

    def stopping(chunk, pairs):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(chunk))
        return compute(chunk, pairs)

    embedder.embed = stopping
    with pytest.raises(KeyboardInterrupt):
        embed_cached(embedder, rows, None, tmp_path)
    embedder.embed = lambda chunk, pairs: seen.append(len(chunk)) or compute(chunk, pairs)
    first = embed_cached(embedder, rows, None, tmp_path)
    again = embed_cached(embedder, rows, None, tmp_path)
    assert seen == [10, 10, 4]  # nothing was computed twice
    assert (first.vectors == again.vectors).all() and first.seconds == again.seconds > 0
    assert first.vectors == pytest.approx(compute(rows), abs=1e-5)
    # A damaged file is made again, and other pooling is other vectors.
    next(tmp_path.rglob("*.npz")).write_bytes(b"PK torn")
    assert (embed_cached(embedder, rows, None, tmp_path).vectors == first.vectors).all() and len(seen) == 4
    other = embed_cached(load_embedder(str(model), pooling="max"), rows, None, tmp_path)
    assert np.abs(other.vectors - first.vectors).max() > 0.01
    assert not list(tmp_path.rglob("*.tmp"))


def test_models_of_other_people_are_cut_to_their_positions(tmp_path):
    """DNABERT reads 3-mers and has 40 positions."""
    embedder = load_embedder(str(dnabert(tmp_path / "dnabert3", 3)), batch_size=4)
    rows = ["ACGTTGCAAC", "TTGACA", "ACGT" * 30]
    found = embed_cached(embedder, rows, None, tmp_path / "cache")
    assert found.truncated == 1 and found.vectors.shape == (3, 16)
    cut = embedder.embed([rows[2][:40]])  # 38 3-mers and two special tokens
    assert found.vectors[2] == pytest.approx(cut[0], abs=1e-5)
    assert embed_cached(embedder, rows, None, tmp_path / "cache").truncated == 1


def test_the_floors_of_the_probe(model):
    counts = load_embedder("kmer-counts").embed(["AAAAA", "ACGTACGT"])
    assert counts.shape == (2, 256) and counts[0, 0] == 2 and counts.sum(axis=1).tolist() == [2, 5]
    random_init, again = (load_embedder(f"random-init:{model}") for _ in range(2))
    trained = load_embedder(str(model))
    assert random_init.parameters == trained.parameters > 0
    found = random_init.embed(sequences())
    assert (found == again.embed(sequences())).all()
    assert np.abs(found - trained.embed(sequences())).max() > 0.1
    assert random_init.identity == again.identity != trained.identity


def vectors(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One dimension a class that tells it, weakly, among ten that tell nothing."""
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    table = draw.normal(size=(rows, classes + 10)).astype(np.float32)
    table[np.arange(rows), labels] += 2
    return 100 * table + 7, labels


def test_protocols_and_their_numbers():
    (train, labels), (test, test_labels) = vectors(300, 3), vectors(90, 3, seed=1)
    tables = {"train": train, "test": test}, {"train": labels, "test": test_labels}
    found = probe_vectors(*tables, 3, [None, 10, 1], [1, 2, 3])
    assert list(found) == ["full", "10-shot", "1-shot"] and found["full"]["C"] in probe.STRENGTHS
    auroc = [found[name]["auroc"] for name in found]
    assert auroc[0]["mean"] > auroc[1]["mean"] > auroc[2]["mean"] > 0.5 and auroc[0]["mean"] > 0.9
    assert [len(x["seeds"]) for x in auroc] == [1, 3, 3] and auroc[0]["standard_deviation"] is None
    assert auroc[1]["mean"] == pytest.approx(np.mean(auroc[1]["seeds"]))
    assert auroc[1]["standard_deviation"] == pytest.approx(np.std(auroc[1]["seeds"], ddof=1))
    assert probe_vectors(*tables, 3, [10], [1, 2, 3])["10-shot"] == found["10-shot"]
    with pytest.raises(UserError, match="class 3 has no training row"):
        probe_vectors(*tables, 4, [1], [1])


def test_shots_and_strength():
    labels = np.array([0] * 50 + [1] * 4)
    rows = draw_shots(labels, 10, seed=1)
    assert np.bincount(labels[rows]).tolist() == [10, 4] and len(set(rows)) == 14
    assert set(rows) != set(draw_shots(labels, 10, seed=2))
    features, classes = vectors(200, 2)
    noise = np.random.default_rng(0).normal(size=(200, 400))
    standardised = np.hstack([(features - 7) / 100, noise])
    assert choose_strength(standardised, classes) < max(probe.STRENGTHS)  # noise is held down


def arguments(model, gue, tmp_path, *more) -> list[str]:
    output = ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    return ["--model", str(model), "--data", str(gue), *output, *more]


def test_the_verb_writes_records_skips_what_is_done_and_says_what_is_left_out(model, gue, tmp_path, capsys):
    assert main(arguments(model, gue, tmp_path, "--seeds", "2")) == 0
    said = capsys.readouterr().out
    assert "EMP/H3 is left out: train missing" in said
    line = next(line for line in said.splitlines() if line.startswith("mouse/2 "))
    records = {record["task"]: record for record in load_records([tmp_path / "out"])}
    assert set(records) == {"mouse/2", "tf/0"}
    record = records["mouse/2"]
    assert record["status"] == "finished" and record["model"] == str(model) and record["pooling"] == "mean"
    assert list(record["protocols"]) == ["full", "10-shot", "1-shot"] and record["provenance"]["device"]
    assert record["data"]["rows"] == {"train": 120, "test": 60} and record["settings"]["encoder"]["sha256"]
    ours = [f"{100 * record['protocols'][name]['auroc']['mean']:.1f}" for name in record["protocols"]]
    assert line.split()[1:] == [*ours, "93.1", "92.7", "89.4", "93.5", "93.3"]
    assert record["protocols"]["full"]["auroc"]["mean"] > 0.6  # even with weights that learnt nothing
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert main(arguments(model, gue, tmp_path, "--seeds", "2")) == 0
    assert capsys.readouterr().out.count("finished already") == 2
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    # Other data or options are probed again, under the same name.
    test = gue / "tf" / "0" / "test.csv"
    test.write_text(test.read_text() + "ACGTACGTACGT,1\n")
    assert main(arguments(model, gue, tmp_path, "--seeds", "2")) == 0
    assert capsys.readouterr().out.count("finished already") == 1
    assert main(arguments(model, gue, tmp_path, "--shots", "1", "--tasks", "tf/0")) == 0
    records = {record["task"]: record for record in load_records([tmp_path / "out"])}
    assert list(records["tf/0"]["protocols"]) == ["1-shot"] and len(records["mouse/2"]["protocols"]) == 3


def test_composition_is_seen_by_the_floor_of_4_mers(gue, tmp_path):
    assert main(arguments("kmer-counts", gue, tmp_path, "--tasks", "mouse", "--seeds", "2")) == 0
    found = load_records([tmp_path / "out"])[0]
    auroc = {name: scores["auroc"]["mean"] for name, scores in found["protocols"].items()}
    assert found["parameters"] == 0 and found["dimensions"] == 256
    assert auroc["full"] > 0.95 and auroc["10-shot"] > 0.8


def test_a_task_that_fails_is_recorded_and_does_not_end_the_others(model, gue, tmp_path, capsys):
    train = gue / "mouse" / "2" / "train.csv"
    whole = train.read_text()
    train.write_text(whole + "ACGJ,1\n")
    assert main(arguments(model, gue, tmp_path, "--shots", "1")) == 1
    captured = capsys.readouterr()
    assert "1 probes failed; the first is" in captured.err
    records = {record["task"]: record for record in load_records([tmp_path / "out"])}
    assert records["mouse/2"]["status"] == "failed" and "line 122" in records["mouse/2"]["error"]
    assert records["tf/0"]["status"] == "finished" and "protocols" not in records["mouse/2"]
    train.write_text(whole)
    assert main(arguments(model, gue, tmp_path, "--shots", "1")) == 0
    assert {record["status"] for record in load_records([tmp_path / "out"])} == {"finished"}


def test_bad_input_is_one_sentence(model, gue, tmp_path, capsys):
    def fails_with(message: str, *words):
        assert main(list(words)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("error:") == 1 and "Traceback" not in error

    fails_with("no such folder", *arguments(model, tmp_path / "absent", tmp_path))
    fails_with("no such folder", *arguments(tmp_path / "absent", gue, tmp_path))
    fails_with("there is no GUE task 'mose/2'", *arguments(model, gue, tmp_path, "--tasks", "mose/2"))
    fails_with("none of the tasks is whole", *arguments(model, gue, tmp_path, "--tasks", "EMP"))
    fails_with("--shots 0", *arguments(model, gue, tmp_path, "--shots", "0"))
    fails_with("--device abacus", *arguments(model, gue, tmp_path, "--device", "abacus"))
    fails_with("there is no precision 'float8'", *arguments(model, gue, tmp_path, "--dtype", "float8"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kmer-counts--tf_0--probe.json").write_text("{")
    fails_with("no record of a probe", *arguments("kmer-counts", gue, tmp_path, "--tasks", "tf/0"))
