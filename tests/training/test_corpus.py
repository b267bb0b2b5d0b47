"""build-corpus: coordinates, policies, weights, what is held out, and what happens when it is interrupted or fails."""

import errno
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dnabert2.cli import main
from dnabert2.errors import UserError
from dnabert2.fasta import read_fasta
from dnabert2.genome.strands import reverse_complement
from dnabert2.tokenizer.files import OURS, load_tokenizer
from dnabert2.training import corpus as corpus_module
from dnabert2.training.corpus_sources import Record, Source, hold_out, parse_weights, passes_by_group
from dnabert2.training.corpus_windows import WindowPolicy, cut_windows


class Inline(Executor):
    """A pool of this very process."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Function: run the verb in this process."""
    monkeypatch.setattr(corpus_module, "ProcessPoolExecutor", Inline)

    def run(inputs, output=tmp_path / "corpus", **options):
        words = ["--input", *map(str, inputs), "--output", str(output)]
        for key, value in {"window_tokens": 30, "min_tokens": 1, "shards": 2, **options}.items():
            words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        return main(["build-corpus", *words])

    return run


def rows_of(corpus: Path, split: str = "train") -> list[dict]:
    return [row for path in sorted((corpus / split).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def chromosomes(genomes: Path) -> dict[tuple[str, str], str]:
    files = {"Animal one": "Animal_one__v1.fa", "Bacterium two": "Bacterium_two.fna.gz"}
    return {(species, name): text for species, file in files.items() for name, text in read_fasta(genomes / file)}


def fingerprint(corpus: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(corpus.rglob("*.parquet")):
        digest.update(str(path.relative_to(corpus)).encode() + path.read_bytes())
    return digest.hexdigest()


def test_every_row_is_what_stands_at_its_coordinates(corpus, genomes):
    tokenizer = load_tokenizer(corpus / "tokenizer")
    texts = chromosomes(genomes)
    strands = set()
    for row in rows_of(corpus) + rows_of(corpus, "validation"):
        assert row["group"] == row["species"]
        there = texts[row["species"], row["accession"]][row["start"] : row["end"]].upper()
        there = reverse_complement(there) if row["strand"] == "-" else there
        assert "".join(tokenizer.convert_ids_to_tokens(row["input_ids"])) == there
        assert 4 <= len(row["input_ids"]) <= 30
        strands.add(row["strand"])
    assert strands == {"+", "-"}


def test_one_pass_takes_every_base_once_and_cuts_elsewhere_with_another_seed(genomes, build, tmp_path):
    texts = chromosomes(genomes)
    starts = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        assert build([genomes], folder, seed=seed, balance=1, held_out_share=0) == 0
        rows = sorted(rows_of(folder), key=lambda row: (row["species"], row["accession"], row["start"]))
        taken = dict.fromkeys(texts, "")
        for row in rows:
            key = row["species"], row["accession"]
            taken[key] += texts[key][row["start"] : row["end"]].upper()
        assert taken == {key: text.upper().replace("N", "").replace("R", "") for key, text in texts.items()}
        full = sum(len(row["input_ids"]) == 30 for row in rows)
        assert full > 0.95 * len(rows)
        starts.append({row["start"] for row in rows})
    assert len(starts[0] & starts[1]) < 0.2 * len(starts[0])


def test_n_and_soft_mask_policies(genomes, build, tmp_path):
    animal = [genomes / "Animal_one__v1.fa"]
    assert build(animal, tmp_path / "keep", n="keep", held_out_share=0) == 0
    assert build(animal, tmp_path / "split", soft_mask="split", held_out_share=0) == 0
    kept = rows_of(tmp_path / "keep")
    unknown = sum(row["input_ids"].count(0) for row in kept)
    assert unknown == 51 and sum(row["end"] - row["start"] for row in kept) == 56_000
    rows = [row for row in rows_of(tmp_path / "split") if row["accession"] == "chr1"]
    assert all(row["end"] <= 9_000 or row["start"] >= 20_000 for row in rows)
    assert sum(row["end"] - row["start"] for row in rows) == 30_000 - 11_000 - 1


def test_long_runs_of_n_take_no_longer_than_sequence():
    policy = WindowPolicy(str(OURS), n="keep")
    text = "ACGTTGCA" * 20 + "N" * 200_000 + "GATTACA" * 20
    start = time.monotonic()
    windows = cut_windows(text, 0, False, policy, np.random.default_rng(0))
    assert time.monotonic() - start < 20  # seconds; a pattern that looks ahead from every N takes minutes
    assert windows.starts[0] == 0 and windows.ends[-1] == len(text)
    assert not len(cut_windows("N" * 500, 0, False, policy, np.random.default_rng(0)).starts)


def test_manifest_counts_what_is_there(corpus, genomes):
    manifest = json.loads((corpus / "manifest.json").read_text())
    for split, counts in manifest["splits"].items():
        rows = rows_of(corpus, split)
        assert counts["rows"] == len(rows) == sum(shard["rows"] for shard in counts["shards"])
        assert counts["tokens"] == sum(len(row["input_ids"]) for row in rows)
        assert counts["bases"] == sum(row["end"] - row["start"] for row in rows)
        for shard in counts["shards"]:
            content = (corpus / shard["file"]).read_bytes()
            assert shard["sha256"] == hashlib.sha256(content).hexdigest() and shard["bytes"] == len(content)
    by_name = {Path(source["path"]).name: source for source in manifest["sources"]}
    animal = by_name["Animal_one__v1.fa"]
    assert animal["sha256"] == hashlib.sha256((genomes / "Animal_one__v1.fa").read_bytes()).hexdigest()
    assert animal["letters"] == {"lower_case": 10_950, "uracil": 0, "ambiguous": 1, "n": 50}
    assert [record["split"] for record in animal["records"]] == ["train", "train", "validation"]
    assert not (corpus / ".work").exists()


def test_held_out_records_are_held_out_whole(corpus):
    held = {(row["species"], row["accession"]) for row in rows_of(corpus, "validation")}
    trained = {(row["species"], row["accession"]) for row in rows_of(corpus)}
    assert held == {("Animal one", "chr3"), ("Bacterium two", "plasmid")} and not held & trained
    assert {row["strand"] for row in rows_of(corpus, "validation")} == {"+"}


def source(group, *bases, split=None, species=None):
    records = [Record(f"{group}{i}", n) for i, n in enumerate(bases)]
    return Source(f"{group}.fa", species or group, group, split, records=records)


def splits(sources):
    return [[record.split for record in source.records] for source in sources]


def test_what_is_held_out():
    sources = [source("a", 100, 10, 5), source("b", 50), source("c", 60, 40)]
    assert hold_out(sources, [], 0.12) == ["b"]  # of b there is but one record
    # a: its longest record within 12 % of 115 bases; c: none fits, so its shortest.
    assert splits(sources) == [["train", "validation", "train"], ["train"], ["train", "validation"]]
    # A worm's chromosomes and its mitochondrion, far below the share: a whole chromosome instead.
    sources = [source("worm", 150, 152, 137, 175, 209, 177, 1), source("bacterium", 400, 2)]
    assert hold_out(sources, [], 0.02) == []
    assert splits(sources)[0] == ["train", "train", "validation", "train", "train", "train", "train"]
    assert splits(sources)[1] == ["train", "validation"]  # not its only chromosome
    sources = [source("a", 1, 2), source("b", 3, split="validation"), source("c", 4, species="Danio rerio")]
    assert hold_out(sources, ["a1", "Danio*"], 0.5) == []
    assert splits(sources) == [["train", "validation"], ["validation"], ["validation"]]
    sources = [source("a", 1, 2), source("b", 3)]
    hold_out(sources, ["a:a0"], 0.5)
    assert splits(sources) == [["validation", "train"], ["train"]]
    with pytest.raises(UserError, match="--held_out nothing: matches no"):
        hold_out(sources, ["nothing"], 0)
    with pytest.raises(UserError, match="every record is held out"):
        hold_out(sources, ["*"], 0)


def test_weights_by_group():
    sizes = {"bacteria": 900, "plant": 100}
    assert passes_by_group(sizes, 1, 1.0, {}, 8) == pytest.approx({"bacteria": 1, "plant": 1})
    equal = passes_by_group(sizes, 1, 0.0, {}, 8)
    assert {group: sizes[group] * times for group, times in equal.items()} == pytest.approx(
        {"bacteria": 500, "plant": 500}
    )
    half = passes_by_group(sizes, 2, 0.5, {"bacteria": 0.5}, 8)  # 0.5 * 30 to 10
    assert {group: sizes[group] * times for group, times in half.items()} == pytest.approx(
        {"bacteria": 1200, "plant": 800}
    )
    assert passes_by_group(sizes, 4, 0.0, {}, 8)["plant"] == 8
    assert passes_by_group(sizes, 1, 1.0, {"plant": 0}, 8)["plant"] == 0
    assert parse_weights("bacteria=0.5, plant=2") == {"bacteria": 0.5, "plant": 2.0} and parse_weights(None) == {}
    for text in ("bacteria", "=2", "plant=much"):
        with pytest.raises(UserError, match="--group_weights"):
            parse_weights(text)
    for weights in ({"fish": 1}, {"plant": -1}, {"plant": 0, "bacteria": 0}):
        with pytest.raises(UserError, match="--group_weights"):
            passes_by_group(sizes, 1, 1.0, weights, 8)


def test_passes_show_in_the_corpus(corpus):
    groups = json.loads((corpus / "manifest.json").read_text())["splits"]["train"]["groups"]
    # Two passes of 90,000 training bases, shared as the square roots of 50,000 and 40,000 are; chunks are 200,000
    # bases, so that a fractional pass is one more or one less.
    assert 0.8 < groups["Animal one"]["bases"] / 50_000 < 2.1
    assert 0.8 < groups["Bacterium two"]["bases"] / 40_000 < 3.1


@pytest.mark.parametrize("seed", [0, 2, 3])  # with seed 1 nothing is left, which is an error
def test_a_fraction_of_a_pass_leaves_chunks_out(genomes, build, tmp_path, seed):
    """Whole parts as well: here every chunk is one, and each comes with odds of a quarter or so."""
    assert build([genomes], passes=0.25, balance=1, part_bases=1, seed=seed, held_out=["chr3"]) == 0
    rows = rows_of(tmp_path / "corpus")
    taken = {(row["species"], row["accession"]) for row in rows}
    assert len(taken) < len(chromosomes(genomes)) - 1
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["rows"] == len(rows)
    assert len(rows_of(tmp_path / "corpus", "validation")) == manifest["splits"]["validation"]["rows"] > 0


def test_the_same_corpus_whatever_the_processes(genomes, corpus, tmp_path):
    for workers in (1, 2):
        words = ["--input", genomes, "--output", tmp_path / str(workers), "--workers", workers, "--part_bases", 20_000]
        assert main(["build-corpus", *map(str, words)]) == 0
    assert fingerprint(tmp_path / "1") == fingerprint(tmp_path / "2")


def test_a_table_names_species_groups_and_splits(genomes, build, tmp_path, capsys):
    table = tmp_path / "table.tsv"
    table.write_text(
        "file\tspecies\tgroup\tsplit\nAnimal_one__v1.fa\tAnimal unus\tanimals\t\n"
        "genomes/Bacterium_two.fna.gz\tB. two\tbacteria\tvalidation\n"
    )
    assert build([genomes], table=table) == 0
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    assert list(manifest["splits"]["train"]["groups"]) == ["animals"]
    assert list(manifest["splits"]["validation"]["groups"]) == ["bacteria"]
    assert manifest["without_validation"] == ["animals"]
    assert "nothing is held out of: animals" in capsys.readouterr().out
    for content, message in (
        ("name\tgroup\n", "no column 'file'"),
        ("file\tgroup\tsplit\nAnimal_one__v1.fa\tx\ttest\n", "has the split 'test'"),
    ):
        table.write_text(content)
        assert build([genomes], tmp_path / "other", table=table) == 2
        assert message in capsys.readouterr().err


def test_it_streams_through_datasets(corpus):
    from datasets import load_dataset

    streams = load_dataset(str(corpus), streaming=True)
    assert set(streams) == {"train", "validation"}
    first = next(iter(streams["train"]))
    assert first == rows_of(corpus)[0]


def test_killed_at_any_moment_it_continues(genomes, tmp_path):
    words = ["--input", genomes, "--window_tokens", 30, "--shards", 2, "--part_bases", 1, "--workers", 1]
    # Chunks are 200,000 bases: many copies of the genomes make many parts.
    copies = tmp_path / "copies"
    copies.mkdir()
    for i in range(40):
        (copies / f"Species_{i}.fa").write_bytes((genomes / "Animal_one__v1.fa").read_bytes())
    words[1] = copies
    command = [sys.executable, "-m", "dnabert2", "build-corpus", *map(str, words), "--output"]
    assert subprocess.run([*command, tmp_path / "whole"], capture_output=True).returncode == 0
    killed = 0
    for wanted in (1, 12, 60):
        process = subprocess.Popen([*command, tmp_path / "killed"], stdout=subprocess.DEVNULL)
        work = tmp_path / "killed" / ".work"
        while process.poll() is None and len(list(work.glob("part-*.parquet"))) < wanted:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 2 and not (tmp_path / "killed" / "manifest.json").exists()
    done = subprocess.run([*command, tmp_path / "killed"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("killed", "whole")]
    assert manifests[0]["splits"] == manifests[1]["splits"]
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def test_a_whole_corpus_is_left_alone_and_another_is_refused(genomes, build, tmp_path, capsys):
    assert build([genomes]) == 0
    before = fingerprint(tmp_path / "corpus")
    assert build([genomes]) == 0
    assert "already holds this corpus" in capsys.readouterr().out
    assert build([genomes], seed=1) == 2
    assert "holds a corpus of other settings (seed)" in capsys.readouterr().err
    assert fingerprint(tmp_path / "corpus") == before
    assert build([genomes], seed=1, overwrite=True) == 0
    assert fingerprint(tmp_path / "corpus") != before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    assert build([genomes], tmp_path / "notes") == 2
    assert "is not empty, and holds no corpus" in capsys.readouterr().err
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"


def test_other_files_are_noticed_and_replaced(genomes, build, tmp_path, capsys):
    folder = tmp_path / "genomes"
    folder.mkdir()
    (folder / "One.fa").write_bytes((genomes / "Animal_one__v1.fa").read_bytes())
    assert build([folder]) == 0
    before = fingerprint(tmp_path / "corpus")
    (folder / "Two.fa.gz").write_bytes((genomes / "Bacterium_two.fna.gz").read_bytes())
    assert build([folder]) == 2
    assert "was built from other files than there are now" in capsys.readouterr().err
    (tmp_path / "corpus" / ".work").mkdir()  # as if killed after the manifest
    (folder / "Two.fa.gz").rename(tmp_path / "Two.fa.gz")
    assert build([folder]) == 0 and fingerprint(tmp_path / "corpus") == before
    assert not (tmp_path / "corpus" / ".work").exists()
    (tmp_path / "Two.fa.gz").rename(folder / "Two.fa.gz")
    assert build([folder], overwrite=True) == 0
    assert fingerprint(tmp_path / "corpus") != before
    # An unfinished one, begun with other files.
    manifest = tmp_path / "corpus" / "manifest.json"
    content = json.loads(manifest.read_text())
    (tmp_path / "corpus" / ".work").mkdir()
    plan = {"settings": content["settings"], "sources": content["sources"][:1]}
    (tmp_path / "corpus" / ".work" / "plan.json").write_text(json.dumps(plan))
    manifest.unlink()
    assert build([folder]) == 2
    assert "add --overwrite to begin again" in capsys.readouterr().err
    assert build([folder], overwrite=True) == 0
    manifest.write_text("[]")
    assert build([folder]) == 2
    assert "manifest.json: is damaged, or not of a corpus" in capsys.readouterr().err


def test_finished_shards_are_kept(genomes, build, tmp_path, capsys, monkeypatch):
    whole, calls = corpus_module.write_shard, []

    def fill(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[2]))
        return whole(*args)

    monkeypatch.setattr(corpus_module, "write_shard", fill)
    assert build([genomes]) == 2
    capsys.readouterr()
    (tmp_path / "corpus" / "train" / "train-00001-of-00002.parquet.123.tmp").write_bytes(b"half")
    assert build([genomes]) == 0
    first = [args[1] for args in calls].count(calls[0][1])
    assert first == 1 and len(calls) == 4  # two of training, one held out, one of them twice
    assert not list((tmp_path / "corpus").rglob("*.tmp"))


def test_a_full_disk_leaves_what_is_finished(genomes, build, tmp_path, capsys, monkeypatch):
    whole, calls = corpus_module.write_part, []

    def fill(path, *rest):
        calls.append(path)
        if 3 <= len(calls) <= 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return whole(path, *rest)

    monkeypatch.setattr(corpus_module, "write_part", fill)
    copies = [genomes / "Animal_one__v1.fa"]
    for i in range(4):
        copies.append(tmp_path / f"Copy_{i}.fa")
        copies[-1].write_bytes(copies[0].read_bytes())
    assert build(copies, part_bases=1) == 2
    captured = capsys.readouterr().err
    assert "No space left on device; what is finished is whole" in captured and captured.count("error:") == 1
    kept = sorted((tmp_path / "corpus" / ".work").glob("part-*.parquet"))
    assert len(kept) == 2 and all(pq.read_table(path).num_rows for path in kept)
    calls += [None] * 10  # there is room again
    stamps = [path.stat().st_mtime_ns for path in kept]
    monkeypatch.setattr(corpus_module, "shutil", type("Keep", (), {"rmtree": staticmethod(lambda *a, **k: None)}))
    assert build(copies, part_bases=1) == 0
    assert [path.stat().st_mtime_ns for path in kept] == stamps


def test_bad_input(genomes, build, tmp_path, capsys):
    def fails_with(message, inputs, **options):
        assert build(inputs, **options) == 2
        captured = capsys.readouterr().err
        assert message in captured and captured.count("error:") == 1 and "Traceback" not in captured
        assert not (tmp_path / "corpus" / "manifest.json").exists()

    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    bases = "".join(random.Random(0).choices("ACGT", k=100_000)).encode()
    cut = gzip.compress(b">a\n" + bases + b"\n")
    fails_with("cut.fa.gz: is damaged or cut short", [genomes, write("cut.fa.gz", cut[: len(cut) // 2])])
    fails_with("is not DNA", [genomes, write("protein.fa", b">p\nMKVLAAGIVGLCAKAYLEQ\n")])
    fails_with("holds 'J'", [write("odd.fa", b">o\n" + bases + b"J\n")])
    twice = write("Animal_one__v2.fa", b">chr1\n" + bases + b"\n")
    fails_with("the accession chr1 of Animal one is also in", [genomes, twice])
    fails_with("no such file or folder", [tmp_path / "absent.fa"])
    fails_with("--min_tokens 50", [genomes], min_tokens=50)
    fails_with("--held_out chrX", [genomes], held_out=["chrX"])
    fails_with("there is no group 'fish'", [genomes], group_weights="fish=1")
    fails_with("no such file; give a tab-separated table", [genomes], table=tmp_path / "absent.tsv")
    other = write("other.tsv", b"file\tgroup\nElsewhere.fa\tx\n")
    fails_with("names none of the input files, Animal_one__v1.fa the first", [genomes], table=other)
    fails_with("--seed must be at least 0", [genomes], seed=-1)
    fails_with("no tokenizer", [genomes], tokenizer=tmp_path)
    fails_with("not one window to train on; raise --passes (1e-06 here)", [genomes], passes=1e-6)
    assert main(["build-corpus", "--input", str(genomes)]) == 2
    assert "--output is missing" in capsys.readouterr().err
    assert main(["build-corpus", "--output", str(tmp_path / "x")]) == 2
    assert "--input is missing" in capsys.readouterr().err
