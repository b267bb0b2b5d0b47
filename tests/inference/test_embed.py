"""The verb `embed`: every input and output once, and for what cannot be used one sentence that names it."""

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from foreign_models import dnabert

from dnabert2.cli import main
from dnabert2.genome.base_map import spread, token_spans
from dnabert2.genome.strands import reverse_complement
from dnabert2.inference.embedding import Embedding
from dnabert2.inference.models import load_encoder

READS = {"a": "ACGTTGCA" * 20, "b": "GATTACANNNGATTACA", "c": "TTGACATTGACA" * 9, "d": "A"}


@pytest.fixture(scope="module")
def loaded(tiny):
    return load_encoder(str(tiny))


@pytest.fixture
def fasta(tmp_path) -> Path:
    path = tmp_path / "reads.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in READS.items()))
    return path


def embed(tiny, *words) -> int:
    return main(["embed", "--model", str(tiny), "--device", "cpu", *map(str, words)])


def vectors_of(path: Path, column: str = "embedding") -> np.ndarray:
    return np.array(pq.read_table(path).column(column).to_pylist(), dtype=np.float32)


def test_every_input_gives_the_same_vectors(tiny, loaded, fasta, tmp_path):
    expected = Embedding(loaded).vectors(list(READS.values()))
    table = pd.DataFrame({"id": list(READS), "sequence": [s.lower() for s in READS.values()]})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv.gz", index=False, sep="\t")
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    table.rename(columns={"id": "name", "sequence": "dna"}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.fq.gz").write_bytes(
        gzip.compress("".join(f"@{name}\n{s}\n+\n{'I' * len(s)}\n" for name, s in READS.items()).encode())
    )
    genome = tmp_path / "genome.fa"
    genome.write_text(f">chr1\n{''.join(READS.values())}\n>chr2\n{reverse_complement(READS['c'])}\n")
    ends = np.cumsum([0, *map(len, READS.values())])
    places = {name: ("chr1", ends[i], ends[i + 1], "+") for i, name in enumerate(READS)}
    places["c"] = ("chr2", 0, len(READS["c"]), "-")
    lines = (f"{chrom}\t{low}\t{high}\t{name}\t0\t{strand}" for name, (chrom, low, high, strand) in places.items())
    (tmp_path / "a.bed").write_text("\n".join(lines))
    inputs = {name: [] for name in ("reads.fa", "a.csv", "a.tsv.gz", "a.jsonl", "a.fq.gz")}
    inputs["a.parquet"] = ["--sequence_column", "dna", "--id_column", "name"]
    inputs["a.bed"] = ["--fasta", genome]
    for name, options in inputs.items():
        output = tmp_path / f"{name}.out.parquet"
        assert embed(tiny, "--input", tmp_path / name, "--output", output, *options) == 0
        assert pq.read_table(output).column("id").to_pylist() == list(READS)
        assert vectors_of(output) == pytest.approx(expected, abs=1e-5)
    described = json.loads(pq.read_schema(output).metadata[b"dnabert2"])
    assert described["model"] == str(tiny) and described["pooling"] == "mean" and len(described["sha256"]) == 64
    assert described["text"] == {"upper_case": True, "u_to_t": True, "iupac": "n", "n": "keep"}


def test_every_output_holds_the_same_vectors(tiny, loaded, fasta, tmp_path, capsysbinary):
    expected = Embedding(loaded, pooling="max").vectors(list(READS.values()))
    names = ("out.parquet", "folder", "out.npy", "out.tsv", "out.jsonl", "out.csv", "-")
    for name in names:
        words = ["--input", fasta, "--output", name if name == "-" else tmp_path / name, "--pooling", "max"]
        assert embed(tiny, *words, *(["--format", "tsv"] if name in ("out.csv", "-") else [])) == 0
    stdout = capsysbinary.readouterr().out.decode()
    assert stdout == (tmp_path / "out.tsv").read_text() == (tmp_path / "out.csv").read_text()
    table = pd.read_csv(io.StringIO(stdout), sep="\t")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = [
        vectors_of(tmp_path / "out.parquet"),
        vectors_of(tmp_path / "folder"),
        np.load(tmp_path / "out.npy"),
        table.iloc[:, 1:].to_numpy(np.float32),
        np.array([line["embedding"] for line in lines], dtype=np.float32),
    ]
    for vectors in found:
        assert np.array_equal(vectors, found[0]) and vectors == pytest.approx(expected, abs=1e-5)
    rows = pd.read_csv(tmp_path / "out.npy.rows.tsv", sep="\t")
    assert table["id"].tolist() == rows["id"].tolist() == [line["id"] for line in lines] == list(READS)


