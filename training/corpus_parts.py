"""The first half of building a corpus: chunks of records become part files, on all cores, in any order.

A part is a Parquet file in the corpus' work folder with one row group for every shard that got rows of it. Which shard
a row goes to is drawn at random, so that every shard is a sample of the whole corpus. All randomness follows from the
seed and a chunk's name and place, never from which process does what when.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic import whole_file
from ..fasta import read_fasta
from .corpus_sources import Source
from .corpus_windows import WindowPolicy, cut_windows

CHUNK = 200_000  # bases that are read from one strand, and begin with a window of random length
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.uint16())),
        ("species", pa.string()),
        ("group", pa.string()),
        ("accession", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("strand", pa.string()),
    ]
)


@dataclass(frozen=True)
class Chunk:
    """A stretch of a record with its text; `passes` is how often it is read, the rest of it a probability."""

    species: str
    group: str
    accession: str
    start: int
    text: str
    split: str
    passes: float


@dataclass(frozen=True)
class PartPolicy:
    """How chunks become rows; `shards` is the number of shards of each split, in the order of SPLITS."""

    windows: WindowPolicy
    shards: tuple[int, int]
    reverse_complement: float
    seed: int


def plan_parts(sources: list[Source], part_bases: int) -> list[list[tuple[int, int, int]]]:
    """Parts as lists of chunks (source, record, start), in file order, of about `part_bases` bases."""
    parts, size = [[]], 0
    for i, source in enumerate(sources):
        for j, record in enumerate(source.records):
            for start in range(0, record.bases, CHUNK):
                if size >= part_bases:
                    parts.append([])
                    size = 0
                parts[-1].append((i, j, start))
                size += min(CHUNK, record.bases - start)
    return parts


def read_parts(
    sources: list[Source], plan: list[list[tuple[int, int, int]]], wanted: set[int], passes: dict[str, float]
) -> Iterator[tuple[int, list[Chunk]]]:
    """
    Read the files in order and yield each wanted part with its chunks' text; one record and one part are in memory.

    Args:
        passes: how often each group is read for training; held-out records are read once.
    """
    part_of = {place: number for number, part in enumerate(plan) for place in part}
    gathered = defaultdict(list)
    for i in sorted({i for number in wanted for i, _, _ in plan[number]}):
        source = sources[i]
        for j, (_, sequence) in enumerate(read_fasta(source.path)):
            record = source.records[j]
            times = 1.0 if record.split == "validation" else passes.get(source.group, 0.0)
            for start in range(0, record.bases, CHUNK):
                number = part_of[i, j, start]
                if number not in wanted:
                    continue
                text = sequence[start : start + CHUNK]
                gathered[number].append(
                    Chunk(source.species, source.group, record.accession, start, text, record.split, times)
                )
                if len(gathered[number]) == len(plan[number]):
                    yield number, gathered.pop(number)


def write_part(path: Path, chunks: list[Chunk], policy: PartPolicy):
    """Cut the chunks of a part into windows and write them to `path`, whole or not at all."""
    tables, shards = [], []
    for chunk in chunks:
        draw = np.random.default_rng(_entropy(policy.seed, chunk))
        times = int(chunk.passes) + int(draw.random() < chunk.passes % 1)
        first = 0 if chunk.split == "train" else policy.shards[0]
        count = policy.shards[0] if chunk.split == "train" else policy.shards[1]
        for _ in range(times):
            # The other strand of held-out sequence would say the same again.
            reverse = chunk.split == "train" and draw.random() < policy.reverse_complement
            windows = cut_windows(chunk.text, chunk.start, reverse, policy.windows, draw)
            rows = len(windows.starts)
            columns = [
                pa.ListArray.from_arrays(pa.array(windows.offsets.astype(np.int32)), pa.array(windows.values)),
                *(pa.repeat(pa.scalar(value), rows) for value in (chunk.species, chunk.group, chunk.accession)),
                pa.array(windows.starts),
                pa.array(windows.ends),
                pa.repeat(pa.scalar("-" if reverse else "+"), rows),
            ]
            tables.append(pa.Table.from_arrays(columns, schema=SCHEMA))
            shards.append(first + draw.integers(0, count, size=rows))
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    shard = np.concatenate(shards) if shards else np.zeros(0, dtype=np.int64)
    order = np.argsort(shard, kind="stable")
    table, shard = table.take(pa.array(order)), shard[order]
    numbers, firsts = np.unique(shard, return_index=True)
    with whole_file(path) as partial:
        # Each row group's shard, in the file's own metadata.
        schema = SCHEMA.with_metadata({"shards": json.dumps(numbers.tolist())})
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for begin, end in pairwise([*firsts, len(shard)]):
                writer.write_table(table.slice(begin, end - begin), row_group_size=max(int(end - begin), 1))


def _entropy(seed: int, chunk: Chunk) -> list[int]:
    name = f"{chunk.species}\t{chunk.accession}\t{chunk.start}".encode()
    return [seed, int.from_bytes(hashlib.sha256(name).digest()[:8], "big")]
