"""The Ray pipeline, on a local Ray: the numbers of `embed` and `score-variants`, bad records, restarts, processes."""

import gzip
import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dnabert2 import cli
from dnabert2.errors import RunFailed, UserError
from dnabert2.inference import embed, variants
from dnabert2.inference.ray_datasets import Answers, import_ray, sequence_files, sequence_reader, variant_files
from dnabert2.inference.ray_parts import Parts, PartWriter
from dnabert2.inference.ray_pipeline import (
    QUIET,
    embed_dataset,
    read_sequences,
    read_variant_files,
    score_variants_dataset,
    workers_of,
)
from dnabert2.inference.ray_work import EmbedSettings, ScoreSettings, everywhere

ray = pytest.importorskip("ray", reason="Ray is not installed")

# Of Ray, when it copies its own settings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

TOLERANCE = 1e-5
SETTINGS = ["--window", "32", "--overlap", "4", "--rc_average"]
SCORES = ["llr", "embedding_l2", "embedding_cosine"]


def dna(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=length))


@pytest.fixture(scope="module")
def local_ray():
    """A Ray of two CPUs, as small as Ray allows; nothing of it is left at the end."""
    os.environ.update(QUIET)
    import_ray()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    before = psutil.Process().children(recursive=True)  # of other tests, such as joblib's
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=80 * 2**20,
    )
    started = [process for process in psutil.Process().children(recursive=True) if process not in before]
    assert any(process.name() == "raylet" for process in started)
    yield
    ray.shutdown()
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sequences of every kind of file; one is longer than a window, one is lower case."""
    folder = tmp_path_factory.mktemp("reads")
    (folder / "deep").mkdir()
    (folder / "a.fa").write_text(f">a0\n{dna(60, 0)}\n>a1\n{dna(700, 1)}\n>a2\n{dna(90, 2).lower()}\n")
    with gzip.open(folder / "deep" / "b.fq.gz", "wt") as handle:
        handle.write(f"@b0\n{dna(40, 3)}\n+\n{'I' * 40}\n")
    (folder / "c.csv").write_text(f"id,sequence\nc0,{dna(50, 4)}\nc1,{dna(120, 5)}\n")
    pq.write_table(pa.table({"sequence": [dna(80, 6), dna(30, 7)]}), folder / "d.parquet")
    (folder / "notes.txt").write_text("no sequences\n")
    (folder / "_metadata.parquet").write_text("no Parquet\n")
    return folder


@pytest.fixture(scope="module")
def vectors(folder, tmp_path_factory):
    """What `embed` makes of the folder's files: a table of id and embedding."""
    output = tmp_path_factory.mktemp("embed") / "vectors.parquet"
    files = sequence_files([str(folder)])
    options = ["--model", "mini", "--input", *files, "--output", str(output), "--device", "cpu", *SETTINGS]
    assert embed.main(options) == 0
    table = pq.read_table(output)
    # `embed` numbers the rows of tables without ids through all files, of which this is the third.
    ids = pa.array([{"2": "0", "3": "1"}.get(name, name) for name in table["id"].to_pylist()])
    return table.set_column(0, "id", ids)


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    """A genome of one chromosome and two files of its variants: single bases, a deletion, and one without a score."""
    folder = tmp_path_factory.mktemp("genome")
    text = dna(600, 8)
    (folder / "genome.fa").write_text(f">chr1\n{text}\n")
    (folder / "calls").mkdir()
    for name, places in (("x.vcf", [200, 250, 300]), ("y.vcf", [350, 400])):
        lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
        for pos in places:
            base = text[pos - 1]
            others = ",".join(letter for letter in "ACGT" if letter != base)
            lines.append(f"chr1\t{pos}\t.\t{base}\t{others}\t.\t.\t.")
        lines.append(f"chr1\t{places[-1] + 9}\t.\t{text[places[-1] + 8 : places[-1] + 11]}\t{text[places[-1] + 8]}")
        lines.append(f"chr1\t{places[-1] + 20}\t.\t{text[places[-1] + 19]}\t<DEL>")
        (folder / "calls" / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def scores(genome, tmp_path_factory):
    """What `score-variants` makes of both files, one after the other."""
    folder, tables = tmp_path_factory.mktemp("scores"), []
    for name in ("x", "y"):
        output = folder / f"{name}.parquet"
        options = ["--vcf", str(genome / "calls" / f"{name}.vcf"), "--output", str(output), "--device", "cpu"]
        options += ["--model", "mini", "--fasta", str(genome / "genome.fa"), "--context", "60"]
        assert variants.main([*options, "--scores", "llr", "embedding"]) == 0
        tables.append(pq.read_table(output))
    return pa.concat_tables(tables)


def matrix(table: pa.Table) -> np.ndarray:
    return np.array(table["embedding"].to_pylist(), dtype=np.float64)


def by_allele(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: (row["pos"], row["alt"]))


def assert_same_scores(rows: list[dict], scores: pa.Table):
    wanted = by_allele(scores.to_pylist())
    assert len(rows) == len(wanted) == 19
    for row, other in zip(by_allele(rows), wanted, strict=True):
        assert [row[name] for name in ("chrom", "pos", "ref", "alt", "unscored")] == [
            other[name] for name in ("chrom", "pos", "ref", "alt", "unscored")
        ]
        for name in ("score", *SCORES):
            if other["unscored"] is None:
                assert row[name] == pytest.approx(other[name], abs=TOLERANCE)
            else:
                assert row[name] is None


def parts_of(output: Path, settings: EmbedSettings, **options) -> Parts:
    return Parts(output, pa.schema([]), settings.identity(), **options)


def test_a_dataset_of_files_has_the_vectors_of_embed(local_ray, folder, vectors, tmp_path):
    shutil.copytree(folder, tmp_path / "reads")
    (tmp_path / "reads" / "e.fa").write_text(">bad\nACGT!\n")
    read = read_sequences([str(tmp_path / "reads")], keep_bad=True)
    made = embed_dataset(
        read,
        model="mini",
        window=32,
        overlap=4,
        rc_average=True,
        keep_bad=True,
        concurrency=1,
        batch_size=3,
    )
    rows = {row["id"]: row for row in made.take_all()}
    bad = rows.pop("bad")
    assert bad["embedding"] is None and "'!'" in bad["bad"] and bad["where"].endswith("e.fa, record 1 (bad)")
    assert set(rows) == set(vectors["id"].to_pylist()) and len(rows) == 8
    for name, vector in zip(vectors["id"].to_pylist(), matrix(vectors), strict=True):
        np.testing.assert_allclose(rows[name]["embedding"], vector, rtol=0, atol=TOLERANCE)
        assert rows[name]["bad"] is None


@pytest.mark.slow
def test_the_command_writes_them_in_the_order_of_the_input(local_ray, folder, vectors, tmp_path, capsys):
    reads = tmp_path / "reads"
    shutil.copytree(folder, reads)
    (reads / "a.fa").write_text((folder / "a.fa").read_text() + ">odd\nACGT!\n")
    command = ["ray", "embed", "--model", "mini", "--input", str(reads), "--output", str(tmp_path / "made")]
    command += ["--concurrency", "1", *SETTINGS]

    assert cli.main(command) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("error: ") and "a.fa, record 4 (odd)" in message
    assert not (tmp_path / "made").exists()

    assert cli.main([*command, "--skip_bad"]) == 0
    table = pq.read_table(tmp_path / "made")
    assert table["id"].to_pylist() == vectors["id"].to_pylist()
    names = ["a.fa"] * 3 + ["c.csv"] * 2 + ["d.parquet"] * 2 + ["deep/b.fq.gz"]
    assert table["file"].to_pylist() == [str(reads / name) for name in names]
    np.testing.assert_allclose(matrix(table), matrix(vectors), rtol=0, atol=TOLERANCE)
    assert not (tmp_path / "made.partial").exists()
    listed = (tmp_path / "made.skipped.tsv").read_text().splitlines()
    assert len(listed) == 2 and listed[1].startswith("odd\t") and "a.fa, record 4 (odd)" in listed[1]

    assert cli.main([*command, "--skip_bad"]) == 2  # it is there already
    assert "--overwrite" in capsys.readouterr().err


def test_scores_of_rows_from_anywhere(local_ray, genome, scores):
    rows = [{name: row[name] for name in ("chrom", "pos", "ref", "alt")} for row in scores.to_pylist()]
    made = score_variants_dataset(
        ray.data.from_items(rows),
        model="mini",
        fasta=str(genome / "genome.fa"),
        scores=("llr", "embedding"),
        context=60,
        concurrency=1,
    )
    rows = made.take_all()
    assert list(rows[0]) == variants.score_schema(SCORES).names
    assert_same_scores(rows, scores)


@pytest.mark.slow
def test_variants_on_a_ray_of_their_own(genome, scores, tmp_path):
    """The command as a user starts it: Ray starts and ends with it."""
    scratch, output = Path(tempfile.mkdtemp(prefix="ray")), tmp_path / "scores"  # Ray's sockets need short paths
    command = [sys.executable, "-m", "dnabert2.inference.ray_pipeline", "score-variants", "--model", "mini"]
    command += ["--input", "calls", "--fasta", "genome.fa", "--output", str(output), "--context", "60"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    try:
        result = subprocess.run(
            [*command, "--concurrency", "1", "--scores", "llr", "embedding"],
            cwd=genome,
            env={**environment, "RAY_TMPDIR": str(scratch)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr and result.stdout == ""
        lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        assert any(scratch.iterdir()) and not [line for line in lines if str(scratch) in line]
    finally:
        shutil.rmtree(scratch)
    table = pq.read_table(output)
    assert table.column_names == [*variants.score_schema(SCORES).names, "file"]
    assert (
        table.drop_columns(["file"])
        .select(["chrom", "pos", "ref", "alt", "line", "allele"])
        .equals(scores.select(["chrom", "pos", "ref", "alt", "line", "allele"]))
    )
    assert table["file"].to_pylist() == ["calls/x.vcf"] * 11 + ["calls/y.vcf"] * 8
    assert_same_scores(table.to_pylist(), scores)


# What follows calls what tasks and actors call, without Ray.


@pytest.fixture(scope="module")
def settings():
    return EmbedSettings("mini", window=32, overlap=4, rc_average=True)


@pytest.fixture(scope="module")
def writer_of(settings):
    """Factory: the actor of a job, on one network for all."""
    actor = PartWriter(settings, None, [])

    def make(job: Parts, files: list[str]) -> PartWriter:
        actor._job, actor._files = job, files
        return actor

    return make


def write_all(job: Parts, files: list[str], writer: PartWriter) -> int:
    """All of `run_parts` but Ray; returns how many chunks were new."""
    ends, skipped, new = {}, {}, 0
    job.begin()
    for number, path in enumerate(files):
        for message in job.chunks(number, sequence_reader()(path)):
            new += message["records"] is not None
            (_, row) = writer(pa.Table.from_pylist([message]))
            row = row.to_pylist()[0]
            if row["is_end"]:
                ends[number] = row["number"]
            else:
                skipped[number, row["number"]] = json.loads(row["skipped"])
    job.finish(ends, skipped)
    return new


def test_a_new_start_makes_what_is_missing_alone(folder, vectors, settings, writer_of, tmp_path):
    files = sequence_files([str(folder)])
    job = parts_of(tmp_path / "made", settings, chunk_records=2)
    writer = writer_of(job, files)
    assert write_all(job, files, writer) == 5
    table = pq.read_table(job.output)
    np.testing.assert_allclose(matrix(table), matrix(vectors), rtol=0, atol=TOLERANCE)
    names = sorted(path.name for path in job.output.iterdir())
    assert names[:2] == ["part-000000-000000.parquet", "part-000000-000001.parquet"] and len(names) == 5

    # As a run that was killed leaves it: one part is missing, one is damaged, one is of other records.
    job.output.rename(job.partial)
    (job.partial / names[0]).unlink()
    (job.partial / names[1]).write_bytes(b"PAR1")
    shutil.copy(job.partial / names[3], job.partial / names[2])
    (job.partial / f"{names[0]}.1234.tmp").touch()
    kept = {name: (job.partial / name).stat().st_mtime_ns for name in names[3:]}
    assert write_all(job, files, writer) == 3
    assert pq.read_table(job.output).equals(table)
    assert {name: (job.output / name).stat().st_mtime_ns for name in kept} == kept
    assert sorted(path.name for path in job.output.iterdir()) == names

    # Other settings are other numbers.
    job.output.rename(job.partial)
    other = replace(settings, layer=2)
    assert write_all(parts_of(job.output, other, chunk_records=2), files, writer) == 5


def test_what_processes_keep_dying_over_ends_the_work(folder, settings, writer_of, tmp_path):
    files = [str(folder / "a.fa")]
    job = parts_of(tmp_path / "made", settings)
    writer = writer_of(job, files)
    job.begin()
    message, _ = job.chunks(0, sequence_reader()(files[0]))
    (job.partial / "part-000000-000000.tries").write_text("3")
    with pytest.raises(RunFailed, match=r"3 processes died.* record 1 \(a0\) to .* record 3 \(a2\)"):
        list(writer(pa.Table.from_pylist([message])))
    assert write_all(job, files, writer) == 1  # a new start tries again
    assert [path.suffix for path in job.output.iterdir()] == [".parquet"]


def test_places_of_tokens_and_bases(folder):
    table = pa.table({"id": ["s", "t"], "sequence": [dna(60, 9), "ACGT!"]})
    for pooling, columns in (("tokens", ["start", "end", "token"]), ("bases", ["position", "base"])):
        actor = Answers(EmbedSettings("mini", pooling=pooling), keep_bad=True)
        rows = pa.concat_tables(actor(table)).to_pylist()
        assert list(rows[0]) == ["id", *columns, "embedding", "where", "bad"]
        assert [row["id"] for row in rows if row["bad"]] == ["t"]
        text = "".join(row["token" if pooling == "tokens" else "base"] for row in rows[:-1])
        assert text == dna(60, 9)
    with pytest.raises(UserError, match=r"record t: .*'!'"):
        list(Answers(EmbedSettings("mini"), keep_bad=False)(table))
    with pytest.raises(UserError, match="no column sequence"):
        list(Answers(EmbedSettings("mini"), keep_bad=False)(table.rename_columns(["id", "dna"])))


def test_what_a_network_cannot_do_is_said_when_it_is_used():
    actor = Answers(EmbedSettings("mini", layer=99), keep_bad=True)
    with pytest.raises(UserError, match=r"--layer 99: the model has \d+ layers"):
        list(actor(pa.table({"id": ["s"], "sequence": ["ACGT"]})))


def test_alleles_that_the_genome_does_not_have(genome):
    settings = ScoreSettings("mini", fasta=str(genome / "genome.fa"), scores=("embedding",), context=20)
    rows = {"chrom": ["chr1", "chr9", "chr1"], "pos": [100, 5, None], "ref": ["ACGTACGT"] * 3, "alt": ["C"] * 3}
    answers = pa.concat_tables(Answers(settings, keep_bad=True)(pa.table(rows))).to_pylist()
    assert [row["score"] for row in answers] == [None] * 3
    reasons = [row["bad"] for row in answers]
    assert "the reference allele is ACGTACGT" in reasons[0] and "no sequence 'chr9'" in reasons[1]
    assert "no whole number" in reasons[2] and answers[1]["where"] == "variant chr9:5 ACGTACGT>C"


def test_settings_are_checked_before_there_is_a_cluster(genome):
    dataset = None
    for options, message in (
        ({"pooling": "median"}, "--pooling median"),
        ({"window": 8, "overlap": 7}, "cannot overlap"),
        ({"pooling": "tokens", "rc_average": True}, "average --pooling bases"),
        ({"dtype": "float8"}, "float8"),
        ({"batch_tokens": 0}, "--batch_tokens 0"),
        ({"model": str(genome)}, "config.json"),
    ):
        with pytest.raises(UserError, match=message):
            embed_dataset(dataset, **{"model": "mini", **options})
    for options, message in (({"context": 0}, "--context"), ({"stride": -1}, "--stride")):
        with pytest.raises(UserError, match=message):
            score_variants_dataset(dataset, model="mini", fasta=str(genome / "genome.fa"), **options)
    with pytest.raises(UserError, match="no such file"):
        read_variant_files([str(genome / "calls")], str(genome / "hg38.fa"))


def test_files_of_folders(folder, genome, tmp_path):
    found = [Path(path).relative_to(folder).as_posix() for path in sequence_files([str(folder)])]
    assert found == ["a.fa", "c.csv", "d.parquet", "deep/b.fq.gz"]
    assert [Path(path).name for path in variant_files([str(genome)])] == ["x.vcf", "y.vcf"]
    for entry, message in (
        (tmp_path, "no file in this folder"),
        ("absent", "no such file"),
        ("s3://b/k", "is no path"),
    ):
        with pytest.raises(UserError, match=message):
            sequence_files([str(entry)])
    assert everywhere("mini") == "mini" and everywhere("owner/name") == "owner/name"


def test_workers_fit_into_the_cluster():
    options = Namespace(concurrency=None, num_gpus=None, num_cpus=1.0)
    make = partial(workers_of, resources={"CPU": 16.0, "GPU": 4.0})
    assert make(options).concurrency == 4 and make(options).num_gpus == 1
    assert workers_of(options, {"CPU": 2.0}).concurrency == 2
    assert make(Namespace(concurrency=None, num_gpus=0.5, num_cpus=1.0)).concurrency == 8
    assert make(Namespace(concurrency=3, num_gpus=0, num_cpus=4.0)).concurrency == 3
    for wrong in ({"num_gpus": 5}, {"num_cpus": 17}, {"concurrency": 0}, {"num_cpus": 0}, {"num_gpus": -1}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong))}"):
            make(Namespace(**{**vars(options), **wrong}))


def test_without_ray_it_says_how_to_install_it(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["ray", "embed", "--model", "mini", "--input", str(folder), "--output", str(tmp_path / "made")]
    assert cli.main(command) == 2
    assert 'pip install "dnabert2[ray]"' in capsys.readouterr().err


def test_a_cluster_that_is_not_there(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = ["ray", "embed", "--model", "mini", "--input", str(folder), "--output", str(tmp_path / "made")]
        assert cli.main([*command, "--address", address]) == 2
    message = capsys.readouterr().err
    assert f"error: {address}: no Ray cluster answers" in message and "refused" in message


def test_the_output_lies_apart_from_the_input(folder, capsys):
    command = ["ray", "embed", "--model", "mini", "--input", str(folder), "--output", str(folder / "made")]
    assert cli.main(command) == 2 and "lies in the input" in capsys.readouterr().err


def test_options_are_parsed_without_ray_and_torch():
    code = (
        "import sys; from dnabert2 import cli\n"
        "try: cli.main(['ray', 'score-variants', '--help'])\n"
        "except SystemExit: sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "--fasta" in result.stdout
