"""Vectors of sequences, and of their tokens and bases, from a frozen network.

    embedding = Embedding(load_encoder("mini"), pooling="mean")
    embedding.vectors(["ACGTACGT", "TTGACA"])                                # (2, 384) float32
    for tokens in embedding.tokens(["ACGTACGT"]):
        tokens.spans, tokens.vectors                                         # [[0, 4], [4, 8]] and (2, 384)

A sequence of more tokens than a window is read in windows that overlap. Its tokens are those of the whole sequence,
and each has the vector that the window has for it in which it stands farther from an end.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch

from ..architectures.encoding import TooManyTokens
from ..architectures.models import PROBE
from ..errors import UserError
from ..genome.strands import reverse_complement
from ..genome.windows import Tokens, tokenize
from .batches import default_batch_tokens
from .defaults import OVERLAP, POOLINGS, WINDOW
from .models import Loaded
from .pooling import Pool
from .rows import Row, check_windows, rows_of, run_rows, token_rows

AT_ONCE = 65_536  # tokens whose vectors are in memory, of token and base vectors
BASES_AT_ONCE = 4_096


@dataclass(frozen=True)
class TokenVectors:
    """
    Some of a sequence's tokens, in order.

    Attributes:
        sequence: its number among those given.
        ids: (tokens,) int32.
        spans: (tokens, 2) int64, bases, half-open.
        vectors: (tokens, hidden) float32.
    """

    sequence: int
    ids: np.ndarray
    spans: np.ndarray
    vectors: np.ndarray


class Embedding:
    """
    Args:
        loaded: an encoder, see `models.load_encoder`.
        pooling: of `vectors`: "mean", "cls" or "max".
        layer: the states behind this many layers; -1 for the last, 0 for the embeddings.
        window: tokens, special ones included, that are read at once; None for whole sequences.
        overlap: tokens that two windows of a sequence share at least.
        rc_average: the mean over both strands.
        batch_tokens: tokens of a batch, pads included; by default what suits the device.
        batch_size: sequences of a batch at most.

    Attributes:
        identity: what decides the vectors, JSON-ready.
        truncated: sequences that were cut to what a network has positions for, so far; ours has no such limit.

    Raises:
        UserError: if the layer or the window does not exist.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        pooling: str = "mean",
        layer: int = -1,
        window: int | None = WINDOW,
        overlap: int = OVERLAP,
        rc_average: bool = False,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        truncate: bool = False,
    ):
        if pooling not in POOLINGS:
            raise UserError(f"--pooling {pooling}: choose one of {', '.join(POOLINGS)}.")
        self.loaded, self.pooling, self.rc_average = loaded, pooling, rc_average
        self.batch_tokens = batch_tokens or default_batch_tokens(loaded.device)
        self.batch_size, self.truncate = batch_size, truncate
        self.layer = _layer(loaded, layer)
        if not loaded.is_ours:
            window = None
        check_windows(window, overlap)
        self.window, self.overlap = window, overlap
        self.truncated = 0
        self.identity = loaded.identity | {
            "pooling": pooling,
            "layer": self.layer,
            "window": window,
            "overlap": overlap if window else None,
            "rc_average": rc_average,
            "max_tokens": loaded.max_tokens,
        }

    @cached_property
    def size(self) -> int:
        """Numbers of a vector."""
        if self.loaded.is_ours:
            return self.loaded.model.config.hidden_size
        # Configurations of other people's models do not agree on its name, nor tell it where strands are joined.
        return self._pooled([PROBE], None).shape[1]

    def vectors(self, sequences: list[str], pairs: list[str] | None = None) -> np.ndarray:
        """
        (sequences, hidden) float32, in the order given.

        Args:
            sequences: as the model's tokenizer takes them, see `tokenizer.policy.normalise`.
            pairs: second sequences, read together with the first ones.
        """
        if not sequences:
            return np.empty((0, self.size), dtype=np.float32)
        made = self._pooled(sequences, pairs)
        if self.rc_average:
            other = None if pairs is None else [reverse_complement(s) for s in pairs]
            made = (made + self._pooled([reverse_complement(s) for s in sequences], other)) / 2
        return made

    def _pooled(self, sequences: list[str], pairs: list[str] | None) -> np.ndarray:
        found = Pool(len(sequences), self.pooling)
        for rows, hidden, mask in self._states(self._rows(sequences, pairs)):
            counts = mask if self.pooling == "cls" else _counting(rows, mask, self.loaded.tokenizer.padding_side)
            found.add(hidden, counts, np.array([row.sequence for row in rows]))
        return found.result()

    def check_places(self, what: str):
        """Raises UserError if the model is none whose tokens have places on the sequence."""
        if not self.loaded.is_ours:
            raise UserError(
                f"vectors of {what} are of DNABERT-2 models alone; pool those of {self.loaded.architecture.name}."
            )

    def tokens(self, sequences: list[str]) -> Iterator[TokenVectors]:
        """
        The vectors of the sequences' tokens, without special ones, in order and a part of a sequence at a time.

        Raises:
            UserError: if the model is none whose tokens have places on the sequence.
        """
        self.check_places("tokens")
        yield from self._tokens_of(sequences)

    def _tokens_of(self, sequences: Iterable[str], backwards: bool = False) -> Iterator[TokenVectors]:
        """Of several sequences at once if they are short; `backwards` gives the parts of each from the last on."""
        turns, size = [], 0
        for number, sequence in enumerate(sequences):
            for turn in self._turns(number, sequence, backwards):
                if turns and size + len(turn) > AT_ONCE:
                    yield from self._read(turns)
                    turns, size = [], 0
                turns.append(turn)
                size += len(turn)
        yield from self._read(turns)

    def _turns(self, number: int, sequence: str, backwards: bool) -> Iterator["_Turn"]:
        (tokens,) = tokenize(self.loaded.tokenizer, [sequence])
        # Each has [CLS] before and [SEP] behind, which are not asked for.
        rows = token_rows(self.loaded.tokenizer, number, tokens.ids, self.window, self.overlap)
        per_turn = max(1, AT_ONCE // max(map(len, rows)))
        firsts = range(0, len(rows), per_turn)
        for first in reversed(firsts) if backwards else firsts:
            yield _Turn(tokens, rows[first : first + per_turn])

    def _read(self, turns: list["_Turn"]) -> Iterator[TokenVectors]:
        vectors = [np.empty((turn.high - turn.low, self.size), dtype=np.float32) for turn in turns]
        turn_of = {id(row): i for i, turn in enumerate(turns) for row in turn.rows}
        for rows, hidden, _ in self._states([row for turn in turns for row in turn.rows]):
            for row, states in zip(rows, hidden.cpu().numpy(), strict=True):
                i = turn_of[id(row)]
                start, stop = max(row.keep.start, 1), min(row.keep.stop, len(row) - 1)
                place = row.first + start - 1 - turns[i].low
                vectors[i][place : place + stop - start] = states[start:stop]
        for turn, made in zip(turns, vectors, strict=True):
            yield TokenVectors(turn.rows[0].sequence, turn.tokens.ids[turn.low : turn.high], turn.spans, made)

    def bases(self, sequences: list[str]) -> Iterator[tuple[int, int, np.ndarray]]:
        """
        The vectors of the sequences' bases, those of their tokens: yields the sequence's number, the first base, and
        (bases, hidden) float32. With `rc_average` the mean of a base's token on either strand.

        Raises:
            UserError: as `tokens`.
        """
        self.check_places("bases")
        own = _in_runs(self._bases_of_strand(sequences))
        if not self.rc_average:
            yield from own
            return
        other = _in_runs(self._bases_of_strand(sequences, is_other=True))
        for (number, first, vectors), (_, _, other_vectors) in zip(own, other, strict=True):
            yield number, first, (vectors + other_vectors) / 2

    def _bases_of_strand(self, sequences: list[str], is_other: bool = False) -> Iterator[tuple[int, np.ndarray]]:
        """In the order of each sequence's bases, read on its own strand or on the other one."""
        texts = map(reverse_complement, sequences) if is_other else sequences
        for part in self._tokens_of(texts, backwards=is_other):
            owner = np.repeat(np.arange(len(part.spans)), part.spans[:, 1] - part.spans[:, 0])
            owner = owner[::-1] if is_other else owner
            for start in range(0, len(owner), BASES_AT_ONCE):
                yield part.sequence, part.vectors[owner[start : start + BASES_AT_ONCE]]

    def _rows(self, sequences: list[str], pairs: list[str] | None) -> list[Row]:
        windows = {"window": self.window, "overlap": self.overlap}
        try:
            return rows_of(self.loaded, sequences, pairs, **windows)
        except TooManyTokens as error:
            if not self.truncate:
                raise
            self.truncated += len(error.rows)
            return rows_of(self.loaded, sequences, pairs, **windows, truncate=True)

    def _states(self, rows: list[Row]) -> Iterator[tuple[list[Row], torch.Tensor, torch.Tensor]]:
        """Batches of rows, their states (rows, longest, hidden) in float32, and which of them are real."""
        run = _up_to_layer(self.loaded, self.layer)
        yield from run_rows(self.loaded, rows, run, self.batch_tokens, self.batch_size)


@dataclass(frozen=True)
class _Turn:
    """Neighbouring rows of one sequence, as many as are read at once, and which of its tokens count in them."""

    tokens: Tokens
    rows: list[Row]

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    @property
    def low(self) -> int:
        return max(self.rows[0].first + self.rows[0].keep.start - 1, 0)

    @property
    def high(self) -> int:
        return min(self.rows[-1].first + self.rows[-1].keep.stop - 1, len(self.tokens))

    @property
    def spans(self) -> np.ndarray:
        """(high - low, 2), as those of the whole sequence."""
        ends = self.tokens.ends[self.low : self.high]
        before = self.tokens.ends[self.low - 1 : self.low] if self.low else np.zeros(1, dtype=np.int64)
        return np.stack([np.concatenate([before, ends])[: len(ends)], ends], axis=1)


def _in_runs(parts: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Vectors of sequences' bases, BASES_AT_ONCE at a time, each with its sequence's number and its first base."""
    for number, own in groupby(parts, key=itemgetter(0)):
        first, rest = 0, None
        for _, vectors in own:
            rest = vectors if rest is None else np.concatenate([rest, vectors])
            while len(rest) >= BASES_AT_ONCE:
                yield number, first, rest[:BASES_AT_ONCE]
                first, rest = first + BASES_AT_ONCE, rest[BASES_AT_ONCE:]
        if len(rest):
            yield number, first, rest


def _counting(rows: list[Row], mask: torch.Tensor, side: str) -> torch.Tensor:
    """(rows, length) bool: the tokens that count."""
    if side == "left":  # of foreign models, whose rows count whole
        return mask
    places = torch.arange(mask.shape[1], device=mask.device)
    keep = torch.tensor([[row.keep.start, row.keep.stop] for row in rows], device=mask.device)
    return (places >= keep[:, :1]) & (places < keep[:, 1:])


def _layer(loaded: Loaded, layer: int) -> int:
    layers = _layers(loaded)
    if layers is None:
        if layer != -1:
            raise UserError(f"--layer {layer}: {loaded.architecture.name} does not say how many it has; leave it out.")
        return layer
    if not -layers - 1 <= layer <= layers:
        raise UserError(f"--layer {layer}: the model has {layers} layers; give 0 (the embeddings) to {layers}.")
    return layer % (layers + 1)


def _layers(loaded: Loaded) -> int | None:
    config = loaded.model.config
    return getattr(config, "num_hidden_layers", None) or getattr(config, "n_layer", None)


def _up_to_layer(loaded: Loaded, layer: int) -> Callable[[dict], torch.Tensor]:
    """A function of inputs that gives the states behind `layer` layers."""
    model = loaded.model
    if loaded.is_ours:
        # No layer behind the one that is asked for is computed.
        blocks = model.encoder.layer

        def run(inputs):
            model.encoder.layer = blocks[:layer]
            try:
                return model(**inputs)[0]
            finally:
                model.encoder.layer = blocks

        return run
    if layer in (-1, _layers(loaded)):
        return lambda inputs: model(**inputs)[0]
    return lambda inputs: model(**inputs, output_hidden_states=True).hidden_states[layer]
