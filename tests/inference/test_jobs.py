"""Long work in chunks: their bounds, what is done again and what is not, skipped records, processes that die."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dnabert2.errors import UserError
from dnabert2.genome.records import BadRecord, Record
from dnabert2.inference import embed, jobs
from dnabert2.inference.jobs import Job
from dnabert2.inference.outputs import writer
from dnabert2.inference.ranks import Ranks

WORKER = Path(__file__).with_name("embed_worker.py")
SCHEMA = pa.schema([("id", pa.string()), ("size", pa.int64())])
LIMIT = 200  # seconds


def records(count: int, bad: tuple[int, ...] = ()) -> list[Record | BadRecord]:
    made = [Record(f"r{i}", "ACGT" * (i % 3 + 1), f"a.fa, record {i} (r{i})") for i in range(count)]
    return [BadRecord(r.id, r.where, "it\tis bad") if i in bad else r for i, r in enumerate(made)]


class Work:
    """Sizes of sequences; refuses those of `refused`, and notes the chunks it was given."""

    def __init__(self, refused: tuple[str, ...] = (), dies_in: int | None = None):
        self.refused, self.dies_in, self.chunks = refused, dies_in, []

    def __call__(self, chunk, collect):
        self.chunks.append([record.id for record in chunk])
        good = [record for record in chunk if record.id not in self.refused]
        for record in chunk:
            if record.id in self.refused:
                collect(BadRecord(record.id, record.where, "is refused"))
        half = len(good) // 2
        yield pa.table({"id": [r.id for r in good[:half]], "size": [len(r.sequence) for r in good[:half]]}, SCHEMA)
        if len(self.chunks) - 1 == self.dies_in:
            raise KeyboardInterrupt
        yield pa.table({"id": [r.id for r in good[half:]], "size": [len(r.sequence) for r in good[half:]]}, SCHEMA)


def run(folder: Path, some: list, work: Work, settings: dict | None = None, **options) -> int:
    output = folder / "out.parquet"
    job = Job(output, SCHEMA, settings or {"model": "m"}, **{"chunk_records": 4, **options})
    job.check()
    return job.run(iter(some), work, writer(output, "parquet", SCHEMA, {}))


def ids(folder: Path) -> list[str]:
    return pq.read_table(folder / "out.parquet").column("id").to_pylist()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9])
def test_chunks_end_where_they_are_full(tmp_path, count):
    work = Work()
    assert run(tmp_path, records(count), work) == 0
    assert [len(chunk) for chunk in work.chunks] == [4] * (count // 4) + [count % 4] * (count % 4 > 0)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.to_pylist() == [{"id": r.id, "size": len(r.sequence)} for r in records(count)]
    assert sorted(os.listdir(tmp_path)) == ["out.parquet"]


def test_chunks_end_with_the_record_that_reaches_so_many_bases(tmp_path):
    work = Work()
    run(tmp_path, records(7), work, chunk_bases=12, chunk_records=100)
    assert work.chunks == [["r0", "r1"], ["r2"], ["r3", "r4"], ["r5"], ["r6"]]  # 4, 8, 12, 4, 8, 12, 4 bases


def test_what_was_done_before_an_interruption_is_not_done_again(tmp_path):
    first, second = Work(dies_in=2), Work()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, records(18), first)
    assert not (tmp_path / "out.parquet").exists()
    parts = sorted(os.listdir(tmp_path / "out.parquet.partial"))
    assert parts == ["part-000000.parquet", "part-000001.parquet"]
    (tmp_path / "out.parquet.partial" / parts[1]).write_bytes(b"PAR1 torn")
    run(tmp_path, records(18), second)
    assert [chunk[0] for chunk in second.chunks] == ["r4", "r8", "r12", "r16"]
    assert ids(tmp_path) == [f"r{i}" for i in range(18)] and os.listdir(tmp_path) == ["out.parquet"]


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"settings": {"model": "other"}}, [0, 1, 2]),
        ({"overwrite": True}, [0, 1, 2]),
        ({"some": [*records(5), Record("new", "A", "b.fa"), *records(12)[6:]]}, [1, 2]),
        ({"some": records(3) + records(13)[4:]}, [0, 1, 2]),
        ({"chunk_records": 3}, [0, 1, 2, 3]),
        ({"some": records(14)}, [2, 3]),
    ],
)
def test_chunks_of_other_records_or_settings_are_done_again(tmp_path, change, redone):
    """The first two chunks of twelve records lie there."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, records(12), Work(dies_in=2))
    work, options = Work(), {"some": records(12), **change}
    run(tmp_path, options.pop("some"), work, **options)
    size = options.get("chunk_records", 4)
    some = change.get("some", records(12))
    assert work.chunks == [[r.id for r in some[size * i : size * (i + 1)]] for i in redone]
    assert ids(tmp_path) == [r.id for r in some]