def test_tokens_and_bases_have_places(tiny, loaded, fasta, tmp_path):
    options = ["--input", fasta, "--window", 20, "--overlap", 6]
    for pooling in ("tokens", "bases"):
        assert embed(tiny, *options, "--output", tmp_path / f"{pooling}.parquet", "--pooling", pooling) == 0
    tokens, bases = (pq.read_table(tmp_path / f"{name}.parquet").to_pandas() for name in ("tokens", "bases"))
    assert list(tokens.columns) == ["id", "start", "end", "token", "embedding"]
    assert list(bases.columns) == ["id", "position", "base", "embedding"]
    for name, sequence in READS.items():
        own, own_bases = tokens[tokens.id == name], bases[bases.id == name]
        (spans,) = token_spans(loaded.tokenizer, sequence)
        assert own[["start", "end"]].to_numpy().tolist() == spans[1:-1].tolist()
        assert (
            own["token"].tolist()
            == loaded.tokenizer.convert_ids_to_tokens(loaded.tokenizer(sequence)["input_ids"])[1:-1]
        )
        assert "".join(own_bases["base"]) == sequence and own_bases["position"].tolist() == list(range(len(sequence)))
        of_tokens = np.stack(own["embedding"].to_list())
        assert np.array_equal(
            spread(of_tokens, spans[1:-1], len(sequence)), np.stack(own_bases["embedding"].to_list())
        )
    assert embed(tiny, *options, "--output", tmp_path / "rc.npy", "--pooling", "bases", "--rc_average") == 0
    assert np.load(tmp_path / "rc.npy").shape == (sum(map(len, READS.values())), 32)


def test_options_of_the_network_and_the_text(tiny, loaded, tmp_path, capsys):
    reads = {"a": "acguACGURYacgu" * 5, "b": "ACGTNNNNACGT"}
    (tmp_path / "a.fa").write_text("".join(f">{name}\n{s}\n" for name, s in reads.items()))

    def found(*words) -> np.ndarray:
        output = tmp_path / "out.parquet"
        assert embed(tiny, "--input", tmp_path / "a.fa", "--output", output, "--overwrite", *words) == 0
        return vectors_of(output)

    texts = ["ACGTACGTNNACGT" * 5, reads["b"]]
    assert found() == pytest.approx(Embedding(loaded).vectors(texts), abs=1e-5)
    assert "82 bases in 2 sequences; lower case 40 (49 %) read as upper case; U 15 (18 %)" in capsys.readouterr().err
    assert found("--keep_case", "--keep_u", "--iupac", "keep") == pytest.approx(
        Embedding(loaded).vectors(list(reads.values())), abs=1e-5
    )
    collapsed = [text.replace("NNNN", "N").replace("NN", "N") for text in texts]
    assert found("--n", "collapse") == pytest.approx(Embedding(loaded).vectors(collapsed), abs=1e-5)
    dropped = Embedding(loaded, layer=1, rc_average=True, window=12, overlap=2, pooling="cls")
    options = ["--layer", 1, "--rc_average", "--window", 12, "--overlap", 2, "--pooling", "cls", "--batch_tokens", 30]
    assert found("--n", "drop", *options) == pytest.approx(
        dropped.vectors([text.replace("N", "") for text in texts]), abs=1e-5
    )
    half = found("--dtype", "bfloat16", "--attn_implementation", "sdpa", "--window", 0)
    assert half == pytest.approx(Embedding(loaded).vectors(texts), abs=0.1)


