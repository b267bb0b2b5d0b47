"""Reads a corpus for training: the same sequences in the same order at every step, whatever the number of processes.

The shards of a split are dealt to a fixed number of lanes. A global batch takes equally many rows of every lane, and a
process reads the lanes that are its own, so that each shard is read by one process, and what a step trains on depends
on the seed, the step and the size of the global batch alone. A step can be found again without reading what went
before it, but for at most a shard a lane. Rows stream through `datasets`, from a folder or from the Hub.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import UserError
from .corpus_shards import FORMAT, ROW_GROUP
from .masking import MaskingPolicy, mask_tokens
from .orientation import cut_into_pieces, piece_length

MOST_LANES = 64


@dataclass
class Corpus:
    """
    A corpus folder, or a Hub dataset of the same layout.

    Attributes:
        manifest: its `manifest.json`.
        root: where its files are, a folder or an `hf://` address.
        name: as the user gave it.
    """

    manifest: dict
    root: str
    name: str

    def sha256(self) -> str:
        """Of the manifest's content, which holds the checksums of all shards."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    @classmethod
    def open(cls, name: str, revision: str | None = None) -> "Corpus":
        """Raises UserError if there is no whole corpus of that name."""
        folder = Path(name)
        if folder.is_dir() or folder.is_absolute() or name.count("/") != 1:
            if not folder.is_dir():
                raise UserError(f"{name}: no such folder; build a corpus with `dnabert2 build-corpus`.")
            path, root = folder / "manifest.json", str(folder)
            if not path.is_file():
                is_unfinished = (folder / ".work").is_dir()
                raise UserError(
                    f"{name}: is not a whole corpus, it has no manifest.json; "
                    + (
                        "run its build-corpus again to finish it."
                        if is_unfinished
                        else "give what build-corpus wrote."
                    )
                )
        else:
            try:
                path = Path(hf_hub_download(name, "manifest.json", repo_type="dataset", revision=revision))
            except (OSError, HfHubHTTPError, HFValidationError) as error:
                raise UserError(
                    f"{name}: neither a folder nor a corpus on the Hub ({str(error).splitlines()[0]})."
                ) from error
            root = f"hf://datasets/{name}" + (f"@{revision}" if revision else "")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            found = manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the manifest of a corpus; build or download the corpus again.") from error
        if found != FORMAT:
            raise UserError(f"{path}: has format {found}, but this version reads {FORMAT}; build the corpus again.")
        return cls(manifest, root, name)

    def shards(self, split: str) -> list[dict]:
        """The shards of a split, each with `file` and `rows`; empty if there is no such split."""
        return self.manifest["splits"].get(split, {}).get("shards", [])

    def tokenizer_source(self) -> str:
        """A path that `load_tokenizer` takes."""
        if not self.root.startswith("hf://"):
            return f"{self.root}/tokenizer"
        name, _, revision = self.root.removeprefix("hf://datasets/").partition("@")
        return hf_hub_download(name, "tokenizer/tokenizer.json", repo_type="dataset", revision=revision or None)

    def rows(self, file: str, skip: int = 0) -> Iterator[pa.Table]:
        """Stream a shard's rows in tables of at most ROW_GROUP, from row `skip` on, a multiple of ROW_GROUP."""
        from datasets import load_dataset

        try:
            shard = load_dataset("parquet", data_files=[f"{self.root}/{file}"], split="train", streaming=True)
            shard = shard.skip(skip) if skip else shard
            yield from shard.with_format("arrow").iter(batch_size=ROW_GROUP)
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self.name}/{file}: cannot be read ({reason}); build or download it again.") from error


@dataclass
class Lane:
    """A fixed selection of a split's shards, read one after the other, again and again."""

    corpus: Corpus
    shards: list[dict]
    number: int
    seed: int

    def rows_from(self, position: int) -> Iterator[pa.Table]:
        """
        Tables of rows, starting with row `position` of the endless sequence.

        The shards come in a new order each time round, and after the first time the rows of each block of ROW_GROUP
        too; they were shuffled when the corpus was built.
        """
        total = sum(shard["rows"] for shard in self.shards)
        epoch, position = divmod(position, total)
        while True:
            draw = np.random.default_rng([self.seed, self.number, epoch])
            for place in draw.permutation(len(self.shards)):
                shard = self.shards[place]
                if position >= shard["rows"]:
                    position -= shard["rows"]
                    continue
                blocks, position = divmod(position, ROW_GROUP)
                for table in self.corpus.rows(shard["file"], skip=blocks * ROW_GROUP):
                    if epoch:
                        order = np.random.default_rng([self.seed, self.number, epoch, place, blocks])
                        table = table.take(pa.array(order.permutation(len(table))))
                    blocks += 1
                    yield table.slice(position)
                    position = 0
                position = 0
            epoch += 1


