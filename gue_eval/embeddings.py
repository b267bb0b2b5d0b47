"""Frozen embeddings of DNA: one vector a sequence, of any Hugging Face encoder, of k-mer counts, or of random weights.

    embedder = load_embedder("mini", pooling="mean", device="cpu")         # or kmer-counts, random-init:mini, a Hub id
    embed_cached(embedder, ["ACGTACGT", "TTGACA"], None, Path("cache")).vectors              # (2, 384) float32

Only pooled vectors are kept, and a batch of long sequences has fewer of them, so that memory does not grow with their
length. What was embedded lies on the disk under a checksum of model, settings and sequences: a run that is killed
continues after its last 2,048 sequences, and a probe with other options starts from the vectors.
"""

import hashlib
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..architectures.models import hub_commit
from ..atomic import whole_file
from ..bundled import locate
from ..checksums import CONFIGURATION, folder_sha256, model_sha256
from ..errors import UserError
from ..precision import resolve_dtype
from .kmer_counts import kmer_counts

POOLINGS = ("mean", "cls", "max")
KMER_COUNTS = "kmer-counts"
RANDOM = "random-init:"
RANDOM_SEED = 42
K = 4
CHUNK = 2048  # sequences embedded between two writes to the cache
BATCH_TOKENS = 16_384  # pads included; a batch has no more unless one sequence has


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
    A frozen network and its tokenizer.

    Attributes:
        identity: what decides its vectors, JSON-ready: checksum or revision of the weights, pooling, precision.
        parameters: of the encoder.
        max_tokens: what the model has positions for, None if any number.
        truncated: sequences that were cut to that, so far.
    """

    def __init__(self, model, tokenizer, architecture, identity: dict, *, pooling: str, batch_size: int):
        from ..architectures.models import max_tokens

        self.model, self.tokenizer, self.architecture = model.eval(), tokenizer, architecture
        self.pooling, self.batch_size = pooling, batch_size
        self.max_tokens = max_tokens(architecture, model.config)
        self.identity = identity | {"pooling": pooling, "max_tokens": self.max_tokens}
        self.parameters = sum(p.numel() for p in model.parameters())
        self.truncated = 0

    def embed(self, sequences: list[str], pairs: list[str] | None = None) -> np.ndarray:
        """(sequences, hidden) float32, in the order given."""
        columns = self._encode(sequences, pairs)
        lengths = np.array([len(ids) for ids in columns["input_ids"]])
        vectors = None
        for rows in batches(lengths, self.batch_size, mixed="attention_mask" in columns):
            pooled = self._pooled({name: [column[i] for i in rows] for name, column in columns.items()})
            if vectors is None:
                vectors = np.empty((len(sequences), pooled.shape[1]), dtype=np.float32)
            vectors[rows] = pooled
        return vectors

    def _encode(self, sequences, pairs) -> dict[str, list[list[int]]]:
        from ..architectures.models import TooManyTokens, encode

        try:
            return encode(self.tokenizer, sequences, pairs, self.architecture, self.max_tokens)
        except TooManyTokens as error:
            self.truncated += len(error.rows)
            return encode(self.tokenizer, sequences, pairs, self.architecture, self.max_tokens, truncation=True)

    def _pooled(self, columns: dict[str, list[list[int]]]) -> np.ndarray:
        import torch

        pads = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
        inputs = {
            name: torch.tensor(_padded(column, pads[name], self.tokenizer.padding_side), device=self.model.device)
            for name, column in columns.items()
        }
        with torch.inference_mode():
            hidden = self.model(**inputs)[0].float()
        mask = inputs.get("attention_mask")
        mask = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask
        return pool(hidden, mask, self.pooling).cpu().numpy()


def _padded(rows: list[list[int]], pad: int, side: str) -> list[list[int]]:
    longest = max(len(row) for row in rows)
    if side == "left":
        return [[pad] * (longest - len(row)) + row for row in rows]
    return [row + [pad] * (longest - len(row)) for row in rows]


def pool(hidden, mask, pooling: str):
    """
    (batch, length, hidden) states of which `mask` (batch, length) says which are real -> (batch, hidden).

    "mean" weighs every real token alike, special ones included; "cls" takes the first real token; "max" the greatest
    value of each dimension.
    """
    if pooling == "cls":
        return hidden[range(len(hidden)), mask.long().argmax(dim=1)]
    is_real = mask[..., None].bool()
    if pooling == "max":
        return hidden.masked_fill(~is_real, float("-inf")).amax(dim=1)
    return hidden.masked_fill(~is_real, 0.0).sum(dim=1) / is_real.sum(dim=1)


def batches(lengths: np.ndarray, batch_size: int, mixed: bool) -> list[np.ndarray]:
    """
    Rows in batches of like length, the longest first.

    Args:
        lengths: tokens of each row.
        mixed: a batch may have rows of several lengths; else, for networks that take no mask, it needs no pads.
    """
    order, start, made = np.argsort(-lengths, kind="stable"), 0, []
    while start < len(order):
        longest = int(lengths[order[start]])
        end = start + min(batch_size, max(1, BATCH_TOKENS // longest))
        if not mixed:
            end = min(end, start + int((lengths[order[start:]] == longest).sum()))
        made.append(order[start:end])
        start = end
    return made


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
    if pooling not in POOLINGS:
        raise UserError(f"--pooling {pooling}: choose one of {', '.join(POOLINGS)}.")
    if name == KMER_COUNTS:
        return KmerEmbedder()
    from ..architectures.models import architecture_of, fit_tokenizer, load_any_tokenizer

    source = name.removeprefix(RANDOM)
    architecture = architecture_of(source, trust_remote_code)
    tokenizer = load_any_tokenizer(source, architecture, trust_remote_code)
    options = {"dtype": resolve_dtype(dtype, device)}
    if name != source:
        model = _random_model(locate(source), architecture, trust_remote_code, options)
    else:
        model = _trained_model(source, architecture, trust_remote_code, options)
    fit_tokenizer(tokenizer, model)
    identity = {
        "model": name,
        "dtype": str(options["dtype"]).removeprefix("torch."),
        **_fingerprint(source, name != source),
    }
    return NetworkEmbedder(model.to(device), tokenizer, architecture, identity, pooling=pooling, batch_size=batch_size)


def _trained_model(name: str, architecture, trusted: bool, options: dict):
    from transformers import AutoModel

    from ..bert_layers.checkpoints import checkpoint_errors
    from ..loading import load_model

    if architecture.code == "ours":
        return load_model("DNABert2Model", name, add_pooling_layer=False, **options)
    return _or_user_error(
        name,
        lambda: AutoModel.from_pretrained(name, trust_remote_code=architecture.runs_code(trusted), **options),
        checkpoint_errors,
    )


def _random_model(name: str, architecture, trusted: bool, options: dict):
    import torch
    from transformers import AutoConfig, AutoModel

    from ..configuration_dnabert2 import DNABert2Config
    from ..modeling_dnabert2 import DNABert2Model

    torch.manual_seed(RANDOM_SEED)
    if architecture.code == "ours":
        return DNABert2Model(DNABert2Config.from_pretrained(name), add_pooling_layer=False).to(options["dtype"])
    remote = architecture.runs_code(trusted)

    def build():
        config = AutoConfig.from_pretrained(name, trust_remote_code=remote)
        return AutoModel.from_config(config, trust_remote_code=remote).to(options["dtype"])

    return _or_user_error(name, build)


def _or_user_error(name: str, load: Callable, context: Callable | None = None):
    try:
        if context is None:
            return load()
        with context(name):
            return load()
    # The last three are what code on the Hub that was written for other versions raises.
    except (OSError, ValueError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(f"{name}: cannot be loaded as an encoder: {reason}") from error


def _fingerprint(name: str, is_random: bool) -> dict[str, str | None]:
    """`sha256` of a folder's configuration, tokenizer and weights in use, or the `revision` of a Hub repository."""
    folder = Path(locate(name))
    if not folder.is_dir():
        return {"revision": hub_commit(name)}
    return {"sha256": folder_sha256(folder, CONFIGURATION) if is_random else model_sha256(name)}


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
