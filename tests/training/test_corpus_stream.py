"""The stream of a corpus: the same steps for any number of processes, from any step on, from a folder or the Hub."""

import json
import os
import shutil
import subprocess
import sys
from itertools import islice

import hub_server
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from dnabert2.errors import UserError
from dnabert2.tokenizer.files import load_tokenizer
from dnabert2.training.corpus_stream import Corpus, PretrainingStream, pad_windows
from dnabert2.training.masking import MaskingPolicy


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return load_tokenizer(corpus / "tokenizer")


@pytest.fixture
def stream(corpus, tokenizer):
    """Function: a stream of the corpus, of 24 sequences a step."""

    def make(**options):
        defaults = {"global_batch": 24, "micro_batch": 4, "max_length": 32, "seed": 5}
        masking = MaskingPolicy.of(tokenizer, 0.15)
        return PretrainingStream(Corpus.open(str(corpus)), tokenizer, masking, **{**defaults, **options})

    return make


def take(stream, steps: int) -> list[list[tuple]]:
    """For each step, its sequences (inputs and labels) as sorted tuples."""
    batches = iter(stream)
    found = []
    for _ in range(steps):
        rows = []
        for _ in range(stream.accumulation_steps):
            batch = next(batches)
            assert len(batch["input_ids"]) == stream.micro_batch
            rows += [tuple(x) for x in torch.cat([batch["input_ids"], batch["labels"]], dim=1).tolist()]
        found.append(sorted(rows))
    return found


@pytest.mark.parametrize(("world_size", "micro_batch"), [(2, 4), (2, 12), (4, 2), (3, 4), (6, 1)])
def test_a_step_is_the_same_for_any_number_of_processes(stream, world_size, micro_batch):
    alone = take(stream(), 4)
    parts = [take(stream(world_size=world_size, rank=r, micro_batch=micro_batch), 4) for r in range(world_size)]
    assert [sorted(row for part in parts for row in part[i]) for i in range(4)] == alone
    assert len({row for step in alone for row in step}) > 90  # of 96


def test_each_shard_is_read_by_one_process(stream):
    read = [
        {shard["file"] for lane in stream(world_size=2, rank=r)._own_lanes() for shard in lane.shards} for r in (0, 1)
    ]
    assert len(read[0]) == len(read[1]) == 2 and not read[0] & read[1]


