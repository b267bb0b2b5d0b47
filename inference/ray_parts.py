"""Long work over files on a Ray cluster: parts that are written as they are done, and that a new start finds again.

    job = Parts(Path("vectors"), pa.schema([]), settings.identity())
    run_parts(job, ["a.fa", "b.fa"], sequence_reader(), settings, Workers(concurrency=4))

Tasks read the files, one each, and hand chunks of records to actors, each of which holds a network. An actor writes a
chunk's answers to `vectors.partial/part-FILE-CHUNK.parquet`, whole or not at all; what comes back to the first process
is which parts there are. When all are, the folder gets its name. Ray repeats what a lost machine was at. If the first
process dies, the same command goes on: files are read anew, and chunks that are there for the same records and
settings are left out.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..atomic import whole_file
from ..errors import RunFailed, UserError
from ..genome.records import BadRecord
from .jobs import KEY, Job
from .ray_datasets import Read, actors_of, import_ray, tasks_of
from .ray_work import EmbedWork, ScoreWork, Settings, Started

DEATHS = 3  # of a process over the same records, after which they are taken for the cause
BLOCK = 2**20  # bytes that Ray hands to an actor at once: little, so that the chunks of a file go to many
FILE = pa.field("file", pa.string())  # the last column of the output
# What tasks tell actors, and actors the first process, of a chunk; the last one of a file has no records.
MESSAGE = pa.schema(
    [
        ("file", pa.int32()),
        ("number", pa.int64()),
        ("size", pa.int64()),
        ("is_end", pa.bool_()),
        ("records", pa.large_binary()),
        ("skipped", pa.string()),
    ]
)


@dataclass(frozen=True)
class Workers:
    """
    Actors, each with a network of its own.

    Attributes:
        concurrency: how many.
        num_gpus: of one.
        num_cpus: of one, and its threads.
    """

    concurrency: int = 1
    num_gpus: float = 0
    num_cpus: float = 1


@dataclass
class Parts(Job):
    """A `Job` over files: chunks of each are numbered from 0, and its schema is what the actors' work says."""

    file: int = 0

    def _path(self, number: int) -> Path:
        return self.partial / f"part-{self.file:06d}-{number:06d}.parquet"

    def chunks(self, file: int, records: Iterator) -> Iterator[dict]:
        """Messages of a file's chunks; of those that are there, without the records."""
        job, number = replace(self, file=file), -1
        for number, chunk in enumerate(job._chunks(records)):
            skipped = job._skipped(number, job._digest(chunk))
            unread = pickle.dumps(chunk) if skipped is None else None
            yield _message(file, number, len(chunk), records=unread, skipped=skipped)
        yield _message(file, number + 1, 0, is_end=True)

    def write(self, file: int, number: int, chunk: list, name: str, work: EmbedWork | ScoreWork) -> list[list[str]]:
        """
        Write a chunk's part, unless it is there.

        Args:
            name: of the file, for the column `file`.

        Returns:
            id, where and reason of each record that was skipped.

        Raises:
            UserError: for a record that cannot be used, unless those are skipped, or if there is no room.
            RunFailed: if processes keep dying over it.
        """
        job = replace(self, file=file)
        digest = job._digest(chunk)
        if (done := job._skipped(number, digest)) is not None:
            return done
        bad: list[BadRecord] = [record for record in chunk if isinstance(record, BadRecord)]
        good = [record for record in chunk if not isinstance(record, BadRecord)]
        schema, path = work.schema.append(FILE), job._path(number)
        try:
            with (
                job._deaths_counted(number, chunk),
                whole_file(path) as partial,
                pq.ParquetWriter(partial, schema) as writer,
            ):
                for table in work(good, job._collector(bad)):
                    writer.write_table(table.append_column(FILE, pa.array([name] * len(table))))
                skipped = [[record.id, record.where, record.reason] for record in bad]
                described = {**work.described, "digest": digest, "skipped": skipped}
                writer.add_key_value_metadata({KEY: json.dumps(described)})
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error}); make room.") from error
        return skipped

    def _skipped(self, number: int, digest: str) -> list[list[str]] | None:
        """Records that a part left out, None if it is not there for this digest."""
        if not self._path(number).is_file():
            return None
        described = self._described(number)
        if described.get("digest") != digest or (described["skipped"] and not self.skip_bad):
            return None
        return described["skipped"]

    @contextmanager
    def _deaths_counted(self, number: int, chunk: list):
        """Ray starts a process that was killed again without end, though the chunk may be what kills it."""
        path = self._path(number).with_suffix(".tries")
        tries = int(path.read_text() or 0) if path.is_file() else 0
        if tries >= DEATHS:
            raise RunFailed(
                f"{tries} processes died, one after the other, over {chunk[0].where} to {chunk[-1].where}, most "
                "likely for want of memory; try a smaller --batch_tokens. What is finished is kept, start the same "
                "command again to go on."
            )
        path.write_text(str(tries + 1))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def begin(self):
        """Raises UserError as `check`; processes that died, and what is to be overwritten, are forgotten."""
        if self.overwrite:
            shutil.rmtree(self.partial, ignore_errors=True)
        self.check()
        for path in self.partial.glob("*.tries"):
            path.unlink()

    def finish(self, ends: dict[int, int], skipped: dict[tuple[int, int], list]):
        """
        Give the folder its name and list what was skipped.

        Args:
            ends: of each file its number of chunks.
            skipped: by file and chunk.
        """
        wanted = {(file, number) for file, end in ends.items() for number in range(end)}
        if not wanted:
            shutil.rmtree(self.partial)
            raise UserError(f"{self.output}: the input holds no record, so there is nothing to write.")
        parts = {replace(self, file=file)._path(number) for file, number in wanted}
        if wanted != set(skipped) or not all(path.is_file() for path in parts):
            raise RunFailed(
                f"{self.partial}: parts are missing that were written; give an --output that all machines share, and "
                "start the same command again."
            )
        for path in self.partial.iterdir():  # of other input, and what killed processes left
            if path not in parts:
                path.unlink()
        self._list([row for place in sorted(skipped) for row in skipped[place]])
        if self.output.is_dir():
            shutil.rmtree(self.output)
        os.replace(self.partial, self.output)