def test_bad_records_end_the_work_or_are_listed(tmp_path, capsys):
    some = records(10, bad=(2, 8))
    with pytest.raises(UserError, match=r"^a\.fa, record 2 \(r2\): it\tis bad\.$"):
        run(tmp_path, some, Work())
    assert os.listdir(tmp_path) == []  # no chunk was done
    with pytest.raises(UserError, match=r"^a\.fa, record 5 \(r5\): is refused\.$"):
        run(tmp_path, records(10), Work(refused=("r5",)))
    for again in (False, True):
        with pytest.raises(KeyboardInterrupt) if not again else pytest.MonkeyPatch.context():
            assert run(tmp_path, some, Work(("r5", "r9"), None if again else 2), skip_bad=True) == 4
    assert ids(tmp_path) == ["r0", "r1", "r3", "r4", "r6", "r7"]
    listed = (tmp_path / "out.parquet.skipped.tsv").read_text().splitlines()
    assert listed == [
        "id\twhere\treason",
        "r2\ta.fa, record 2 (r2)\tit is bad",
        "r5\ta.fa, record 5 (r5)\tis refused",
        "r8\ta.fa, record 8 (r8)\tit is bad",
        "r9\ta.fa, record 9 (r9)\tis refused",
    ]
    assert f"4 records skipped, listed in {tmp_path / 'out.parquet.skipped.tsv'}." in capsys.readouterr().err
    run(tmp_path, records(3), Work(), overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["out.parquet"]  # nor a list of another run


def test_chunks_with_skipped_records_are_not_taken_by_a_run_that_skips_none(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, records(8), Work(("r1",), 1), skip_bad=True)
    with pytest.raises(UserError, match="is refused"):
        run(tmp_path, records(8), Work(("r1",)))


def test_chunks_of_nothing_but_bad_records(tmp_path):
    work = Work()
    assert run(tmp_path, records(9, bad=(0, 1, 2, 3, 8)), work, skip_bad=True) == 5
    assert work.chunks == [["r4", "r5", "r6", "r7"]] and ids(tmp_path) == work.chunks[0]


def test_an_output_that_is_there(tmp_path):
    run(tmp_path, records(3), Work())
    with pytest.raises(UserError, match=r"out\.parquet: is there already; choose another --output or add --overwrite"):
        run(tmp_path, records(5), Work())
    assert ids(tmp_path) == ["r0", "r1", "r2"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, records(5), Work(dies_in=1), overwrite=True)
    assert ids(tmp_path) == ["r0", "r1", "r2"]  # until the new one is whole
    run(tmp_path, records(5), Work(), overwrite=True)
    assert len(ids(tmp_path)) == 5


def test_an_output_that_cannot_be_written(tmp_path, monkeypatch):
    """Root may write anywhere: a file stands where the folder would be, and the disk is full."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out\.parquet: cannot be written \(Not a directory\); choose another"):
        run(tmp_path / "file", records(3), Work())

    def no_mkdir(self, **options):
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
        patch.setattr(Path, "mkdir", no_mkdir)
        run(tmp_path, records(3), Work())

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(UserError, match=r"part-000000\.parquet: cannot be written \(No space left on device\)"):
            run(tmp_path, records(3), Work())
    with monkeypatch.context() as patch:
        patch.setattr(jobs.Job, "_tables", lambda self, count: full())
        with pytest.raises(UserError, match=r"out\.parquet: cannot be written \(No space left on device\); make room"):
            run(tmp_path, records(3), Work())
    work = Work()
    run(tmp_path, records(3), work)  # what was done is kept
    assert work.chunks == [] and ids(tmp_path) == ["r0", "r1", "r2"]


def test_memory_is_that_of_a_part_of_a_chunk_when_chunks_are_put_together(tmp_path):
    """A chunk of tokens or bases of a chromosome is a file of gigabytes."""
    rows, parts, at_once = 65_536, 20, []
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), 8))])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.random.default_rng(0).random(rows * 8, np.float32)), 8)
    part = pa.table([["chr1"] * rows, vectors], schema=schema)
    job = Job(tmp_path / "out.parquet", schema, {})
    job.check()
    before = pa.total_allocated_bytes()

    def write(tables):
        for table in tables:
            at_once.append((len(table), pa.total_allocated_bytes() - before))

    job.run(records(1), lambda chunk, collect: (part for _ in range(parts)), write)
    assert [count for count, _ in at_once] == [rows] * parts
    assert max(size for _, size in at_once) < 5 * part.nbytes


def test_shares_of_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "wait_for_all", lambda self: None)
    works = [Work(), Work(), Work()]
    with pytest.raises(UserError, match=r"part-000001\.parquet: is not there or damaged"):
        run(tmp_path, records(18), works[0], ranks=Ranks(0, 3))
    for rank in (2, 1):
        assert run(tmp_path, records(18), works[rank], ranks=Ranks(rank, 3)) == 0
    run(tmp_path, records(18), Work(), ranks=Ranks(0, 3))
    assert [[chunk[0] for chunk in work.chunks] for work in works] == [["r0", "r12"], ["r4", "r16"], ["r8"]]
    assert ids(tmp_path) == [f"r{i}" for i in range(18)]
    with pytest.raises(UserError, match="--output -: several processes cannot share standard output"):
        Job(Path("-"), SCHEMA, {}, ranks=Ranks(1, 2)).check()


def test_standard_output_gets_rows_as_they_come(capsysbinary):
    job = Job(Path("-"), SCHEMA, {}, skip_bad=True, chunk_records=2)
    job.check()
    assert job.run(records(5, bad=(1,)), Work(("r4",)), writer(Path("-"), "jsonl", SCHEMA, {})) == 2
    out, err = capsysbinary.readouterr()
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["r0", "r2", "r3"]
    assert err.decode().splitlines() == [
        "skipped: a.fa, record 1 (r1): it\tis bad.",
        "skipped: a.fa, record 4 (r4): is refused.",
    ]


# The command itself, in processes of its own.


@pytest.fixture(scope="module")
def reads(tmp_path_factory):
    """23 reads, which are five chunks of the worker."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("reads") / "reads.fa"
    path.write_text("".join(f">r{i}\n{''.join(draw.choices('ACGT', k=20 + 9 * i))}\n" for i in range(23)))
    return path


def words(output: Path, tiny, reads) -> list[str]:
    options = ["--model", tiny, "--input", reads, "--output", output, "--device", "cpu"]
    return [str(word) for word in (*options, "--window", 32, "--overlap", 8)]


def start(output: Path, tiny, reads, launcher=(), dies_in: int | None = None):
    """Run the worker to its end; also gives the chunks that it worked on."""
    notes = output.with_name("notes.txt")
    notes.unlink(missing_ok=True)
    environment = {**os.environ, "CHUNKS_NOTED": str(notes), "OMP_NUM_THREADS": "1"}
    if dies_in is not None:
        environment["DIES_IN"] = str(dies_in)
    command = [*(launcher or [sys.executable]), str(WORKER), *words(output, tiny, reads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT)
    return done, sorted(map(int, notes.read_text().split())) if notes.exists() else []


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny, reads):
    """What one process makes of the reads that nothing interrupts."""
    output = tmp_path_factory.mktemp("alone") / "out.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "Job", partial(Job, chunk_records=5))
        assert embed.main(words(output, tiny, reads)) == 0
    return pq.read_table(output)


def test_a_killed_run_goes_on_where_it_was(tmp_path, tiny, reads, alone):
    output = tmp_path / "out.parquet"
    killed, chunks = start(output, tiny, reads, dies_in=2)
    assert killed.returncode == -signal.SIGKILL and chunks == [0, 1, 2] and not output.exists()
    done, chunks = start(output, tiny, reads)
    assert done.returncode == 0 and chunks == [2, 3, 4]
    found = pq.read_table(output)
    assert found.equals(alone, check_metadata=True) and found.num_rows == 23
    assert "2,737 bases in 23 sequences" in done.stderr  # those of the chunks that were there too
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "out.parquet"]


