"""Sequences/s of embedding, beside the published code's way of doing it, and what tokenization takes of it.

    dnabert2 bench embed --input genes.bed --fasta genome.fa --output benchmarks/results/embed-cpu.json
    dnabert2 bench embed --model mini --input reads.fa --sequences 16 --repetitions 1                  # CPU-sized

`published`: batches in the order of the input, padded to their longest sequence, in float32, with the published
algorithm for attention (a bias of batch x heads x length x length); the mean over real tokens. Ours: sequences by
length in batches of a number of tokens, no pads computed, sequences read whole (`embed --window 0`) or in windows.
All start from text. Nothing is timed unless float32 vectors agree with the published way's.
"""

import time
from functools import partial

import numpy as np
import torch

from ..configuration_dnabert2 import DNABert2Config
from ..errors import UserError
from ..genome.records import BadRecord, read_records
from ..genome.windows import tokenize
from ..inference.embedding import Embedding
from ..inference.models import Loaded, load_encoder
from ..inference.pooling import pool
from ..modeling_dnabert2 import DNABert2Model
from ..precision import resolve_dtype
from ..provenance import provenance
from ..tokenizer.files import OURS, load_tokenizer
from ..tokenizer.policy import TextPolicy, normalise
from . import output, tables
from .measure import GateError, error_bound, median_ratio, quantiles, refuse_disagreement, time_rounds
from .published import PublishedEncoder
from .variants import check_device

__all__ = ["GateError", "run"]

PUBLISHED = "published:float32"
LONG_TEXT = 2_000_000  # bases of the text that tokenizers are timed on
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)


def run(options):
    """
    Body of `dnabert2 bench embed`.

    Raises:
        UserError: for options that cannot be used. GateError: if the vectors disagree; nothing is timed then.
    """
    output.check_output(options.output)
    output.check_rounds(options.repetitions, options.warmup, None)
    device = check_device(options.device)
    sequences = read_sequences(options)
    precisions = list(dict.fromkeys(("float32", *options.dtypes)))
    loaded = {name: _load(options.model, device, name) for name in precisions}
    tokens = sum(map(len, tokenize(loaded["float32"].tokenizer, sequences))) + 2 * len(sequences)
    ways = {PUBLISHED: partial(published_way, loaded["float32"], options.batch_size)}
    for name in precisions:
        ways[f"whole:{name}"] = Embedding(loaded[name], window=None).vectors
        ways[f"windows:{name}"] = Embedding(loaded[name], window=options.window, overlap=options.overlap).vectors
    records = agreement(ways, sequences, loaded["float32"].model.config.num_hidden_layers)
    refuse_disagreement([x for x in records if x["bound"] is not None], PUBLISHED)
    seconds = time_rounds(ways, (sequences,), options.repetitions, options.warmup, lambda: None, _seconds)
    longest = max(map(len, sequences))
    result = {
        "sequences": {
            "count": len(sequences),
            "bases": sum(map(len, sequences)),
            "longest": longest,
            "median": float(np.median([len(sequence) for sequence in sequences])),
            "tokens": tokens,
        },
        "padded_tokens": padded_tokens(loaded["float32"], sequences, options.batch_size),
        "parameters": loaded["float32"].parameters,
        "model": options.model or "random weights",
        "batch_size": options.batch_size,
        "window": options.window,
        "overlap": options.overlap,
        "agreement": records,
        "results": [
            {
                "way": name,
                "seconds": quantiles(times),
                "sequences_per_second": len(sequences) / float(np.median(times)),
                "tokens_per_second": tokens / float(np.median(times)),
                "ratio_to_published": median_ratio(seconds[PUBLISHED], times),
            }
            for name, times in seconds.items()
        ],
        "tokenization": tokenization(loaded["float32"].tokenizer, sequences),
        "provenance": provenance(device.type),
    }
    output.save(result, options.output)
    print(tables.embed(result))


def read_sequences(options) -> list[str]:
    """The sequences of the input, every n-th if it has more than are asked for."""
    found = []
    for record in read_records(options.input, fasta=options.fasta):
        if isinstance(record, BadRecord):
            raise UserError(record.describe())
        found.append(normalise(record.sequence, TextPolicy()))
    return found[:: max(1, len(found) // options.sequences)][: options.sequences]


def _load(model: str | None, device: torch.device, dtype: str) -> Loaded:
    """The encoder of a checkpoint, or one of the published size with random weights."""
    if model is not None:
        return load_encoder(model, device=str(device), dtype=dtype)
    torch.manual_seed(0)
    network = DNABert2Model(DNABert2Config(), add_pooling_layer=False).to(device, resolve_dtype(dtype, device)).eval()
    architecture = load_encoder("mini").architecture
    return Loaded(network, load_tokenizer(OURS), architecture)


def published_way(loaded: Loaded, batch_size: int, sequences: list[str]) -> np.ndarray:
    """(sequences, hidden) float32, as users of the published code make them."""
    encoder, found = PublishedEncoder(loaded.model), []
    for start in range(0, len(sequences), batch_size):
        batch = loaded.tokenizer(sequences[start : start + batch_size], padding=True, return_tensors="pt")
        batch = batch.to(loaded.device)
        with torch.inference_mode():
            hidden = encoder(batch["input_ids"], batch["attention_mask"])
            found.append(pool(hidden, batch["attention_mask"], "mean").float().cpu().numpy())
    return np.concatenate(found)


def padded_tokens(loaded: Loaded, sequences: list[str], batch_size: int) -> int:
    """Tokens of the published way's batches, pads included."""
    lengths = [len(tokens) + 2 for tokens in tokenize(loaded.tokenizer, sequences)]
    parts = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return sum(max(part) * len(part) for part in parts)


def agreement(ways: dict, sequences: list[str], layers: int) -> list[dict]:
    """Relative errors (Frobenius norm) of all vectors; windows, which read less at once, have no bound."""
    reference, records = ways[PUBLISHED](sequences), []
    for name, way in ways.items():
        kind, dtype = name.split(":")
        error = float(np.linalg.norm(way(sequences) - reference) / np.linalg.norm(reference))
        bound = error_bound(getattr(torch, dtype), layers) if kind == "whole" else None
        records.append({"variant": name, "batch": "whole", "relative_error": error, "bound": bound})
    return records[1:]


def _seconds(way, batch: tuple) -> float:
    start = time.perf_counter()
    way(*batch)
    return time.perf_counter() - start


def tokenization(tokenizer, sequences: list[str]) -> dict:
    """Seconds of tokenising the sequences, and Mb/s by the length of a text, whole and in pieces."""
    start = time.perf_counter()
    tokenize(tokenizer, sequences)
    seconds = time.perf_counter() - start
    text = "".join(sequences)
    text = (text * (LONG_TEXT // len(text) + 1))[:LONG_TEXT]
    rows = []
    for length in LENGTHS:
        texts = [text[start : start + length] for start in range(0, len(text), length)]
        row = {"length": length}
        for name, encode in (("whole", partial(_whole, tokenizer)), ("pieces", partial(tokenize, tokenizer))):
            start = time.perf_counter()
            encode(texts)
            row[name] = len(text) / 1e6 / (time.perf_counter() - start)
        rows.append(row)
    return {"seconds": seconds, "megabases_per_second": rows}


def _whole(tokenizer, texts: list[str]):
    """Each text as one, which is how transformers tokenises."""
    return [tokenizer.backend_tokenizer.encode(text, add_special_tokens=False) for text in texts]
