"""Embeddings for scikit-learn, pandas and AnnData.

    from dnabert2 import DNABert2Embedder
    classifier = make_pipeline(DNABert2Embedder("mini", pooling="max"), LogisticRegression())
    classifier.fit(["ACGTACGT", "TTGACA"], [0, 1])
    AnnData(DNABert2Embedder().embed(["ACGTACGT", "TTGACA"], ids=["peak1", "peak2"]))             # 2 x 384

Grids may search over every setting. A process loads a network once, whatever number of embedders ask for it; pickled
embedders, and those sent to other processes, hold its name and load it again.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin

from ..bundled import locate
from ..checksums import CONFIGURATION, WEIGHTS
from ..errors import UserError
from ..tokenizer.policy import TextPolicy, normalise
from .defaults import OVERLAP, WINDOW
from .embedding import Embedding
from .models import Loaded, load_encoder
from .ranks import Ranks

NETWORKS = 2  # kept in memory, those used last


class BadInput(UserError, ValueError):
    """Sequences or settings that cannot be used: one sentence, as a ValueError, which scikit-learn's users expect."""


class DNABert2Embedder(TransformerMixin, BaseEstimator):
    """
    A scikit-learn transformer from sequences to vectors. It learns nothing and transforms without `fit` as well.

    Args:
        model: a model folder, a Hub id or a bundled checkpoint; of other encoders those of `architectures/rows.json`.
        pooling: "mean" over all tokens, [CLS] and [SEP] among them, as published, or "cls" or "max".
        layer: the states behind this many layers; -1 for the last, 0 for the embeddings.
        window: tokens, special ones included, that are read at once; None for whole sequences.
        overlap: tokens that two windows of a sequence share at least.
        rc_average: the mean over both strands.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where it is fast. The vectors are float32 in any case.
        device: cpu, cuda, cuda:1, ...; auto: a GPU if there is one.
        attn_implementation: attention backend; by default the fastest that works.
        batch_tokens: tokens of a batch, pads included; by default what suits the device.
        policy: what becomes of lower case, U, ambiguity codes and N; by default `TextPolicy()`, as in the commands.
        trust_remote_code: run code of the model's repository.

    Attributes:
        n_features_out_: numbers of a vector, after `fit`.
    """

    def __init__(
        self,
        model: str = "mini",
        *,
        pooling: str = "mean",
        layer: int = -1,
        window: int | None = WINDOW,
        overlap: int = OVERLAP,
        rc_average: bool = False,
        dtype: str = "float32",
        device: str = "auto",
        attn_implementation: str | None = None,
        batch_tokens: int | None = None,
        policy: TextPolicy | None = None,
        trust_remote_code: bool = False,
    ):
        # As they are: scikit-learn's clones compare them with what they were made from.
        self.model = model
        self.pooling = pooling
        self.layer = layer
        self.window = window
        self.overlap = overlap
        self.rc_average = rc_average
        self.dtype = dtype
        self.device = device
        self.attn_implementation = attn_implementation
        self.batch_tokens = batch_tokens
        self.policy = policy
        self.trust_remote_code = trust_remote_code

    def fit(self, X, y=None) -> "DNABert2Embedder":
        """
        Check sequences and settings.

        Args:
            X: as for `transform`.
            y: ignored.

        Raises:
            BadInput: if a setting or a sequence, which is named by its place, cannot be used.
        """
        self._texts(X)
        embedding, _ = self._embedding()
        self.n_features_out_ = embedding.size
        return self

    def transform(self, X) -> np.ndarray:
        """
        (sequences, hidden) float32, in the order given.

        Args:
            X: sequences: a list, an array of strings or objects, a Series, or a table or array of one column.

        Raises:
            BadInput: as `fit`.
        """
        return self._vectors(self._texts(X))

    def embed(self, sequences, ids: Iterable | None = None) -> pd.DataFrame:
        """
        The vectors as a table, which `anndata.AnnData` takes as it is: one float32 column a dimension.

        Args:
            sequences: as for `transform`.
            ids: the table's index; without it that of a Series or table, or numbers from 0.

        Raises:
            BadInput: as `fit`, and if there are more or fewer ids than sequences.
        """
        texts = self._texts(sequences)
        if ids is not None:
            index = pd.Index(ids)
        else:
            index = sequences.index if _is_pandas(sequences) else pd.RangeIndex(len(texts))
        if len(index) != len(texts):
            raise BadInput(f"there are {len(index):,} ids for {len(texts):,} sequences; give one each.")
        return pd.DataFrame(self._vectors(texts), index=index, columns=self.get_feature_names_out())

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Names of the dimensions, as scikit-learn makes them: dnabert2embedder0, ...; `input_features` is ignored."""
        embedding, _ = self._embedding()
        prefix = type(self).__name__.lower()
        return np.array([f"{prefix}{i}" for i in range(embedding.size)], dtype=object)

    def _texts(self, X) -> list[str]:
        return _texts(X, TextPolicy() if self.policy is None else self.policy)

    def _embedding(self) -> tuple[Embedding, Lock]:
        with _bad_input():
            if self.batch_tokens is not None and self.batch_tokens < 1:
                raise BadInput(f"batch_tokens {self.batch_tokens}: give at least 1, or None for the device's.")
            network = _network(
                str(self.model),
                Ranks.from_environment().device(self.device),
                self.dtype,
                self.attn_implementation,
                self.trust_remote_code,
            )
            embedding = Embedding(
                network.loaded,
                pooling=self.pooling,
                layer=self.layer,
                window=self.window,
                overlap=self.overlap,
                rc_average=self.rc_average,
                batch_tokens=self.batch_tokens,
            )
        return embedding, network.lock

    def _vectors(self, texts: list[str]) -> np.ndarray:
        embedding, lock = self._embedding()
        with _bad_input(), lock:
            return embedding.vectors(texts)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []  # float32, always
        return tags


class _Network(NamedTuple):
    loaded: Loaded
    lock: Lock  # an `Embedding` leaves layers out while it runs, which other threads must not see


_loading = Lock()  # two threads that want the same network wait for one


def _network(name: str, device: str, dtype: str, attn_implementation: str | None, trust_remote_code: bool) -> _Network:
    with _loading:
        return _load(name, device, dtype, attn_implementation, trust_remote_code, _files_of(name))


@lru_cache(maxsize=NETWORKS)
def _load(name, device, dtype, attn_implementation, trust_remote_code, files) -> _Network:
    loaded = load_encoder(
        name,
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    return _Network(loaded, Lock())


def _files_of(name: str) -> tuple:
    """What tells a folder that was written anew from what it was; nothing of a Hub id."""
    folder = Path(locate(name))
    found = sorted({path for pattern in CONFIGURATION + WEIGHTS for path in folder.glob(pattern)})
    return tuple((str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in found)


def _texts(X, policy: TextPolicy) -> list[str]:
    """Sequences in any form that `transform` takes, as the model's tokenizer takes them."""
    if isinstance(X, (str, bytes)):
        raise BadInput("X is one text; give a list of sequences.")
    labels, shape = list(X.index) if _is_pandas(X) else None, getattr(X, "shape", None)
    if shape is not None and len(shape) == 2 and shape[1] == 1:
        X = X[:, 0] if labels is None else X.iloc[:, 0]
    elif shape is not None and len(shape) != 1:
        raise BadInput(f"X has the shape {tuple(shape)}; give one sequence a row, in one column.")
    texts = []
    for i, sequence in enumerate(X):
        try:
            if not isinstance(sequence, str):
                raise UserError(f"is no text but {sequence!r:.40}; remove it or fill it in")
            texts.append(normalise(sequence, policy))
        except UserError as error:
            label = "" if labels is None or labels[i] == i else f" ({labels[i]!r})"
            raise BadInput(f"sequence {i}{label} {error}.") from error
    return texts


def _is_pandas(X) -> bool:
    return isinstance(X, (pd.Series, pd.DataFrame))


@contextmanager
def _bad_input() -> Iterator[None]:
    """Messages that are written for the command line, whose options are parameters here."""
    try:
        yield
    except UserError as error:
        raise BadInput(re.sub(r"(?<!\S)--(?=\w)", "", str(error))) from error
