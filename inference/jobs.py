"""Long work over records: in chunks that are written as they are done, by one process or many, and never twice.

    job = Job(Path("E.parquet"), schema, settings)
    job.run(read_records(["reads.fa"]), work, write)

Records are taken in chunks, in order; a chunk is one Parquet file in `E.parquet.partial`, whole or not there. Work
that is started again reads the input anew and leaves out every chunk that is there for the same records and settings,
so that a run that was killed loses the chunks it was at. At the end the first process hands the chunks, in order, to
`write`. Memory is that of a chunk, whatever the input's length.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..atomic import whole_file
from ..errors import RunFailed, UserError
from ..genome.records import BadRecord
from .ranks import Ranks

CHUNK_RECORDS, CHUNK_BASES = 4_096, 2_000_000
KEY = b"dnabert2"
STDOUT = Path("-")

Work = Callable[[list, Callable[[BadRecord], None]], Iterator[pa.Table]]


def refuse_existing(output: Path, overwrite: bool):
    """Raises UserError if something is there that may not be replaced; before a model is loaded for nothing."""
    if output != STDOUT and output.exists() and not overwrite:
        raise UserError(f"{output}: is there already; choose another --output or add --overwrite.")


@dataclass
class Job:
    """
    Args:
        output: the file or folder that the work is for.
        schema: of the tables that work yields.
        settings: what decides the numbers, JSON-ready.
        skip_bad: leave records out that cannot be used, and list them; else the first one ends the work.
        overwrite: replace an output that is there, and begin anew.
        ranks: the processes that share the work.
        chunk_records, chunk_bases: a chunk ends with the record that reaches one of them.
        size: of a record, in bases.
    """

    output: Path
    schema: pa.Schema
    settings: dict
    skip_bad: bool = False
    overwrite: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    chunk_records: int = CHUNK_RECORDS
    chunk_bases: int = CHUNK_BASES
    size: Callable = lambda record: len(record.sequence)

    @property
    def partial(self) -> Path:
        """Where chunks lie until the work is whole."""
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def skipped_list(self) -> Path:
        return self.output.with_name(f"{self.output.name}.skipped.tsv")

    def check(self):
        """Raises UserError if the output is there already or cannot be written; found out before the work."""
        if self.output == STDOUT:
            if self.ranks.size > 1:
                raise UserError("--output -: several processes cannot share standard output; name a file.")
            return
        refuse_existing(self.output, self.overwrite)
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            probe = self.partial / f"{self.ranks.rank}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"{self.output}: cannot be written ({error.strerror}); choose another --output."
            ) from error

    def run(self, records: Iterable, work: Work, write: Callable[[Iterator[pa.Table]], None]) -> int:
        """
        Args:
            records: with `BadRecord`s among them.
            work: makes tables of a chunk's records, in their order, and hands on those it cannot use.
            write: makes the output of all tables; called in the first process.

        Returns:
            How many records were skipped.

        Raises:
            UserError: for the first record that cannot be used, unless they are to be skipped.
            RunFailed: if another process failed.
        """
        if self.output == STDOUT:
            return self._stream(records, work, write)
        try:
            count = self._do_share(records, work)
        except UserError:
            with suppress(OSError):
                self.partial.rmdir()  # if nothing is in it
            raise
        self.ranks.wait_for_all()
        return self._finish(count, write) if self.ranks.is_first else 0

    def _do_share(self, records: Iterable, work: Work) -> int:
        """Do this process's chunks; returns how many all of them have."""
        count = 0
        with tqdm(unit=" records", unit_scale=True, disable=None if self.ranks.is_first else True) as bar:
            for number, chunk in enumerate(self._chunks(records)):
                if number % self.ranks.size == self.ranks.rank:
                    self._do(number, chunk, work)
                count = number + 1
                bar.update(len(chunk))
        return count

    def _finish(self, count: int, write: Callable[[Iterator[pa.Table]], None]) -> int:
        skipped = []
        for number in range(count):
            found = self._described(number)
            if "skipped" not in found:
                raise UserError(
                    f"{self._path(number)}: is not there or damaged, though its process has finished; let all "
                    "processes write to one disk, and start the same command again."
                )
            skipped += found["skipped"]
        try:
            self._list(skipped)
            write(self._tables(count))
            shutil.rmtree(self.partial)
        except OSError as error:
            raise UserError(
                f"{self.output}: cannot be written ({error.strerror or error}); make room or choose another --output."
            ) from error
        return len(skipped)

    def _chunks(self, records: Iterable) -> Iterator[list]:
        chunk, bases = [], 0
        for record in records:
            if isinstance(record, BadRecord):
                if not self.skip_bad:
                    raise UserError(record.describe())
            else:
                bases += self.size(record)
            chunk.append(record)
            if len(chunk) >= self.chunk_records or bases >= self.chunk_bases:
                yield chunk
                chunk, bases = [], 0
        if chunk:
            yield chunk

    def _path(self, number: int) -> Path:
        return self.partial / f"part-{number:06d}.parquet"

    def _do(self, number: int, chunk: list, work: Work):
        """Write a chunk, unless it is there."""
        path, digest = self._path(number), self._digest(chunk)
        found = {} if self.overwrite else self._described(number)
        if found.get("digest") == digest and (self.skip_bad or not found["skipped"]):
            return
        skipped: list[BadRecord] = [record for record in chunk if isinstance(record, BadRecord)]
        good = [record for record in chunk if not isinstance(record, BadRecord)]
        try:
            with whole_file(path) as partial, pq.ParquetWriter(partial, self.schema) as writer:
                for table in work(good, self._collector(skipped)) if good else ():
                    writer.write_table(table)
                listed = [[bad.id, bad.where, bad.reason] for bad in skipped]
                writer.add_key_value_metadata({KEY: json.dumps({"digest": digest, "skipped": listed})})
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error}); make room.") from error

    def _collector(self, skipped: list[BadRecord]) -> Callable[[BadRecord], None]:
        def collect(bad: BadRecord):
            if not self.skip_bad:
                raise UserError(bad.describe())
            skipped.append(bad)

        return collect

    def _digest(self, chunk: list) -> str:
        """Of the records and the settings."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        for record in chunk:
            digest.update(repr(record).encode())
        return digest.hexdigest()

    def _described(self, number: int) -> dict:
        """What a chunk's file says of itself; nothing if it is damaged."""
        try:
            metadata = pq.read_metadata(self._path(number)).metadata or {}
        except (OSError, pa.ArrowException):
            return {}
        return json.loads(metadata.get(KEY, b"{}"))

    def _tables(self, count: int) -> Iterator[pa.Table]:
        for number in range(count):
            # Buffered ahead, the whole file would be in memory by its end.
            with pq.ParquetFile(self._path(number), pre_buffer=False) as file:
                for batch in file.iter_batches():
                    yield pa.Table.from_batches([batch], self.schema)

    def _list(self, skipped: list[list[str]]):
        self.skipped_list.unlink(missing_ok=True)
        if not skipped:
            return
        with whole_file(self.skipped_list) as partial, open(partial, "w", encoding="utf-8") as handle:
            handle.write("id\twhere\treason\n")
            for row in skipped:
                handle.write("\t".join(" ".join(cell.split()) for cell in row) + "\n")
        print(f"{len(skipped):,} records skipped, listed in {self.skipped_list}.", file=sys.stderr)

    def _stream(self, records: Iterable, work: Work, write) -> int:
        skipped: list[BadRecord] = []

        def tables():
            for chunk in self._chunks(records):
                skipped.extend(record for record in chunk if isinstance(record, BadRecord))
                good = [record for record in chunk if not isinstance(record, BadRecord)]
                if good:
                    yield from work(good, self._collector(skipped))

        try:
            write(tables())
        except BrokenPipeError as error:
            # What is left in the buffer would be tried again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise RunFailed("standard output was closed before all was written.") from error
        for bad in skipped:
            print(f"skipped: {bad.describe()}", file=sys.stderr)
        return len(skipped)