class PartWriter(Started):
    """An actor: messages with records to parts, and messages without."""

    def __init__(self, settings: Settings, job: Parts, files: list[str]):
        super().__init__(settings)
        self._job, self._files = job, files

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        yield MESSAGE.empty_table()
        for row in table.to_pylist():
            if row["records"] is not None:
                file, number = row["file"], row["number"]
                chunk = pickle.loads(row["records"])
                skipped = self._job.write(file, number, chunk, self._files[file], self.work)
                row |= {"records": None, "skipped": json.dumps(skipped)}
            yield pa.Table.from_pylist([row], schema=MESSAGE)


def run_parts(job: Parts, files: list[str], read: Read, settings: Settings, workers: Workers):
    """
    Read, work and write; the output is there when it returns.

    Args:
        job: with the identity of `settings` as its settings.
        files: as `sequence_files` or `variant_files` give them.
        read: of `sequence_reader` or `variant_reader`.

    Raises:
        UserError: for the first record that cannot be used, unless they are to be skipped.
        RunFailed: if the cluster fails, or processes keep dying over the same records.
    """
    job.begin()
    try:
        ends, skipped = _run(job, files, read, settings, workers)
    except UserError:
        with suppress(OSError):
            job.partial.rmdir()  # if nothing is in it
        raise
    try:
        job.finish(ends, skipped)
    except OSError as error:
        raise UserError(f"{job.output}: cannot be written ({error.strerror or error}).") from error


def _run(job: Parts, files: list[str], read: Read, settings: Settings, workers: Workers) -> tuple[dict, dict]:
    """What `finish` takes."""
    ends, skipped = {}, {}
    with _context(), plain_errors(), tqdm(unit=" records", unit_scale=True, disable=None) as bar:
        chunks = tasks_of(files, _chunk_tables, job=job, read=read)
        options = {"settings": settings, "job": job, "files": files}
        done = actors_of(
            chunks, PartWriter, options, workers.concurrency, workers.num_gpus, workers.num_cpus, batch_size=1
        )
        for row in done.iter_rows():
            if row["is_end"]:
                ends[row["file"]] = row["number"]
            else:
                skipped[row["file"], row["number"]] = json.loads(row["skipped"])
                bar.update(row["size"])
    return ends, skipped


@contextmanager
def plain_errors():
    """
    Raises UserError and RunFailed as a task or actor raised them, without the tracebacks that Ray puts around them;
    RunFailed for what the cluster is to blame for.
    """
    exceptions = import_ray().exceptions
    try:
        yield
    except exceptions.RayTaskError as error:
        cause = error.cause
        while isinstance(cause, exceptions.RayTaskError):
            cause = cause.cause
        for kind in (UserError, RunFailed):
            if isinstance(cause, kind):
                raise kind(str(cause).partition("\n")[0]) from None  # Ray adds lines of its own to the sentence
        raise
    except exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RunFailed(
            f"the cluster failed ({lines[0][:200].rstrip('.')}); what is finished is kept, start the same command "
            "again to go on."
        ) from error


@contextmanager
def _context():
    """Ray Data's own settings, as this work wants them."""
    context = import_ray().data.DataContext.get_current()
    wanted = {"target_max_block_size": BLOCK, "enable_progress_bars": False}
    before = {name: getattr(context, name) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _chunk_tables(files: pa.Table, job: Parts, read: Callable) -> Iterator[pa.Table]:
    for number, path in zip(files["number"].to_pylist(), files["path"].to_pylist(), strict=True):
        for message in job.chunks(number, read(path)):
            yield pa.Table.from_pylist([message], schema=MESSAGE)


def _message(file: int, number: int, size: int, *, is_end: bool = False, records=None, skipped=None) -> dict:
    listed = None if skipped is None else json.dumps(skipped)
    return {
        "file": file,
        "number": number,
        "size": size,
        "is_end": is_end,
        "records": records,
        "skipped": listed,
    }