def test_bad_input_is_one_sentence_and_leaves_nothing(tiny, fasta, tmp_path, capsys):
    output = tmp_path / "new" / "out.parquet"

    def fails_with(*messages: str, content: str | None = None, name: str = "bad.fa", words=(), output=output):
        bad = tmp_path / name
        if content is not None:
            bad.write_text(content)
        assert embed(tiny, "--input", bad, "--output", output, *words) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and captured.err.endswith(".\n")
        for message in (*messages, *([str(bad)] if content is not None else [])):
            assert message in captured.err
        assert not output.exists() and not output.with_name("out.parquet.partial").exists()

    fails_with("absent.fa: no such file or folder", name="absent.fa")
    fails_with("no FASTA record in this file", content="")
    fails_with(
        "record 2 (y): holds '1' 'J', which no nucleotide code uses",
        content=">x\nAC\n>y\nJ1\n",
    )
    fails_with("record 2 (y): is empty; remove it or fill it in", content=">x\nAC\n>y\n")
    fails_with("record 1 (x): holds no base but N", content=">x\nNNN\n>y\nAC\n")
    fails_with("record 2 (x): there was a record 'x' already", content=">x\nAC\n>x\nAC\n")
    fails_with("what follows record 1: the file is damaged", content="@x\nAC\n+\nII\n@y\nAC\n+\nI\n")
    fails_with("has no column sequence (its columns are dna)", content="dna\nAC\n", name="bad.csv")
    fails_with("line 3: 2 fields where the header has 1", content="sequence\nAC\nAC,1\n", name="bad.csv")
    fails_with("line 2 (x): is empty", content="sequence,id\n,x\n", name="bad.csv")
    fails_with("line 2: is no JSON object", content='{"sequence": "AC"}\nAC\n', name="bad.jsonl")
    fails_with("its name says no format", content=">x\nAC\n", name="bad.txt")
    fails_with("give that with --fasta", content="chr1\t0\t5\n", name="bad.bed")
    genome = ["--fasta", fasta]
    fails_with("line 1 (a:0-999): bases 1 to 999 of a", content="a\t0\t999\n", name="bad.bed", words=genome)
    fails_with("has no sequence 'z'", content="z\t0\t9\n", name="bad.bed", words=genome)

    def refuses(message: str, *words, output=output):
        fails_with(message, name="reads.fa", words=words, output=output)

    refuses("--layer 9: the model has 2 layers", "--layer", 9)
    refuses("windows of 8 tokens", "--window", 8)
    refuses("--batch_tokens 0: give at least 1", "--batch_tokens", 0)
    refuses("--device abacus", "--device", "abacus")
    refuses("there is no precision 'float8'", "--dtype", "float8")
    refuses("would shift the places of tokens", "--pooling", "tokens", "--n", "drop")
    refuses("the strands' tokens are not the same ones", "--pooling", "tokens", "--rc_average")
    refuses("cannot go to standard output", "--format", "npy", output=Path("-"))
    refuses("its name says no format", output=tmp_path / "out.csv")
    refuses("no such folder", "--model", tmp_path / "absent")
    refuses(f"{fasta}/out.parquet: cannot be written (Not a directory)", output=fasta / "out.parquet")
    assert not (tmp_path / "new").exists() or os.listdir(tmp_path / "new") == []


def test_bad_records_are_skipped_and_listed(tiny, loaded, tmp_path, capsys):
    first, second = tmp_path / "a.fa", tmp_path / "b.csv"
    first.write_text(">a\nACGT\n>b\n\n>c\nAXGT\n>a\nTT\n>d\nNN\n>\nAC\n>e\nTTGACA\n")
    second.write_text("id,sequence\ne,AC\nf\ng,GATTACA\n")
    output, words = tmp_path / "out.parquet", ["--input", first, second, "--skip_bad"]
    assert embed(tiny, *words, "--output", output) == 0
    assert pq.read_table(output).column("id").to_pylist() == ["a", "e", "g"]
    assert vectors_of(output) == pytest.approx(Embedding(loaded).vectors(["ACGT", "TTGACA", "GATTACA"]), abs=1e-5)
    listed = pd.read_csv(f"{output}.skipped.tsv", sep="\t", keep_default_na=False)
    assert list(listed.columns) == ["id", "where", "reason"] and len(listed) == 7
    reasons = dict(zip(listed["where"], listed["reason"], strict=True))
    assert set(reasons) == {
        *(f"{first}, record {i} ({name})" for i, name in ((2, "b"), (3, "c"), (4, "a"), (5, "d"), (6, ""))),
        f"{second}, line 2 (e)",
        f"{second}, line 3",
    }
    assert reasons[f"{first}, record 3 (c)"].startswith("holds 'X', which no nucleotide code uses")
    assert sorted(listed["id"]) == ["", "", "a", "b", "c", "d", "e"]
    assert f"7 records skipped, listed in {output}.skipped.tsv." in capsys.readouterr().err
    assert embed(tiny, *words, "--output", "-") == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["id"] for line in captured.out.splitlines()] == ["a", "e", "g"]
    assert captured.err.count("skipped: ") == 7


