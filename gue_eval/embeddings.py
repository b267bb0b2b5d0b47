"""Frozen embeddings of DNA: one vector a sequence, of any Hugging Face encoder, of k-mer counts, or of random weights.

    embedder = load_embedder("mini", pooling="mean", device="cpu")         # or kmer-counts, random-init:mini, a Hub id
    embed_cached(embedder, ["ACGTACGT", "TTGACA"], None, Path("cache")).vectors              # (2, 384) float32

What was embedded lies on the disk under a checksum of model, settings and sequences: a run that is killed continues
after its last 2,048 sequences, and a probe with other options starts from the vectors.
"""

import hashlib
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..atomic import whole_file
from ..inference.embedding import Embedding
from ..inference.models import load_encoder
from .kmer_counts import kmer_counts

KMER_COUNTS = "kmer-counts"
RANDOM = "random-init:"
K = 4
CHUNK = 2048  # sequences embedded between two writes to the cache


class KmerEmbedder:
    """Counts of 4-mers, (sequences, 256): what a frozen network has to know more than; of pairs both, side by side."""

    parameters = 0
    identity = {"model": KMER_COUNTS, "k": K}
    max_tokens = None
    truncated = 0

    def embed(self, sequences: list[str], pairs: list[str] | None = None) -> np.ndarray:
        tables = [kmer_counts(part, (K,)).toarray() for part in (sequences, pairs) if part is not None]
        return np.concatenate(tables, axis=1)


class NetworkEmbedder:
    """
    A frozen network that reads sequences whole, cut to the positions it has.

    Attributes:
        identity: what decides its vectors, JSON-ready: checksum or revision of the weights, pooling, precision.
        parameters: of the encoder.
        max_tokens: what the model has positions for, None if any number.
        truncated: sequences that were cut to that, so far.
    """

    def __init__(self, name: str, embedding: Embedding):
        loaded = embedding.loaded
        self.embedding, self.max_tokens, self.parameters = embedding, loaded.max_tokens, loaded.parameters
        # Of the settings only those that differ between probes: records name them.
        self.identity = loaded.identity | {"model": name, "pooling": embedding.pooling, "max_tokens": self.max_tokens}

    @property
    def truncated(self) -> int:
        return self.embedding.truncated

    def embed(self, sequences: list[str], pairs: list[str] | None = None) -> np.ndarray:
        """(sequences, hidden) float32, in the order given."""
        return self.embedding.vectors(sequences, pairs)


def load_embedder(
    name: str,
    *,
    pooling: str = "mean",
    batch_size: int = 64,
    device: str = "cpu",
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> KmerEmbedder | NetworkEmbedder:
    """
    Args:
        name: a model folder, a Hub id or a bundled checkpoint; `random-init:` before it for its architecture with new
            weights (seed 42); or `kmer-counts`.
        batch_size: sequences of a batch at most.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where it is fast.
        trust_remote_code: run code of the model's repository.

    Raises:
        UserError: if there is no such model, or it cannot be loaded.
    """
    if name == KMER_COUNTS:
        return KmerEmbedder()
    source = name.removeprefix(RANDOM)
    loaded = load_encoder(
        source,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        random_weights=name != source,
    )
    return NetworkEmbedder(name, Embedding(loaded, pooling=pooling, window=None, truncate=True, batch_size=batch_size))


@dataclass
class Embedded:
    """
    Attributes:
        vectors: (sequences, dimensions) float32.
        seconds: that computing them took, now or when they were first made.
        truncated: sequences that were cut to what the model can take.
    """

    vectors: np.ndarray
    seconds: float
    truncated: int


def embed_cached(
    embedder: KmerEmbedder | NetworkEmbedder,
    sequences: list[str],
    pairs: list[str] | None,
    cache: Path,
    advance: Callable[[int], None] = lambda rows: None,
) -> Embedded:
    """
    Vectors of sequences, read from `cache` where they are there, and written to it where not.

    Args:
        advance: called with how many more sequences are done.
    """
    done = []
    for start in range(0, len(sequences), CHUNK):
        rows = slice(start, start + CHUNK)
        chunk = sequences[rows], pairs[rows] if pairs is not None else None
        key = hashlib.sha256(json.dumps([embedder.identity, *chunk], sort_keys=True).encode()).hexdigest()
        done.append(_embed_chunk(embedder, chunk, Path(cache) / key[:2] / f"{key}.npz"))
        advance(len(chunk[0]))
    vectors = np.concatenate([part.vectors for part in done])
    return Embedded(vectors, sum(part.seconds for part in done), sum(part.truncated for part in done))


def _embed_chunk(embedder, chunk, path: Path) -> Embedded:
    try:
        with np.load(path) as stored:
            return Embedded(stored["vectors"], float(stored["seconds"]), int(stored["truncated"]))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # damaged: made again
        path.unlink(missing_ok=True)
    start, truncated = time.perf_counter(), embedder.truncated
    vectors = embedder.embed(*chunk).astype(np.float32)
    made = Embedded(vectors, time.perf_counter() - start, embedder.truncated - truncated)
    with whole_file(path) as partial, open(partial, "wb") as handle:
        np.savez(handle, vectors=made.vectors, seconds=made.seconds, truncated=made.truncated)
    return made