def test_any_step_can_be_found_again(stream, corpus):
    rows = json.loads((corpus / "manifest.json").read_text())["splits"]["train"]["rows"]
    steps = 3 * rows // 24  # three times round
    whole = take(stream(), steps + 2)
    for step in (0, 1, 7, rows // 24, steps):
        assert take(stream(first_step=step), 2) == whole[step : step + 2]
    assert take(stream(seed=6), 1) != whole[:1]


def test_every_window_comes_once_a_round(stream, corpus, tokenizer):
    every = stream(global_batch=4, micro_batch=4, max_length=32)
    assert len(every.lanes) == 4
    for lane in every.lanes:
        total = sum(shard["rows"] for shard in lane.shards)
        rounds, tables = [[], []], lane.rows_from(0)
        for found in rounds:
            while len(found) < total:
                found += [tuple(row["input_ids"]) for row in next(tables).to_pylist()]
        expected = sorted(
            tuple(row["input_ids"]) for s in lane.shards for row in pq.read_table(corpus / s["file"]).to_pylist()
        )
        assert sorted(rounds[0]) == sorted(rounds[1]) == expected and rounds[0] != rounds[1]


def test_a_batch_is_described_by_its_windows(stream, corpus, tokenizer):
    every = stream(world_size=2, rank=1)
    names = every.describe(3, 1)
    batch = [next(x) for x in [iter(stream(world_size=2, rank=1, first_step=3))] for _ in range(2)][1]
    original = torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"]).tolist()
    rows = {}
    for path in sorted((corpus / "train").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            rows["{species} {accession}:{start}-{end}({strand})".format(**row)] = row["input_ids"]
    for name, ids in zip(names, original, strict=True):
        assert [i for i in ids if i > 4 or i == 0] == rows[name]


def test_workers_keep_the_order(stream):
    plain = stream()
    loader = DataLoader(stream(), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    for _, expected, found in zip(range(8), plain, loader, strict=False):
        assert torch.equal(expected["input_ids"], found["input_ids"])
        assert torch.equal(expected["labels"], found["labels"])


def test_padding_and_cropping(tokenizer):
    windows = [np.arange(10, 13), np.arange(20, 40)]
    ids = pad_windows(windows, tokenizer, 8)
    assert ids.tolist() == [[1, 10, 11, 12, 2, 3, 3, 3], [1, 20, 21, 22, 23, 24, 25, 2]]
    assert pad_windows(windows, tokenizer, 8, np.array([0.9, 0.999]))[1].tolist() == [1, 34, 35, 36, 37, 38, 39, 2]


def test_short_steps_cut_the_same_sequences(stream):
    """The very tokens and masks of whole sequences, in the same order; from any step on, and whole after them."""

    def ordinary(batch):
        ids, labels = batch["input_ids"], batch["labels"]
        kept = ids > 3  # neither [CLS], [SEP] nor padding
        return ids[kept].tolist(), labels[kept].tolist()

    whole, short = (list(islice(iter(s), 24)) for s in (stream(), stream(short_steps=3)))
    assert [ordinary(batch) for batch in short] == [ordinary(batch) for batch in whole]
    assert [batch["input_ids"].shape[1] for batch in short] == [n for n in (8, 8, 12, 32) for _ in range(6)]
    assert [len(batch["input_ids"]) for batch in short[18:]] == [4] * 6
    later = list(islice(iter(stream(short_steps=3, first_step=2)), 12))
    for found, expected in zip(later, short[12:], strict=True):
        assert torch.equal(found["input_ids"], expected["input_ids"])


def test_what_cannot_be_dealt_out_is_refused(stream, tmp_path):
    with pytest.raises(UserError, match="no multiple of 5 processes times --per_device_train_batch_size 4"):
        stream(world_size=5)
    with pytest.raises(UserError, match="no such folder; build a corpus"):
        Corpus.open(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"not a whole corpus.*give what build-corpus wrote"):
        Corpus.open(str(tmp_path))
    (tmp_path / ".work").mkdir()
    with pytest.raises(UserError, match="run its build-corpus again"):
        Corpus.open(str(tmp_path))


def test_a_damaged_shard_is_named(corpus, tmp_path, tokenizer):
    damaged = tmp_path / "corpus"
    shutil.copytree(corpus, damaged)
    for path in (damaged / "train").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:500])
    stream = PretrainingStream(
        Corpus.open(str(damaged)), tokenizer, MaskingPolicy.of(tokenizer, 0.15), 24, 4, 32, seed=5
    )
    with pytest.raises(UserError, match=r"train-0000\d-of-00004.parquet: cannot be read"):
        next(iter(stream))


HUB_READER = """
import json, sys
from dnabert2.tokenizer.files import load_tokenizer
from dnabert2.training.corpus_stream import Corpus, PretrainingStream
from dnabert2.training.masking import MaskingPolicy
corpus = Corpus.open("lab/corpus")
tokenizer = load_tokenizer(corpus.tokenizer_source())
stream = PretrainingStream(corpus, tokenizer, MaskingPolicy.of(tokenizer, 0.15), 24, 12, 32, 5, 1, 2, 2)
batch = next(iter(stream))
print(json.dumps([batch["input_ids"].tolist(), batch["labels"].tolist()]))
"""


def test_a_hub_dataset_streams_like_its_folder(corpus, stream, tmp_path):
    """Through the real client; a process fetches its own shards alone."""
    expected = next(iter(stream(world_size=2, rank=1, micro_batch=12, first_step=2)))
    with hub_server.serve({"lab/corpus": corpus}) as server:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": server.url, "NO_PROXY": "127.0.0.1"}
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"}
        command = [sys.executable, "-c", HUB_READER]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-4000:]
        fetched = {line.rpartition("/")[2] for line in server.requests if "GET" in line and "/train/" in line}
    inputs, labels = json.loads(result.stdout.splitlines()[-1])
    assert inputs == expected["input_ids"].tolist() and labels == expected["labels"].tolist()
    own = {
        shard["file"].rpartition("/")[2] for lane in stream(world_size=2, rank=1)._own_lanes() for shard in lane.shards
    }
    assert fetched and fetched <= own