def test_an_input_without_good_records_gives_an_empty_output(tiny, tmp_path):
    (tmp_path / "a.csv").write_text("id,sequence\na,\n")
    for name in ("out.parquet", "out.npy"):
        assert embed(tiny, "--input", tmp_path / "a.csv", "--output", tmp_path / name, "--skip_bad") == 0
    assert vectors_of(tmp_path / "out.parquet").shape == (0,) and np.load(tmp_path / "out.npy").shape == (0, 32)


def test_records_that_a_foreign_model_cannot_read_are_named(fasta, tmp_path, capsys):
    """DNABERT reads 3-mers, 38 of them."""
    model, output = dnabert(tmp_path / "dnabert3", 3), tmp_path / "out.parquet"
    capsys.readouterr()
    assert embed(model, "--input", fasta, "--output", output) == 2
    assert (
        f"error: {fasta}, record 1 (a): has more than the 40 tokens that DNABERT takes; cut it."
        in capsys.readouterr().err
    )
    assert embed(model, "--input", fasta, "--output", output, "--skip_bad") == 0
    assert pq.read_table(output).column("id").to_pylist() == ["b"]
    reasons = pd.read_csv(f"{output}.skipped.tsv", sep="\t").set_index("id")["reason"]
    assert list(reasons.index) == ["a", "c", "d"] and "shorter than the 3 bases of one k-mer" in reasons["d"]
    assert embed(model, "--input", fasta, "--output", tmp_path / "b.parquet", "--pooling", "bases") == 2
    assert "vectors of bases are of DNABERT-2 models alone" in capsys.readouterr().err


def test_a_run_that_is_started_again_says_so_only_if_its_output_is_whole(tiny, fasta, tmp_path, capsys):
    output = tmp_path / "out.parquet"
    assert embed(tiny, "--input", fasta, "--output", output) == 0
    assert embed(tiny, "--input", fasta, "--output", output, "--pooling", "cls") == 2
    assert f"{output}: is there already; choose another --output or add --overwrite." in capsys.readouterr().err
    mean = vectors_of(output)
    assert embed(tiny, "--input", fasta, "--output", output, "--pooling", "cls", "--overwrite") == 0
    assert np.abs(vectors_of(output) - mean).max() > 0.1


def test_standard_input_and_a_closed_pipe(tiny, loaded, tmp_path):
    draw = random.Random(0)
    reads = {f"r{i}": "".join(draw.choices("ACGT", k=50)) for i in range(40)}
    text = "".join(f">{name}\n{sequence}\n" for name, sequence in reads.items())
    command = [sys.executable, "-m", "dnabert2", "embed", "--model", str(tiny), "--device", "cpu", "--input", "-"]
    command += ["--output", "-", "--pooling", "bases"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdin.write(text)
        process.stdin.close()
        first = json.loads(process.stdout.readline())
        process.stdout.close()
        said, code = process.stderr.read(), process.wait()
    expected = next(iter(Embedding(loaded).bases([reads["r0"]])))[2][0]
    assert (first["id"], first["position"], first["base"]) == ("r0", 0, reads["r0"][0])
    assert np.array(first["embedding"]) == pytest.approx(expected, abs=1e-5)
    # The kernel takes some rows before the pipe closes, but not all 2,000.
    assert code in (1, -signal.SIGPIPE) and "Traceback" not in said
    assert "error: standard output was closed before all was written." in said
