"""What a network reads at once: sequences as rows of token ids, long ones in windows, and what it makes of them.

rows = rows_of(loaded, ["ACGT" * 500, "TTGACA"], window=128, overlap=16)
for some, logits, mask in run_rows(loaded, rows, lambda inputs: loaded.model(**inputs)["logits"], 4_096):
    ...
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..architectures.encoding import encode
from ..errors import UserError
from ..genome.windows import split, tokenize
from .batches import batches, to_inputs
from .models import Loaded


@dataclass(frozen=True)
class Row:
    """
    What the network reads at once.

    Attributes:
        sequence: whose it is, its number among those given.
        columns: the network's inputs, special tokens included, a row of integers each.
        first: the place in the sequence's tokens of this row's first token that is no special one.
        keep: which of the row's places count; those of special tokens where the sequence begins and ends.
    """

    sequence: int
    columns: dict[str, np.ndarray]
    first: int
    keep: slice

    def __len__(self) -> int:
        return len(self.columns["input_ids"])


def check_windows(window: int | None, overlap: int):
    """Raises UserError if windows that overlap so much get nowhere."""
    if window is not None and not (0 <= overlap < window - 2):
        raise UserError(
            f"windows of {window} tokens, two of them [CLS] and [SEP], cannot overlap by {overlap}; give a longer "
            "--window or a smaller --overlap."
        )


def rows_of(
    loaded: Loaded,
    sequences: list[str],
    pairs: list[str] | None = None,
    *,
    window: int | None = None,
    overlap: int = 0,
    truncate: bool = False,
) -> list[Row]:
    """
    Sequences, or pairs of them, as rows; of DNABERT-2 models single sequences in windows.

    Args:
        window: tokens of a row, special ones included; None for whole sequences.
        overlap: tokens that two windows of a sequence share at least.
        truncate: cut what a network has no positions for.

    Raises:
        TooManyTokens: if a sequence has more tokens than a network has positions for, and may not be cut.
    """
    tokenizer = loaded.tokenizer
    if loaded.is_ours and pairs is None:
        rows = []
        for i, tokens in enumerate(tokenize(tokenizer, sequences)):
            rows += token_rows(tokenizer, i, tokens.ids, window, overlap)
        return rows
    columns = encode(tokenizer, sequences, pairs, loaded.architecture, loaded.max_tokens, truncation=truncate)
    return [
        Row(i, {name: column[i] for name, column in columns.items()}, 0, slice(0, len(columns["input_ids"][i])))
        for i in range(len(sequences))
    ]


def token_rows(tokenizer, number: int, ids: np.ndarray, window: int | None, overlap: int) -> list[Row]:
    """A sequence's tokens in windows with [CLS] before and [SEP] behind, which count at the sequence's ends alone."""
    rows = []
    for part in split(len(ids), None if window is None else window - 2, overlap):
        inner = ids[part.span]
        columns = {"input_ids": np.concatenate([[tokenizer.cls_token_id], inner, [tokenizer.sep_token_id]])}
        start = part.kept.start + (part.keep.start > 0)
        stop = part.kept.stop + (2 if part.keep.stop == len(ids) else 1)
        rows.append(Row(number, columns, part.span.start, slice(start, stop)))
    return rows


def run_rows(
    loaded: Loaded, rows: list[Row], run: Callable, batch_tokens: int, batch_size: int | None = None
) -> Iterator[tuple[list[Row], torch.Tensor, torch.Tensor]]:
    """
    Batches of rows, the longest first: the rows, what `run` makes of their inputs in float32, and the mask of real
    tokens (rows, longest).
    """
    lengths = [len(row) for row in rows]
    takes_mask = loaded.is_ours or (bool(rows) and "attention_mask" in rows[0].columns)
    for places in batches(lengths, batch_tokens, batch_size, mixed=takes_mask):
        some = [rows[i] for i in places]
        columns = {name: [row.columns[name] for row in some] for name in some[0].columns}
        if loaded.is_ours and "attention_mask" not in columns:
            columns["attention_mask"] = [np.ones(len(row), dtype=np.int64) for row in some]
        inputs = to_inputs(columns, loaded.tokenizer, loaded.device)
        with torch.inference_mode():
            made = run(inputs).float()
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
        yield some, made, mask.bool()
