"""The second half of building a corpus: the rows of all parts, collected by shard, shuffled and counted."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..atomic import whole_file
from .corpus_parts import SCHEMA

FORMAT = 1  # of manifest.json and what it describes
ROW_GROUP = 1024  # rows that a reader of a stream holds at a time


def write_shard(parts: list[Path], number: int, path: Path, seed: int) -> dict:
    """
    Collect shard `number` from the part files, shuffle it, write it to `path`, whole or not at all.

    Returns:
        `file`, `sha256`, `bytes`, `rows`, `tokens`, and `groups`: rows, tokens and bases of each.
    """
    tables = []
    for part in parts:
        file = pq.ParquetFile(part)
        shards = json.loads(file.schema_arrow.metadata[b"shards"])
        if number in shards:
            tables.append(file.read_row_group(shards.index(number)).replace_schema_metadata(None))
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    order = np.random.default_rng([seed, number]).permutation(len(table))
    table = table.take(pa.array(order)).combine_chunks()
    with whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=ROW_GROUP)
        content = partial.read_bytes()
    return {
        "file": f"{path.parent.name}/{path.name}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        **count_rows(table),
    }


def count_rows(table: pa.Table) -> dict:
    """`rows` and `tokens` of a table of the corpus, and by group `rows`, `tokens` and `bases`."""
    counted = pa.table(
        {
            "group": table["group"],
            "tokens": pc.cast(pc.list_value_length(table["input_ids"]), pa.int64()),
            "bases": pc.subtract(table["end"], table["start"]),
        }
    )
    sums = counted.group_by("group").aggregate([("tokens", "count"), ("tokens", "sum"), ("bases", "sum")]).to_pylist()
    groups = {
        row["group"]: {"rows": row["tokens_count"], "tokens": row["tokens_sum"], "bases": row["bases_sum"]}
        for row in sorted(sums, key=lambda row: row["group"])
    }
    return {"rows": len(table), "tokens": sum(g["tokens"] for g in groups.values()), "groups": groups}


def add_counts(shards: list[dict]) -> dict:
    """The sums of `count_rows` over shards."""
    groups = defaultdict(lambda: {"rows": 0, "tokens": 0, "bases": 0})
    for shard in shards:
        for name, counts in shard["groups"].items():
            for key, value in counts.items():
                groups[name][key] += value
    total = {key: sum(group[key] for group in groups.values()) for key in ("rows", "tokens", "bases")}
    return {**total, "groups": dict(sorted(groups.items()))}