@dataclass
class PretrainingStream(IterableDataset):
    """
    A stream of one process's micro-batches: `input_ids` and `labels`, (micro_batch, max_length) int64.

    Attributes:
        global_batch: sequences of a step, over all processes and accumulation steps.
        micro_batch: sequences of one forward pass.
        max_length: tokens of a sequence with [CLS] and [SEP]; a longer window is cropped at random.
        rank, world_size: which process of how many.
        first_step: the step to start with, counted from 0.
        last_step: the stream ends before this step; None for a stream without end.
        short_steps: so many steps come as pieces of their sequences, see `orientation.py`.
    """

    corpus: Corpus
    tokenizer: object
    masking: MaskingPolicy
    global_batch: int
    micro_batch: int
    max_length: int
    seed: int
    rank: int = 0
    world_size: int = 1
    first_step: int = 0
    last_step: int | None = None
    split: str = "train"
    short_steps: int = 0
    lanes: list[Lane] = field(init=False)

    def __post_init__(self):
        shards = [shard for shard in self.corpus.shards(self.split) if shard["rows"]]
        if not shards:
            raise UserError(f"{self.corpus.name}: has no {self.split} rows; give more sequence to build-corpus.")
        if self.global_batch % (self.world_size * self.micro_batch):
            raise UserError(
                f"--global_batch_size {self.global_batch} is no multiple of {self.world_size} processes times "
                f"--per_device_train_batch_size {self.micro_batch}; change one of them."
            )
        count = math.gcd(math.gcd(len(shards), self.global_batch), MOST_LANES)
        self.lanes = [Lane(self.corpus, shards[i::count], i, self.seed) for i in range(count)]

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of a step in each process."""
        return self.global_batch // (self.world_size * self.micro_batch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        batches = self._micro_batches()
        # A DataLoader asks its workers in turn: each gives its own micro-batches.
        return iter(islice(batches, worker.id, None, worker.num_workers) if worker else batches)

    def _micro_batches(self):
        steps = None if self.last_step is None else max(self.last_step - self.first_step, 0)
        for step, (inputs, labels, _) in enumerate(islice(self._steps(self.first_step), steps), self.first_step):
            length = piece_length(step, self.short_steps, self.max_length)
            for start in range(0, len(inputs), self.micro_batch):
                batch = inputs[start : start + self.micro_batch], labels[start : start + self.micro_batch]
                if length < self.max_length:
                    ends = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.pad_token_id
                    batch = cut_into_pieces(*batch, length, *ends)
                yield dict(zip(("input_ids", "labels"), map(torch.from_numpy, batch), strict=True))

    def _own_lanes(self) -> list[Lane]:
        # With a number of processes that the lanes cannot be dealt to, each reads all and takes its slice of a step.
        return self.lanes[self.rank :: self.world_size] if len(self.lanes) % self.world_size == 0 else self.lanes

    def _steps(self, step: int):
        lanes = self._own_lanes()
        rows = self.global_batch // len(self.lanes)
        queues = [_Queue(lane.rows_from(step * rows)) for lane in lanes]
        own = self.global_batch // self.world_size
        first = 0 if len(lanes) * rows == own else self.rank * own
        while True:
            tables = [queue.take(rows) for queue in queues]
            pieces = [self._sequences(t, step, lane.number) for t, lane in zip(tables, lanes, strict=True)]
            inputs, labels = (np.concatenate(x)[first : first + own] for x in zip(*pieces, strict=True))
            yield inputs, labels, pa.concat_tables(tables).slice(first, own)
            step += 1

    def _sequences(self, table: pa.Table, step: int, lane: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng([self.seed, lane, step, 1])
        windows = [np.asarray(row.values) for row in table["input_ids"]]
        crops = draw.random(len(windows))
        ids = pad_windows(windows, self.tokenizer, self.max_length, crops)
        return mask_tokens(ids, self.masking, draw)

    def describe(self, step: int, micro_step: int) -> list[str]:
        """Where the sequences of this process's micro-batch stand: `species accession:start-end(strand)`."""
        _, _, table = next(self._steps(step))
        rows = table.drop_columns("input_ids").slice(micro_step * self.micro_batch, self.micro_batch).to_pylist()
        return ["{species} {accession}:{start}-{end}({strand})".format(**row) for row in rows]


class _Queue:
    """Takes any number of rows at a time off a stream of tables."""

    def __init__(self, tables: Iterator[pa.Table]):
        self.tables, self.rest = tables, None

    def take(self, rows: int) -> pa.Table:
        pieces, missing = [], rows
        while missing:
            if self.rest is None or not len(self.rest):
                self.rest = next(self.tables)
            piece = self.rest.slice(0, missing)
            self.rest = self.rest.slice(len(piece))
            missing -= len(piece)
            pieces.append(piece)
        return pa.concat_tables(pieces)


def pad_windows(windows: list[np.ndarray], tokenizer, max_length: int, crops: np.ndarray | None = None) -> np.ndarray:
    """
    [CLS] window [SEP], padded on the right.

    Args:
        windows: id arrays of any length.
        crops: (windows,) in [0, 1): where a window that is too long is cropped; by default at its start.

    Returns:
        (windows, max_length) int64.
    """
    ids = np.full((len(windows), max_length), tokenizer.pad_token_id, dtype=np.int64)
    for i, window in enumerate(windows):
        spare = len(window) - (max_length - 2)
        if spare > 0:
            first = 0 if crops is None else int(crops[i] * (spare + 1))
            window = window[first : first + max_length - 2]
        ids[i, 0] = tokenizer.cls_token_id
        ids[i, 1 : len(window) + 1] = window
        ids[i, len(window) + 1] = tokenizer.sep_token_id
    return ids