@pytest.fixture
def torchrun():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]


def test_two_processes_of_which_one_is_killed_and_then_none(tmp_path, tiny, reads, alone, torchrun):
    output = tmp_path / "out.parquet"
    killed, chunks = start(output, tiny, reads, torchrun, dies_in=1)
    assert killed.returncode != 0 and 1 in chunks and not output.exists()
    there = {
        int(path.stem.removeprefix("part-")) for path in output.with_name("out.parquet.partial").glob("*.parquet")
    }
    assert not there & {1, 3}
    done, chunks = start(output, tiny, reads, torchrun)
    assert done.returncode == 0, done.stderr
    assert chunks == sorted(set(range(5)) - there)
    assert pq.read_table(output).equals(alone, check_metadata=True)
    assert "2,737 bases in 23 sequences" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "out.parquet"]


def test_two_processes_and_a_record_that_cannot_be_used(tmp_path, tiny, reads, torchrun):
    bad = tmp_path / "bad.fa"
    bad.write_text(reads.read_text().replace(">r7\n", ">r7\nJ"))  # in the second process's first chunk
    done, _ = start(tmp_path / "out.parquet", tiny, bad, torchrun)
    assert done.returncode != 0 and not (tmp_path / "out.parquet").exists()
    assert f"error: {bad}, record 8 (r7): holds 'J', which no nucleotide code uses" in done.stderr
    assert "(process 1 of 2)" in done.stderr
